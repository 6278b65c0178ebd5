"""How the signal between two convolutions is brought to scale: normalisation, or the scalars that can stand for it."""

import math
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plainres.errors import InputError


class NormFactory(Protocol):
    """Makes the normalisation behind one convolution; `nn.BatchNorm2d` is one, and `nn.Identity` for none."""

    def __call__(self, channels: int, /) -> nn.Module:
        """Return a module (N, channels, H, W) -> the same shape."""
        ...


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
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


class _MeanOverProcesses(torch.autograd.Function):
    """The mean of a tensor over all processes; the gradient is the mean of theirs, for each has a part in each."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _mean(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _mean(grad_outputs[0])


def _mean(values: Tensor) -> Tensor:
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015) with the statistics of the whole batch, over all processes.

    torch's own `nn.SyncBatchNorm` runs on GPUs only; this one is tested without any.

    Every process has as many images in a training step. Input and output are (N, C, H, W); parameters, buffers and
    keys those of `nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in evaluation mode by the running statistics, as any batch normalisation."""
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        x = input.to(self.weight.dtype)  # statistics of bf16 activations are float32 ones
        mean = _MeanOverProcesses.apply(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = _MeanOverProcesses.apply(centred.square().mean((0, 2, 3)))
        with torch.no_grad():
            images = x.numel() // x.shape[1] * dist.get_world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * images / (images - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def synchronise(network: nn.Module) -> nn.Module:
    """Let every batch normalisation in a network take its statistics from all processes; return the network."""
    for module in list(network.modules()):
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d  # the same parameters and buffers, another forward
    return network
