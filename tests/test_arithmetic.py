from collections.abc import Callable, Iterator

import pytest
import torch

from plainres.analysis.evaluation import predict
from plainres.analysis.measurements import read_finished
from plainres.arithmetic import set_arithmetic
from plainres.config.schema import Config
from plainres.runs.record import Run
from plainres.training.train import train


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    deterministic = torch.utils.deterministic
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), torch.get_num_threads()
    yield
    torch.backends.cudnn.allow_tf32, precision, threads = before
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)
    deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]


def test_float32_is_ieee_float32_whatever_was_set_before() -> None:
    torch.backends.cudnn.allow_tf32 = True  # torch's default on GPUs
    torch.set_float32_matmul_precision("medium")
    set_arithmetic(1)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_deterministic_runs_do_not_fill_memory() -> None:
    set_arithmetic(1)
    assert not torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]


def test_training_predictions_and_measurements_are_in_ieee_float32(make_config: Callable[..., Config]) -> None:
    run = Run.of(make_config())
    for use in (train, predict, lambda run: read_finished([run.folder])):
        torch.backends.cudnn.allow_tf32 = True
        use(run)
        assert not torch.backends.cudnn.allow_tf32
