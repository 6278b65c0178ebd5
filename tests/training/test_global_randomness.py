"""A run depends on its configuration only, so a network that draws global random numbers is refused."""

from collections.abc import Callable

import pytest
import torch

from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.randomness import draws
from plainres.runs.record import Run
from plainres.training.global_randomness import NoGlobalRandomness
from plainres.training.train import train

Make = Callable[..., Config]


def test_only_the_first_step_is_checked() -> None:
    step = NoGlobalRandomness(torch.rand, "cpu")
    step(0)
    step(1)
    with pytest.raises(InputError, match="draws from torch's global random numbers"):
        NoGlobalRandomness(torch.rand, "cpu")(1)
    NoGlobalRandomness(lambda index: draws(5, index), "cpu")(torch.arange(3))


def test_a_shortcut_with_dropout_of_torch_is_refused(make_config: Make) -> None:
    config = make_config()
    config.model["shortcut"] = {"_target_": "support.noisy.Noisy", "_partial_": True}
    run = Run.of(config)
    with pytest.raises(InputError, match=r"draw from a plainres\.randomness\.Noise instead"):
        train(run)
    assert (run.step, run.failure) == (0, None)
