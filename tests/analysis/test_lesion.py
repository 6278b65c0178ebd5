"""Deleted and swapped blocks, compared with explicit forward passes."""

from contextlib import ExitStack
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainres.analysis.lesion import blocks_of, deleted, plan_rows, shape_changing, swapped, text
from plainres.analysis.measurements import Row
from plainres.errors import InputError
from plainres.models.blocks import BlockSpec
from plainres.models.networks import CifarNet
from plainres.models.shortcuts import ExclusiveGating, Identity, Plain, ShortcutFactory
from support.shipped import CONNECTIONS, STATEFUL_ORDER

X = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network(shortcut: ShortcutFactory, depth: int = 3, stages: int = 1) -> CifarNet:
    """Return a network of a stem, blocks of one layer and a head, whose batch statistics are those of X."""
    torch.manual_seed(0)
    net = CifarNet(1, 10, depth, 4, shortcut, block=BlockSpec([3]), stages=stages)
    with torch.no_grad():
        net(X)
    return net.eval()


def logits(net: CifarNet, y: Tensor) -> Tensor:
    return net.head(net.tail(y))


@pytest.mark.parametrize("shortcut", [Plain, Identity])
def test_a_deleted_block_returns_its_input(shortcut: ShortcutFactory) -> None:
    net = network(shortcut)
    original = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        intact = net(X)
        (block,) = blocks_of(net)[0]
        with deleted([block]):
            assert torch.equal(net(X), logits(net, net.stem(X).relu()))
        assert not torch.equal(intact, logits(net, net.stem(X)))
        assert torch.equal(net(X), intact)
    assert all(torch.equal(value, original[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("shortcut", [Plain, Identity])
def test_a_deleted_block_that_changes_the_shape_is_option_a(shortcut: ShortcutFactory) -> None:
    net = network(shortcut, depth=4, stages=2)
    (first,), (second,) = blocks_of(net)
    assert shape_changing(net, X) == {2}
    with torch.no_grad():
        padded = F.pad(first(net.stem(X))[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        with deleted([second]):
            assert torch.equal(net(X), logits(net, padded))
        with deleted([first, second]):
            assert torch.equal(net(X), logits(net, F.pad(net.stem(X)[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))


def test_deleting_a_block_keeps_the_gate_of_its_shortcut() -> None:
    net = network(partial(ExclusiveGating, bias=0.0))
    (block,) = blocks_of(net)[0]
    with torch.no_grad(), deleted([block]):
        x = net.stem(X)
        gate = cast(Any, block.shortcut).gate(x).sigmoid()
        assert torch.equal(net(X), logits(net, ((1 - gate) * x).relu()))


def test_swapped_blocks_are_restored() -> None:
    net = network(Identity, depth=5)
    first, second, third = blocks_of(net)[0]
    with torch.no_grad():
        intact = net(X)
        with swapped(net, [(1, 2), (2, 3)]):
            assert torch.equal(net(X), logits(net, first(third(second(net.stem(X))))))
        assert torch.equal(net(X), intact)


@pytest.mark.parametrize("name", CONNECTIONS)
def test_lesions_where_blocks_hand_on_a_state(name: str) -> None:
    torch.manual_seed(0)
    net = CifarNet(1, 10, 20, 4, CONNECTIONS[name], block=BlockSpec(order=STATEFUL_ORDER))
    with torch.no_grad():
        net(X)
        net.eval()
        intact = net(X)
        assert shape_changing(net, X) == {4, 7}
        for stage in blocks_of(net):
            block = stage[-1]
            seen: list[Tensor] = []
            with deleted([block]), ExitStack() as hooks:
                handle = block.residual.register_forward_hook(lambda _, __, fx, seen=seen: seen.append(fx))
                hooks.callback(handle.remove)
                assert not torch.equal(net(X), intact)
            assert not seen[0].any()
        with swapped(net, [(2, 3), (5, 6)]):
            assert not torch.equal(net(X), intact)
            with swapped(net, [(2, 3), (5, 6)]):
                assert torch.equal(net(X), intact)
        assert torch.equal(net(X), intact)


def test_a_stream_has_the_lesions_of_the_identity() -> None:
    """Compare the networks before training, when the weights of the streams are 0 and 1."""
    torch.manual_seed(0)
    spec = BlockSpec(order=STATEFUL_ORDER)
    streams, identity = (CifarNet(1, 10, 20, 4, s, block=spec) for s in (CONNECTIONS["hyper_connections"], Identity))
    identity.load_state_dict({k: v for k, v in streams.state_dict().items() if "shortcut" not in k})
    for net in (streams, identity):
        with torch.no_grad():
            net(X)
        net.eval()
    with torch.no_grad():
        for index in range(9):
            results = []
            for net in (streams, identity):
                with deleted([[*chain(*blocks_of(net))][index]]):
                    results.append(net(X))
            torch.testing.assert_close(*results)
        for pair in ((2, 3), (5, 6), (8, 9)):
            results = []
            for net in (streams, identity):
                with swapped(net, [pair]):
                    results.append(net(X))
            torch.testing.assert_close(*results)


def test_planned_lesions_depend_only_on_the_seed() -> None:
    net = network(Identity, depth=8, stages=2)  # stages of blocks 1 to 3 and 4 to 6; block 4 changes the shape
    test = SimpleNamespace(image_count=7)
    finished: Any = SimpleNamespace(network=net, training=[(X, None)], test=test, test_images=7, key={})
    rows = plan_rows(finished, max_number=3, draws=2, seed=0)
    assert rows == plan_rows(finished, max_number=3, draws=2, seed=0)
    assert rows != plan_rows(finished, max_number=3, draws=2, seed=1)
    kinds = [row["kind"] for row in rows]
    assert [kinds.count(kind) for kind in ("none", "block", "delete", "swap")] == [1, 6, 4, 6]
    assert [row["blocks"] for row in rows if row["shape"]] == ["4"]
    for row in rows:
        if row["kind"] == "swap":
            pairs = row["blocks"].split()
            assert len(set(pairs)) == int(row["number"])
            assert set(pairs) <= {"1-2", "1-3", "2-3", "5-6"}
        elif row["kind"] == "delete":
            assert len(set(row["blocks"].split())) == int(row["number"])
    taus = {row["blocks"]: row["kendall_tau"] for row in rows if row["kind"] == "swap"}
    for swaps, discordant in (("2-3", 1), ("1-3", 3), ("5-6 2-3", 2)):  # of 15 pairs
        assert taus[swaps] == f"{1 - 2 * discordant / 15:.6f}"


def test_printed_errors_say_over_how_many_draws_they_are_means() -> None:
    def row(kind: str, number: int, error: float, shape: str = "") -> Row:
        values = {"train_error": str(error), "test_error": str(error + 1)}
        return {"kind": kind, "number": str(number), "blocks": "4", "shape": shape} | values

    rows = [row("none", 0, 1), row("block", 1, 2, "changes"), row("delete", 2, 3), row("delete", 2, 5)]
    lines = text("net", [*rows, row("swap", 1, 7)]).splitlines()
    assert [line.split(maxsplit=1)[0] if i < 2 else " ".join(line.split()) for i, line in enumerate(lines)] == [
        "net",
        "training",
        "as trained 1.00 2.00",
        "block 4 deleted, changes the shape 2.00 3.00",
        "2 random blocks deleted, mean of 2 draws 4.00 5.00",
        "1 random pair swapped, 1 draw 7.00 8.00",
    ]


def test_a_network_without_blocks() -> None:
    with pytest.raises(InputError, match="Linear is not a stack of blocks"):
        blocks_of(nn.Linear(2, 2))
