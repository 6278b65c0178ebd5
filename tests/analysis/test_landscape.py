"""Filter-normalised directions, and the loss at a point, compared with an independent computation."""

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
    """Return a network of three layers: stem, a block of one layer, and head."""
    torch.manual_seed(0)
    return CifarNet(1, 10, 3, 4, shortcut, block=BlockSpec([3]), stages=1).eval()


def test_filters_of_a_direction_have_the_norms_of_the_networks_filters() -> None:
    net = network()
    filters = 0
    for (name, weight), step in zip(net.named_parameters(), direction(net, 0, 0), strict=True):
        if name.endswith("conv.weight") or name.endswith("conv1.weight") or name.endswith("linear.weight"):
            for kernel, part in zip(weight.detach(), step, strict=True):
                norms = [math.sqrt(sum(float(number) ** 2 for number in each.flatten())) for each in (kernel, part)]
                assert math.isclose(norms[1], norms[0], rel_tol=1e-5)
                filters += 1
        else:
            assert not step.any(), name
    assert filters == 4 + 4 + 10


def test_a_direction_depends_only_on_seed_axis_and_weights() -> None:
    net = network()
    first, again, other_seed, other_axis = (direction(net, *key) for key in ((0, 0), (0, 0), (1, 0), (0, 1)))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other_seed[0])
    assert not torch.equal(first[0], other_axis[0])
    assert all(map(torch.equal, first, direction(network(Plain), 0, 0)))  # initialised with the same weights


def test_loss_and_error_at_a_point_and_restored_weights() -> None:
    net = network()
    names = [name for name, _ in net.named_parameters()]
    original = [weight.detach().clone() for weight in net.parameters()]
    steps = direction(net, 0, 0), direction(net, 0, 1)
    point = {name: weight + 0.3 * d - 0.2 * e for name, weight, d, e in zip(names, original, *steps, strict=True)}
    logits = torch.cat([functional_call(net, point, (x,)) for x, _ in BATCHES])
    targets = torch.cat([y for _, y in BATCHES])
    with moved(net, [(0.3, steps[0]), (-0.2, steps[1])]):
        loss, error = loss_and_error(net, BATCHES)
    assert math.isclose(loss, F.cross_entropy(logits, targets).item(), rel_tol=1e-5)
    assert error == 100 * (logits.argmax(1) != targets).sum().item() / 11
    assert all(map(torch.equal, original, net.parameters()))


def test_distant_points_may_have_a_non_finite_loss() -> None:
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


def test_losses_without_a_logarithm_are_noted() -> None:
    losses = ["inf", "0.0", "0.5"]
    rows = [{"a": a, "b": b, "loss": losses[i], "error": "5.0"} for i, a in enumerate("012") for b in "012"]
    line = [row for row in rows if row["b"] == "0"]
    panel, _ = curves(["net"], [line]).axes
    assert panel.get_xlabel().splitlines()[1:] == [
        *("1 value of 0: hollow, at the lower edge", "1 loss NaN or infinite, not drawn")
    ]
    assert [list(mark.get_xdata()) for mark in panel.get_lines()[1:]] == [[1.0]]  # pyright: ignore
    assert surfaces(["net"], [rows]).axes[0].get_xlabel() == "white: 6 losses of 0, NaN or infinite"
    positive = [row | {"loss": "0.5"} for row in rows]
    assert curves(["net"], [positive]).axes[0].get_xlabel() == "distance, in units of the filters' norms"
    assert surfaces(["net"], [positive]).axes[0].get_xlabel() == ""


def test_a_landscape_without_any_positive_loss_is_drawn() -> None:
    rows = [{"a": a, "b": b, "loss": "0.0", "error": "0.0"} for a in "012" for b in "012"]
    for draw in (curves, surfaces):
        draw(["net"], [rows]).savefig(io.BytesIO())
