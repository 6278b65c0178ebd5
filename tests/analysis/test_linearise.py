"""Linear channels, compared with explicit forward passes, finite differences and known depths."""

import math
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainres.analysis.linearise import (
    IMAGES_AT_A_TIME,
    Sloped,
    activations,
    channels_of,
    effective_depth,
    importance,
    share,
    text,
    with_slopes,
)
from plainres.errors import InputError
from plainres.models.activations import ActivationFactory, TailoredReLU, leaky_relu
from plainres.models.blocks import BlockSpec, LayerOrder
from plainres.models.networks import CifarNet
from plainres.models.paths import activations_of
from plainres.models.shortcuts import Identity, Plain, ProjectionAll, ShortcutFactory
from support.shipped import CONNECTIONS, EVERY_SHORTCUT, ORDERS, SHORTCUTS, STATEFUL_ORDER

X = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 4])


def network(shortcut: ShortcutFactory = Identity, depth: int = 8, **options: Any) -> CifarNet:
    """Return a network whose batch statistics are those of X."""
    torch.manual_seed(0)
    net = CifarNet(1, 10, depth, 4, shortcut, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1
    with torch.no_grad():
        net(X)
    return net.eval()


def slopes(net: nn.Module, value: float) -> dict[str, Tensor]:
    weight = next(net.parameters())
    return {name: weight.new_full((count,), value) for name, count in channels_of(net, X.to(weight)).items()}


@pytest.mark.parametrize(
    ("shortcut", "order"),
    [*product(SHORTCUTS, ORDERS), *((name, "full_preactivation") for name in CONNECTIONS)],
)
@torch.no_grad()
def test_slope_0_is_the_network_to_the_bit(shortcut: str, order: str) -> None:
    net = network(EVERY_SHORTCUT[shortcut], block=BlockSpec(order=ORDERS[order]))
    expected, modules = net(X), list(net.modules())
    with with_slopes(net, slopes(net, 0)):
        assert sum(isinstance(module, Sloped) for module in net.modules()) == len(activations(net))
        assert torch.equal(net(X), expected)
    assert list(net.modules()) == modules


@torch.no_grad()
def test_slope_1_is_the_identity_to_the_bit() -> None:
    for activation in (nn.ReLU(), nn.ReLU(inplace=True), leaky_relu(0.2), leaky_relu(0.2, inplace=True)):
        x = X.clone()
        assert torch.equal(Sloped(activation, torch.ones(1))(x), X)
        half = Sloped(activation, torch.tensor([0.5]))(x)
        torch.testing.assert_close(half, F.leaky_relu(X, 0.5 if isinstance(activation, nn.ReLU) else 0.6))
        assert torch.equal(x, X)  # the input is not overwritten


@pytest.mark.parametrize("shortcut", [Plain, Identity, ProjectionAll])
@pytest.mark.parametrize("activation", [nn.ReLU, leaky_relu, partial(TailoredReLU, eta=0.5)])
@torch.no_grad()
def test_a_network_of_linear_channels_is_affine(shortcut: ShortcutFactory, activation: ActivationFactory) -> None:
    net = network(shortcut, depth=14, activation=activation).double()
    a, b = X[:2].double(), X[2:4].double()
    with with_slopes(net, slopes(net, 1)):
        torch.testing.assert_close(net(a) + net(b), net(a + b) + net(torch.zeros_like(a)))
    assert not torch.allclose(net(a) + net(b), net(a + b) + net(torch.zeros_like(a)))


def test_importance_is_the_mean_square_of_the_derivative_by_the_slope() -> None:
    net = network(block=BlockSpec([3]), stages=2, depth=4).double()
    channels, x = channels_of(net, X.double()), X.double()
    actual = importance(net, [(x[:2], Y[:2]), (x[2:], Y[2:])], channels)
    assert actual.shape == (4 + 4 + 8,)
    expected = []
    with torch.no_grad():
        for name, count in channels.items():
            for channel in range(count):
                losses = []
                for slope in (1e-6, -1e-6):
                    changed = slopes(net, 0)
                    changed[name][channel] = slope
                    with with_slopes(net, changed):
                        losses.append(F.cross_entropy(net(x), Y, reduction="none"))
                expected.append(((losses[0] - losses[1]) / 2e-6).square().mean())
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-5, atol=1e-12)


def test_importance_does_not_depend_on_the_division_into_batches() -> None:
    net, count = network(), 2 * IMAGES_AT_A_TIME + 3
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 1, 8, 8, generator=generator), torch.randint(10, (count,), generator=generator)
    whole = importance(net, [(x, y)], channels_of(net, X))
    parts = importance(net, zip(x.split(50), y.split(50), strict=True), channels_of(net, X))
    torch.testing.assert_close(whole, parts)
    assert all(weight.grad is None for weight in net.parameters())


def depth_of(net: nn.Module, nonlinear: float = 1.0) -> float:
    return effective_depth(net, dict.fromkeys(activations(net), nonlinear))


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_the_effective_depth_of_known_networks(depth: int) -> None:
    blocks = (depth - 2) // 2
    assert depth_of(network(Plain, depth)) == depth - 1  # one activation after each convolution
    # half of the paths skip the activation in a branch, none that after the addition
    assert depth_of(network(Identity, depth)) == 1 + 1.5 * blocks
    assert depth_of(network(Identity, depth), 0.5) == (1 + 1.5 * blocks) / 2
    assert depth_of(network(Identity, depth), 0) == 0
    # the first block of each stage applies its first activation before the shortcut, the others after it
    preactivation = network(Identity, depth, block=BlockSpec(order=ORDERS["full_preactivation"]))
    assert depth_of(preactivation) == 3 * 1.5 + (blocks - 3) * 1 + 1


def test_the_effective_depth_counts_each_layer_by_its_probability() -> None:
    """Two blocks of one layer in one stage: an activation after the stem, and one after each addition."""
    net = network(Identity, 4, block=BlockSpec([3, 3], order=LayerOrder(between=["relu"])), stages=1)
    shares = {"stem.activation": 0.25, "stages.0.0.residual.activation1": 0.5, "stages.0.0.post_add.activation": 1.0}
    assert list(activations(net)) == list(shares)
    assert effective_depth(net, shares) == 0.25 + 0.5 / 2 + 1.0


def test_networks_that_cannot_be_linearised() -> None:
    with pytest.raises(InputError, match="Linear is not a stack of blocks; linearise measures only"):
        activations(nn.Linear(2, 2))
    order = LayerOrder(between=["norm"], post_add=[], stem=["norm"])
    with pytest.raises(InputError, match="the network has no activation, so it is linear already"):
        activations(network(block=BlockSpec(order=order)))


def test_the_printed_table_fits_80_columns() -> None:
    values = {"effective_depth": "109.0", "nonlinear_layers": "109.0", "train_error": "100.0", "test_error": "9.5"}
    row = {"channels": "4000", "linear": "1000"} | values
    assert share(row) == 75
    name, header, line = text("net", [row]).splitlines()
    assert name == "net"
    assert len(header) == len(line) <= 80
    assert line.split() == ["75.0", "109.00", "109", "100.00", "9.50"]


class Sum(Identity):
    """A shortcut of the user's own."""


def test_the_effective_depth_is_unknown_with_a_shortcut_of_the_users_own() -> None:
    net = network(Sum)
    assert math.isnan(effective_depth(net, dict.fromkeys(activations_of(net), 1.0)))


def test_the_effective_depth_is_unknown_where_blocks_hand_on_a_state() -> None:
    net = network(CONNECTIONS["mhc"], block=BlockSpec(order=STATEFUL_ORDER))
    assert math.isnan(effective_depth(net, dict.fromkeys(activations_of(net), 1.0)))
