"""Slope of tailored rectifiers (Zhang, Botev & Martens 2022, arXiv 2203.08120).

Of two images whose signals have the correlation c (the cosine of their angle), an activation of slope a makes signals
of correlation

    C(c) = c + (1 - a)^2 / (pi (1 + a^2)) (sqrt(1 - c^2) - c arccos c)

in a wide layer of random weights. A convolution leaves c unchanged, and a join of branch and shortcut averages theirs.
The slope is such that the network, and each branch alone, maps uncorrelated images to a correlation of at most eta.
With ReLU, a = 0, the correlation tends to 1 as depth grows: a deep network cannot tell its images apart.

The paper removes normalisation, and joins by sums whose squared weights add up to 1. It does not treat other shortcuts.
Here a join weighs branch and shortcut by their squared factors, since a factor common to both changes no correlation
before a rectifier; x and F(x), or W x and F(x), count alike. Pooling and normalisation are taken to change nothing,
which for batch normalisation is wrong. All activations count, that of the stem too.

C(c) holds for signals that are Gaussian with mean 0, as after a convolution. A rectified x that is added to F(x) before
the next rectifier is not, so that the actual correlation is higher. For eta = 0.9 and 56 layers of width 512 it is 0.99
with identity in the order of He et al. 2015, 0.93 with identity and full pre-activation, 0.91 with identity and no
activation after the addition, and 0.92 in plain networks.
"""

import math
from typing import Any

from torch import nn

from plainres.errors import InputError
from plainres.models.activations import TailoredReLU
from plainres.models.initialisation import named_blocks
from plainres.models.paths import activations_of, follow
from plainres.models.scaled_shortcuts import DecayedIdentity, DepthScaled, LayerScale, ReZero, Scaling, SkipInit
from plainres.models.shortcuts import Convolution, Identity, Plain, Projection, ProjectionAll, ResBlk, Wide

EQUAL = (Identity, Projection, ProjectionAll, Convolution, Wide, ResBlk)  # x or W x is added to F(x)


def correlation(c: float, slope: float) -> float:
    """Return C(c), the correlation after a leaky ReLU of two signals with the correlation c before it."""
    if c >= 1:  # a rounding error above it is outside the domain of arccos
        return 1.0
    bent = (1 - slope) ** 2 / (math.pi * (1 + slope**2))
    return c + bent * (math.sqrt(1 - c**2) - c * math.acos(c))


def branch_share(shortcut: nn.Module) -> float:
    """Return the share of the residual branch in the second moment of a join, before training.

    Raises:
        InputError: the shortcut is of a class for which it is not defined.
    """
    branch, skipping = _factors(shortcut)
    return branch**2 / ((branch**2 + skipping**2) or 1)


def _factors(shortcut: Any) -> tuple[float, float]:
    """Return the factors of F(x) and of x before training."""
    kind = type(shortcut)  # a derived class may compute something else
    if kind is Plain:
        return 1.0, 0.0
    if kind in EQUAL:
        return 1.0, 1.0
    if kind is Scaling:
        return shortcut.residual, shortcut.shortcut
    if kind in (ReZero, SkipInit, LayerScale):
        return shortcut.initial, 1.0
    if kind is DepthScaled:
        return shortcut.factor, 1.0
    if kind is DecayedIdentity:
        return 1.0, shortcut.factor
    raise InputError(
        f"model/activation=tailored is not defined for the shortcut {kind.__name__}; choose plain, identity, a "
        "projection, scaling, depth_scaled, decayed_identity, rezero, skipinit or layer_scale"
    )


def network_correlation(network: nn.Module, slope: float) -> float:
    """Return the largest correlation of two uncorrelated images after the network, or after a branch alone.

    Raises:
        InputError: see `branch_share`.
    """

    def activate(c: float, name: str) -> float:
        return correlation(c, slope)

    def join(block: nn.Module, branch: float, skipping: float) -> float:
        share = branch_share(block.get_submodule("shortcut"))
        return share * branch + (1 - share) * skipping

    largest = follow(network, 0.0, activate, join)
    for name, _ in named_blocks(network):
        alone = 0.0
        for activation in activations_of(network):
            if activation.startswith((f"{name}.pre.", f"{name}.residual.")):
                alone = correlation(alone, slope)
        largest = max(largest, alone)
    return largest


def tailor(network: nn.Module) -> None:
    """Set the slope of all tailored rectifiers of a stack of blocks, if it has any.

    Raises:
        InputError: the network is too shallow for its `eta`, or see `branch_share`.
    """
    rectifiers = [module for module in network.modules() if isinstance(module, TailoredReLU)]
    if not rectifiers:
        return
    eta = rectifiers[0].eta
    if (most := network_correlation(network, 0.0)) < eta:
        raise InputError(
            f"model.activation.eta is {eta}, but this network of {len(rectifiers)} activations reaches at most "
            f"{math.floor(1000 * most) / 1000}, with slope 0; choose a lower eta or a deeper network"
        )
    from scipy.optimize import root_scalar  # takes a quarter of a second to import

    solution = root_scalar(lambda slope: network_correlation(network, slope) - eta, bracket=(0, 1), xtol=1e-12)
    for rectifier in rectifiers:
        rectifier.set_slope(float(solution.root))
