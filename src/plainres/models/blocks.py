"""The order of convolution, normalisation and activation inside a block.

A block is data: the kernel sizes that one shortcut spans (`BlockSpec`), and what stands before, between and behind its
convolutions and after the join (`LayerOrder`).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from plainres.errors import InputError
from plainres.models.normalisation import Bias, NormFactory, Scale
from plainres.models.shortcuts import ShortcutFactory, Subsample

NAMES = {"norm": "norm", "relu": "activation", "bias": "bias", "scale": "scale"}  # of a layer in the state dict


NamedLayers = list[tuple[str, nn.Module]]


def convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, bias: bool = False, number: int | None = None
) -> NamedLayers:
    """A convolution that keeps the size but for its stride, as named layers."""
    name = f"conv{number or ''}"
    if kernel == 1 and stride > 1:
        return [
            (f"subsample{number or ''}", Subsample(stride)),
            (name, nn.Conv2d(in_channels, out_channels, 1, bias=bias)),
        ]
    return [(name, nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias))]


def arranged(
    names: Sequence[str], channels: int, norm: NormFactory, number: int | None = None, *, inplace: bool = False
) -> NamedLayers:
    """The layers of an order, named after what they are: norm1, activation1, and norm1b if there are two.

    Args:
        names: any of norm, relu, bias, scale.
        channels: of the signal.
        norm: makes a normalisation.
        number: of the convolution that they follow, if that has one.
        inplace: whether an activation may overwrite its input, which nothing else must then look at.
    """
    makers: dict[str, Callable[[], nn.Module]] = {
        "norm": lambda: norm(channels),
        "relu": lambda: nn.ReLU(inplace=inplace),
        "bias": Bias,
        "scale": Scale,
    }
    return [
        (f"{NAMES[name]}{number or ''}{'b' * list(names[:i]).count(name)}", makers[name]())
        for i, name in enumerate(names)
    ]


@dataclass(frozen=True)
class LayerOrder:
    """Where normalisation and activation stand: lists of norm, relu, bias, scale (see `plainres.models.normalisation`).

    A block is pre, conv, between, conv, ..., between, conv, post; addition of the shortcut; post_add. `stem` follows
    the network's first convolution and `tail` its last block. The default is that of He et al. 2015.

    Raises:
        InputError: a list names something else.
    """

    pre: Sequence[str] = ()
    between: Sequence[str] = ("norm", "relu")
    post: Sequence[str] = ("norm",)
    post_add: Sequence[str] = ("relu",)
    stem: Sequence[str] = ("norm", "relu")
    tail: Sequence[str] = ()

    def __post_init__(self) -> None:
        for place, names in vars(self).items():
            listed = isinstance(names, Sequence) and not isinstance(names, str)
            wrong = [name for name in names if name not in list(NAMES)] if listed else [names]
            if wrong:
                raise InputError(
                    f"model.block.order.{place} names {wrong[0]!r}; it is a list of any of {', '.join(NAMES)}"
                )


@dataclass(frozen=True)
class BlockSpec:
    """What the blocks of a network have in common; `build` makes one of them.

    Args:
        kernels: the size of each convolution that a shortcut spans, odd numbers.
        expansion: the last convolution has so many times the channels of the others (He et al. 2015, figure 5: 4).
        stride_in: which convolution has the stride, where there is one; the first is 1.
        bias: whether the convolutions have one.
        order: where normalisation and activation stand.

    Raises:
        InputError: a value is out of its range.
    """

    kernels: Sequence[int] = (3, 3)
    expansion: int = 1
    stride_in: int = 1
    bias: bool = False
    order: LayerOrder = field(default_factory=LayerOrder)

    def __post_init__(self) -> None:
        kernels = self.kernels if isinstance(self.kernels, Sequence) else []
        if not kernels or not all(type(k) is int and k > 0 and k % 2 for k in kernels):
            raise InputError(f"model.block.kernels is {self.kernels}; it is a list of odd kernel sizes, such as [3,3]")
        if self.expansion < 1:
            raise InputError(f"model.block.expansion is {self.expansion}; it must be at least 1")
        if not 1 <= self.stride_in <= self.layers:
            raise InputError(
                f"model.block.stride_in is {self.stride_in}; it must be one of the convolutions, 1 to {self.layers}"
            )

    @property
    def layers(self) -> int:
        """Weighted layers that one shortcut spans."""
        return len(self.kernels)

    def build(
        self, in_channels: int, width: int, stride: int, shortcut: ShortcutFactory, norm: NormFactory, *, first: bool
    ) -> nn.Module:
        """A block (N, in_channels, H, W) -> (N, width * expansion, H/stride, W/stride); `first` in the network?"""
        return Block(self, in_channels, width, stride, shortcut, norm=norm, first=first)


class Block(nn.Module):
    """y = post_add(shortcut(x, F(pre(x)))), F the convolutions of a spec with what stands around them.

    With the default spec this is the basic block of He et al. 2015, figure 2: y = relu(shortcut(x, F(x))),
    F = conv, BN, ReLU, conv, BN.

    Where the shape changes, and where nothing has activated x yet, the shortcut takes pre(x) too (He et al. 2016,
    appendix: projection shortcuts are "also with pre-activation"; the first block's activation comes "before splitting
    into two paths").

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
        first: bool = False,
    ) -> None:
        super().__init__()
        order, last = spec.order, spec.layers
        out_channels = width * spec.expansion
        self.shared = stride != 1 or in_channels != out_channels or (first and "relu" not in order.stem)
        self.pre = nn.Sequential(OrderedDict(arranged(order.pre, in_channels, norm)))
        self.residual = nn.Sequential()
        channels = in_channels
        for number, kernel in enumerate(spec.kernels, 1):
            to = out_channels if number == last else width
            here = stride if number == spec.stride_in else 1
            layers = convolution(channels, to, kernel, here, bias=spec.bias, number=number)
            layers += arranged(order.post if number == last else order.between, to, norm, number, inplace=True)
            for name, layer in layers:
                self.residual.add_module(name, layer)
            channels = to
        self.shortcut = shortcut(in_channels, out_channels, stride)
        # not in place: y may be x, or what a shortcut keeps for its gradient
        self.post_add = nn.Sequential(OrderedDict(arranged(order.post_add, out_channels, norm)))

    def forward(self, x: Tensor) -> Tensor:
        """Map x to y."""
        ready = self.pre(x)
        return self.post_add(self.shortcut(ready if self.shared else x, self.residual(ready)))
