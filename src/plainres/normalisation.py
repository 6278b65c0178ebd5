"""How the signal between two convolutions is brought to scale: normalisation, or the scalars that can stand for it."""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from plainres.errors import InputError


class NormFactory(Protocol):
    """Makes the normalisation behind one convolution; `nn.BatchNorm2d` is one, and `nn.Identity` for none."""

    def __call__(self, channels: int, /) -> nn.Module:
        """Return a module (N, channels, H, W) -> the same shape."""
        ...


def group(channels: int, groups: int) -> nn.GroupNorm:
    """Group normalisation (Wu & He 2018): 2 parameters for each channel, and no statistics kept.

    In `groups` groups, or, where that does not divide the channels, in the greatest common divisor of both.

    Raises:
        InputError: `groups` is less than 1.
    """
    if groups < 1:
        raise InputError(f"model.norm.groups is {groups}; it must be at least 1")
    return nn.GroupNorm(math.gcd(groups, channels), channels)


class Bias(nn.Module):
    """x + b with one number b for all channels, 0 at first (Zhang et al. 2019, Fixup, rule 3). 1 parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Shift all of `x`."""
        return x + self.bias


class Scale(nn.Module):
    """a x with one number a for all channels, 1 at first (Zhang et al. 2019, Fixup, rule 3). 1 parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply all of `x`."""
        return self.scale * x
