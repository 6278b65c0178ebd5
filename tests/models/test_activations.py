"""Leaky and tailored rectifiers: exact laws, the correlation of real networks, and the gain of initialisations."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from plainres.errors import InputError
from plainres.models.activations import ActivationFactory, TailoredReLU, leaky_relu
from plainres.models.blocks import BlockSpec
from plainres.models.initialisation import Scheme, delta_orthogonal, he_fan_in, he_fan_out, orthogonal
from plainres.models.networks import CifarNet
from plainres.models.scaled_shortcuts import DecayedIdentity, DepthScaled, LayerScale, ReZero, Scaling, SkipInit
from plainres.models.shortcuts import Dropout, Identity, Plain, ShortcutFactory
from plainres.models.tailoring import branch_share, correlation, network_correlation
from support.shipped import ACTIVATIONS, NORMS, ORDERS

X = torch.randn(3, 4, 8, 8, generator=Generator().manual_seed(0))


def tailored(slope: float, *, inplace: bool = False) -> TailoredReLU:
    activation = TailoredReLU(inplace=inplace)
    activation.set_slope(slope)
    return activation


def network(shortcut: ShortcutFactory = Plain, depth: int = 20, **options: Any) -> CifarNet:
    return CifarNet(1, 10, depth, 4, shortcut, **options)


def slopes(net: nn.Module) -> set[float]:
    return {module.slope for module in net.modules() if isinstance(module, TailoredReLU)}


@pytest.mark.parametrize("inplace", [False, True])
def test_slope_1_is_the_identity_to_the_bit(inplace: bool) -> None:
    for activation in (leaky_relu(1, inplace=inplace), tailored(1, inplace=inplace)):
        assert torch.equal(activation(X.clone()), X)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_a_tailored_rectifier_is_a_scaled_leaky_relu(slope: float, inplace: bool) -> None:
    x = X.clone().requires_grad_()
    y = tailored(slope, inplace=inplace)(x * 1)
    expected = math.sqrt(2 / (1 + slope**2)) * torch.where(X > 0, X, slope * X)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected / X)


@pytest.mark.parametrize("slope", [0.0, 0.2, 0.7, 1.0])
def test_the_correlation_is_that_of_gaussian_signals(slope: float) -> None:
    generator = Generator().manual_seed(0)
    u, v = torch.randn(2, 2_000_000, dtype=torch.float64, generator=generator)
    for c in (-0.5, 0.0, 0.4, 0.9):
        a, b = tailored(slope)(u), tailored(slope)(c * u + math.sqrt(1 - c**2) * v)
        assert (a * b).mean().item() == pytest.approx(correlation(c, slope), abs=5e-3)
        assert (b * b).mean().item() == pytest.approx(1, abs=5e-3)
    assert correlation(1.0, slope) == 1.0


@pytest.mark.parametrize(("depth", "eta"), [(20, 0.9), (56, 0.9), (8, 0.5)])
def test_the_correlation_of_a_plain_network_is_eta(depth: int, eta: float) -> None:
    net = network(Plain, depth, activation=partial(TailoredReLU, eta=eta))
    (slope,) = slopes(net)
    c = 0.0
    for _ in range(depth - 1):
        c = correlation(c, slope)
    assert c == pytest.approx(eta, abs=1e-9)
    assert network_correlation(net, slope) == pytest.approx(eta, abs=1e-9)


@pytest.mark.parametrize(("shortcut", "order"), [(Plain, "original"), (Identity, "no_relu_after_addition")])
@torch.no_grad()
def test_two_uncorrelated_images_have_the_correlation_eta_in_a_real_network(
    shortcut: ShortcutFactory, order: str
) -> None:
    block, activation = BlockSpec([1, 1], order=ORDERS[order]), partial(TailoredReLU, eta=0.7)
    net = CifarNet(64, 10, 22, 512, shortcut, block=block, norm=nn.Identity, activation=activation, stages=1)
    delta_orthogonal(net, Generator().manual_seed(0))
    images = torch.eye(64)[:, :, None, None]  # one pixel each
    features = net.tail(net.stages(net.stem(images))).flatten(1)
    directions = nn.functional.normalize(features)
    others = (directions @ directions.T)[~torch.eye(64, dtype=torch.bool)]
    assert others.mean().item() == pytest.approx(0.7, abs=0.03)


def test_joins_weigh_branch_and_shortcut_by_their_squared_factors() -> None:
    assert branch_share(Plain(4, 4, 1)) == 1
    assert branch_share(Identity(4, 8, 2)) == 0.5
    assert branch_share(Scaling(4, 4, 1, residual=0.6, shortcut=0.8)) == pytest.approx(0.36)
    assert branch_share(ReZero(4, 4, 1)) == 0
    assert branch_share(LayerScale(4, 4, 1, initial=0.5)) == 0.2
    assert branch_share(DepthScaled(4, 4, 1, multiplier=0.5)) == 0.2
    assert branch_share(DecayedIdentity(4, 4, 1, last=0.5)) == 0.8
    skipinit = SkipInit(4, 4, 1)
    skipinit.set_position(1, 9)
    assert branch_share(skipinit) == pytest.approx(0.1)
    with pytest.raises(InputError, match="tailored is not defined for the shortcut Dropout"):
        network(Dropout, activation=TailoredReLU)


def test_each_branch_alone_stays_below_eta() -> None:
    """The shortcut of ReZero hides its branch at first, so the branch, of five activations, decides the slope."""
    block = BlockSpec([3, 3, 3, 3, 3, 3], order=ORDERS["no_relu_after_addition"])
    net = network(ReZero, 20, block=block, activation=partial(TailoredReLU, eta=0.5))
    (slope,) = slopes(net)
    c = 0.0
    for _ in range(5):
        c = correlation(c, slope)
    assert c == pytest.approx(0.5, abs=1e-9)


def test_eta_0_is_a_linear_network() -> None:
    assert slopes(network(activation=partial(TailoredReLU, eta=0))) == {1.0}


def test_values_out_of_range() -> None:
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match=r"model\.activation\.eta is .*; it must be between 0 and 1"):
            TailoredReLU(eta)
    with pytest.raises(
        InputError, match=r"eta is 0\.9, but this network of 7 activations reaches at most 0\.809, with"
    ):
        network(depth=8, activation=TailoredReLU)
    for slope in (0.0, -0.1, math.inf, math.nan):
        with pytest.raises(InputError, match=r"model\.activation\.slope is .*; it must be above 0 and finite"):
            leaky_relu(slope)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_names_of_an_order_stand_for_the_activation(name: str) -> None:
    for order in ORDERS.values():
        block = BlockSpec(order=order)
        net, relu = network(depth=32, block=block, activation=ACTIVATIONS[name]), network(depth=32, block=block)
        assert list(net.state_dict()) == list(relu.state_dict())
        kinds = {type(module) for layer, module in net.named_modules() if "activation" in layer.rpartition(".")[2]}
        assert len(kinds) == 1
        assert (kinds == {nn.ReLU}) == (name == "relu")


def gain(weight: Tensor, scheme: Scheme) -> float:
    """Return the gain with which a convolution was drawn."""
    if scheme in (orthogonal, delta_orthogonal):
        return torch.linalg.matrix_norm(weight.flatten(1), 2).item()
    return weight.std().item() * math.sqrt(weight[0].numel())


@pytest.mark.parametrize("scheme", [he_fan_in, he_fan_out, orthogonal, delta_orthogonal])
def test_the_gain_of_an_initialisation_makes_up_for_the_activation(scheme: Scheme) -> None:
    expected: list[tuple[ActivationFactory, float]] = [
        (nn.ReLU, math.sqrt(2)),
        (partial(leaky_relu, slope=0.5), math.sqrt(2 / 1.25)),
        (TailoredReLU, 1.0),
    ]
    for activation, value in expected:
        net = CifarNet(3, 10, 20, 32, Plain, norm=NORMS["none"], activation=activation)
        scheme(net, Generator().manual_seed(0))
        weight = net.get_parameter("stages.1.1.residual.conv1.weight")
        assert gain(weight, scheme) == pytest.approx(value, rel=0.02)
