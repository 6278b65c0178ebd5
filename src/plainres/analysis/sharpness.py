"""How sharp the minimum is that training has found: the largest eigenvalue of the loss's Hessian.

The Lanczos method (Lanczos 1950; Parlett 1998, The Symmetric Eigenvalue Problem, chapter 13): the largest eigenvalue of
H in the space that v, H v, H H v, ... span, v random, with full reorthogonalisation. It is the algebraically largest,
whatever negative eigenvalues there are. H is that of the mean cross-entropy over training images, in all weights, with
the network in evaluation mode, and H v = d(g' v)/dw, g the gradient, is exact (Pearlmutter 1994). Each iteration costs
one H v and keeps one vector as large as the weights.

Power iteration, as in Yao et al. 2020 (PyHessian), finds the largest magnitude instead, and stands still at a wrong
value where two eigenvalues of different sign have nearly that magnitude. scipy's eigsh gives no estimate when it has
not converged, and fails where H is 0.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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


class Estimate(NamedTuple):
    """An estimate l of an eigenvalue, with its vector v of length 1."""

    eigenvalue: float
    residual: float  # ||H v - l v||; an eigenvalue lies within it of l
    converged: bool


def estimates(network: nn.Module, batches: EvaluationBatches, tolerance: float, seed: int) -> Iterator[Estimate]:
    """Yield the estimate of the largest eigenvalue of H after 1, 2, ... iterations, until one has converged.

    Converged is a residual of at most `tolerance` times the eigenvalue's magnitude, or of no more than rounding.
    """
    generator = Generator().manual_seed(mix("sharpness", seed))
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    sizes = [weight.numel() for weight in weights]
    precision = 10 * torch.finfo(weights[0].dtype).eps
    vector = _flat([torch.randn(weight.shape, generator=generator).to(weight) for weight in weights])
    vector /= _dot(vector, vector) ** 0.5
    basis: list[Tensor] = []
    diagonal: list[float] = []  # of H in this basis, which is tridiagonal
    beside: list[float] = []
    while True:
        basis.append(vector)
        parts = [part.view_as(weight) for part, weight in zip(vector.split(sizes), weights, strict=True)]
        product = _flat(hessian_vector(network, batches, parts))
        diagonal.append(_dot(vector, product))
        for other in [*basis, *basis]:  # once leaves some rounding
            product -= _dot(other, product) * other
        size = _dot(product, product) ** 0.5
        if not math.isfinite(diagonal[-1] + size):
            yield Estimate(math.nan, math.nan, converged=False)
            return
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, -1))
        eigenvalue, residual = float(values[-1]), size * abs(float(vectors[-1, -1]))
        converged = residual <= max(tolerance * abs(eigenvalue), precision * float(abs(values).max()))
        converged |= len(basis) == len(vector)
        yield Estimate(eigenvalue, residual, converged)
        if converged:
            return
        beside.append(size)
        vector = product / size


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _dot(a: Tensor, b: Tensor) -> float:
    return (a.double() * b.double()).sum().item()


def top_eigenvalue(
    network: nn.Module, batches: EvaluationBatches, *, tolerance: float, most: int, seed: int, name: str = "sharpness"
) -> list[Estimate]:
    """Return the estimates of the largest eigenvalue, up to the first that has converged, at most `most`.

    Raises:
        InputError: an estimate is no finite number.
    """
    found: list[Estimate] = []
    with bar(name, "iteration", most, leave=False) as shown:
        for estimate in islice(estimates(network, batches, tolerance, seed), most):
            if not math.isfinite(estimate.eigenvalue):
                raise InputError(f"{name}: the loss around the weights has no finite curvature ({estimate.eigenvalue})")
            found.append(estimate)
            shown.update()
            shown.set_postfix_str(f"{estimate.eigenvalue:.6g}, residual {estimate.residual:.2g}")
    return found


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
        found = top_eigenvalue(
            one.network, one.training, tolerance=tolerance, most=most, seed=seed, name=f"sharpness of {name}"
        )
        _save(one, found, seed)
        curves.append([estimate.eigenvalue for estimate in found])
        last = found[-1]
        outcome = "converged" if last.converged else f"NOT converged to {tolerance:g}: --iterations is too small"
        count = f"{len(found)} iteration{'s' * (len(found) != 1)}"
        lines.append(
            f"{name}: {last.eigenvalue:.6g} after {count}, residual {last.residual:.2g}, {outcome}; "
            f"{len(one.training.index):,} images"
        )
    figure = draw_runs(
        lambda numbers: draw([names[i] for i in numbers], [curves[i] for i in numbers]), runs, "sharpness"
    )
    return "\n".join(["top eigenvalue of the Hessian of the training loss", *lines, str(figure)])


def _save(of: Finished, found: Sequence[Estimate], seed: int) -> None:
    file = of.run.folder / "sharpness.csv"
    rows = [
        of.key
        | {"seed": str(seed), "iteration": str(number)}
        | {"eigenvalue": repr(estimate.eigenvalue), "residual": repr(estimate.residual)}
        for number, estimate in enumerate(found, 1)
    ]
    with writing(file):
        write_atomically(file, csv_text(rows))


def draw(names: Sequence[str], found: Sequence[Sequence[float]]) -> Figure:
    """Draw the estimates of the largest eigenvalue by iteration, a curve for each run."""
    figure = Figure(figsize=(6.4, 4.1))
    axes = figure.subplots()
    for i, (name, values) in enumerate(zip(names, found, strict=True)):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(range(1, len(values) + 1), values, markersize=4, label=f"{name}: {values[-1]:.4g}", **style)
    axes.set_xlabel("Lanczos iterations")
    axes.set_ylabel("largest eigenvalue of the Hessian")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")
    return figure
