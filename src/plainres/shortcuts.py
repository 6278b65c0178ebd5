"""How a block joins its input to its residual branch: the one thing this project varies.

A shortcut takes both tensors, the block's input `x` (N, C_in, H, W) and the residual branch's output `fx`
(N, C_out, H/stride, W/stride), and returns `y` of the shape of `fx`. Whatever a published form does with the two, it is
one small class here, chosen by name in conf/model/shortcut/.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class ShortcutFactory(Protocol):
    """Makes the shortcut of one block; every class of this module is one."""

    def __call__(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        """Return a module `(x, fx) -> y`."""
        ...


class Plain(nn.Module):
    """y = F(x): no shortcut, the plain network of He et al. 2015, section 3.3. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx`."""
        return fx


class Identity(nn.Module):
    """y = F(x) + x; where the shape changes, x is subsampled and its channels padded with zeros. No parameters.

    He et al. 2015, equation 1 and option A of section 3.3. Half of the zero channels come before those of x and half
    behind, an odd one behind; the paper leaves this open.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus `x` brought to its shape."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if any(self.padding):
            x = F.pad(x, self.padding)
        return fx + x


class ProjectionAll(nn.Module):
    """y = F(x) + BN(W x), W a 1x1 convolution: C_in C_out + 2 C_out parameters.

    He et al. 2015, equation 2 and option C of section 3.3. W is initialised as the other convolutions are.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        # Subsampled first: a strided 1x1 convolution of fewer than 8 channels, in channels_last order on the CPU,
        # corrupts memory in its backward pass (torch 2.13, oneDNN).
        self.stride = stride
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus the projection of `x`."""
        return fx + self.norm(self.conv(x[:, :, :: self.stride, :: self.stride]))


def Projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:  # noqa: N802
    """A projection where the shape changes, the identity elsewhere: option B of He et al. 2015, section 3.3."""
    changes = stride != 1 or in_channels != out_channels
    return (ProjectionAll if changes else Identity)(in_channels, out_channels, stride)
