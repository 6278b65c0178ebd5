"""Global average pooling for networks that are compiled in bfloat16."""

from typing import Any

import torch
from torch import Tensor, nn


class _AverageOfKept(torch.autograd.Function):
    """Average over the pixels of each channel, whose backward pass refers to the features."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        """Return the averages (N, C, 1, 1) of features (N, C, H, W)."""
        ctx.save_for_backward(features)
        return features.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        """Return the gradient of the features, (N, C, H, W)."""
        (features,) = ctx.saved_tensors
        return grad_outputs[0] / (features.shape[2] * features.shape[3]) + 0.0 * features


class AvgPool2dOfKept(nn.AdaptiveAvgPool2d):
    """Global average pooling that lets the compiler keep the features for the backward pass.

    The gradient of an average does not depend on the features, so torch's compiler keeps only the signs that the ReLU
    before it needs, as truth values, which take longer to store and to load than the features in bfloat16, see
    experiments/throughput/README.md. The results, and the arithmetic in eager mode, are those of torch.

    Input is (N, C, H, W), output (N, C, 1, 1).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Average each channel over its pixels."""
        if not torch.compiler.is_compiling():
            return super().forward(input)
        return _AverageOfKept.apply(input)


def convert_global_average(network: nn.Module) -> None:
    """Convert global average pooling by `nn.AdaptiveAvgPool2d` to `AvgPool2dOfKept`, in place."""
    for module in network.modules():
        if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1), [1, 1]):
            module.__class__ = AvgPool2dOfKept
