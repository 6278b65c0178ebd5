"""Initialisation schemes for the backbone of a network.

A scheme draws from the given generator only, and does not change the shortcuts. Networks that differ only in their
shortcuts therefore start with identical backbones. Unless a scheme says otherwise, weights of linear layers are
N(0, 1 / fan_in), since no activation follows the head, and biases are 0.

The gain of convolutions makes up for the network's activation: sqrt(2) for ReLU, which halves the second moment,
sqrt(2 / (1 + slope^2)) for leaky ReLU (He et al. 2015, "Delving deep", equation 15), and 1 for the tailored rectifier,
which preserves it. The formulas below have that of ReLU.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import torch
from torch import Generator, Tensor, nn

from plainres.errors import InputError
from plainres.models.activations import ACTIVATIONS, TailoredReLU
from plainres.models.scaled_shortcuts import LayerScale, ReZero
from plainres.models.shortcuts import Plain


class Scheme(Protocol):
    """Function that initialises a network in place."""

    def __call__(self, network: nn.Module, generator: Generator) -> None:
        """Initialise all weights of the backbone, in module order."""
        ...


def he_fan_out(network: nn.Module, generator: Generator) -> None:
    """Draw convolution weights from N(0, 2 / fan_out).

    This preserves the variance of gradients in the backward pass (He et al. 2015, "Delving deep", equation 14).
    """
    kind, slope = _activation(network)
    _init_backbone(
        network,
        generator,
        lambda w: nn.init.kaiming_normal_(w, slope, mode="fan_out", generator=generator, nonlinearity=kind),
    )


def he_fan_in(network: nn.Module, generator: Generator) -> None:
    """Draw convolution weights from N(0, 2 / fan_in).

    This preserves the variance of activations in the forward pass (He et al. 2015, "Delving deep", equation 10).
    """
    kind, slope = _activation(network)
    _init_backbone(
        network,
        generator,
        lambda w: nn.init.kaiming_normal_(w, slope, mode="fan_in", generator=generator, nonlinearity=kind),
    )


def orthogonal(network: nn.Module, generator: Generator) -> None:
    """Set each convolution to sqrt(2) times a random orthogonal matrix (out, in * k * k) (Saxe et al. 2014)."""
    gain = nn.init.calculate_gain(*_activation(network))
    _init_backbone(network, generator, lambda w: nn.init.orthogonal_(w, gain, generator=generator))


def delta_orthogonal(network: nn.Module, generator: Generator) -> None:
    """Set the centre of each kernel to sqrt(2) times a random orthogonal matrix (out, in), and the rest to 0.

    Xiao et al. 2018, section 3. The matrix preserves norms up to the factor sqrt(2) if out >= in. The paper does not
    cover out < in; here the rows are then orthonormal up to the same factor.
    """
    gain = nn.init.calculate_gain(*_activation(network))

    def draw(weight: Tensor) -> None:
        centre = weight.shape[2] // 2
        with torch.no_grad():
            weight.zero_()
            weight[:, :, centre, centre] = nn.init.orthogonal_(
                torch.empty(weight.shape[:2], dtype=weight.dtype), gain, generator=generator
            )

    _init_backbone(network, generator, draw)


def zero_gamma(network: nn.Module, generator: Generator) -> None:
    """Initialise as `he_fan_out`, then set the weight of the last normalisation of each residual branch to 0.

    Goyal et al. 2017, section 5.1.

    Raises:
        InputError: a branch does not end with a normalisation that has a weight, or would receive no gradient.
    """
    he_fan_out(network, generator)
    for branch in _zero_initialisable_branches(network, "zero_gamma"):
        *_, last = branch.children()
        weight = None if isinstance(last, nn.Conv2d) else getattr(last, "weight", None)
        if weight is None:
            raise InputError(
                "model/init=zero_gamma needs a normalisation with a weight at the end of each residual branch; choose "
                "a model/norm other than none and a model/block/order whose `post` ends with norm"
            )
        nn.init.zeros_(weight)


def fixup(network: nn.Module, generator: Generator) -> None:
    """Initialise for training without normalisation (Fixup, Zhang et al. 2019, section 3).

    The head and the last convolution of each residual branch are 0. The other convolutions of a branch are as in
    `he_fan_out`, times L^(-1 / (2m - 2)) for L branches of m convolutions.

    Use it with model/norm=none and model/block/order=fixup, which adds the scalar biases and multipliers. The authors
    train these with a tenth of the learning rate; here they have the same learning rate as all weights.

    Raises:
        InputError: the network has normalisations, or a branch would receive no gradient.
    """
    he_fan_out(network, generator)
    branches = _zero_initialisable_branches(network, "fixup")
    for branch in branches:
        if any(isinstance(module, nn.BatchNorm2d | nn.GroupNorm) for module in branch.children()):
            raise InputError("model/init=fixup is for networks without normalisation; set model/norm=none")
        *inner, last = [module for module in branch.children() if isinstance(module, nn.Conv2d)]
        with torch.no_grad():
            for conv in inner:
                conv.weight *= len(branches) ** (-1 / (2 * len(inner)))
        nn.init.zeros_(last.weight)
    *_, head = [module for module in network.modules() if isinstance(module, nn.Linear)]
    nn.init.zeros_(head.weight)


def named_blocks(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the name and module of each block, in order.

    A block is a module with a `residual` and a `shortcut` that is not itself part of a shortcut.
    """
    for name, module in network.named_modules():
        if hasattr(module, "residual") and hasattr(module, "shortcut") and "shortcut" not in name.split("."):
            yield name, module


def _zero_initialisable_branches(network: nn.Module, scheme: str) -> list[nn.Module]:
    """Return the residual branches, after checking that each receives gradients if its output is initialised to 0."""
    branches = []
    for name, block in named_blocks(network):
        *_, last = block.residual.children()
        if isinstance(block.shortcut, Plain):
            raise InputError(
                f"model/init={scheme} initialises the output of each residual branch to 0, so a plain network receives "
                "no gradient; choose a model/shortcut other than plain"
            )
        if isinstance(block.shortcut, ReZero | LayerScale) and not block.shortcut.initial:
            raise InputError(
                f"model/init={scheme} initialises the output of each residual branch to 0, and {name} multiplies it by "
                "a factor initialised to 0, so neither receives a gradient; set model.shortcut.initial to another value"
            )
        if isinstance(last, nn.ReLU):
            raise InputError(
                f"model/init={scheme} initialises the output of each residual branch to 0, where the ReLU at the end "
                f"of {name} has no gradient; choose a model/block/order whose `post` does not end with relu"
            )
        branches.append(block.residual)
    return branches


def _activation(network: nn.Module) -> tuple[Literal["relu", "leaky_relu", "linear"], float]:
    """Return torch's name of the activation that has the same gain, and its slope. A network without one has ReLU's."""
    activation = next((module for module in network.modules() if isinstance(module, ACTIVATIONS)), None)
    if isinstance(activation, nn.LeakyReLU):
        return "leaky_relu", activation.negative_slope
    return ("linear" if isinstance(activation, TailoredReLU) else "relu"), 0.0


def _init_backbone(network: nn.Module, generator: Generator, draw: Callable[[Tensor], object]) -> None:
    for name, module in network.named_modules():
        if "shortcut" in name.split("."):
            continue
        if isinstance(module, nn.Conv2d):
            draw(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear", generator=generator)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
