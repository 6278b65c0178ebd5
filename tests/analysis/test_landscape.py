"""Filter-normalised directions and a point on one, computed by hand."""

import io
import math

import torch
import torch.nn.functional as F
from torch.func import functional_call

from plainres.analysis.landscape import curves, direction, moved, surfaces, text
from plainres.analysis.measurements import loss_and_error
from plainres.models.blocks import BlockSpec
from plainres.models.networks import CifarNet
from plainres.models.shortcuts import Identity, Plain, ShortcutFactory

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [
    (torch.randn(9, 1, 8, 8, generator=GENERATOR), torch.arange(9)),
    (torch.ones(2, 1, 8, 8), torch.zeros(2).long()),
]


def network(shortcut: ShortcutFactory = Identity) -> CifarNet:
    """Three layers: stem, a block of one, head."""
    torch.manual_seed(0)
    return CifarNet(1, 10, 3, 4, shortcut, block=BlockSpec([3]), stages=1).eval()


def test_every_filter_of_a_direction_is_as_long_as_the_networks() -> None:
    net = network()
    filters = 0
    for (name, weight), step in zip(net.named_parameters(), direction(net, 0, 0), strict=True):
        if name.endswith("conv.weight") or name.endswith("conv1.weight") or name.endswith("linear.weight"):
            for own, other in zip(weight.detach(), step, strict=True):
                length = math.sqrt(sum(float(number) ** 2 for number in own.flatten()))
                assert math.isclose(math.sqrt(sum(float(n) ** 2 for n in other.flatten())), length, rel_tol=1e-5)
                filters += 1
        else:
            assert not step.any(), name
    assert filters == 4 + 4 + 10


def test_a_direction_is_a_function_of_seed_and_axis() -> None:
    net = network()
    first, again, seed, axis = (direction(net, *which) for which in ((0, 0), (0, 0), (1, 0), (0, 1)))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], seed[0])
    assert not torch.equal(first[0], axis[0])
    assert all(map(torch.equal, first, direction(network(Plain), 0, 0)))  # the same weights at first


def test_a_point_by_hand_and_back() -> None:
    net = network()
    names = [name for name, _ in net.named_parameters()]
    before = [weight.detach().clone() for weight in net.parameters()]
    steps = direction(net, 0, 0), direction(net, 0, 1)
    there = {name: weight + 0.3 * d - 0.2 * e for name, weight, d, e in zip(names, before, *steps, strict=True)}
    logits = torch.cat([functional_call(net, there, (x,)) for x, _ in BATCHES])
    targets = torch.cat([y for _, y in BATCHES])
    with moved(net, [(0.3, steps[0]), (-0.2, steps[1])]):
        loss, error = loss_and_error(net, BATCHES)
    assert math.isclose(loss, F.cross_entropy(logits, targets).item(), rel_tol=1e-5)
    assert error == 100 * (logits.argmax(1) != targets).sum().item() / 11
    assert all(map(torch.equal, before, net.parameters()))


def test_points_far_away_may_have_no_finite_loss() -> None:
    rows = [
        {"a": a, "b": b, "loss": loss, "error": error}
        for a, b, loss, error in (
            ("-1.0", "-1.0", "nan", "90.0"),
            ("-1.0", "1.0", "inf", "90.0"),
            ("1.0", "-1.0", "0.5", "5.0"),
            ("1.0", "1.0", "0.5", "20.0"),
        )
    ]
    assert text("net", rows).startswith("net: loss 0.5000 at (1.0, -1.0), up to nan at (-1.0, -1.0)")
    for draw in (curves, surfaces):
        draw(["net"], [rows]).savefig(io.BytesIO())
