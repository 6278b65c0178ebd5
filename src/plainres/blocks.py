"""The order of convolution, normalisation and activation inside a block."""

from collections import OrderedDict

from torch import Tensor, nn

from plainres.shortcuts import ShortcutFactory


def conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> list[tuple[str, nn.Module]]:
    """A 3x3 convolution and its batch normalisation, as named layers."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return [("conv", conv), ("norm", nn.BatchNorm2d(out_channels))]


class BasicBlock(nn.Module):
    """y = relu(shortcut(x, F(x))), F = conv, BN, ReLU, conv, BN with 3x3 kernels.

    He et al. 2015, figure 2 and section 3.3. The first convolution has the stride.

    Shapes: x (N, in_channels, H, W) -> y (N, out_channels, H/stride, W/stride).
    """

    layers = 2  # weighted layers that one shortcut spans

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: ShortcutFactory) -> None:
        super().__init__()
        first = conv_norm(in_channels, out_channels, stride)
        second = conv_norm(out_channels, out_channels)
        self.residual = nn.Sequential(
            OrderedDict(
                [(f"{name}1", layer) for name, layer in first]
                + [("activation1", nn.ReLU(inplace=True))]
                + [(f"{name}2", layer) for name, layer in second]
            )
        )
        self.shortcut = shortcut(in_channels, out_channels, stride)
        self.activation = nn.ReLU()  # not in place: y may be x, or what a shortcut keeps for its gradient

    def forward(self, x: Tensor) -> Tensor:
        """Map x to y."""
        return self.activation(self.shortcut(x, self.residual(x)))
