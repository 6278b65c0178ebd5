"""Normalisation layers, and the scalar layers that replace them in Fixup."""

import math
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plainres.errors import InputError


class NormFactory(Protocol):
    """Factory for the normalisation of a convolution's output, such as `nn.BatchNorm2d` or, for none, `nn.Identity`."""

    def __call__(self, channels: int, /) -> nn.Module:
        """Build a module (N, channels, H, W) -> (N, channels, H, W)."""
        ...


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Build a group normalisation (Wu & He 2018), with 2 parameters per channel and no running statistics.

    The number of groups is `groups` if that divides `channels`, and otherwise their greatest common divisor.

    Raises:
        InputError: `groups` is less than 1.
    """
    if groups < 1:
        raise InputError(f"model.norm.groups is {groups}; it must be at least 1")
    return nn.GroupNorm(math.gcd(groups, channels), channels)


class Bias(nn.Module):
    """x + b, where b is a learned scalar initialised to 0 (Zhang et al. 2019, Fixup, rule 3). 1 parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` plus the bias."""
        return x + self.bias


class Scale(nn.Module):
    """a x, where a is a learned scalar initialised to 1 (Zhang et al. 2019, Fixup, rule 3). 1 parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` times the scale."""
        return self.scale * x


class _AllReduceMean(torch.autograd.Function):
    """Mean of a tensor over all ranks.

    Each rank's input contributes to the output on every rank, so the backward pass averages the gradients of all ranks.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _all_reduce_mean(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _all_reduce_mean(grad_outputs[0])


def _all_reduce_mean(values: Tensor) -> Tensor:
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (Ioffe & Szegedy 2015) with the statistics of the global batch, over all ranks.

    Unlike `nn.SyncBatchNorm`, which requires GPUs, this class also runs on CPUs. All ranks must have the same number of
    images in a training step.

    Input and output are (N, C, H, W). Parameters, buffers and state dict keys are those of `nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the batch statistics in training mode, and by the running statistics in evaluation mode."""
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        x = input.to(self.weight.dtype)  # bf16 is too coarse for statistics
        mean = _AllReduceMean.apply(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = _AllReduceMean.apply(centred.square().mean((0, 2, 3)))
        with torch.no_grad():
            images = x.numel() // x.shape[1] * dist.get_world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * images / (images - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def convert_sync_batch_norm(network: nn.Module) -> nn.Module:
    """Convert every `nn.BatchNorm2d` in a network to `SyncBatchNorm2d`, in place, and return the network."""
    for module in list(network.modules()):
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d  # keeps parameters and buffers, and replaces forward
    return network
