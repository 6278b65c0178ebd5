"""The top eigenvalue, against the whole Hessian of a network of three layers."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from plainres.analysis.sharpness import hessian_vector, top_eigenvalue
from plainres.data.batches import DeviceImages, EvaluationBatches
from plainres.data.sources import Synthetic
from plainres.errors import InputError
from plainres.models.blocks import BlockSpec
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
    """The Hessian of the mean loss of all images, in all weights."""
    shapes = {name: weight.shape for name, weight in network.named_parameters()}
    x = torch.cat([x for x, _ in batches]).double()
    y = torch.cat([y for _, y in batches])

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(network, weights, (x,)), y)

    flat = torch.cat([weight.detach().flatten() for weight in network.parameters()])
    found = torch.autograd.functional.hessian(loss, flat)
    assert isinstance(found, torch.Tensor)
    return found


def test_a_product_with_the_hessian(network: CifarNet, batches: EvaluationBatches, hessian: torch.Tensor) -> None:
    vector = [torch.randn_like(weight) for weight in network.parameters()]
    product = torch.cat([part.flatten() for part in hessian_vector(network, batches, vector)])
    torch.testing.assert_close(product, hessian @ torch.cat([part.flatten() for part in vector]))
    assert all(weight.grad is None for weight in network.parameters())


class Quadratic(torch.nn.Module):
    """Two logits whose cross-entropy with the target 0 is 4 + w' D w / 2, D diagonal."""

    def __init__(self, eigenvalues: Sequence[float]) -> None:
        super().__init__()
        self.eigenvalues = torch.tensor(eigenvalues, dtype=torch.float64)
        self.weight = torch.nn.Parameter(torch.ones(len(eigenvalues), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        loss = 4 + (self.eigenvalues * self.weight.square()).sum() / 2
        logit = -loss.expm1().log()  # of which the softplus is the loss
        return torch.stack([logit, torch.zeros_like(logit)]).expand(len(x), 2)


class AllOfClassZero(list[Any]):
    index: Any = range(6)


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
        ([0.5, -0.5, 0.2], 0.5),  # where power iteration stands still at 0.258
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
    found = top_eigenvalue(Quadratic(eigenvalues), ZEROS, tolerance=1e-6, most=1000, seed=seed)
    assert [estimate.converged for estimate in found] == [False] * (len(found) - 1) + [True]
    value, residual, _ = found[-1]
    assert value == pytest.approx(top, rel=1e-5, abs=1e-9)
    assert 0 <= residual <= max(1e-6 * abs(top), 1e-12 * max(map(abs, eigenvalues)))
    assert len(found) <= len(set(eigenvalues))  # as many as there are different ones, in exact arithmetic
    values = [estimate.eigenvalue for estimate in found]
    assert values == pytest.approx(sorted(values))  # each space has the one before in it


def test_an_eigenvalue_lies_within_each_residual(
    network: CifarNet, batches: EvaluationBatches, hessian: torch.Tensor
) -> None:
    values = torch.linalg.eigvalsh(hessian)
    for estimate in top_eigenvalue(network, batches, tolerance=1e-9, most=1000, seed=0):
        assert (values - estimate.eigenvalue).abs().min() <= estimate.residual + 1e-12


def test_the_residual_is_that_of_the_vector(
    network: CifarNet, batches: EvaluationBatches, hessian: torch.Tensor
) -> None:
    """The vector is the Ritz vector: its quotient is the eigenvalue, and nothing in its Krylov space does better."""
    generator = torch.Generator().manual_seed(mix("sharpness", 0))
    start = torch.cat([torch.randn(w.shape, generator=generator).to(w).flatten() for w in network.parameters()])
    powers = [start]
    for found in top_eigenvalue(network, batches, tolerance=1e-9, most=5, seed=0):
        basis, _ = torch.linalg.qr(torch.stack(powers, 1))
        values, vectors = torch.linalg.eigh(basis.T @ hessian @ basis)
        ritz = basis @ vectors[:, -1]
        assert found.eigenvalue == pytest.approx(values[-1].item(), rel=1e-6)
        assert found.residual == pytest.approx((hessian @ ritz - values[-1] * ritz).norm().item(), rel=1e-5)
        powers.append(hessian @ (powers[-1] / powers[-1].norm()))


def test_the_estimates_do_not_depend_on_how_many_there_may_be() -> None:
    whole = top_eigenvalue(Quadratic([-5.0, 3.0, 1.0]), ZEROS, tolerance=1e-6, most=1000, seed=0)
    most = len(whole) - 1
    assert top_eigenvalue(Quadratic([-5.0, 3.0, 1.0]), ZEROS, tolerance=1e-6, most=most, seed=0) == whole[:-1]


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_curvature_that_is_not_finite(weight: float) -> None:
    network = Quadratic([1.0, 2.0])
    with torch.no_grad():
        network.weight.fill_(weight)
    with pytest.raises(InputError, match=r"^sharpness: the loss around the weights has no finite curvature \(nan\)$"):
        top_eigenvalue(network, ZEROS, tolerance=1e-3, most=9, seed=0)


def test_the_top_eigenvalue(network: CifarNet, batches: EvaluationBatches, hessian: torch.Tensor) -> None:
    values = torch.linalg.eigvalsh(hessian)
    top = values.max().item()
    found = top_eigenvalue(network, batches, tolerance=1e-9, most=1000, seed=0)
    assert found[-1].converged
    assert found[-1].eigenvalue == pytest.approx(top, rel=1e-9)
    assert found[-1].residual <= 1e-9 * top
    rough = top_eigenvalue(network, batches, tolerance=1e-9, most=3, seed=0)
    assert not rough[-1].converged
    assert rough == found[:3]


def test_a_loss_without_curvature(batches: EvaluationBatches) -> None:
    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 10) + 0 * self.weight

    assert top_eigenvalue(Constant(), batches, tolerance=1e-3, most=9, seed=0) == [(0.0, 0.0, True)]
