"""How a network's weights begin: functions of the network and of a generator, from which the backbone alone draws.

Shortcuts are left with the weights they were made with, so nets that differ in their shortcuts alone begin with
identical backbones. In all schemes the linear layer, which no ReLU follows, is N(0, 1 / fan_in), and biases are 0.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from plainres.errors import InputError
from plainres.models.shortcuts import Plain, ReZero

RELU_GAIN = math.sqrt(2)  # what a ReLU takes from the variance of its input


class Scheme(Protocol):
    """Gives a network its initial weights."""

    def __call__(self, network: nn.Module, generator: Generator) -> None:
        """Set all weights of the backbone, in the order of the modules."""
        ...


def he_fan_out(network: nn.Module, generator: Generator) -> None:
    """Convolutions N(0, 2 / fan_out): gradients keep their variance (He et al. 2015, "Delving deep", equation 14)."""
    _each_convolution(
        network,
        generator,
        lambda w: nn.init.kaiming_normal_(w, mode="fan_out", generator=generator, nonlinearity="relu"),
    )


def he_fan_in(network: nn.Module, generator: Generator) -> None:
    """Convolutions N(0, 2 / fan_in): signals keep their variance (He et al. 2015, "Delving deep", equation 10)."""
    _each_convolution(
        network,
        generator,
        lambda w: nn.init.kaiming_normal_(w, mode="fan_in", generator=generator, nonlinearity="relu"),
    )


def orthogonal(network: nn.Module, generator: Generator) -> None:
    """Each convolution a random orthogonal matrix (out, in * k * k) times sqrt(2) (Saxe et al. 2014)."""
    _each_convolution(network, generator, lambda w: nn.init.orthogonal_(w, RELU_GAIN, generator=generator))


def delta_orthogonal(network: nn.Module, generator: Generator) -> None:
    """An orthogonal matrix (out, in) times sqrt(2) in the kernel's centre, 0 around it (Xiao et al. 2018, section 3).

    Norms are kept exactly where out >= in; elsewhere, which the paper leaves out, the rows are orthonormal.
    """

    def draw(weight: Tensor) -> None:
        centre = weight.shape[2] // 2
        with torch.no_grad():
            weight.zero_()
            weight[:, :, centre, centre] = nn.init.orthogonal_(
                torch.empty(weight.shape[:2], dtype=weight.dtype), RELU_GAIN, generator=generator
            )

    _each_convolution(network, generator, draw)


def zero_gamma(network: nn.Module, generator: Generator) -> None:
    """As `he_fan_out`, and each branch begins at 0: the weight of its last normalisation is (Goyal et al. 2017, 5.1).

    Raises:
        InputError: a branch does not end with a normalisation that has a weight, or would never leave 0.
    """
    he_fan_out(network, generator)
    for branch in _that_may_begin_at_zero(network, "zero_gamma"):
        *_, last = branch.children()
        weight = None if isinstance(last, nn.Conv2d) else getattr(last, "weight", None)
        if weight is None:
            raise InputError(
                "model/init=zero_gamma needs a normalisation with a weight at the end of each block's branch; "
                "model/norm=none and block orders whose `post` has no norm have none there"
            )
        nn.init.zeros_(weight)


def fixup(network: nn.Module, generator: Generator) -> None:
    """Fixup (Zhang et al. 2019, section 3): the last convolution of each branch and the head are 0, the others of a
    branch as in `he_fan_out` times L^(-1 / (2m - 2)), L the number of branches and m the convolutions of one.

    Its scalar biases and multipliers are model/block/order=fixup, to be used with model/norm=none. (Its authors train
    these with a tenth of the learning rate, which is not done here.)

    Raises:
        InputError: there is a normalisation, or a branch would never leave 0.
    """
    he_fan_out(network, generator)
    found = _that_may_begin_at_zero(network, "fixup")
    for branch in found:
        if any(isinstance(module, nn.BatchNorm2d | nn.GroupNorm) for module in branch.children()):
            raise InputError("model/init=fixup stands in for a normalisation: it goes with model/norm=none")
        *inner, last = [module for module in branch.children() if isinstance(module, nn.Conv2d)]
        with torch.no_grad():
            for conv in inner:
                conv.weight *= len(found) ** (-1 / (2 * len(inner)))
        nn.init.zeros_(last.weight)
    *_, head = [module for module in network.modules() if isinstance(module, nn.Linear)]
    nn.init.zeros_(head.weight)


def blocks(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of each block, in order: what has a residual branch and a shortcut, and is part of none."""
    for name, module in network.named_modules():
        if hasattr(module, "residual") and hasattr(module, "shortcut") and "shortcut" not in name.split("."):
            yield name, module


def _that_may_begin_at_zero(network: nn.Module, scheme: str) -> list[nn.Module]:
    """The branches of a network, if gradients reach them though they begin at 0."""
    found = []
    for name, block in blocks(network):
        *_, last = block.residual.children()
        if isinstance(block.shortcut, Plain):
            raise InputError(
                f"model/init={scheme} begins each branch at 0: a plain net, which has nothing else, is dead"
            )
        if isinstance(block.shortcut, ReZero) and not block.shortcut.initial:
            raise InputError(
                f"model/init={scheme} begins each branch at 0, and {name} multiplies it by a number that begins at 0: "
                "neither would ever be anything else"
            )
        if isinstance(last, nn.ReLU):
            raise InputError(
                f"model/init={scheme} begins each branch at 0, where the ReLU at the end of {name} is dead"
            )
        found.append(block.residual)
    return found


def _each_convolution(network: nn.Module, generator: Generator, draw: Callable[[Tensor], object]) -> None:
    for name, module in network.named_modules():
        if "shortcut" in name.split("."):
            continue
        if isinstance(module, nn.Conv2d):
            draw(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear", generator=generator)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
