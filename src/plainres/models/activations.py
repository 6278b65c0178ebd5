"""Activations. The names of layers in `LayerOrder` call the network's activation relu, whichever it is."""

import math
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from plainres.errors import InputError


class ActivationFactory(Protocol):
    """Factory for the activation of a network, such as `nn.ReLU`."""

    def __call__(self, *, inplace: bool) -> nn.Module:
        """Build a module (N, C, H, W) -> (N, C, H, W), which overwrites its input if `inplace`."""
        ...


def leaky_relu(slope: float = 0.01, *, inplace: bool = False) -> nn.LeakyReLU:
    """Build max(x, 0) + slope min(x, 0) (Maas et al. 2013).

    Raises:
        InputError: `slope` is not above 0, or infinite.
    """
    if not 0 < slope < math.inf:
        raise InputError(
            f"model.activation.slope is {slope}; it must be above 0 and finite; 0 is model/activation=relu"
        )
    return nn.LeakyReLU(slope, inplace)


class TailoredReLU(nn.Module):
    """sqrt(2 / (1 + a^2)) (max(x, 0) + a min(x, 0)), with a slope a that suits the depth of the network.

    Zhang, Botev & Martens 2022 (Deep Learning without Shortcuts: Shaping the Kernel with Tailored Rectifiers). The
    factor preserves the second moment of a Gaussian input. The network sets the slope, see
    `plainres.models.tailoring`; until then it is 1.

    Args:
        eta: the correlation that the network gives to two uncorrelated images, 0.9 in the paper.
        inplace: whether the input may be overwritten.

    Raises:
        InputError: `eta` is not between 0 and 1.
    """

    def __init__(self, eta: float = 0.9, *, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= eta <= 1:
            raise InputError(f"model.activation.eta is {eta}; it must be between 0 and 1")
        self.eta, self.inplace = eta, inplace
        self.set_slope(1.0)

    def set_slope(self, slope: float) -> None:
        """Set the slope, and the factor that belongs to it."""
        self.slope, self.scale = slope, math.sqrt(2 / (1 + slope**2))

    def forward(self, x: Tensor) -> Tensor:
        """Activate `x`."""
        return self.scale * F.leaky_relu(x, self.slope, self.inplace)

    def extra_repr(self) -> str:
        """Return the slope for the module's description."""
        return f"slope={self.slope:.6g}"


ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, TailoredReLU)
