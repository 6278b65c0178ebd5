"""Sharpness of the minimum found by training: the largest eigenvalue of the loss's Hessian.

H is the Hessian of the mean cross-entropy over training images with respect to all weights, with the network in
evaluation mode. The product H v = d(g' v)/dw, where g is the gradient, is exact (Pearlmutter 1994).

The Lanczos method (Lanczos 1950; Parlett 1998, The Symmetric Eigenvalue Problem, chapter 13) computes the largest
eigenvalue of H in the span of v, H v, H H v, ..., for a random v, here with full reorthogonalisation. This is the
algebraically largest one, even if negative eigenvalues have a larger magnitude. Each iteration costs one product H v
and stores one vector of the size of the weights.

Power iteration, as in Yao et al. 2020 (PyHessian), finds the eigenvalue of largest magnitude instead. It stagnates at a
wrong value if two eigenvalues of opposite sign have nearly the same magnitude. scipy's eigsh returns no estimate unless
it converges, and fails for H = 0.
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

from plainres.analysis.measurements import Finished, draw_runs, labels, read_finished, writing
from plainres.console import bar
from plainres.data.batches import EvaluationBatches
from plainres.errors import InputError
from plainres.files import csv_text, write_atomically
from plainres.randomness import mix
from plainres.reporting.figures import COLOURS, MARKERS, legend_below
from plainres.runs.location import Location


def hessian_vector(network: nn.Module, batches: EvaluationBatches, vector: Sequence[Tensor]) -> list[Tensor]:
    """Return H v for the Hessian of the mean cross-entropy over all images; v and H v have the weights' shapes."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    product = [torch.zeros_like(weight) for weight in weights]
    for x, y in batches:
        loss = F.cross_entropy(network(x.to(weights[0])), y.to(weights[0].device), reduction="sum")
        gradient = torch.autograd.grad(loss / len(batches.index), weights, create_graph=True)
        along = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
        assert isinstance(along, Tensor)
        # allow_unused: the gradient may not depend on a weight, such as the last bias
        parts = torch.autograd.grad(along, weights, allow_unused=True, materialize_grads=True)
        product = [total + part for total, part in zip(product, parts, strict=True)]
    return product


class Estimate(NamedTuple):
    """Estimate l of an eigenvalue, for a unit vector v."""

    eigenvalue: float
    residual: float  # ||H v - l v||; the distance from l to some eigenvalue is at most this
    converged: bool


def estimates(network: nn.Module, batches: EvaluationBatches, tolerance: float, seed: int) -> Iterator[Estimate]:
    """Yield the estimate of the largest eigenvalue of H after 1, 2, ... iterations, up to convergence.

    An estimate has converged if its residual is at most `tolerance` times its magnitude, or within rounding errors.
    """
    generator = Generator().manual_seed(mix("sharpness", seed))
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    sizes = [weight.numel() for weight in weights]
    precision = 10 * torch.finfo(weights[0].dtype).eps
    vector = _flat([torch.randn(weight.shape, generator=generator).to(weight) for weight in weights])
    vector /= _dot(vector, vector) ** 0.5
    basis: list[Tensor] = []
    diagonal: list[float] = []  # H is tridiagonal in this basis
    off_diagonal: list[float] = []
    while True:
        basis.append(vector)
        parts = [part.view_as(weight) for part, weight in zip(vector.split(sizes), weights, strict=True)]
        product = _flat(hessian_vector(network, batches, parts))
        diagonal.append(_dot(vector, product))
        for other in [*basis, *basis]:  # twice, since one pass leaves rounding errors
            product -= _dot(other, product) * other
        norm = _dot(product, product) ** 0.5
        if not math.isfinite(diagonal[-1] + norm):
            yield Estimate(math.nan, math.nan, converged=False)
            return
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off_diagonal, -1))
        eigenvalue, residual = float(values[-1]), norm * abs(float(vectors[-1, -1]))
        converged = residual <= max(tolerance * abs(eigenvalue), precision * float(abs(values).max()))
        converged |= len(basis) == len(vector)
        yield Estimate(eigenvalue, residual, converged)
        if converged:
            return
        off_diagonal.append(norm)
        vector = product / norm


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _dot(a: Tensor, b: Tensor) -> float:
    return (a.double() * b.double()).sum().item()


def top_eigenvalue(
    network: nn.Module,
    batches: EvaluationBatches,
    *,
    tolerance: float,
    max_iterations: int,
    seed: int,
    name: str = "sharpness",
) -> list[Estimate]:
    """Return the estimates of the largest eigenvalue, up to the first converged one or `max_iterations`.

    Raises:
        InputError: an estimate is NaN or infinite.
    """
    history: list[Estimate] = []
    with bar(name, "iteration", max_iterations, leave=False) as progress:
        for estimate in islice(estimates(network, batches, tolerance, seed), max_iterations):
            if not math.isfinite(estimate.eigenvalue):
                raise InputError(
                    f"{name}: the curvature of the loss at the trained weights is {estimate.eigenvalue}, not finite; "
                    "train again, for example with a lower optim.lr"
                )
            history.append(estimate)
            progress.update()
            progress.set_postfix_str(f"{estimate.eigenvalue:.6g}, residual {estimate.residual:.2g}")
    return history


def write(
    folders: Sequence[Path],
    images: int,
    tolerance: float,
    max_iterations: int,
    seed: int,
    *,
    location: Location = (),
) -> str:
    """Compute the top eigenvalues of runs and return them as text; write sharpness.csv and a figure into each folder.

    Raises:
        InputError: a run is not finished, the curvature of its loss is NaN or infinite, or its folder is not writable.
    """
    selected = read_finished(folders, images, location)
    runs = [finished.run for finished in selected]
    names = labels(runs)
    curves, lines = [], []
    for finished, name in zip(selected, names, strict=True):
        history = top_eigenvalue(
            finished.network,
            finished.training,
            tolerance=tolerance,
            max_iterations=max_iterations,
            seed=seed,
            name=f"sharpness of {name}",
        )
        _save(finished, history, seed)
        curves.append([estimate.eigenvalue for estimate in history])
        last = history[-1]
        outcome = "converged" if last.converged else f"NOT converged to {tolerance:g}; increase --iterations"
        count = f"{len(history)} iteration{'s' * (len(history) != 1)}"
        lines.append(
            f"{name}: {last.eigenvalue:.6g} after {count}, residual {last.residual:.2g}, {outcome}; "
            f"{len(finished.training.index):,} images"
        )
    figure = draw_runs(
        lambda indices: draw([names[i] for i in indices], [curves[i] for i in indices]), runs, "sharpness"
    )
    return "\n".join(["top eigenvalue of the Hessian of the training loss", *lines, str(figure)])


def _save(finished: Finished, history: Sequence[Estimate], seed: int) -> None:
    file = finished.run.folder / "sharpness.csv"
    rows = [
        finished.key
        | {"seed": str(seed), "iteration": str(number)}
        | {"eigenvalue": repr(estimate.eigenvalue), "residual": repr(estimate.residual)}
        for number, estimate in enumerate(history, 1)
    ]
    with writing(file):
        write_atomically(file, csv_text(rows))


def draw(names: Sequence[str], curves: Sequence[Sequence[float]]) -> Figure:
    """Draw the estimates of the largest eigenvalue by iteration, one curve per run; the legend has the last ones."""
    figure = Figure(figsize=(6.4, 4.1))
    axes = figure.subplots()
    for i, (name, values) in enumerate(zip(names, curves, strict=True)):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(range(1, len(values) + 1), values, markersize=4, label=f"{name}: {values[-1]:.4g}", **style)
    axes.set_xlabel("Lanczos iterations")
    axes.set_ylabel("largest eigenvalue of the Hessian")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, _ = axes.get_legend_handles_labels()
    legend_below(figure, handles)
    return figure
