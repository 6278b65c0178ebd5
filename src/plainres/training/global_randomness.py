"""Refusal of networks that draw from torch's global random numbers, on which a run does not depend."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plainres.errors import InputError


class NoGlobalRandomness:
    """Training step that refuses a network which draws from torch's global random numbers in its first step.

    nn.Dropout and torch.rand do. Their numbers depend on what the process has drawn before, so that neither a resumed
    run nor a second one would be the same, while all seeds would share them.

    Args:
        step: trains on a batch.
        device_type: `cpu`, `cuda` or `mps`.
    """

    def __init__(self, step: Callable[[Any], object], device_type: str) -> None:
        self.step, self.device_type, self.checked = step, device_type, False

    def __call__(self, batch: Any) -> None:
        """Train on a batch.

        Raises:
            InputError: the first step has drawn global random numbers.
        """
        if self.checked:
            self.step(batch)
            return
        before = self._states()
        self.step(batch)
        self.checked = True
        if not all(map(torch.equal, before, self._states())):
            raise InputError(
                "the network draws from torch's global random numbers, as nn.Dropout and torch.rand do; draw from a "
                "plainres.randomness.Noise instead, so that a run depends on its configuration only (docs/networks.md)"
            )

    def _states(self) -> list[Tensor]:
        """Return the states of the generators of the CPU and the device."""
        device = {"cuda": torch.cuda.get_rng_state, "mps": torch.mps.get_rng_state}.get(self.device_type)
        return [torch.get_rng_state(), *([device()] if device else [])]
