"""How blocks stack into a net of a given depth and width; stem, head, initialisation."""

from collections import OrderedDict

from torch import Generator, Tensor, nn

from plainres.blocks import BasicBlock, conv_norm
from plainres.errors import InputError
from plainres.shortcuts import ShortcutFactory


class CifarNet(nn.Module):
    """The network of He et al. 2015, section 4.2: 6n+2 weighted layers.

    A 3x3 stem; three stages of n blocks with width, 2 width and 4 width channels, the second and third beginning with
    stride 2; global average pooling and a linear head.

    Shapes: images (N, in_channels, H, W) -> logits (N, classes).

    Raises:
        InputError: `depth` is not 6n+2 with n >= 1, or `width` is less than 1.
    """

    def __init__(self, in_channels: int, classes: int, depth: int, width: int, shortcut: ShortcutFactory) -> None:
        super().__init__()
        per_n = 3 * BasicBlock.layers
        n, rest = divmod(depth - 2, per_n)
        if rest or n < 1:
            below = per_n * max(n, 1) + 2
            raise InputError(
                f"model.depth is {depth}; it must be {per_n}n+2 with n at least 1: "
                f"the nearest are {below} and {below + per_n}"
            )
        if width < 1:
            raise InputError(f"model.width is {width}; it must be at least 1")
        self.stem = nn.Sequential(OrderedDict([*conv_norm(in_channels, width), ("activation", nn.ReLU(inplace=True))]))
        self.stages = nn.Sequential()
        channels = width
        for stage in range(3):
            out_channels = width * 2**stage
            blocks = nn.Sequential()
            for index in range(n):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(BasicBlock(channels, out_channels, stride, shortcut))
                channels = out_channels
            self.stages.append(blocks)
        self.head = nn.Sequential(
            OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(channels, classes))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.head(self.stages(self.stem(images)))


def initialise(network: nn.Module, generator: Generator) -> None:
    """Draw the backbone's weights: He initialisation, in the order of the modules, shortcuts left as they are.

    Convolutions are N(0, 2 / fan_out) (He et al. 2015, "Delving deep into rectifiers", equation 14), the linear layer,
    which no ReLU follows, N(0, 1 / fan_in); biases are 0. As only the backbone draws from `generator`, nets that
    differ in their shortcuts alone begin with identical backbones.
    """
    for name, module in network.named_modules():
        if "shortcut" in name.split("."):
            continue
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear", generator=generator)
            nn.init.zeros_(module.bias)
