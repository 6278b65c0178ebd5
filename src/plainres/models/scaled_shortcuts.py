"""Shortcuts that scale the branch or its input, by constants or by learned or computed factors.

See `plainres.models.shortcuts` for what a shortcut takes and returns.
"""

import torch
from torch import Tensor, nn

from plainres.errors import InputError
from plainres.models.shortcuts import Identity, check_probability


class Scaling(Identity):
    """y = b F(x) + a x with constants a (`shortcut`) and b (`residual`). No parameters.

    The constant scaling of He et al. 2016 (Identity Mappings), section 3.1, which tests a = b = 0.5, and a = 0.5 with
    b = 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: float = 0.5, residual: float = 0.5
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut, self.residual = shortcut, residual

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return the weighted sum."""
        return self.residual * fx + self.shortcut * self.align(x)


class ReZero(Identity):
    """y = a F(x) + x, where a is a learned scalar initialised to `initial`. 1 parameter.

    Bachlechner et al. 2020 (ReZero is All You Need) initialise a to 0, so that each block starts as the identity.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, initial: float = 0.0) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.initial = float(initial)
        self.scale = nn.Parameter(torch.tensor(self.initial))

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return the scaled `fx` plus `x`, in at least the precision of a."""
        # a tensor without dimensions does not promote; bfloat16 would round it to 8 bits
        return self.scale * fx.to(torch.promote_types(fx.dtype, self.scale.dtype)) + self.align(x)


class SkipInit(ReZero):
    """y = a F(x) + x, where a is a learned scalar initialised to 1 / sqrt(number of blocks). 1 parameter.

    De & Smith 2020 (Batch Normalization Biases Residual Blocks), section 4, for networks with biases and without
    normalisation. The paper reports two initial values that train. This is the larger one; `ReZero` uses the other, 0.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, stride)

    def set_position(self, index: int, total: int) -> None:
        """Initialise a to 1 / sqrt(total)."""
        self.initial = total**-0.5
        nn.init.constant_(self.scale, self.initial)


class DepthScaled(Identity):
    """y = m L^(-a) F(x) + x with constants m (`multiplier`) and a (`exponent`), for L blocks. No parameters.

    With a = 1/2 and m = 1 the variance of the signal stays bounded as L grows: Hayou et al. 2020 (Stable ResNet,
    arXiv 2010.12859), uniform scaling. With a = 1/2 and a tuned m it is the branch multiplier of depth-muP (Yang et al.
    2023, arXiv 2310.02244), which is derived for blocks of one layer.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, exponent: float = 0.5, multiplier: float = 1.0
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.exponent, self.multiplier = exponent, multiplier
        self.factor = multiplier  # of a single block

    def set_position(self, index: int, total: int) -> None:
        """Set the factor of the branch from the number of blocks."""
        self.factor = self.multiplier * total**-self.exponent

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return the scaled `fx` plus `x`."""
        return self.factor * fx + self.align(x)


class LayerScale(Identity):
    """y = c F(x) + x, where c has a learned factor for each channel, initialised to `initial`. C_out parameters.

    Touvron et al. 2021 (Going deeper with Image Transformers, arXiv 2103.17239), section 2. The paper initialises c to
    0.1 for up to 18 blocks, to 1e-5 for 24 and to 1e-6 for more, in transformers; its blocks have two branches each.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, initial: float = 0.1) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.initial = float(initial)
        self.scale = nn.Parameter(torch.full((out_channels,), self.initial))

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return the scaled `fx` plus `x`, in at least the precision of c."""
        return self.scale[:, None, None] * fx + self.align(x)


class DecayedIdentity(Identity):
    """y = F(x) + a x, where a decreases linearly with the position of the block. No parameters.

    Zhang et al. 2024 (Residual Connections Harm Generative Representation Learning, arXiv 2404.10947), section 3: block
    l of L has a_l = 1 - l / L (1 - `last`). The paper's networks are autoencoders and diffusion models, in which the
    decay is that of the encoder.

    Raises:
        InputError: `last` is not between 0 and 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, last: float = 0.6) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.last = self.factor = check_probability("last", last)

    def set_position(self, index: int, total: int) -> None:
        """Set the factor of x by linear decay."""
        self.factor = 1 - index / total * (1 - self.last)

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus the weighted `x`."""
        return fx + self.factor * self.align(x)


class OrthogonalUpdate(Identity):
    """y = F(x) + (1 - s) x, where s x is the projection of F(x) on x: only what is orthogonal to x is added.

    Oh et al. 2025 (Revisiting Residual Connections, arXiv 2505.11881), section 3: s = <x, F(x)> / (<x, x> + e), with
    e = 1e-6. The inner products are over the channels of each position, or over channels and positions of each image
    (`over`). Where the shape changes, x is the aligned one. No parameters.

    Raises:
        InputError: `over` is not channels or image.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, over: str = "channels") -> None:
        super().__init__(in_channels, out_channels, stride)
        dimensions = {"channels": (1,), "image": (1, 2, 3)}
        if over not in dimensions:
            raise InputError(f"model.shortcut.over is {over}; it must be one of {', '.join(dimensions)}")
        self.dimensions = dimensions[over]

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `x` plus the part of `fx` that is orthogonal to it."""
        x = self.align(x)
        # 8 significant bits of bfloat16 would not leave an orthogonal part
        exact = torch.promote_types(fx.dtype, torch.float32)
        wide = x.to(exact)
        along = (wide * fx).sum(self.dimensions, keepdim=True)
        share = along / (wide.square().sum(self.dimensions, keepdim=True) + 1e-6)
        return (fx + (1 - share) * wide).to(fx.dtype)
