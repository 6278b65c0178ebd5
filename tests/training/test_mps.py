"""Apple's GPUs, on none of which these tests have been run: what can be checked without one."""

from collections.abc import Callable

import pytest
import torch

from plainres.config.compose import compose
from plainres.config.instantiate import check
from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.launch.preflight import slots
from plainres.runs.provenance import device_name, peak_memory_mib
from plainres.runs.record import Run
from plainres.training.classifier import Classifier
from support.linear import Linear
from support.training import recipe

Make = Callable[..., Config]
MPS = {"accelerator": "mps"}


def test_the_option() -> None:
    (config,) = compose(["trainer=mps"])
    trainer = config.trainer
    assert (trainer.device_type, trainer.devices, trainer.cuda_graph) == ("mps", 1, False)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is a GPU by Apple")
def test_elsewhere_it_is_refused(make_config: Make) -> None:
    with pytest.raises(InputError, match=r"accelerator is mps, but torch finds no GPU by Apple here; use trainer=cpu$"):
        check(make_config(trainer=MPS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "64-true"}, r"precision is 64-true, which trainer\.accelerator=mps does not support"),
        ({"probes": {"signals": {}}}, r"probes compute in float64, which trainer\.accelerator=mps does not support"),
        ({"trainer": {**MPS, "devices": 2}}, r"mps is a single device, but there are 2 processes"),
        ({"trainer": {**MPS, "cuda_graph": True}}, r"cuda_graph=true is for one GPU only"),
    ],
)
def test_it_has_neither_float64_nor_cuda_graphs(make_config: Make, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_config(**{"trainer": MPS, **changes})


def test_a_sweep_trains_one_run_at_a_time(make_config: Make) -> None:
    assert slots([Run.of(make_config(trainer=MPS))], 0, "") == [None]


def test_losses_and_errors_can_be_summed_in_float32() -> None:
    network = Linear(1, 10, 8, 4, torch.nn.Identity)
    classifier = Classifier(network, recipe(), 10, 4, sums=torch.float32)
    assert classifier.counted.dtype == torch.float32
    tensors = [*classifier.state_dict().values(), *(metric.sums for metric in classifier.evaluations.values())]
    assert not any(tensor.dtype == torch.float64 for tensor in [*tensors, classifier.running.sums])


def test_its_name_is_recorded_but_no_peak_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M2", raising=False)
    assert device_name("mps") == "mps Apple M2"
    assert peak_memory_mib("mps") is None
