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


class _OwnStatistics(nn.BatchNorm2d):
    """Batch normalisation whose subclasses compute the statistics of a batch."""

    def _track(self, mean: Tensor, variance: Tensor, values: int) -> None:
        """Update the running statistics by those of a batch with the given number of values per channel."""
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * values / (values - 1), self.momentum)


class SyncBatchNorm2d(_OwnStatistics):
    """Batch normalisation (Ioffe & Szegedy 2015) with the statistics of the global batch, over all ranks.

    Unlike `nn.SyncBatchNorm`, which requires GPUs, this class also runs on CPUs. All ranks must have the same number of
    images in a training step.

    Input and output are (N, C, H, W). Parameters, buffers and state dict keys are those of `nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the batch statistics in training mode, and by the running statistics in evaluation mode."""
        if not self.training:
            return super().forward(input)
        x = input.to(self.weight.dtype)  # bf16 is too coarse for statistics
        mean = _AllReduceMean.apply(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = _AllReduceMean.apply(centred.square().mean((0, 2, 3)))
        self._track(mean, variance, x.numel() // x.shape[1] * dist.get_world_size())
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def convert_sync_batch_norm(network: nn.Module) -> nn.Module:
    """Convert every `nn.BatchNorm2d` in a network to `SyncBatchNorm2d`, in place, and return the network."""
    for module in list(network.modules()):
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d  # keeps parameters and buffers, and replaces forward
    return network


class _NormalizeByImage(torch.autograd.Function):
    """Normalisation by the statistics of a batch, from sums over each image and then over the images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalised `x`, (N, C, H, W) in its type, and each channel's mean and biased variance, (C,)."""
        values = x.numel() // x.shape[1]
        mean = x.to(weight.dtype).sum((2, 3)).sum(0) / values
        centred = x - mean[:, None, None]
        variance = centred.square().sum((2, 3)).sum(0) / values
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        ctx.save_for_backward(x, mean, inverse, scale)
        ctx.mark_non_differentiable(mean, variance)
        return (centred * scale[:, None, None] + bias[:, None, None]).to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of `x`, (N, C, H, W), and of the weight and the bias, (C,).

        With the gradient g of the output, averages over the batch, and z = (x - mean) / deviation, that of `x` is
        weight / deviation (g - average(g) - z average(g z)).
        """
        x, mean, inverse, scale = ctx.saved_tensors
        share = 1 / (x.numel() // x.shape[1])
        gradient, centred = grad_outputs[0].to(mean.dtype), x - mean[:, None, None]
        sums, products = gradient.sum((2, 3)), (gradient * centred).sum((2, 3))
        # as factors of sums, numbers of a channel are computed once, and not again for each pixel
        constant = (sums * (scale * share)).sum(0)
        slope = (products * (scale * inverse.square() * share)).sum(0)
        of_x = gradient * scale[:, None, None] - centred * slope[:, None, None] - constant[:, None, None]
        return of_x.to(x.dtype), (products * inverse).sum(0), sums.sum(0), None


class BatchNorm2dByImage(_OwnStatistics):
    """Batch normalisation (Ioffe & Szegedy 2015) that sums over each image first, for networks compiled in bfloat16.

    torch's compiler sums a channel of all images at once, with accumulators in memory, which is slower, and rounds the
    statistics that the backward pass uses to the type of the input, see experiments/throughput/README.md. Parameters,
    buffers and state dict keys are those of `nn.BatchNorm2d`, and so is the arithmetic in eager mode and in evaluation.

    Input and output are (N, C, H, W).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the batch statistics in training mode, and by the running statistics in evaluation mode."""
        values = input.numel() // input.shape[1]
        if not (self.training and torch.compiler.is_compiling() and values > 1):  # torch refuses a single value
            return super().forward(input)
        output, mean, variance = _NormalizeByImage.apply(input, self.weight, self.bias, self.eps)
        self._track(mean, variance, values)
        return output


def convert_batch_norm_by_image(network: nn.Module) -> None:
    """Convert `nn.BatchNorm2d` with weights, running statistics and momentum to `BatchNorm2dByImage`, in place."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats and module.momentum:
            module.__class__ = BatchNorm2dByImage  # keeps parameters and buffers, and replaces forward
