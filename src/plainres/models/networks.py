"""Residual networks of a given depth and width, built from blocks."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainres.errors import InputError
from plainres.models.activations import ActivationFactory
from plainres.models.blocks import BlockSpec, NamedLayers, convolution, ordered_layers
from plainres.models.connections import Connection, StatefulBlock
from plainres.models.normalisation import NormFactory
from plainres.models.shortcuts import Positioned, ShortcutFactory
from plainres.models.tailoring import tailor

BASIC, LINEAR = BlockSpec(), BlockSpec(kernels=(1, 1))
IMAGENET_BLOCKS = [(2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)]  # He et al. 2015, Table 1


class Head(nn.Sequential):
    """Global average pooling and a linear layer: (N, channels, H, W) -> logits (N, classes).

    Autocast does not apply to the head, which computes in the precision of its weights. The 8 significant bits of
    bfloat16 would give ties between logits, and these would decide the argmax.
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
    """Network of a stem, stages of blocks, and a head.

    Each stage is twice as wide as the previous one, and its first block has stride 2 (1 in the first stage).

    Shapes: images (N, in_channels, H, W) -> logits (N, classes).

    Args:
        stem: layers that map images to (N, channels, H', W').
        channels: number of output channels of the stem.
        classes: number of output classes.
        blocks: number of blocks in each stage.
        width: number of channels inside the blocks of the first stage. Their outputs have `block.expansion` times as
            many.
        shortcut: factory for the shortcut of a block.
        block: specification of the blocks.
        norm: factory for normalisations.
        activation: factory for activations.
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
        activation: ActivationFactory,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(stem))
        self.stages = nn.Sequential()
        position, factories = 0, {"norm": norm, "activation": activation}
        for stage, count in enumerate(blocks):
            stage_width = width * 2**stage
            layers = nn.Sequential()
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                first = stage == index == 0
                built = block.build(channels, stage_width, stride, shortcut, first=first, **factories)
                stateful = isinstance(built.shortcut, Connection)
                layers.append(StatefulBlock(built, index + 1, count) if stateful else built)
                position += 1
                for module in layers[-1].modules():
                    if isinstance(module, Positioned):
                        module.set_position(position, sum(blocks))
                channels = stage_width * block.expansion
            self.stages.append(layers)
        self.tail = nn.Sequential(OrderedDict(ordered_layers(block.order.tail, channels, norm, activation)))
        self.head = Head(channels, classes)
        tailor(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.head(self.tail(self.stages(self.stem(images))))


class CifarNet(Stack):
    """Network for small images (He et al. 2015, section 4.2).

    A 3x3 stem with `stem_width` channels (default: `width`) is followed by `stages` stages of n blocks. The depth is
    stages * layers per block * n + 2, which is 6n+2 for the default basic blocks and 9n+2 for bottlenecks. Layers on
    shortcuts are not counted.

    Zagoruyko & Komodakis 2016 (Wide Residual Networks) count 6n+4 layers for blocks of any kind. Their WRN-40-2 has
    depth 38, width 32 and `stem_width` 16 here.

    Shapes: images (N, in_channels, H, W) -> logits (N, classes).

    Raises:
        InputError: the depth is not of this form, or another number is less than 1.
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
        activation: ActivationFactory = nn.ReLU,
        stages: int = 3,
        stem_width: int | None = None,
    ) -> None:
        if stages < 1:
            raise InputError(f"model.stages is {stages}; it must be at least 1")
        n = _blocks_per_stage(depth, stages, block)
        channels = width if stem_width is None else stem_width
        for key, value in {"width": width, "stem_width": channels, "stages": stages}.items():
            if value < 1:
                raise InputError(f"model.{key} is {value}; it must be at least 1")
        stem = convolution(in_channels, channels, 3) + ordered_layers(
            block.order.stem, channels, norm, activation, inplace=True
        )
        super().__init__(
            stem,
            channels,
            classes,
            blocks=[n] * stages,
            width=width,
            shortcut=shortcut,
            block=block,
            norm=norm,
            activation=activation,
        )


class ImageNet(Stack):
    """Network for 224x224 images (He et al. 2015, Table 1).

    The depth is 18 or 34 with basic blocks, and 50, 101 or 152 with bottlenecks. A 7x7 stem with stride 2 and `width`
    channels is followed by 3x3 max pooling with stride 2 and by four stages. With pre-activation the first
    normalisation and activation follow the pooling.

    Shapes: images (N, in_channels, H, W) -> logits (N, classes).

    Raises:
        InputError: the depth is not available for these blocks, or `width` is less than 1.
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
        activation: ActivationFactory = nn.ReLU,
    ) -> None:
        blocks_by_depth = {block.layers * sum(blocks) + 2: blocks for blocks in IMAGENET_BLOCKS}
        if depth not in blocks_by_depth:
            raise InputError(
                f"model.depth is {depth}; with {block.layers} layers per block it must be one of "
                f"{', '.join(map(str, blocks_by_depth))}; set model/block=basic for 18 and 34, and "
                "model/block=bottleneck for 50, 101 and 152"
            )
        if width < 1:
            raise InputError(f"model.width is {width}; it must be at least 1")
        stem = [
            *convolution(in_channels, width, 7, 2),
            *ordered_layers(block.order.stem, width, norm, activation, inplace=True),
            ("pool", nn.MaxPool2d(3, stride=2, padding=1)),
        ]
        super().__init__(
            stem,
            width,
            classes,
            blocks=blocks_by_depth[depth],
            width=width,
            shortcut=shortcut,
            block=block,
            norm=norm,
            activation=activation,
        )


class MLP(Stack):
    """Multilayer perceptron with shortcuts: linear layers of `width` features on flattened images.

    A linear layer is a 1x1 convolution of an image of one pixel, so that all shortcuts, orders and normalisations
    apply. Batch normalisation is that of features, and group normalisation with one group is layer normalisation. The
    depth is layers per block * n + 2, with the first layer and the head.

    Shapes: images (N, *image_shape) -> logits (N, classes).

    Raises:
        InputError: the depth is not of this form, a kernel is not 1, or another number is less than 1.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        classes: int,
        depth: int,
        width: int,
        shortcut: ShortcutFactory,
        *,
        block: BlockSpec = LINEAR,
        norm: NormFactory = nn.BatchNorm2d,
        activation: ActivationFactory = nn.ReLU,
    ) -> None:
        if any(kernel != 1 for kernel in block.kernels):
            raise InputError(f"model.block.kernels is {list(block.kernels)}; in an MLP all must be 1, such as [1,1]")
        if width < 1:
            raise InputError(f"model.width is {width}; it must be at least 1")
        features = math.prod(image_shape)
        pixel = [("flatten", nn.Flatten()), ("pixel", nn.Unflatten(1, (features, 1, 1)))]
        stem = pixel + convolution(features, width, 1)
        super().__init__(
            stem + ordered_layers(block.order.stem, width, norm, activation, inplace=True),
            width,
            classes,
            blocks=[_blocks_per_stage(depth, 1, block)],
            width=width,
            shortcut=shortcut,
            block=block,
            norm=norm,
            activation=activation,
        )


def _blocks_per_stage(depth: int, stages: int, block: BlockSpec) -> int:
    """Return n for a depth of stages * layers per block * n + 2.

    Raises:
        InputError: the depth is not of this form.
    """
    per_n = stages * block.layers
    n, rest = divmod(depth - 2, per_n)
    if rest or n < 1:
        below = per_n * max(n, 1) + 2
        raise InputError(
            f"model.depth is {depth}; it must be {per_n}n+2 with n >= 1; "
            f"the nearest valid depths are {below} and {below + per_n}"
        )
    return n


def misclassified(logits: Tensor, targets: Tensor) -> Tensor:
    """Return whether each image (N,) is misclassified, by logits (N, classes) and targets (N,).

    A logit that is NaN predicts no class, although argmax would return one.
    """
    return (logits.argmax(1) != targets) | logits.isnan().any(1)


def over_crops(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the logits (N, classes) of images (N, C, H, W).

    Of images in several crops (N, crops, C, H, W), return the logarithm of the mean of the crops' softmax outputs, as
    in Krizhevsky et al. 2012, section 4.1. Its softmax is this mean.
    """
    if images.ndim == 4:
        return network(images)
    crops = images.shape[1]
    shares = F.log_softmax(network(images.flatten(0, 1)), 1).unflatten(0, (-1, crops))
    return shares.logsumexp(1) - math.log(crops)
