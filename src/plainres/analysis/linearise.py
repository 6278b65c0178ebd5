"""Errors of a trained network whose activations are linear in the channels that need them least.

Mehmeti-Göpel & Wand 2025 (ResNets Are Deeper Than You Think) replace each ReLU after training by a slope for each
channel, phi(x) = relu(x) + s (x - relu(x)), and train on with a penalty that drives the slopes to 1, where the channel
is linear. They then compare networks of equal depth in non-linear units. Here nothing is trained: channels become
linear one after the other, s = 0 or 1, in the order of how little the loss depends on their slope.

This dependence is the mean over training images of (dL / ds)^2 at s = 0, where L is an image's cross-entropy. It is the
diagonal of the empirical Fisher information of the slopes, and costs one forward and backward pass. The test set plays
no part in it.

`effective_depth` is the normalised average path length of the paper: the mean number of non-linear channels on a path
from the output to the input that takes each incoming branch with equal probability, then each of its channels.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

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
from plainres.data.batches import Batch
from plainres.data.sources import sample_size
from plainres.errors import InputError
from plainres.models.connections import StatefulBlock
from plainres.models.networks import Stack
from plainres.models.paths import activations_of, follow
from plainres.models.shortcuts import Plain
from plainres.reporting.figures import COLOURS, MARKERS, legend_below
from plainres.runs.location import Location

VALUES = ("effective_depth", "nonlinear_layers", "train_loss", "train_error", "test_loss", "test_error")
IMAGES_AT_A_TIME = 64  # in a backward pass, which keeps all activations in memory


class Sloped(nn.Module):
    """phi(x) + s (l(x) - phi(x)), where phi is an activation and l continues its positive side as a straight line.

    With s = 0 the output is that of the activation to the bit, with s = 1 that of the line.

    Args:
        activation: the activation phi.
        slopes: s of each channel (C,), or of each image and channel (N, C).
    """

    def __init__(self, activation: nn.Module, slopes: Tensor) -> None:
        super().__init__()
        self.activation, self.slopes = activation, slopes

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, C, H, W) to an output of its shape."""
        line = x.sign() * self.activation(x.abs())
        activated = self.activation(x.clone())  # the activation may overwrite its input
        return torch.lerp(activated, line, self.slopes[..., None, None])


def activations(network: nn.Module) -> Mapping[str, nn.Module]:
    """Return the activations of the backbone by name, in order.

    Raises:
        InputError: the network is not a stack of blocks, or has no activation.
    """
    if not isinstance(network, Stack):
        raise InputError(
            f"{type(network).__name__} is not a stack of blocks; linearise measures only networks of plainres.models"
        )
    modules = activations_of(network)
    if not modules:
        raise InputError("the network has no activation, so it is linear already; check its model.block.order")
    return modules


def channels_of(network: nn.Module, images: Tensor) -> dict[str, int]:
    """Return the number of channels of each activation."""
    channels: dict[str, int] = {}
    with ExitStack() as hooks, torch.no_grad():
        for name, module in activations(network).items():

            def count(module: nn.Module, inputs: tuple[Tensor], y: Tensor, name: str = name) -> None:
                channels[name] = y.shape[1]

            hooks.enter_context(module.register_forward_hook(count))
        network(images)
    return channels


@contextmanager
def with_slopes(network: nn.Module, slopes: Mapping[str, Tensor]) -> Iterator[None]:
    """Give slopes to the named activations within the context."""
    original = {name: network.get_submodule(name) for name in slopes}
    try:
        for name, activation in original.items():
            network.set_submodule(name, Sloped(activation, slopes[name]))
        yield
    finally:
        for name, activation in original.items():
            network.set_submodule(name, activation)


def importance(network: nn.Module, batches: Iterable[Batch], channels: Mapping[str, int]) -> Tensor:
    """Return the mean of (dL / ds)^2 over images for each channel of each activation, in one vector (channels,)."""
    weight = next(network.parameters())
    total, images = torch.zeros(sum(channels.values()), dtype=torch.float64, device=weight.device), 0
    for batch, batch_targets in batches:
        for x, y in zip(batch.split(IMAGES_AT_A_TIME), batch_targets.split(IMAGES_AT_A_TIME), strict=True):
            slopes = {name: weight.new_zeros(len(y), count, requires_grad=True) for name, count in channels.items()}
            with with_slopes(network, slopes):
                loss = F.cross_entropy(network(x.to(weight)), y.to(weight.device), reduction="sum")
            derivatives = torch.autograd.grad(loss, list(slopes.values()))
            total += torch.cat(derivatives, 1).double().square().sum(0)
            images += len(y)
    return total / images


def _channels(finished: Finished) -> dict[str, int]:
    """Return the number of channels of each activation of a finished run."""
    x, _ = next(iter(finished.training))
    return channels_of(finished.network, x[:1].to(next(finished.network.parameters())))


@lru_cache(maxsize=1)  # the rows of one run follow each other
def _order(finished: Finished) -> Tensor:
    """Return all channels of a finished run in the order in which they become linear."""
    return importance(finished.network, finished.training, _channels(finished)).argsort(stable=True)


def effective_depth(network: nn.Module, nonlinear: Mapping[str, float]) -> float:
    """Return the mean number of non-linear channels on a path from the output to the input.

    Where a shortcut joins a branch, a path takes either with probability 1/2, whatever the shortcut multiplies them
    by; in a plain block it takes the branch. A convolution connects each channel with every channel before it. So the
    depth of a plain network of n activations is n, and the padded channels of option A count as a shortcut. It is NaN
    where blocks hand on a state, whose paths it does not define, or have a shortcut of the user's own, which may be
    plain in some of them.

    Args:
        network: a stack of blocks.
        nonlinear: the share of non-linear channels of each activation, by name.
    """

    def join(block: nn.Module, branch: float, skipping: float) -> float:
        if isinstance(block, StatefulBlock) or not type(block.shortcut).__module__.startswith("plainres."):
            return math.nan
        return branch if isinstance(block.shortcut, Plain) else (branch + skipping) / 2

    return follow(network, 0.0, lambda depth, name: depth + nonlinear[name], join)


def plan_rows(finished: Finished, steps: int) -> list[Row]:
    """Return one row, without values, for each of `steps` + 1 numbers of linear channels, from none to all."""
    total = sum(_channels(finished).values())
    numbers = dict.fromkeys(round(step / steps * total) for step in range(steps + 1))
    test_images = sample_size(finished.test.image_count, finished.test_images)
    return [
        finished.key | {"test_images": test_images, "channels": str(total), "linear": str(number)} for number in numbers
    ]


def measure_row(finished: Finished, row: Mapping[str, str]) -> list[float]:
    """Return the effective depth, the number of layers that are not linear, and loss and error (%) on both sets."""
    network, number = finished.network, int(row["linear"])
    channels, order = _channels(finished), _order(finished)
    linear = next(network.parameters()).new_zeros(len(order))
    linear[order[:number]] = 1
    slopes = dict(zip(channels, linear.split(list(channels.values())), strict=True))
    nonlinear = {name: 1 - slope.mean().item() for name, slope in slopes.items()}
    depth, layers = effective_depth(network, nonlinear), sum(not slope.all() for slope in slopes.values())
    with with_slopes(network, {name: slope for name, slope in slopes.items() if slope.any()}):
        return [depth, layers, *loss_and_error(network, finished.training), *loss_and_error(network, finished.test)]


def write(folders: Sequence[Path], steps: int, images: int | None, *, location: Location = ()) -> str:
    """Measure runs with linear channels and return a table of errors; write linearise.csv and a figure for each run.

    Raises:
        InputError, LockedError, RunFailedError: see `measurements.measure`.
    """
    selected = read_finished(folders, images, location)
    plans = [Plan(finished, "linearise", plan_rows(finished, steps)) for finished in selected]
    rows = measure(plans, VALUES, measure_row, images, "network")
    runs = [finished.run for finished in selected]
    names = labels(runs)
    figure = draw_runs(lambda indices: draw([names[i] for i in indices], [rows[i] for i in indices]), runs, "linearise")
    return "\n\n".join([*map(text, names, rows), str(figure)])


def share(row: Row) -> float:
    """Return the share of non-linear channels in percent."""
    return 100 * (1 - int(row["linear"]) / int(row["channels"]))


def text(name: str, rows: Sequence[Row]) -> str:
    """Format the errors of a run by the share of its non-linear channels, with the number of non-linear layers."""
    lines = [name, "  non-linear (%)  effective depth  layers  training error (%)  test error (%)"]
    for row in rows:
        train, test, depth = (float(row[value]) for value in ("train_error", "test_error", "effective_depth"))
        layers = int(float(row["nonlinear_layers"]))
        lines.append(f"  {share(row):14.1f}  {depth:15.2f}  {layers:6}  {train:18.2f}  {test:14.2f}")
    return "\n".join(lines)


def draw(names: Sequence[str], measurements: Sequence[Sequence[Row]]) -> Figure:
    """Draw training error (dashed) and test error (bold) by share of non-linear channels and by effective depth."""
    figure = Figure(figsize=(9.2, 4.2))
    by_share, by_depth = figure.subplots(1, 2, sharey=True)
    for i, rows in enumerate(measurements):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        for panel, xs in (
            (by_share, [share(row) for row in rows]),
            (by_depth, [float(row["effective_depth"]) for row in rows]),
        ):
            panel.plot(xs, [float(row["train_error"]) for row in rows], "--", color=colour, linewidth=1)
            errors = [float(row["test_error"]) for row in rows]
            panel.plot(xs, errors, color=colour, linewidth=2, marker=marker, markersize=4)
    by_share.set_xlabel("non-linear channels (%)")
    by_depth.set_xlabel("effective depth")
    by_share.set_ylabel("error (%)")
    by_share.set_ylim(-2, 102)
    for panel in (by_share, by_depth):
        panel.invert_xaxis()
    styles = [
        Line2D([], [], color="#444444", linestyle="--", linewidth=1, label="training error"),
        Line2D([], [], color="#444444", linewidth=2, label="test error"),
    ]
    runs = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], label=name)
        for i, name in enumerate(names)
    ]
    legend_below(figure, [*runs, *styles])
    return figure
