"""Errors of a trained network without some of its blocks, or with its blocks in another order.

Veit, Wilber & Belongie 2016 (Residual Networks Behave Like Ensembles of Relatively Shallow Networks): deleting any one
block of a residual network hardly matters, but for those where the shape changes, deleting a layer of a VGG net brings
it to chance (figure 3); the error grows smoothly with the number of deleted blocks (figure 5a) and of blocks that have
changed places (figure 5b).

Deleted is a block's residual branch, y = post_add(shortcut(x, 0)). Where that is nothing, as in a plain net, the block
is taken out whole, y = post_add(x). Taking it out is impossible where it changes the shape of x; x is then subsampled
and padded with zeros (option A), which is what the block of an identity net leaves too. Those blocks are marked.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, combinations
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Generator, Tensor, nn

from plainres.analysis.measurements import Finished, Plan, Row, draw_runs, finished, labels, loss_and_error, measure
from plainres.data.sources import sample_size
from plainres.errors import InputError
from plainres.models.blocks import Block
from plainres.models.networks import Stack
from plainres.models.shortcuts import Identity
from plainres.randomness import mix
from plainres.reporting.figures import COLOURS, MARKERS

VALUES = ("train_loss", "train_error", "test_loss", "test_error")
KINDS = ("block", "delete", "swap")  # each block by itself, several at random, blocks in each other's place


def blocks_of(network: nn.Module) -> list[list[Block]]:
    """The blocks of a network, stage by stage.

    Raises:
        InputError: it has none.
    """
    stages = [list(stage.children()) for stage in network.stages.children()] if isinstance(network, Stack) else []
    blocks = [[block for block in stage if isinstance(block, Block)] for stage in stages]
    if not stages or blocks != stages:
        raise InputError(f"{type(network).__name__} is no stack of blocks, of which some could be deleted")
    return blocks


@contextmanager
def deleted(blocks: Iterable[Block]) -> Iterator[None]:
    """Within, these blocks leave nothing but their shortcut path; no weight is touched."""
    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(block.residual.register_forward_hook(_nothing))
            hooks.enter_context(block.shortcut.register_forward_hook(_left))
        yield


def _nothing(module: nn.Module, inputs: tuple[Tensor], fx: Tensor) -> Tensor:
    """In the place of what a residual branch gives."""
    return torch.zeros_like(fx)


def _left(module: nn.Module, inputs: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """What a shortcut makes of x and 0, or, where that is nothing, x in the shape of F(x)."""
    if y.any():
        return y
    x, fx = inputs
    return Identity(x.shape[1], fx.shape[1], stride=-(-x.shape[2] // fx.shape[2])).align(x)


@contextmanager
def swapped(network: Stack, pairs: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Within, the blocks at the places of each pair, counted from 1 through the network, have changed places."""
    stages = [stage for stage in network.stages.children() if isinstance(stage, nn.Sequential)]
    places = [(stage, i) for stage in stages for i in range(len(stage))]
    before = [stage[i] for stage, i in places]
    try:
        for pair in pairs:
            (one, i), (other, j) = (places[place - 1] for place in pair)
            one[i], other[j] = other[j], one[i]
        yield
    finally:
        for (stage, i), block in zip(places, before, strict=True):
            stage[i] = block


def changing(network: nn.Module, images: Tensor) -> set[int]:
    """The numbers of the blocks, from 1, whose output has another shape than their input."""
    found: set[int] = set()
    with ExitStack() as hooks, torch.no_grad():
        for number, block in enumerate(chain.from_iterable(blocks_of(network)), 1):

            def look(module: nn.Module, inputs: tuple[Tensor], y: Tensor, number: int = number) -> None:
                if inputs[0].shape != y.shape:
                    found.add(number)

            hooks.enter_context(block.register_forward_hook(look))
        network(images)
    return found


def wanted(of: Finished, most: int, draws: int, seed: int) -> list[Row]:
    """A row for each network to be measured: as it is; without each block; without 2, 3, ... `most` blocks drawn at
    random; with 1, 2, ... `most` pairs of blocks of one stage and shape swapped, one after the other.

    A draw is a function of (seed, kind, number of blocks or pairs, draw) alone, and no pair comes twice in one.
    """
    network = of.network
    x, _ = next(iter(of.training))
    change = changing(network, x[:1].to(next(network.parameters())))
    stages = blocks_of(network)
    count = sum(map(len, stages))
    pairs, first = [], 1
    for stage in stages:
        pairs += combinations([i for i in range(first, first + len(stage)) if i not in change], 2)
        first += len(stage)

    def row(kind: str, number: int, blocks: Sequence[object] = (), draw: str = "", tau: float = 1.0) -> Row:
        seeded = str(seed) if draw else ""
        text = " ".join(map(str, blocks))
        shape = "changes" if kind == "block" and blocks[0] in change else ""
        return of.key | {
            "test_images": sample_size(len(of.test.index), of.test_images),
            **{"kind": kind, "number": str(number), "seed": seeded, "draw": draw},
            **{"blocks": text, "shape": shape, "kendall_tau": f"{tau:.6f}"},
        }

    def drawn(kind: str, number: int, of_these: int, draw: int) -> list[int]:
        generator = Generator().manual_seed(mix("lesion", seed, kind, number, draw))
        return torch.randperm(of_these, generator=generator)[:number].tolist()

    rows = [row("none", 0), *(row("block", 1, [number]) for number in range(1, count + 1))]
    for number in range(2, min(most, count) + 1):
        for draw in range(min(draws, math.comb(count, number))):
            rows.append(row("delete", number, sorted(i + 1 for i in drawn("delete", number, count, draw)), str(draw)))
    for number in range(1, min(most, len(pairs)) + 1):
        for draw in range(draws):
            chosen = [pairs[i] for i in drawn("swap", number, len(pairs), draw)]
            order = list(range(count))
            for i, j in chosen:
                order[i - 1], order[j - 1] = order[j - 1], order[i - 1]
            inversions = sum(before > after for before, after in combinations(order, 2))
            tau = 1 - 4 * inversions / (count * (count - 1))
            rows.append(row("swap", number, [f"{i}-{j}" for i, j in chosen], str(draw), tau))
    return rows


def measured(of: Finished, row: Mapping[str, str]) -> list[float]:
    """Loss and error (%) on the training and the test set, with the lesion that a row describes."""
    network = of.network
    assert isinstance(network, Stack)
    with ExitStack() as stack:
        if row["kind"] == "swap":
            pairs = [(int(i), int(j)) for i, j in (pair.split("-") for pair in row["blocks"].split())]
            stack.enter_context(swapped(network, pairs))
        else:
            blocks = list(chain.from_iterable(blocks_of(network)))
            stack.enter_context(deleted(blocks[int(number) - 1] for number in row["blocks"].split()))
        return [*loss_and_error(network, of.training), *loss_and_error(network, of.test)]


def write(folders: Sequence[Path], most: int, draws: int, seed: int, images: int | None) -> str:
    """Measure the lesions of runs; write lesion.csv and the figure into their folders, return a table as text.

    Raises:
        InputError, LockedError, RunFailedError: as `measurements.measure`.
    """
    found = finished(folders, images)
    plans = [Plan(one, "lesion", wanted(one, most, draws, seed)) for one in found]
    rows = measure(plans, VALUES, measured, images, "network")
    runs = [one.run for one in found]
    names = labels(runs)
    figure = draw_runs(lambda numbers: draw([names[i] for i in numbers], [rows[i] for i in numbers]), runs, "lesion")
    return "\n\n".join([*map(text, names, rows), str(figure)])


def text(name: str, rows: Sequence[Row]) -> str:
    """The errors of a run: those of deleted blocks by themselves, the others as means over draws."""
    lines = [name, f"{'training error (%)':>56}  test error (%)"]
    said = {
        "none": "as trained",
        "block": "block {} deleted",
        "delete": "blocks deleted: {}",
        "swap": "pairs swapped: {}",
    }
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["blocks" if row["kind"] == "block" else "number"]), []).append(row)
    for (kind, which), group in groups.items():
        what = said[kind].format(which) + (", changes the shape" if group[0]["shape"] else "")
        train, test = (mean(float(row[value]) for row in group) for value in ("train_error", "test_error"))
        lines.append(f"  {what:<36}{train:18.2f}  {test:14.2f}")
    return "\n".join(lines)


def draw(names: Sequence[str], found: Sequence[Sequence[Row]]) -> Figure:
    """Training error (dashed) and test error (bold) without each block; without and with swapped blocks at random.

    At random: every draw's test error is a dot, the lines are means. A hollow marker is a block that changes the shape.
    """
    figure = Figure(figsize=(13, 4.2))
    panels: Sequence[Axes] = figure.subplots(1, 3, sharey=True)
    for i, rows in enumerate(found):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        none, *_ = rows
        for panel, kind in zip(panels, KINDS, strict=True):
            here = [row for row in rows if row["kind"] == kind]
            if kind == "delete":  # of which each block by itself is the least
                here = [row for row in rows if row["kind"] == "block"] + here
            column = "blocks" if kind == "block" else "number"
            if not here:
                continue
            groups: dict[int, list[Row]] = {} if kind == "block" else {0: [none]}
            for row in here:
                groups.setdefault(int(row[column]), []).append(row)
            for value, line, width in (("train_error", "--", 1.0), ("test_error", "-", 2.0)):
                means = [mean(float(row[value]) for row in group) for group in groups.values()]
                panel.plot(list(groups), means, line, color=colour, linewidth=width)
            for x, group in groups.items():
                errors = [float(row["test_error"]) for row in group]
                style: dict[str, Any] = {"marker": ".", "alpha": 0.5}
                if kind == "block":
                    style = {"marker": marker, "mfc": "white" if group[0]["shape"] else colour}
                panel.plot([x] * len(errors), errors, linestyle="", color=colour, **style)
            if kind == "block":
                panel.axhline(float(none["test_error"]), color=colour, linewidth=0.8, linestyle=":")
    for panel, label in zip(panels, ("block deleted", "blocks deleted at random", "pairs swapped"), strict=True):
        panel.set_xlabel(label)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("error (%)")
    panels[0].set_ylim(-2, 102)
    styles = [
        Line2D([], [], color="#444444", linestyle="--", linewidth=1, label="training error"),
        Line2D([], [], color="#444444", linewidth=2, label="test error"),
        Line2D([], [], color="#444444", linewidth=0.8, linestyle=":", label="test error as trained"),
        Line2D([], [], color="#444444", linestyle="", marker="o", mfc="white", label="the shape changes"),
    ]
    runs = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], label=name)
        for i, name in enumerate(names)
    ]
    figure.legend(handles=[*runs, *styles], loc="outside lower center", ncols=len(runs) + len(styles))
    return figure
