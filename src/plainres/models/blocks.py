"""Blocks of convolutions with a shortcut.

`BlockSpec` specifies the convolutions that one shortcut spans. `LayerOrder` specifies the normalisations and
activations before, between and after these convolutions, and after the addition of the shortcut.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from plainres.errors import InputError
from plainres.models.activations import ActivationFactory
from plainres.models.normalisation import Bias, NormFactory, Scale
from plainres.models.shortcuts import ShortcutFactory, Subsample

NAMES = {"norm": "norm", "relu": "activation", "bias": "bias", "scale": "scale"}  # layer names in the state dict


NamedLayers = list[tuple[str, nn.Module]]


def convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, bias: bool = False, number: int | None = None
) -> NamedLayers:
    """Build a convolution, padded so that only its stride changes the height and width.

    A strided 1x1 convolution is preceded by a `Subsample` that applies the stride instead.
    """
    name = f"conv{number or ''}"
    if kernel == 1 and stride > 1:
        return [
            (f"subsample{number or ''}", Subsample(stride)),
            (name, nn.Conv2d(in_channels, out_channels, 1, bias=bias)),
        ]
    return [(name, nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias))]


def ordered_layers(
    names: Sequence[str],
    channels: int,
    norm: NormFactory,
    activation: ActivationFactory,
    number: int | None = None,
    *,
    inplace: bool = False,
) -> NamedLayers:
    """Build the layers that `names` lists, each named after its kind: norm1, activation1, and norm1b for a second norm.

    Args:
        names: list of norm, relu, bias and scale.
        channels: number of input channels.
        norm: factory for normalisations.
        activation: factory for the activations, which are called relu.
        number: number of the preceding convolution, appended to the layer names.
        inplace: whether activations overwrite their input. No other layer may then read it.
    """
    factories: dict[str, Callable[[], nn.Module]] = {
        "norm": lambda: norm(channels),
        "relu": lambda: activation(inplace=inplace),
        "bias": Bias,
        "scale": Scale,
    }
    return [
        (f"{NAMES[name]}{number or ''}{'b' * list(names[:i]).count(name)}", factories[name]())
        for i, name in enumerate(names)
    ]


@dataclass(frozen=True)
class LayerOrder:
    """Layers around the convolutions, as lists of norm, relu, bias and scale (see `plainres.models.normalisation`).

    The name relu stands for the network's activation, whichever it is.

    A block applies pre, conv, between, conv, ..., between, conv, post. It then adds the shortcut and applies post_add.
    `stem` follows the network's first convolution, and `tail` follows its last block. The default is the order of He et
    al. 2015.

    Raises:
        InputError: a field is not a list of these names.
    """

    pre: Sequence[str] = ()
    between: Sequence[str] = ("norm", "relu")
    post: Sequence[str] = ("norm",)
    post_add: Sequence[str] = ("relu",)
    stem: Sequence[str] = ("norm", "relu")
    tail: Sequence[str] = ()

    def __post_init__(self) -> None:
        for position, names in vars(self).items():
            is_list = isinstance(names, Sequence) and not isinstance(names, str)
            if not is_list or any(name not in list(NAMES) for name in names):  # a name may be unhashable
                raise InputError(
                    f"model.block.order.{position} is {names!r}; it must be a list of any of {', '.join(NAMES)}"
                )


@dataclass(frozen=True)
class BlockSpec:
    """Specification shared by all blocks of a network.

    Args:
        kernels: kernel size of each convolution that a shortcut spans. All sizes are odd.
        expansion: output channels of the last convolution relative to the others (4 in He et al. 2015, figure 5).
        stride_in: 1-based index of the convolution that applies the block's stride.
        bias: whether the convolutions have a bias.
        order: layers around the convolutions.

    Raises:
        InputError: a value is out of range.
    """

    kernels: Sequence[int] = (3, 3)
    expansion: int = 1
    stride_in: int = 1
    bias: bool = False
    order: LayerOrder = field(default_factory=LayerOrder)

    def __post_init__(self) -> None:
        kernels = self.kernels if isinstance(self.kernels, Sequence) else []
        if not kernels or not all(type(k) is int and k > 0 and k % 2 for k in kernels):
            raise InputError(
                f"model.block.kernels is {self.kernels}; it must be a list of odd kernel sizes, such as [3,3]"
            )
        if self.expansion < 1:
            raise InputError(f"model.block.expansion is {self.expansion}; it must be at least 1")
        if not 1 <= self.stride_in <= self.layers:
            raise InputError(
                f"model.block.stride_in is {self.stride_in}; it must be the index of a convolution, 1 to {self.layers}"
            )

    @property
    def layers(self) -> int:
        """Number of convolutions that one shortcut spans."""
        return len(self.kernels)

    def build(
        self,
        in_channels: int,
        width: int,
        stride: int,
        shortcut: ShortcutFactory,
        *,
        norm: NormFactory,
        activation: ActivationFactory,
        first: bool,
    ) -> "Block":
        """Build a block (N, in_channels, H, W) -> (N, width * expansion, H/stride, W/stride).

        `first` marks the first block of the network.
        """
        return Block(self, in_channels, width, stride, shortcut, norm=norm, activation=activation, first=first)


class Block(nn.Module):
    """y = post_add(shortcut(x, F(pre(x)))), where F is the residual branch.

    With the default spec this is the basic block of He et al. 2015, figure 2: y = relu(shortcut(x, F(x))) with
    F = conv, BN, ReLU, conv, BN.

    The shortcut takes pre(x) instead of x where the shape changes, and in the first block if the stem has no ReLU. In
    the appendix of He et al. 2016, projection shortcuts are "also with pre-activation". The first block applies its
    activation "before splitting into two paths".

    Shapes: x (N, in_channels, H, W) -> y (N, width * expansion, H/stride, W/stride).
    """

    def __init__(
        self,
        spec: BlockSpec,
        in_channels: int,
        width: int,
        stride: int,
        shortcut: ShortcutFactory,
        *,
        norm: NormFactory = nn.BatchNorm2d,
        activation: ActivationFactory = nn.ReLU,
        first: bool = False,
    ) -> None:
        super().__init__()
        order, last = spec.order, spec.layers
        out_channels = width * spec.expansion
        self.shared = stride != 1 or in_channels != out_channels or (first and "relu" not in order.stem)
        self.pre = nn.Sequential(OrderedDict(ordered_layers(order.pre, in_channels, norm, activation)))
        self.residual = nn.Sequential()
        channels = in_channels
        for number, kernel in enumerate(spec.kernels, 1):
            outputs = out_channels if number == last else width
            step = stride if number == spec.stride_in else 1
            layers = convolution(channels, outputs, kernel, step, bias=spec.bias, number=number)
            names = order.post if number == last else order.between
            layers += ordered_layers(names, outputs, norm, activation, number, inplace=True)
            for name, layer in layers:
                self.residual.add_module(name, layer)
            channels = outputs
        self.shortcut = shortcut(in_channels, out_channels, stride)
        # not in-place: a shortcut may return x itself, or a tensor that its backward pass needs
        self.post_add = nn.Sequential(OrderedDict(ordered_layers(order.post_add, out_channels, norm, activation)))

    def forward(self, x: Tensor) -> Tensor:
        """Map x to y."""
        activated = self.pre(x)
        return self.post_add(self.shortcut(activated if self.shared else x, self.residual(activated)))
