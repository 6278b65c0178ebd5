"""How blocks stack into a net of a given depth and width; stems and heads."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plainres.errors import InputError
from plainres.models.blocks import BlockSpec, NamedLayers, arranged, convolution
from plainres.models.normalisation import NormFactory
from plainres.models.shortcuts import Positioned, ShortcutFactory

BASIC = BlockSpec()
IMAGENET_BLOCKS = [(2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)]  # He et al. 2015, Table 1


class Head(nn.Sequential):
    """Global average pooling and a linear layer: (N, channels, H, W) -> logits (N, classes).

    Under autocast it computes in the precision of its weights: bfloat16 logits have 8 bits, and ties would decide
    argmax.
    """

    def __init__(self, channels: int, classes: int) -> None:
        layers = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "linear": nn.Linear(channels, classes)}
        super().__init__(OrderedDict(layers))

    def forward(self, input: Tensor) -> Tensor:
        """Map features to logits."""
        device = input.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return super().forward(input)
        with torch.autocast(device, enabled=False):
            return super().forward(input.to(next(self.parameters()).dtype))


class Stack(nn.Module):
    """A stem, stages of blocks, and a head: global average pooling and a linear layer.

    Each stage but the first begins with stride 2, and each is twice as wide as the one before.

    Shapes: images (N, in_channels, H, W) -> logits (N, classes).

    Args:
        stem: images -> (N, channels, H', W').
        channels: what the stem gives.
        classes: logits of an image.
        blocks: how many each stage has.
        width: channels inside the blocks of the first stage; they give `block.expansion` times as many.
        shortcut: makes the shortcut of a block.
        block: makes a block.
        norm: makes a normalisation.
    """

    def __init__(
        self,
        stem: NamedLayers,
        channels: int,
        classes: int,
        *,
        blocks: Sequence[int],
        width: int,
        shortcut: ShortcutFactory,
        block: BlockSpec,
        norm: NormFactory,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(stem))
        self.stages = nn.Sequential()
        number = 0
        for stage, count in enumerate(blocks):
            inside = width * 2**stage
            layers = nn.Sequential()
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                first = stage == index == 0
                layers.append(block.build(channels, inside, stride, shortcut, norm, first=first))
                number += 1
                for module in layers[-1].modules():
                    if isinstance(module, Positioned):
                        module.set_position(number, sum(blocks))
                channels = inside * block.expansion
            self.stages.append(layers)
        self.tail = nn.Sequential(OrderedDict(arranged(block.order.tail, channels, norm)))
        self.head = Head(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.head(self.tail(self.stages(self.stem(images))))


class CifarNet(Stack):
    """The network of He et al. 2015, section 4.2, for small images: depth 6n+2 with its basic blocks.

    A 3x3 stem of `stem_width` channels (None: `width`), then `stages` stages of n blocks. With three stages and blocks
    of two layers the depth is 6n+2, with bottlenecks 9n+2, and so on; layers on shortcuts are not counted. (Wide
    ResNets, Zagoruyko & Komodakis 2016, count all but the head, as if blocks had two layers: their WRN-40-2 has depth
    38, width 32 and `stem_width` 16 here.)

    Shapes: images (N, in_channels, H, W) -> logits (N, classes).

    Raises:
        InputError: the depth does not fit, or a number is less than 1.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        depth: int,
        width: int,
        shortcut: ShortcutFactory,
        *,
        block: BlockSpec = BASIC,
        norm: NormFactory = nn.BatchNorm2d,
        stages: int = 3,
        stem_width: int | None = None,
    ) -> None:
        if stages < 1:
            raise InputError(f"model.stages is {stages}; it must be at least 1")
        per_n = stages * block.layers
        n, rest = divmod(depth - 2, per_n)
        if rest or n < 1:
            below = per_n * max(n, 1) + 2
            raise InputError(
                f"model.depth is {depth}; it must be {per_n}n+2 with n at least 1: "
                f"the nearest are {below} and {below + per_n}"
            )
        channels = width if stem_width is None else stem_width
        for key, value in {"width": width, "stem_width": channels, "stages": stages}.items():
            if value < 1:
                raise InputError(f"model.{key} is {value}; it must be at least 1")
        stem = convolution(in_channels, channels, 3) + arranged(block.order.stem, channels, norm, inplace=True)
        super().__init__(
            stem, channels, classes, blocks=[n] * stages, width=width, shortcut=shortcut, block=block, norm=norm
        )


class ImageNet(Stack):
    """The network of He et al. 2015, Table 1, for images of 224x224: depth 18 or 34, or 50, 101, 152 with bottlenecks.

    A 7x7 stem of stride 2 and `width` channels, 3x3 max pooling of stride 2, then four stages. With pre-activation the
    first normalisation and activation come behind the pooling.

    Shapes: images (N, in_channels, H, W) -> logits (N, classes).

    Raises:
        InputError: the depth is none that blocks of so many layers make, or `width` is less than 1.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        depth: int,
        width: int,
        shortcut: ShortcutFactory,
        *,
        block: BlockSpec = BASIC,
        norm: NormFactory = nn.BatchNorm2d,
    ) -> None:
        fitting = {block.layers * sum(blocks) + 2: blocks for blocks in IMAGENET_BLOCKS}
        if depth not in fitting:
            raise InputError(
                f"model.depth is {depth}; with {block.layers} layers in a block it must be one of "
                f"{', '.join(map(str, fitting))}; 18 and 34 have model/block=basic, 50, 101 and 152 "
                "model/block=bottleneck"
            )
        if width < 1:
            raise InputError(f"model.width is {width}; it must be at least 1")
        stem = [
            *convolution(in_channels, width, 7, 2),
            *arranged(block.order.stem, width, norm, inplace=True),
            ("pool", nn.MaxPool2d(3, stride=2, padding=1)),
        ]
        super().__init__(
            stem, width, classes, blocks=fitting[depth], width=width, shortcut=shortcut, block=block, norm=norm
        )
