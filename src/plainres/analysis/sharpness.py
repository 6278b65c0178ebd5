"""How sharp the minimum is that training has found: the largest eigenvalue of the loss's Hessian.

Power iteration (as Yao et al. 2020, PyHessian): v <- H v / ||H v|| from a random v, and the eigenvalue is the Rayleigh
quotient v' H v / v' v. H is that of the mean cross-entropy over the training images, in all weights, with the network
in evaluation mode, and H v = d(g' v)/dw, g the gradient, is exact (Pearlmutter 1994). What it finds is the eigenvalue
of largest magnitude. Should that be negative, it goes on with H - l I, l this eigenvalue: none of that is negative, and
the order is the same.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Generator, Tensor, nn

from plainres.analysis.measurements import Finished, draw_runs, finished, labels, writing
from plainres.console import bar
from plainres.data.batches import EvaluationBatches
from plainres.errors import InputError
from plainres.files import csv_text, write_atomically
from plainres.randomness import mix
from plainres.reporting.figures import COLOURS, MARKERS


def hessian_vector(network: nn.Module, batches: EvaluationBatches, vector: Sequence[Tensor]) -> list[Tensor]:
    """H v: the Hessian of the mean cross-entropy over all images, times `vector`; both in the shapes of the weights."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    product = [torch.zeros_like(weight) for weight in weights]
    for x, y in batches:
        loss = F.cross_entropy(network(x.to(weights[0])), y.to(weights[0].device), reduction="sum")
        gradient = torch.autograd.grad(loss / len(batches.index), weights, create_graph=True)
        along = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
        assert isinstance(along, Tensor)
        # a last bias, say, that the gradient does not depend on has no second derivative
        parts = torch.autograd.grad(along, weights, allow_unused=True, materialize_grads=True)
        product = [total + part for total, part in zip(product, parts, strict=True)]
    return product


def estimates(network: nn.Module, batches: EvaluationBatches, seed: int, shift: float = 0.0) -> Iterator[float]:
    """The eigenvalue of H furthest from `shift` after 1, 2, ... iterations, without end unless (H - shift I) v is 0."""
    generator = Generator().manual_seed(mix("sharpness", seed))
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    vector = [torch.randn(weight.shape, generator=generator).to(weight) for weight in weights]
    while (size := _dot(vector, vector) ** 0.5) > 0:
        vector = [part / size for part in vector]
        product = hessian_vector(network, batches, vector)
        yield _dot(vector, product)
        vector = [part - shift * own for part, own in zip(product, vector, strict=True)]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum((x.double() * y.double()).sum().item() for x, y in zip(a, b, strict=True))


def top_eigenvalue(
    network: nn.Module, batches: EvaluationBatches, *, tolerance: float, most: int, seed: int, name: str = "sharpness"
) -> tuple[list[float], bool]:
    """The estimates up to that which differs from the one before by less than a share of `tolerance`, at most `most`.

    Returns:
        The estimates, the last that of the largest eigenvalue, after those of a negative one that came first; and
        whether they have converged.

    Raises:
        InputError: an estimate is no finite number.
    """
    found: list[float] = []
    with bar(name, "iteration", most, leave=False) as shown:
        for shift in (0.0, None):
            begun, converged = len(found), False
            for value in estimates(network, batches, seed, found[-1] if shift is None else shift):
                if not math.isfinite(value):
                    raise InputError(f"{name}: the loss around the weights has no finite curvature ({value})")
                found.append(value)
                shown.update()
                shown.set_postfix_str(f"{value:.6g}")
                converged = len(found) > begun + 1 and abs(value - found[-2]) < tolerance * abs(value)
                if converged or len(found) == most:
                    break
            else:
                converged = True  # H v = 0
            if not converged or found[-1] >= 0:
                break
    return found, converged


def write(folders: Sequence[Path], images: int, tolerance: float, most: int, seed: int) -> str:
    """Find the top eigenvalues of runs; write sharpness.csv and the figure into their folders, return them as text.

    Raises:
        InputError: a run is not finished, its loss has no finite curvature, or its folder cannot be written.
    """
    opened = finished(folders, images)
    runs = [one.run for one in opened]
    names = labels(runs)
    curves, lines = [], []
    for one, name in zip(opened, names, strict=True):
        found, converged = top_eigenvalue(
            one.network, one.training, tolerance=tolerance, most=most, seed=seed, name=f"sharpness of {name}"
        )
        _save(one, found, seed)
        curves.append(found)
        outcome = "converged" if converged else f"NOT converged to {tolerance:g}: --iterations is too small"
        count = f"{len(found)} iteration{'s' * (len(found) != 1)}"
        lines.append(f"{name}: {found[-1]:.6g} after {count}, {outcome}; {len(one.training.index):,} images")
    figure = draw_runs(
        lambda numbers: draw([names[i] for i in numbers], [curves[i] for i in numbers]), runs, "sharpness"
    )
    return "\n".join(["top eigenvalue of the Hessian of the training loss", *lines, str(figure)])


def _save(of: Finished, found: Sequence[float], seed: int) -> None:
    file = of.run.folder / "sharpness.csv"
    rows = [
        of.key | {"seed": str(seed), "iteration": str(number), "eigenvalue": repr(value)}
        for number, value in enumerate(found, 1)
    ]
    with writing(file):
        write_atomically(file, csv_text(rows))


def draw(names: Sequence[str], found: Sequence[Sequence[float]]) -> Figure:
    """How the power iteration came to its eigenvalue, a curve for each run."""
    figure = Figure(figsize=(6.4, 4.1))
    axes = figure.subplots()
    for i, (name, values) in enumerate(zip(names, found, strict=True)):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(range(1, len(values) + 1), values, markersize=4, label=f"{name}: {values[-1]:.4g}", **style)
    axes.set_xlabel("power iterations")
    axes.set_ylabel("eigenvalue of the Hessian")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")
    return figure
