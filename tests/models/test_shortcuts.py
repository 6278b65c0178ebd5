"""Tests of every shortcut against its formula."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from plainres.errors import InputError
from plainres.models.normalisation import Bias, Scale, group_norm
from plainres.models.scaled_shortcuts import (
    DecayedIdentity,
    DepthScaled,
    LayerScale,
    OrthogonalUpdate,
    ReZero,
    Scaling,
    SkipInit,
)
from plainres.models.shortcuts import (
    Convolution,
    Dropout,
    ExclusiveGating,
    Highway,
    Identity,
    Plain,
    Positioned,
    Projection,
    ProjectionAll,
    ResBlk,
    ShortcutFactory,
    ShortcutGating,
    StochasticDepth,
    Wide,
)
from plainres.randomness import Noise, seed_noise

# parameters of one block, as documented: where the shape changes, and where it does not
COUNTS: Mapping[ShortcutFactory, tuple[Callable[[int, int], int], Callable[[int], int]]] = {
    Plain: (lambda i, o: 0, lambda c: 0),
    Identity: (lambda i, o: 0, lambda c: 0),
    Projection: (lambda i, o: i * o + 2 * o, lambda c: 0),
    ProjectionAll: (lambda i, o: i * o + 2 * o, lambda c: c * c + 2 * c),
    Convolution: (lambda i, o: i * o, lambda c: c * c),
    Wide: (lambda i, o: i * o, lambda c: 0),
    ResBlk: (lambda i, o: i * o + 3 * o, lambda c: 0),
    Scaling: (lambda i, o: 0, lambda c: 0),
    ExclusiveGating: (lambda i, o: i * o + o, lambda c: c * c + c),
    ShortcutGating: (lambda i, o: i * o + o, lambda c: c * c + c),
    Highway: (lambda i, o: 9 * i * o + o, lambda c: 9 * c * c + c),
    Dropout: (lambda i, o: 0, lambda c: 0),
    StochasticDepth: (lambda i, o: 0, lambda c: 0),
    ReZero: (lambda i, o: 1, lambda c: 1),
    SkipInit: (lambda i, o: 1, lambda c: 1),
    DepthScaled: (lambda i, o: 0, lambda c: 0),
    LayerScale: (lambda i, o: o, lambda c: c),
    DecayedIdentity: (lambda i, o: 0, lambda c: 0),
    OrthogonalUpdate: (lambda i, o: 0, lambda c: 0),
}


@pytest.mark.parametrize("shortcut", COUNTS)
@given(channels=st.integers(1, 9), more=st.integers(1, 9), stride=st.integers(1, 3), size=st.integers(3, 9))
def test_shape_parameters_and_gradients(
    shortcut: ShortcutFactory, channels: int, more: int, stride: int, size: int
) -> None:
    count_changed, count_same = COUNTS[shortcut]
    for out_channels, step in ((channels + more, stride), (channels, 1)):
        module = shortcut(channels, out_channels, step)
        expected = count_changed(channels, out_channels) if out_channels != channels else count_same(channels)
        assert sum(p.numel() for p in module.parameters()) == expected
        x = torch.randn(2, channels, size, size, requires_grad=True)
        side = math.ceil(size / step)
        fx = torch.randn(2, out_channels, side, side, requires_grad=True)
        y = module(x, fx)
        assert y.shape == fx.shape
        assert y.isfinite().all()
        y.square().mean().backward()
        assert fx.grad is not None
        assert fx.grad.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def tensors(channels: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(2, channels, 6, 6), torch.randn(2, channels, 6, 6)


@given(st.integers(1, 6), st.integers(0, 7), st.integers(1, 3))
def test_option_a_subsamples_and_pads_with_zeros(channels: int, more: int, stride: int) -> None:
    x = torch.randn(2, channels, 7, 7)
    fx = torch.zeros(2, channels + more, math.ceil(7 / stride), math.ceil(7 / stride))
    y = Identity(channels, channels + more, stride)(x, fx)
    before = more // 2
    assert torch.equal(y[:, before : before + channels], x[:, :, ::stride, ::stride])
    assert not y[:, :before].any()
    assert not y[:, before + channels :].any()


def test_plain_and_identity() -> None:
    x, fx = tensors()
    assert Plain(4, 4, 1)(x, fx) is fx
    assert torch.equal(Identity(4, 4, 1)(x, fx), fx + x)


def test_projections_are_the_identity_unless_the_shape_changes() -> None:
    x, fx = tensors()
    for shortcut in (Projection, Wide, ResBlk):
        assert torch.equal(shortcut(4, 4, 1)(x, fx), fx + x)
        for arguments in ((4, 8, 1), (4, 8, 2)):
            assert isinstance(shortcut(*arguments), Convolution)
    assert isinstance(Projection(4, 4, 2), ProjectionAll)
    assert isinstance(ResBlk(4, 4, 2), Identity)


def test_projection_is_a_normalised_1x1_convolution() -> None:
    module = ProjectionAll(4, 8, 2).eval()
    x, fx = torch.randn(2, 4, 6, 6), torch.randn(2, 8, 3, 3)
    projected = torch.einsum("oc,nchw->nohw", module.conv.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    torch.testing.assert_close(module(x, fx), fx + projected / math.sqrt(1 + 1e-5))
    without_norm = ProjectionAll(4, 8, 2, nn.Identity)
    torch.testing.assert_close(without_norm(x, fx), fx + F.conv2d(x, without_norm.conv.weight, stride=2))
    module = Convolution(4, 8, 2, bias=True)
    torch.testing.assert_close(module(x, fx), fx + F.conv2d(x, module.conv.weight, module.conv.bias, stride=2))


def test_constant_scaling() -> None:
    x, fx = tensors()
    torch.testing.assert_close(Scaling(4, 4, 1, shortcut=0.3, residual=0.7)(x, fx), 0.7 * fx + 0.3 * x)


@pytest.mark.parametrize(
    ("shortcut", "join"),
    [
        (ExclusiveGating, lambda x, fx, gate: gate * fx + (1 - gate) * x),
        (ShortcutGating, lambda x, fx, gate: fx + (1 - gate) * x),
        (Highway, lambda x, fx, gate: gate * fx + (1 - gate) * x),
    ],
)
def test_gates(shortcut: Any, join: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    x, fx = tensors()
    module = shortcut(4, 4, 1, bias=-1.5)
    assert torch.equal(module.gate.bias, torch.full((4,), -1.5))
    gate = F.conv2d(x, module.gate.weight, module.gate.bias, padding=module.gate.kernel_size[0] // 2).sigmoid()
    torch.testing.assert_close(module(x, fx), join(x, fx, gate))


def test_gates_are_not_rounded_to_bfloat16() -> None:
    """1 - g(x) would be 1 at first with the bias -7 of He et al. 2016, Table 1."""
    x, fx = tensors()
    module = ShortcutGating(4, 4, 1, bias=-7)
    nn.init.zeros_(module.gate.weight)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x, torch.zeros_like(fx))
    torch.testing.assert_close(y, x * torch.tensor(7.0).sigmoid(), rtol=1e-5, atol=0)


def test_dropout_has_the_same_expectation_in_training_and_evaluation() -> None:
    x, fx = torch.ones(8, 4, 16, 16), torch.zeros(8, 4, 16, 16)
    module = Dropout(4, 4, 1, p=0.3)
    y = module(x, fx)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert y.mean().item() == pytest.approx(0.7, abs=0.02)
    torch.testing.assert_close(module.eval()(x, fx), 0.7 * x)


def test_stochastic_depth_survival_decays_linearly() -> None:
    x, fx = tensors()
    module = StochasticDepth(4, 4, 1, last=0.5)
    assert isinstance(module, Positioned)
    for block, survival in ((1, 0.95), (5, 0.75), (10, 0.5)):
        module.set_position(block, 10)
        assert module.survival == pytest.approx(survival)
        survived = []
        for step in range(400):
            module.noise.position = torch.tensor([step, 0])
            y = module.train()(x, fx)
            survived.append(torch.equal(y, fx + x))
            assert survived[-1] or torch.equal(y, x)
        assert sum(survived) / len(survived) == pytest.approx(survival, abs=0.08)
        torch.testing.assert_close(module.eval()(x, fx), survival * fx + x)


def test_learned_scalars() -> None:
    x, fx = tensors()
    assert torch.equal(ReZero(4, 4, 1)(x, fx), x)
    torch.testing.assert_close(ReZero(4, 4, 1, initial=0.5)(x, fx), x + fx / 2)
    module = SkipInit(4, 4, 1)
    module.set_position(3, 16)
    torch.testing.assert_close(module(x, fx), x + fx / 4)


@pytest.mark.parametrize("shortcut", [ReZero, LayerScale])
def test_learned_scales_are_not_rounded_to_the_precision_of_the_branch(shortcut: type[ReZero | LayerScale]) -> None:
    ones = torch.ones(1, 4, 1, 1, dtype=torch.bfloat16)
    y = shortcut(4, 4, 1, initial=1.003)(0 * ones, ones)  # between 1 and the next number of 8 bits, 1.0078125
    torch.testing.assert_close(y, torch.full((1, 4, 1, 1), 1.003))


def test_the_scale_of_a_branch_by_depth() -> None:
    x, fx = tensors()
    module = DepthScaled(4, 4, 1, exponent=0.5, multiplier=3.0)
    assert isinstance(module, Positioned)
    module.set_position(2, 9)
    torch.testing.assert_close(module(x, fx), fx + x)  # 3 / sqrt(9)
    module = DepthScaled(4, 4, 1, exponent=1.0)
    module.set_position(1, 4)
    torch.testing.assert_close(module(x, fx), fx / 4 + x)


@pytest.mark.parametrize("blocks", [1, 10, 100])
def test_depth_scaling_bounds_the_variance_of_the_signal(blocks: int) -> None:
    """Hayou et al. 2020: with branches of the variance of their input, it grows to (1 + 1/L)^L < e, not to 2^L."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(1, 1, 300, 300, dtype=torch.float64, generator=generator)
    module = DepthScaled(1, 1, 1)
    module.set_position(1, blocks)
    for _ in range(blocks):
        noise = torch.randn(signal.shape, dtype=torch.float64, generator=generator)
        signal = module(signal, signal.std() * noise)
    assert signal.var().item() == pytest.approx((1 + 1 / blocks) ** blocks, rel=0.05)


def test_layer_scale_has_a_factor_for_each_channel() -> None:
    x, fx = tensors()
    module = LayerScale(4, 4, 1, initial=0.01)
    torch.testing.assert_close(module(x, fx), x + 0.01 * fx)
    factors = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with torch.no_grad():
        module.scale.copy_(factors)
    torch.testing.assert_close(module(x, fx), x + torch.einsum("c,nchw->nchw", factors, fx))


def test_the_identity_decays_linearly() -> None:
    x, fx = tensors()
    module = DecayedIdentity(4, 4, 1, last=0.6)
    for block, factor in ((1, 0.96), (5, 0.8), (10, 0.6)):
        module.set_position(block, 10)
        torch.testing.assert_close(module(x, fx), fx + factor * x)


@pytest.mark.parametrize(("over", "dimensions"), [("channels", (1,)), ("image", (1, 2, 3))])
def test_what_is_added_is_orthogonal(over: str, dimensions: tuple[int, ...]) -> None:
    """Against the projection by least squares, in float64."""
    x, fx = (tensor.double() for tensor in tensors())
    y = OrthogonalUpdate(4, 4, 1, over=over)(x, fx)
    assert ((y - x) * x).sum(dimensions).abs().max() < 1e-5
    one, branch = (x[0, :, 2, 3], fx[0, :, 2, 3]) if over == "channels" else (x[0].flatten(), fx[0].flatten())
    solution = torch.linalg.lstsq(one[:, None], branch[:, None]).solution
    expected = one + branch - solution.item() * one
    found = y[0, :, 2, 3] if over == "channels" else y[0].flatten()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_orthogonal_updates_of_what_is_parallel_or_of_nothing() -> None:
    x, _ = (tensor.double() for tensor in tensors())
    module = OrthogonalUpdate(4, 4, 1)
    torch.testing.assert_close(module(x, 3 * x), x, atol=1e-4, rtol=0)
    assert torch.equal(module(torch.zeros_like(x), x), x)
    with pytest.raises(InputError, match=r"model.shortcut.over is rows; it must be one of channels, image"):
        OrthogonalUpdate(4, 4, 1, over="rows")


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (partial(DecayedIdentity, last=1.1), "last"),
        (partial(Dropout, p=1.5), "p"),
        (partial(StochasticDepth, last=-1), "last"),
    ],
)
def test_invalid_probabilities_are_rejected(make: ShortcutFactory, key: str) -> None:
    with pytest.raises(InputError, match=f"model.shortcut.{key} is .*; it must be between 0 and 1"):
        make(4, 4, 1)


@given(st.integers(1, 4), st.integers(0, 100))
def test_noise_does_not_depend_on_world_size(world_size: int, step: int) -> None:
    noise, like = Noise(), torch.empty(12, 2, 3)

    def draw(first: int, images: int) -> Tensor:
        noise.position = torch.tensor([step, first])
        return noise.per_element(like[:images])

    images_per_rank = 12 // world_size
    parts = torch.cat([draw(rank * images_per_rank, images_per_rank) for rank in range(world_size)])
    assert torch.equal(parts, draw(0, len(parts)))
    assert noise.per_batch(like).shape == ()


def test_noise_is_uniform_and_independent_across_steps_modules_seeds_and_images() -> None:
    network = nn.ModuleList(Noise() for _ in range(2))
    samples = []
    for seed in (0, 1):
        seed_noise(network, seed)
        for noise in network:
            assert isinstance(noise, Noise)
            for step in (0, 1):
                noise.position = torch.tensor([step, 0])
                samples.append(noise.per_element(torch.empty(4, 5000)))
    values = torch.cat(samples)
    assert len({tuple(row[:5].tolist()) for row in values}) == len(values) == 32
    assert values.min() >= 0
    assert values.max() < 1
    assert torch.histc(values, 10, 0, 1).div(values.numel()).sub(0.1).abs().max() < 0.005
    assert torch.corrcoef(values).triu(1).abs().max() < 0.07


def test_normalisation() -> None:
    assert group_norm(12, 8).num_groups == 4
    with pytest.raises(InputError, match=r"model.norm.groups is 0"):
        group_norm(12, 0)
    x, _ = tensors()
    assert torch.equal(Bias()(x), x)
    assert torch.equal(Scale()(x), x)
