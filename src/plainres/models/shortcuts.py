"""Shortcut connections, which join a block's input to the output of its residual branch.

A shortcut takes the block's input `x` (N, C_in, H, W) and the residual branch's output `fx`
(N, C_out, H/stride, W/stride). It returns `y` with the shape of `fx`. Each published form is one small class, selected
by name in conf/model/shortcut/.

Where the shapes of x and F(x) differ, the formulas imply option A: x is subsampled and its channels are padded with
zeros. Formulas with a projection W use W instead. Parameter counts are per block.
"""

from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor, nn

from plainres.errors import InputError
from plainres.models.normalisation import NormFactory
from plainres.randomness import Noise


class ShortcutFactory(Protocol):
    """Factory for the shortcut of one block. Every public shortcut in this module is one."""

    def __call__(self, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        """Build a module `(x, fx) -> y`."""
        ...


@runtime_checkable
class Positioned(Protocol):
    """Shortcut that depends on the position of its block. The network calls `set_position`."""

    def set_position(self, index: int, total: int) -> None:
        """Set the 1-based index of this shortcut's block and the total number of blocks."""
        ...


class Subsample(nn.Module):
    """Strided slicing of rows and columns: (N, C, H, W) -> (N, C, H/stride, W/stride).

    `Subsample(stride)` followed by an unstrided 1x1 convolution replaces a strided 1x1 convolution. In torch 2.13 with
    oneDNN on the CPU, the backward pass of the strided convolution corrupts memory when it has fewer than 8 channels
    and its input is channels_last.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample `x`."""
        return x[:, :, :: self.stride, :: self.stride]


class Plain(nn.Module):
    """y = F(x), the plain network without shortcuts of He et al. 2015, section 3.3. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx`."""
        return fx


class Identity(nn.Module):
    """y = F(x) + x; where the shape changes, x is subsampled and its channels are padded with zeros. No parameters.

    He et al. 2015, equation 1 and option A of section 3.3. The paper does not say where the zero channels go. Here half
    of them precede the channels of x and half follow; an odd one follows. If C_out < C_in, the last channels are
    dropped.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = max(out_channels - in_channels, 0) // 2
        self.padding = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def align(self, x: Tensor) -> Tensor:
        """Match the shape of `x`, or of several x (N, n, C_in, H, W), to that of `fx`."""
        if self.stride > 1:
            x = x[..., :: self.stride, :: self.stride]
        if any(self.padding):
            x = F.pad(x, self.padding)
        return x

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus the aligned `x`."""
        return fx + self.align(x)


class Convolution(nn.Module):
    """y = F(x) + W x in every block, where W is a 1x1 convolution. C_in C_out parameters, plus C_out with a bias.

    The 1x1 convolutional shortcut of He et al. 2016 (Identity Mappings), section 3.1, without normalisation. Table 1 of
    the paper reports `ProjectionAll` instead: BN layers "are adopted right after the weight layers for all units"
    (figure 2). W is drawn from N(0, 2 / fan_out), regardless of model/init.
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
    """y = F(x) + BN(W x), where W is a 1x1 convolution. C_in C_out + 2 C_out parameters, plus C_out with a bias.

    He et al. 2015, equation 2 and option C of section 4.1. `norm` is the network's normalisation, by default batch
    normalisation.
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
    """y = F(x) + BN(W x) where the shape changes (C_in C_out + 2 C_out parameters), y = F(x) + x elsewhere.

    He et al. 2015, equation 2 and option B of section 3.3. W is a 1x1 convolution. `norm` is the network's
    normalisation, by default batch normalisation.
    """
    if _shape_changes(in_channels, out_channels, stride):
        return ProjectionAll(in_channels, out_channels, stride, norm)
    return Identity(in_channels, out_channels, stride)


def Wide(in_channels: int, out_channels: int, stride: int) -> nn.Module:  # noqa: N802
    """y = F(x) + W x where the shape changes (C_in C_out parameters), y = F(x) + x elsewhere.

    The shortcut of Wide ResNets (Zagoruyko & Komodakis 2016, figure 1) and of the pre-activation bottlenecks of He et
    al. 2016. W is a 1x1 convolution, and its input is already normalised and activated.
    """
    if _shape_changes(in_channels, out_channels, stride):
        return Convolution(in_channels, out_channels, stride)
    return Identity(in_channels, out_channels, stride)


def ResBlk(  # noqa: N802
    in_channels: int, out_channels: int, stride: int, norm: NormFactory = nn.BatchNorm2d
) -> nn.Module:
    """y = F(x) + BN(W x + b) where C_in != C_out (C_in C_out + 3 C_out parameters), y = F(x) + x elsewhere.

    The shortcut of the widespread teaching example ResBlk. The example does not support a stride without a change of
    channels; here x is subsampled.
    """
    if in_channels != out_channels:
        return ProjectionAll(in_channels, out_channels, stride, norm, bias=True)
    return Identity(in_channels, out_channels, stride)


class _Gated(Identity):
    """Shortcut with a gate g(x) = sigmoid(W x + b) of the shape of F(x).

    W is a convolution, and b is initialised to `bias`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: float, kernel: int = 1) -> None:
        super().__init__(in_channels, out_channels, stride)
        first = stride if kernel == 1 else 1
        self.subsample = Subsample(first)
        self.gate = nn.Conv2d(in_channels, out_channels, kernel, stride // first, padding=kernel // 2)
        nn.init.kaiming_normal_(self.gate.weight, mode="fan_in", nonlinearity="sigmoid")
        assert self.gate.bias is not None
        nn.init.constant_(self.gate.bias, bias)

    def gate_values(self, x: Tensor) -> Tensor:
        """Compute g(x), between 0 and 1, in the shape of F(x).

        It has the precision of the weights, since in bfloat16 1 - g(x) would be a multiple of 1/256, and 1 for g(x)
        below 1/512, as at first with a bias of -7.
        """
        logits = self.gate(self.subsample(x))
        return logits.to(self.gate.weight.dtype).sigmoid()


class ExclusiveGating(_Gated):
    """y = g(x) F(x) + (1 - g(x)) x, where g is a 1x1 convolution and a sigmoid. C_in C_out + C_out parameters.

    He et al. 2016 (Identity Mappings), section 3.1. The best bias in its Table 1 is -6.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: float = -6) -> None:
        super().__init__(in_channels, out_channels, stride, bias)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return the gated sum of `fx` and `x`."""
        gate = self.gate_values(x)
        return gate * fx + (1 - gate) * self.align(x)


class ShortcutGating(_Gated):
    """y = F(x) + (1 - g(x)) x, where g is a 1x1 convolution and a sigmoid. C_in C_out + C_out parameters.

    The shortcut-only gating of He et al. 2016 (Identity Mappings), section 3.1. The best bias in its Table 1 is -6.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: float = -6) -> None:
        super().__init__(in_channels, out_channels, stride, bias)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus the gated `x`."""
        return fx + (1 - self.gate_values(x)) * self.align(x)


class Highway(_Gated):
    """y = T(x) F(x) + (1 - T(x)) x, where T is a 3x3 convolution and a sigmoid. 9 C_in C_out + C_out parameters.

    Srivastava et al. 2015 (Training Very Deep Networks), equation 3. The gate of a convolutional layer has the
    receptive field of that layer, and its bias is initialised to a negative value. The paper's F is a single layer with
    its activation, and no activation follows the addition. The corresponding block is
    model.block.kernels=[3] model/block/order=relu_before_addition.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: float = -2) -> None:
        super().__init__(in_channels, out_channels, stride, bias, kernel=3)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return the gated sum of `fx` and `x`."""
        gate = self.gate_values(x)
        return gate * fx + (1 - gate) * self.align(x)


class Dropout(Identity):
    """y = F(x) + m x, where each element of m is 0 with probability `p` and 1 otherwise. No parameters.

    In evaluation mode m = 1 - p.

    The dropout shortcut of He et al. 2016 (Identity Mappings), section 3.1, with p = 0.5. It "statistically imposes a
    scale of lambda with an expectation of 0.5", so the remaining elements are not scaled up.

    Raises:
        InputError: `p` is not between 0 and 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, p: float = 0.5) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.p = check_probability("p", p)
        self.noise = Noise()

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus `x` after dropout."""
        x = self.align(x)
        if not self.training:
            return fx + (1 - self.p) * x
        return fx + (self.noise.per_element(x) >= self.p) * x


class StochasticDepth(Identity):
    """y = b F(x) + x, where b is 0 or 1 for the whole batch. No parameters.

    Huang et al. 2016 (Deep Networks with Stochastic Depth), equations 2, 4 and 5. The survival probability of block l
    of L decays linearly, p_l = 1 - l / L (1 - `last`), and b = p_l in evaluation mode. A dropped branch is still
    computed, so its batch statistics are updated and no time is saved.

    Raises:
        InputError: `last` is not between 0 and 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, last: float = 0.5) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.last = self.survival = check_probability("last", last)
        self.noise = Noise()

    def set_position(self, index: int, total: int) -> None:
        """Set the survival probability by linear decay."""
        self.survival = 1 - index / total * (1 - self.last)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `x`, plus `fx` if the branch survives."""
        alive = self.noise.per_batch(fx) < self.survival if self.training else self.survival
        return alive * fx + self.align(x)


def _shape_changes(in_channels: int, out_channels: int, stride: int) -> bool:
    return stride != 1 or in_channels != out_channels


def check_probability(name: str, value: float) -> float:
    """Return a probability.

    Raises:
        InputError: it is not between 0 and 1.
    """
    if not 0 <= value <= 1:
        raise InputError(f"model.shortcut.{name} is {value}; it must be between 0 and 1")
    return value
