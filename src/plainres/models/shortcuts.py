"""How a block joins its input to its residual branch: the one thing this project varies.

A shortcut takes both tensors, the block's input `x` (N, C_in, H, W) and the residual branch's output `fx`
(N, C_out, H/stride, W/stride), and returns `y` of the shape of `fx`. Whatever a published form does with the two, it is
one small class here, chosen by name in conf/model/shortcut/.

In the formulas x is brought to the shape of F(x), where that differs, by subsampling it and padding its channels with
zeros (option A), unless a W is there to do it. Parameters are those of one block.
"""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainres.errors import InputError
from plainres.models.normalisation import NormFactory
from plainres.randomness import Noise


class ShortcutFactory(Protocol):
    """Makes the shortcut of one block; every class of this module is one."""

    def __call__(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        """Return a module `(x, fx) -> y`."""
        ...


@runtime_checkable
class Positioned(Protocol):
    """A shortcut that depends on the position of its block in the network, which sets it."""

    def set_position(self, index: int, total: int) -> None:
        """Set the 1-based index of this shortcut's block and the total number of blocks."""
        ...


class Subsample(nn.Module):
    """Every stride-th row and column, what a strided 1x1 convolution sees: (N, C, H, W) -> (N, C, H/stride, W/stride).

    It stands before a 1x1 convolution without a stride, because a strided one of fewer than 8 channels, in
    channels_last order on the CPU, corrupts memory in its backward pass (torch 2.13, oneDNN).
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample `x`."""
        return x[:, :, :: self.stride, :: self.stride]


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
    behind, an odd one behind; the paper leaves this open. Where the channels become fewer, the last ones are left out.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = max(out_channels - in_channels, 0) // 2
        self.padding = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def align(self, x: Tensor) -> Tensor:
        """Bring `x` to the shape of `fx`."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if any(self.padding):
            x = F.pad(x, self.padding)
        return x

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus the aligned `x`."""
        return fx + self.align(x)


class Convolution(nn.Module):
    """y = F(x) + W x, W a 1x1 convolution, around every block: C_in C_out parameters, and C_out with a bias.

    The 1x1 convolutional shortcut of He et al. 2016 (Identity Mappings), section 3.1, without normalisation. (What its
    Table 1 measured is `ProjectionAll`: BN layers "are adopted right after the weight layers for all units", figure 2.)
    W is N(0, 2 / fan_out), whatever model/init.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, bias: bool = False) -> None:
        super().__init__()
        self.subsample = Subsample(stride)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus the convolution of `x`."""
        return fx + self.conv(self.subsample(x))


class ProjectionAll(Convolution):
    """y = F(x) + BN(W x), W a 1x1 convolution: C_in C_out + 2 C_out parameters, and C_out with a bias.

    He et al. 2015, equation 2 and option C of section 4.1. `norm` is the network's own, batch normalisation unless
    another is chosen.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        norm: NormFactory = nn.BatchNorm2d,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, bias=bias)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus the projection of `x`."""
        return fx + self.norm(self.conv(self.subsample(x)))


def Projection(  # noqa: N802
    in_channels: int, out_channels: int, stride: int, norm: NormFactory = nn.BatchNorm2d
) -> nn.Module:
    """y = F(x) + BN(W x) where the shape changes, the identity elsewhere: C_in C_out + 2 C_out parameters there.

    He et al. 2015, equation 2 and option B of section 3.3; W is a 1x1 convolution. `norm` is the network's own, batch
    normalisation unless another is chosen.
    """
    if _changes(in_channels, out_channels, stride):
        return ProjectionAll(in_channels, out_channels, stride, norm)
    return Identity(in_channels, out_channels, stride)


def Wide(in_channels: int, out_channels: int, stride: int) -> nn.Module:  # noqa: N802
    """y = F(x) + W x where the shape changes, the identity elsewhere: C_in C_out parameters there.

    The shortcut of Wide ResNets (Zagoruyko & Komodakis 2016, figure 1) and of the pre-activation bottlenecks of He et
    al. 2016: a 1x1 convolution of what has been normalised and activated already.
    """
    if _changes(in_channels, out_channels, stride):
        return Convolution(in_channels, out_channels, stride)
    return Identity(in_channels, out_channels, stride)


def ResBlk(  # noqa: N802
    in_channels: int, out_channels: int, stride: int, norm: NormFactory = nn.BatchNorm2d
) -> nn.Module:
    """y = F(x) + BN(W x + b) where the channels differ, the identity elsewhere: C_in C_out + 3 C_out parameters there.

    The shortcut of the widespread teaching example ResBlk. Where the stride alone is not 1, which the example cannot
    do, x is subsampled.
    """
    if in_channels != out_channels:
        return ProjectionAll(in_channels, out_channels, stride, norm, bias=True)
    return Identity(in_channels, out_channels, stride)


class Scaling(Identity):
    """y = b F(x) + a x with two constants. No parameters.

    He et al. 2016 (Identity Mappings), section 3.1, constant scaling: a = b = 0.5, or a = 0.5 and b = 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: float = 0.5, residual: float = 0.5
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut, self.residual = shortcut, residual

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return the weighted sum."""
        return self.residual * fx + self.shortcut * self.align(x)


class _Gated(Identity):
    """A shortcut with a gate g(x) = sigmoid(W x + b), as large as F(x); W is a convolution, b begins at `bias`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: float, kernel: int = 1) -> None:
        super().__init__(in_channels, out_channels, stride)
        first = stride if kernel == 1 else 1
        self.subsample = Subsample(first)
        self.gate = nn.Conv2d(in_channels, out_channels, kernel, stride // first, padding=kernel // 2)
        nn.init.kaiming_normal_(self.gate.weight, mode="fan_in", nonlinearity="sigmoid")
        assert self.gate.bias is not None
        nn.init.constant_(self.gate.bias, bias)

    def open(self, x: Tensor) -> Tensor:
        """How far the gate is open, between 0 and 1, in the shape of F(x)."""
        return self.gate(self.subsample(x)).sigmoid()


class ExclusiveGating(_Gated):
    """y = g(x) F(x) + (1 - g(x)) x, g a 1x1 convolution and a sigmoid: C_in C_out + C_out parameters.

    He et al. 2016 (Identity Mappings), section 3.1; the best bias of its Table 1 is -6.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: float = -6) -> None:
        super().__init__(in_channels, out_channels, stride, bias)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return what the gate lets through of both."""
        gate = self.open(x)
        return gate * fx + (1 - gate) * self.align(x)


class ShortcutGating(_Gated):
    """y = F(x) + (1 - g(x)) x, g a 1x1 convolution and a sigmoid: C_in C_out + C_out parameters.

    He et al. 2016 (Identity Mappings), section 3.1, shortcut-only gating; the best bias of its Table 1 is -6.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: float = -6) -> None:
        super().__init__(in_channels, out_channels, stride, bias)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus what the gate lets through of `x`."""
        return fx + (1 - self.open(x)) * self.align(x)


class Highway(_Gated):
    """y = T(x) F(x) + (1 - T(x)) x, T a 3x3 convolution and a sigmoid: 9 C_in C_out + C_out parameters.

    Srivastava et al. 2015 (Training Very Deep Networks), equation 3; the gate of a convolutional layer has that layer's
    receptive field, and a negative bias at first. The paper's F is one layer with its activation, and none follows the
    join: model.block.kernels=[3] model/block/order=relu_before_addition.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: float = -2) -> None:
        super().__init__(in_channels, out_channels, stride, bias, kernel=3)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return what the gate lets through of both."""
        gate = self.open(x)
        return gate * fx + (1 - gate) * self.align(x)


class Dropout(Identity):
    """y = F(x) + m x, each element of m 0 with probability `p`, else 1; when evaluating, m = 1 - p. No parameters.

    He et al. 2016 (Identity Mappings), section 3.1, dropout shortcut with p = 0.5: it "statistically imposes a scale of
    lambda with an expectation of 0.5", so what is kept is not scaled up.

    Raises:
        InputError: `p` is no probability.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, p: float = 0.5) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.p = _probability("p", p)
        self.noise = Noise()

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus what is kept of `x`."""
        x = self.align(x)
        if not self.training:
            return fx + (1 - self.p) * x
        return fx + (self.noise.per_element(x) >= self.p) * x


class StochasticDepth(Identity):
    """y = b F(x) + x, b 0 or 1 for the whole batch; when evaluating, b is the probability of 1. No parameters.

    Huang et al. 2016 (Deep Networks with Stochastic Depth), equations 2, 4 and 5: block l of L survives with the
    probability 1 - l / L (1 - `last`), the linear decay. A branch that does not survive is computed all the same, so
    its batch statistics go on and no time is saved.

    Raises:
        InputError: `last` is no probability.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, last: float = 0.5) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.last = self.survival = _probability("last", last)
        self.noise = Noise()

    def set_position(self, index: int, total: int) -> None:
        """Set the probability of survival by the linear decay."""
        self.survival = 1 - index / total * (1 - self.last)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `x` with or without `fx`."""
        alive = self.noise.per_batch(fx) < self.survival if self.training else self.survival
        return alive * fx + self.align(x)


class ReZero(Identity):
    """y = a F(x) + x, a one number that is learned, `initial` at first. 1 parameter.

    Bachlechner et al. 2020 (ReZero is All You Need): a begins at 0, so that the network begins as the identity.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, initial: float = 0.0) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.initial = float(initial)
        self.scale = nn.Parameter(torch.tensor(self.initial))

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return the scaled `fx` plus `x`."""
        return self.scale * fx + self.align(x)


class SkipInit(ReZero):
    """y = a F(x) + x, a one number that is learned, 1 / sqrt(blocks) at first. 1 parameter.

    De & Smith 2020 (Batch Normalization Biases Residual Blocks), section 4, the larger of the two beginnings that it
    finds to train, for networks without normalisation and with biases; the other, 0, is ReZero's.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)

    def set_position(self, index: int, total: int) -> None:
        """Initialise a from the number of blocks."""
        self.initial = total**-0.5
        nn.init.constant_(self.scale, self.initial)


def _changes(in_channels: int, out_channels: int, stride: int) -> bool:
    return stride != 1 or in_channels != out_channels


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"model.shortcut.{name} is {value}; it must be between 0 and 1")
    return value
