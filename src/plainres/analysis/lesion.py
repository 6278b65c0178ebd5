"""Lesion studies: errors of a trained network after deleting or swapping blocks.

Veit, Wilber & Belongie 2016 (Residual Networks Behave Like Ensembles of Relatively Shallow Networks) report that
deleting a single block of a residual network hardly matters, unless it changes the shape. Deleting a layer of a VGG net
reduces it to chance (figure 3). The error grows smoothly with the number of deleted blocks (figure 5a) and of swapped
blocks (figure 5b).

Deleting a block removes its residual branch: y = post_add(shortcut(x, 0)). If the shortcut returns zeros, as in a plain
net, the whole block is removed instead: y = post_add(x). If such a block changes the shape of x, x is subsampled and
padded with zeros (option A), as a deleted block of an identity net does. Blocks that change the shape are marked.
Where blocks hand on a state, deleting one writes zeros to it, and swapping two swaps their branches.
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

from plainres.analysis.measurements import (
    Finished,
    Plan,
    Row,
    draw_runs,
    labels,
    loss_and_error,
    measure,
    read_finished,
)
from plainres.console import quantity
from plainres.data.sources import sample_size
from plainres.errors import InputError
from plainres.models.blocks import Block
from plainres.models.connections import StatefulBlock
from plainres.models.networks import Stack
from plainres.models.shortcuts import Identity
from plainres.randomness import mix
from plainres.reporting.figures import COLOURS, MARKERS, legend_below
from plainres.runs.location import Location

VALUES = ("train_loss", "train_error", "test_loss", "test_error")
KINDS = ("block", "delete", "swap")  # one block deleted, random blocks deleted, random pairs of blocks swapped


def blocks_of(network: nn.Module) -> list[list[Block | StatefulBlock]]:
    """Return the blocks of each stage of a network.

    Raises:
        InputError: the network is not a stack of blocks.
    """
    stages = [list(stage.children()) for stage in network.stages.children()] if isinstance(network, Stack) else []
    blocks = [[block for block in stage if isinstance(block, Block | StatefulBlock)] for stage in stages]
    if not stages or blocks != stages:
        raise InputError(
            f"{type(network).__name__} is not a stack of blocks; blocks can be deleted only from the networks of "
            "plainres.models"
        )
    return blocks


@contextmanager
def deleted(blocks: Iterable[Block | StatefulBlock]) -> Iterator[None]:
    """Delete blocks within the context, by forward hooks that leave only their shortcuts."""
    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(block.residual.register_forward_hook(_zero_output))
            hooks.enter_context(block.shortcut.register_forward_hook(_shortcut_output))
        yield


def _zero_output(module: nn.Module, inputs: tuple[Tensor], fx: Tensor) -> Tensor:
    """Replace the output of a residual branch by zeros."""
    return torch.zeros_like(fx)


def _shortcut_output(module: nn.Module, inputs: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """Return y = shortcut(x, 0), or, if that is all zeros, x in the shape of F(x)."""
    if y.any():
        return y
    x, fx = inputs
    return Identity(x.shape[1], fx.shape[1], stride=-(-x.shape[2] // fx.shape[2])).align(x)


@contextmanager
def swapped(network: Stack, pairs: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Swap the blocks at each pair of positions within the context. Positions count from 1 through the network."""
    stages = [stage for stage in network.stages.children() if isinstance(stage, nn.Sequential)]
    positions = [(stage, i) for stage in stages for i in range(len(stage))]
    original = [(stage[i], stage[i].pre, stage[i].residual) for stage, i in positions]
    try:
        for pair in pairs:
            (first, i), (second, j) = (positions[position - 1] for position in pair)
            a, b = first[i], second[j]
            if isinstance(a, StatefulBlock) and isinstance(b, StatefulBlock):
                # a connection stays, since its weights may fit its position only
                a.pre, b.pre, a.residual, b.residual = b.pre, a.pre, b.residual, a.residual
            else:
                first[i], second[j] = b, a
        yield
    finally:
        for (stage, i), (block, pre, residual) in zip(positions, original, strict=True):
            stage[i] = block
            block.pre, block.residual = pre, residual


def shape_changing(network: nn.Module, images: Tensor) -> set[int]:
    """Return the 1-based positions of the blocks whose output has another shape than their input."""
    changing: set[int] = set()
    with ExitStack() as hooks, torch.no_grad():
        for number, block in enumerate(chain.from_iterable(blocks_of(network)), 1):

            def compare(module: nn.Module, inputs: tuple[Tensor], y: Tensor, number: int = number) -> None:
                if inputs[0].shape != y.shape:
                    changing.add(number)

            hooks.enter_context(block.residual.register_forward_hook(compare))
        network(images)
    return changing


def plan_rows(finished: Finished, max_number: int, draws: int, seed: int) -> list[Row]:
    """Return one row, without values, for each lesion to measure.

    - none: the intact network;
    - block: each block deleted;
    - delete: 2, 3, ... `max_number` random blocks deleted, `draws` times each;
    - swap: 1, 2, ... `max_number` random pairs of blocks swapped one after the other, `draws` times each. The blocks of
      a pair belong to the same stage, and neither changes the shape.

    A draw depends only on (seed, kind, number of blocks or pairs, draw), and contains no block or pair twice.
    """
    network = finished.network
    x, _ = next(iter(finished.training))
    changing = shape_changing(network, x[:1].to(next(network.parameters())))
    stages = blocks_of(network)
    count = sum(map(len, stages))
    pairs, first = [], 1
    for stage in stages:
        pairs += combinations([i for i in range(first, first + len(stage)) if i not in changing], 2)
        first += len(stage)

    def row(kind: str, number: int, blocks: Sequence[object] = (), draw: str = "", tau: float = 1.0) -> Row:
        seeded = str(seed) if draw else ""
        text = " ".join(map(str, blocks))
        shape = "changes" if kind == "block" and blocks[0] in changing else ""
        return finished.key | {
            "test_images": sample_size(finished.test.image_count, finished.test_images),
            **{"kind": kind, "number": str(number), "seed": seeded, "draw": draw},
            **{"blocks": text, "shape": shape, "kendall_tau": f"{tau:.6f}"},
        }

    def drawn(kind: str, number: int, population: int, draw: int) -> list[int]:
        generator = Generator().manual_seed(mix("lesion", seed, kind, number, draw))
        return torch.randperm(population, generator=generator)[:number].tolist()

    rows = [row("none", 0), *(row("block", 1, [number]) for number in range(1, count + 1))]
    for number in range(2, min(max_number, count) + 1):
        for draw in range(min(draws, math.comb(count, number))):
            rows.append(row("delete", number, sorted(i + 1 for i in drawn("delete", number, count, draw)), str(draw)))
    for number in range(1, min(max_number, len(pairs)) + 1):
        for draw in range(draws):
            chosen = [pairs[i] for i in drawn("swap", number, len(pairs), draw)]
            order = list(range(count))
            for i, j in chosen:
                order[i - 1], order[j - 1] = order[j - 1], order[i - 1]
            inversions = sum(before > after for before, after in combinations(order, 2))
            tau = 1 - 4 * inversions / (count * (count - 1))
            rows.append(row("swap", number, [f"{i}-{j}" for i, j in chosen], str(draw), tau))
    return rows


def measure_row(finished: Finished, row: Mapping[str, str]) -> list[float]:
    """Return loss and error (%) on the training set, then on the test set, with the row's lesion."""
    network = finished.network
    assert isinstance(network, Stack)
    with ExitStack() as stack:
        if row["kind"] == "swap":
            pairs = [(int(i), int(j)) for i, j in (pair.split("-") for pair in row["blocks"].split())]
            stack.enter_context(swapped(network, pairs))
        else:
            blocks = list(chain.from_iterable(blocks_of(network)))
            stack.enter_context(deleted(blocks[int(number) - 1] for number in row["blocks"].split()))
        return [*loss_and_error(network, finished.training), *loss_and_error(network, finished.test)]


def write(
    folders: Sequence[Path], max_number: int, draws: int, seed: int, images: int | None, *, location: Location = ()
) -> str:
    """Measure the lesions of runs and return a table of errors; write lesion.csv and a figure into each run's folder.

    Raises:
        InputError, LockedError, RunFailedError: see `measurements.measure`.
    """
    selected = read_finished(folders, images, location)
    plans = [Plan(finished, "lesion", plan_rows(finished, max_number, draws, seed)) for finished in selected]
    rows = measure(plans, VALUES, measure_row, images, "network")
    runs = [finished.run for finished in selected]
    names = labels(runs)
    figure = draw_runs(lambda indices: draw([names[i] for i in indices], [rows[i] for i in indices]), runs, "lesion")
    return "\n\n".join([*map(text, names, rows), str(figure)])


def text(name: str, rows: Sequence[Row]) -> str:
    """Format the errors of a run: of each deleted block, and means over the draws of random lesions, marked as such."""
    lines = [name, f"{'training error (%)':>56}  test error (%)"]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["blocks" if row["kind"] == "block" else "number"]), []).append(row)
    for (kind, key), group in groups.items():
        draws = "1 draw" if len(group) == 1 else f"mean of {len(group)} draws"
        if kind == "none":
            description = "as trained"
        elif kind == "block":
            description = f"block {key} deleted" + (", changes the shape" if group[0]["shape"] else "")
        else:
            noun, verb = ("random block", "deleted") if kind == "delete" else ("random pair", "swapped")
            description = f"{quantity(int(key), noun)} {verb}, {draws}"
        train, test = (mean(float(row[value]) for row in group) for value in ("train_error", "test_error"))
        lines.append(f"  {description:<42}{train:12.2f}  {test:14.2f}")
    return "\n".join(lines)


def draw(names: Sequence[str], measurements: Sequence[Sequence[Row]]) -> Figure:
    """Draw training error (dashed) and test error (bold) by lesion, in a panel for each kind of lesion.

    In the panels of random lesions, a dot is the test error of a draw, and lines are means. A hollow marker is a block
    that changes the shape.
    """
    figure = Figure(figsize=(13, 4.2))
    panels: Sequence[Axes] = figure.subplots(1, 3, sharey=True)
    for i, rows in enumerate(measurements):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        intact, *_ = rows
        for panel, kind in zip(panels, KINDS, strict=True):
            panel_rows = [row for row in rows if row["kind"] == kind]
            if kind == "delete":  # single deleted blocks are the points at 1
                panel_rows = [row for row in rows if row["kind"] == "block"] + panel_rows
            column = "blocks" if kind == "block" else "number"
            if not panel_rows:
                continue
            groups: dict[int, list[Row]] = {} if kind == "block" else {0: [intact]}
            for row in panel_rows:
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
                panel.axhline(float(intact["test_error"]), color=colour, linewidth=0.8, linestyle=":")
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
    legend_below(figure, [*runs, *styles])
    return figure
