"""Top eigenvalue, compared with the full Hessian of a network of three layers."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from plainres.analysis.sharpness import draw, top_eigenvalue
from plainres.data.batches import DeviceImages, EvaluationBatches
from plainres.data.sources import Synthetic
from plainres.errors import InputError
from plainres.models.blocks import BlockSpec
from plainres.models.curvature import hessian_vector
from plainres.models.networks import CifarNet
from plainres.models.shortcuts import Identity
from plainres.randomness import mix

SOURCE = Synthetic(shape=[1, 8, 8], classes=10, train=600, test=10, pad=0, flip=False)  # more than one batch


@pytest.fixture(scope="module")
def batches() -> EvaluationBatches:
    images = SOURCE.load()
    return EvaluationBatches(DeviceImages(images.train, SOURCE, images.channel_statistics, torch.device("cpu")))


@pytest.fixture(scope="module")
def network() -> CifarNet:
    torch.manual_seed(0)
    return CifarNet(1, 10, 3, 2, Identity, block=BlockSpec([3]), stages=1).double().eval()


@pytest.fixture(scope="module")
def hessian(network: CifarNet, batches: EvaluationBatches) -> torch.Tensor:
    """Hessian of the mean loss over all images with respect to all weights."""
    shapes = {name: weight.shape for name, weight in network.named_parameters()}
    x = torch.cat([x for x, _ in batches]).double()
    y = torch.cat([y for _, y in batches])

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(network, weights, (x,)), y)

    flat = torch.cat([weight.detach().flatten() for weight in network.parameters()])
    matrix = torch.autograd.functional.hessian(loss, flat)
    assert isinstance(matrix, torch.Tensor)
    return matrix


def test_hessian_vector_product(network: CifarNet, batches: EvaluationBatches, hessian: torch.Tensor) -> None:
    vector = [torch.randn_like(weight) for weight in network.parameters()]
    product = torch.cat([part.flatten() for part in hessian_vector(network, batches, vector)])
    torch.testing.assert_close(product, hessian @ torch.cat([part.flatten() for part in vector]))
    assert all(weight.grad is None for weight in network.parameters())


class Quadratic(torch.nn.Module):
    """Two logits whose cross-entropy with target 0 is 4 + w' D w / 2, for a diagonal D."""

    def __init__(self, eigenvalues: Sequence[float]) -> None:
        super().__init__()
        self.eigenvalues = torch.tensor(eigenvalues, dtype=torch.float64)
        self.weight = torch.nn.Parameter(torch.ones(len(eigenvalues), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        loss = 4 + (self.eigenvalues * self.weight.square()).sum() / 2
        logit = -loss.expm1().log()  # softplus(-logit) is the loss
        return torch.stack([logit, torch.zeros_like(logit)]).expand(len(x), 2)


class AllOfClassZero(list[Any]):
    image_count: Any = 6


ZEROS: Any = AllOfClassZero([(torch.zeros(n, 1), torch.zeros(n).long()) for n in (4, 2)])


@pytest.mark.parametrize(
    ("eigenvalues", "top"),
    [
        ([4.0, -3.0, 1.0], 4),
        ([-5.0, 3.0, 1.0], 3),
        ([0.5, 0.1, -4.0], 0.5),
        ([-2.0, -0.5, -1.0], -0.5),
        ([-2.0, -2.0], -2),
        ([3.0, 2.0, 1.0], 3),
        ([0.5, -0.5, 0.2], 0.5),  # power iteration stagnates at 0.258
        ([0.5, -0.5001, 0.2, -0.1], 0.5),
        ([3.0, 3.0, 1.0, -2.0], 3),
        ([0.0, -1.0, -6.0], 0),
        ([0.0, 0.0], 0),
        ([-7.0], -7),
        ([*torch.linspace(-1, 1, 60).tolist()], 1),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_largest_eigenvalue_of_a_quadratic(eigenvalues: list[float], top: float, seed: int) -> None:
    history = top_eigenvalue(Quadratic(eigenvalues), ZEROS, tolerance=1e-6, max_iterations=1000, seed=seed)
    assert [estimate.converged for estimate in history] == [False] * (len(history) - 1) + [True]
    value, residual, _ = history[-1]
    assert value == pytest.approx(top, rel=1e-5, abs=1e-9)
    assert 0 <= residual <= max(1e-6 * abs(top), 1e-12 * max(map(abs, eigenvalues)))
    assert len(history) <= len(set(eigenvalues))  # in exact arithmetic, one iteration per distinct eigenvalue
    values = [estimate.eigenvalue for estimate in history]
    assert values == pytest.approx(sorted(values))  # each Krylov space contains the previous one


def test_an_eigenvalue_lies_within_each_residual(
    network: CifarNet, batches: EvaluationBatches, hessian: torch.Tensor
) -> None:
    values = torch.linalg.eigvalsh(hessian)
    for estimate in top_eigenvalue(network, batches, tolerance=1e-9, max_iterations=1000, seed=0):
        assert (values - estimate.eigenvalue).abs().min() <= estimate.residual + 1e-12


def test_the_residual_is_that_of_the_ritz_vector(
    network: CifarNet, batches: EvaluationBatches, hessian: torch.Tensor
) -> None:
    """The Ritz vector maximises the Rayleigh quotient in the Krylov space."""
    generator = torch.Generator().manual_seed(mix("sharpness", 0))
    start = torch.cat([torch.randn(w.shape, generator=generator).to(w).flatten() for w in network.parameters()])
    powers = [start]
    for estimate in top_eigenvalue(network, batches, tolerance=1e-9, max_iterations=5, seed=0):
        basis, _ = torch.linalg.qr(torch.stack(powers, 1))
        values, vectors = torch.linalg.eigh(basis.T @ hessian @ basis)
        ritz = basis @ vectors[:, -1]
        assert estimate.eigenvalue == pytest.approx(values[-1].item(), rel=1e-6)
        assert estimate.residual == pytest.approx((hessian @ ritz - values[-1] * ritz).norm().item(), rel=1e-5)
        powers.append(hessian @ (powers[-1] / powers[-1].norm()))


def test_the_estimates_do_not_depend_on_the_maximum_number_of_iterations() -> None:
    network = Quadratic([-5.0, 3.0, 1.0])
    history = top_eigenvalue(network, ZEROS, tolerance=1e-6, max_iterations=1000, seed=0)
    shorter = top_eigenvalue(network, ZEROS, tolerance=1e-6, max_iterations=len(history) - 1, seed=0)
    assert shorter == history[:-1]


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_non_finite_curvature(weight: float) -> None:
    network = Quadratic([1.0, 2.0])
    with torch.no_grad():
        network.weight.fill_(weight)
    message = r"^sharpness: the curvature of the loss at the trained weights is nan, not finite; train again, "
    with pytest.raises(InputError, match=message):
        top_eigenvalue(network, ZEROS, tolerance=1e-3, max_iterations=9, seed=0)


def test_the_top_eigenvalue(network: CifarNet, batches: EvaluationBatches, hessian: torch.Tensor) -> None:
    values = torch.linalg.eigvalsh(hessian)
    top = values.max().item()
    history = top_eigenvalue(network, batches, tolerance=1e-9, max_iterations=1000, seed=0)
    assert history[-1].converged
    assert history[-1].eigenvalue == pytest.approx(top, rel=1e-9)
    assert history[-1].residual <= 1e-9 * top
    rough = top_eigenvalue(network, batches, tolerance=1e-9, max_iterations=3, seed=0)
    assert not rough[-1].converged
    assert rough == history[:3]


def test_a_loss_without_curvature(batches: EvaluationBatches) -> None:
    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 10) + 0 * self.weight

    assert top_eigenvalue(Constant(), batches, tolerance=1e-3, max_iterations=9, seed=0) == [(0.0, 0.0, True)]


def test_the_legend_lies_below_the_axes() -> None:
    figure = draw(["plain", "identity"], [[1.0, 2.0], [1.0, 3.0]])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["plain: 2", "identity: 3"]
    assert figure.axes[0].get_legend() is None
