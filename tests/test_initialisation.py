import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, nn

from plainres.blocks import Design, Order
from plainres.errors import InputError
from plainres.initialisation import (
    Scheme,
    branches,
    delta_orthogonal,
    fixup,
    he_fan_in,
    he_fan_out,
    orthogonal,
    zero_gamma,
)
from plainres.networks import BASIC, CifarNet
from plainres.shortcuts import Identity, Plain, ProjectionAll, ShortcutFactory

SCHEMES = [he_fan_in, he_fan_out, orthogonal, delta_orthogonal, zero_gamma, fixup]


def initialised(
    scheme: Scheme = he_fan_out,
    shortcut: ShortcutFactory = Identity,
    *,
    seed: int = 0,
    depth: int = 20,
    block: Design = BASIC,
) -> Any:
    network = CifarNet(3, 10, depth, 16, shortcut, block=block)
    scheme(network, Generator().manual_seed(seed))
    return network


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    ("scheme", "fan"),
    [(he_fan_out, lambda conv: conv.out_channels * 9), (he_fan_in, lambda conv: conv.in_channels * 9)],
)
def test_he_initialisation(scheme: Scheme, fan: Callable[[nn.Conv2d], int]) -> None:
    network = initialised(scheme, depth=56)
    for conv in convolutions(network):
        if conv.weight.numel() > 1000:
            assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan(conv)), rel=0.1)
    (linear,) = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert linear.weight.std().item() == pytest.approx(math.sqrt(1 / 64), rel=0.1)
    assert not linear.bias.any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_is_a_function_of_the_seed_and_leaves_shortcuts_and_global_state_alone(scheme: Scheme) -> None:
    plain, again = initialised(scheme, Plain).state_dict(), initialised(scheme, Plain).state_dict()
    network = initialised(scheme, Plain)
    state = torch.get_rng_state()
    scheme(network, Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    other = network.state_dict()
    assert all(torch.equal(plain[key], again[key]) for key in plain)
    assert not torch.equal(plain["stem.conv.weight"], other["stem.conv.weight"])
    projected = initialised(scheme, ProjectionAll).state_dict()
    assert all(torch.equal(plain[key], projected[key]) for key in plain)


def test_orthogonal_matrices() -> None:
    for conv in convolutions(initialised(orthogonal)):
        rows = conv.weight.flatten(1).double()
        torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(len(rows), dtype=torch.float64), atol=1e-4, rtol=0)


def test_delta_orthogonal_convolutions_keep_norms() -> None:
    for conv in convolutions(initialised(delta_orthogonal)):
        centre = conv.weight[:, :, 1, 1].double()
        assert conv.weight.count_nonzero() == centre.count_nonzero()
        if conv.out_channels >= conv.in_channels:
            gram = centre.T @ centre
            torch.testing.assert_close(gram, 2 * torch.eye(len(gram), dtype=torch.float64), atol=1e-4, rtol=0)


def test_zero_gamma_begins_as_the_shortcuts_alone() -> None:
    network = initialised(zero_gamma)
    fx = [branch(torch.randn(2, convolutions(branch)[0].in_channels, 8, 8)) for branch in branches(network)]
    assert len(fx) == 9
    assert not any(each.any() for each in fx)
    with pytest.raises(InputError, match="zero_gamma needs a normalisation with a weight"):
        initialised(zero_gamma, block=Design(order=Order(behind=[])))


def test_fixup_scales_by_the_number_of_blocks() -> None:
    network, he = initialised(fixup), initialised(he_fan_out)
    for mine, theirs in zip(branches(network), branches(he), strict=True):
        first, last = convolutions(mine)
        torch.testing.assert_close(first.weight, convolutions(theirs)[0].weight * 9**-0.5)
        assert not last.weight.any()
    assert not network.head.linear.weight.any()
