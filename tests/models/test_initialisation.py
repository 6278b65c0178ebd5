import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from plainres.errors import InputError
from plainres.models.blocks import BlockSpec, LayerOrder
from plainres.models.initialisation import (
    Scheme,
    delta_orthogonal,
    fixup,
    he_fan_in,
    he_fan_out,
    named_blocks,
    orthogonal,
    zero_gamma,
)
from plainres.models.networks import BASIC, CifarNet
from plainres.models.normalisation import NormFactory
from plainres.models.scaled_shortcuts import LayerScale, ReZero, SkipInit
from plainres.models.shortcuts import ExclusiveGating, Identity, Plain, ProjectionAll, ShortcutFactory

SCHEMES = [he_fan_in, he_fan_out, orthogonal, delta_orthogonal, zero_gamma, fixup]


def initialised(
    scheme: Scheme = he_fan_out,
    shortcut: ShortcutFactory = Identity,
    *,
    seed: int = 0,
    depth: int = 20,
    block: BlockSpec = BASIC,
    norm: NormFactory = nn.BatchNorm2d,
) -> Any:
    network = CifarNet(3, 10, depth, 16, shortcut, block=block, norm=norm)
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
def test_scheme_depends_on_the_seed_only_and_does_not_change_shortcuts_or_global_state(scheme: Scheme) -> None:
    norm = nn.Identity if scheme is fixup else nn.BatchNorm2d

    def state_dict(shortcut: ShortcutFactory, seed: int = 0) -> dict[str, Tensor]:
        return initialised(scheme, shortcut, seed=seed, norm=norm).state_dict()

    identity, same_seed, other_seed = state_dict(Identity), state_dict(Identity), state_dict(Identity, 1)
    assert all(torch.equal(identity[key], same_seed[key]) for key in identity)
    assert not torch.equal(identity["stem.conv.weight"], other_seed["stem.conv.weight"])
    for shortcut in (ProjectionAll, ExclusiveGating, SkipInit):
        with_shortcut = state_dict(shortcut)
        assert all(torch.equal(identity[key], with_shortcut[key]) for key in identity)
    network = initialised(scheme, norm=norm)
    state = torch.get_rng_state()
    scheme(network, Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("scheme", [zero_gamma, fixup])
def test_zero_initialised_branches_without_gradient_are_rejected(scheme: Scheme) -> None:
    norm = nn.Identity if scheme is fixup else nn.BatchNorm2d
    with pytest.raises(InputError, match="a plain network receives no gradient; choose a model/shortcut"):
        initialised(scheme, Plain, norm=norm)
    with pytest.raises(InputError, match=r"the ReLU at the end of stages\.0\.0 has no gradient"):
        initialised(scheme, block=BlockSpec(order=LayerOrder(post=["norm", "relu"], post_add=[])), norm=norm)
    with pytest.raises(InputError, match=r"stages\.0\.0 multiplies it by a factor initialised to 0"):
        initialised(scheme, ReZero, norm=norm)
    with pytest.raises(InputError, match=r"stages\.0\.0 multiplies it by a factor initialised to 0"):
        initialised(scheme, partial(LayerScale, initial=0.0), norm=norm)
    initialised(scheme, partial(ReZero, initial=0.1), norm=norm)
    initialised(scheme, SkipInit, norm=norm)
    network = initialised(scheme, norm=norm)
    for _ in range(4):  # gradients reach the head first, then the ends of the branches, then all layers
        network.zero_grad()
        (network(torch.randn(4, 3, 8, 8)) - 1).square().mean().backward()
        torch.optim.SGD(network.parameters(), 0.1).step()
    assert all(conv.weight.grad.any() for conv in convolutions(network))  # pyright: ignore[reportOptionalMemberAccess]


def test_fixup_rejects_normalisation() -> None:
    with pytest.raises(InputError, match="is for networks without normalisation; set model/norm=none"):
        initialised(fixup)


def test_orthogonal_matrices() -> None:
    for conv in convolutions(initialised(orthogonal)):
        rows = conv.weight.flatten(1).double()
        torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(len(rows), dtype=torch.float64), atol=1e-4, rtol=0)


def test_delta_orthogonal_convolutions_preserve_norms() -> None:
    for conv in convolutions(initialised(delta_orthogonal)):
        centre = conv.weight[:, :, 1, 1].double()
        assert conv.weight.count_nonzero() == centre.count_nonzero()
        if conv.out_channels >= conv.in_channels:
            gram = centre.T @ centre
            torch.testing.assert_close(gram, 2 * torch.eye(len(gram), dtype=torch.float64), atol=1e-4, rtol=0)


def test_zero_gamma_initialises_branches_to_0() -> None:
    network = initialised(zero_gamma)
    branches = [block.residual for _, block in named_blocks(network)]
    outputs = [branch(torch.randn(2, convolutions(branch)[0].in_channels, 8, 8)) for branch in branches]
    assert len(outputs) == 9
    assert not any(output.any() for output in outputs)
    with pytest.raises(InputError, match="zero_gamma needs a normalisation with a weight"):
        initialised(zero_gamma, block=BlockSpec(order=LayerOrder(post=[])))


def test_fixup_scales_by_the_number_of_blocks() -> None:
    network, he = initialised(fixup, norm=nn.Identity), initialised(he_fan_out, norm=nn.Identity)
    for (_, block), (_, he_block) in zip(named_blocks(network), named_blocks(he), strict=True):
        first, last = convolutions(block.residual)
        torch.testing.assert_close(first.weight, convolutions(he_block.residual)[0].weight * 9**-0.5)
        assert not last.weight.any()
    assert not network.head.linear.weight.any()
