"""Curvature of the training loss: the largest eigenvalue of its Hessian.

H is the Hessian of the mean cross-entropy over images with respect to all weights. The product H v = d(g' v)/dw, where
g is the gradient, is exact (Pearlmutter 1994).

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
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from plainres.randomness import mix


class Sample(Protocol):
    """Images and targets in batches."""

    @property
    def image_count(self) -> int:
        """Number of images in all batches."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of images (N, C, H, W) and targets (N,)."""
        ...


def hessian_vector(network: nn.Module, batches: Sample, vector: Sequence[Tensor]) -> list[Tensor]:
    """Return H v for the Hessian of the mean cross-entropy over all images; v and H v have the weights' shapes."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    product = [torch.zeros_like(weight) for weight in weights]
    for x, y in batches:
        loss = F.cross_entropy(network(x.to(weights[0])), y.to(weights[0].device), reduction="sum")
        # the loss may not depend on a weight, and its gradient may not, as with the last bias
        derivative = partial(torch.autograd.grad, allow_unused=True, materialize_grads=True)
        gradient = derivative(loss / batches.image_count, weights, create_graph=True)
        along = sum((g * v).sum() for g, v in zip(gradient, vector, strict=True))
        assert isinstance(along, Tensor)
        parts = derivative(along, weights)
        product = [total + part for total, part in zip(product, parts, strict=True)]
    return product


class Estimate(NamedTuple):
    """Estimate l of an eigenvalue, for a unit vector v."""

    eigenvalue: float
    residual: float  # ||H v - l v||; the distance from l to some eigenvalue is at most this
    converged: bool


def estimates(network: nn.Module, batches: Sample, tolerance: float, seed: int) -> Iterator[Estimate]:
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
