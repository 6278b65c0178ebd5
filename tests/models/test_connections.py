"""Tests of connections with a state: the blocks that hand it on, and each form against its paper's formula."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from plainres.errors import InputError
from plainres.models.blocks import BlockSpec, LayerOrder
from plainres.models.connections import Connection, StatefulBlock
from plainres.models.history import AttentionResiduals, Dense, DepthWeightedAverage, NormalizerFree, attend
from plainres.models.initialisation import he_fan_out
from plainres.models.networks import CifarNet
from plainres.models.probes import Connections, GradientCorrelation, Gradients, Responses, Sharpness, Signals
from plainres.models.shortcuts import Identity, ShortcutFactory
from plainres.models.streams import FracConnections, HyperConnections, ManifoldHyperConnections, sinkhorn
from plainres.models.summary import describe
from support.one_stream import OneStream

PREACTIVATION = LayerOrder(
    pre=["norm", "relu"], between=["norm", "relu"], post=[], post_add=[], stem=[], tail=["norm", "relu"]
)
ORDERS = {
    "full_preactivation": PREACTIVATION,
    "activated_stem": LayerOrder(["norm", "relu"], ["norm", "relu"], [], [], ["norm", "relu"], ["norm", "relu"]),
    "no_relu_after_addition": LayerOrder(post_add=[]),
    "relu_before_addition": LayerOrder(post=["norm", "relu"], post_add=[]),
}
# parameters of block k of 3 in a stage: its branch reads i channels, and makes o
COUNTS: Mapping[str, tuple[ShortcutFactory, Callable[[int, int, int], int]]] = {
    "static_hyper_connections": (partial(HyperConnections, dynamic=False), lambda i, o, k: 4 * 6),
    "hyper_connections": (HyperConnections, lambda i, o, k: 4 * 6 + i * 6 + 2),
    "mhc": (ManifoldHyperConnections, lambda i, o, k: (16 + 8) * (4 * i + 1) + 3),
    "frac_connections": (FracConnections, lambda i, o, k: 4 * 9),
    "depth_weighted_average": (DepthWeightedAverage, lambda i, o, k: k + 1),
    "attention_residuals": (AttentionResiduals, lambda i, o, k: i + o * (k == 3)),
    "dense": (Dense, lambda i, o, k: k * o**2 * (k > 1) + 4 * o**2 * (k == 3)),
    "normalizer_free": (NormalizerFree, lambda i, o, k: 0),
}


def network(shortcut: ShortcutFactory) -> CifarNet:
    """Return a pre-activation network in float64, whose backbone is the same for every shortcut."""
    net = CifarNet(3, 10, 20, 8, shortcut, block=BlockSpec(order=PREACTIVATION))
    he_fan_out(net, Generator().manual_seed(0))
    return net.double()


def images() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 3, 8, 8, dtype=torch.float64)


def values(channels: int = 4, size: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, dtype=torch.float64)


def randomise(module: nn.Module) -> nn.Module:
    """Give a module random parameters in float64."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("kernels", [(3, 3), (3,)])
def test_one_stream_is_the_identity_to_the_bit(order: LayerOrder, kernels: tuple[int, ...]) -> None:
    nets = []
    for shortcut in (Identity, OneStream):
        torch.manual_seed(0)
        spec = BlockSpec(kernels=kernels, order=order)
        nets.append(CifarNet(3, 10, 20, 8, shortcut, block=spec))
    shortcut, stream = nets
    assert list(shortcut.state_dict()) == list(stream.state_dict())
    assert sum(isinstance(module, StatefulBlock) for module in stream.modules()) == 18 // len(kernels)
    x = images().float()
    for net in nets:
        for _ in range(2):  # the second pass sees the first one's update
            net(x).square().sum().backward()
            torch.optim.SGD(net.parameters(), 0.01).step()
    for (name, a), (_, b) in zip(shortcut.state_dict().items(), stream.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_layers_after_the_addition_are_refused() -> None:
    with pytest.raises(InputError, match=r"OneStream hands a state .* such as model/block/order=full_preactivation$"):
        CifarNet(3, 10, 20, 8, OneStream)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_gradients(name: str) -> None:
    factory, count = COUNTS[name]
    net = network(factory)
    for stage, width in zip(net.stages.children(), (8, 16, 32), strict=True):
        for k, block in enumerate(stage.children(), 1):
            assert isinstance(block, StatefulBlock)
            assert isinstance(block.shortcut, Connection)
            channels = width // 2 if k == 1 and width > 8 else width
            assert sum(p.numel() for p in block.get_submodule("shortcut").parameters()) == count(channels, width, k)
    logits = net(images())
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    "name", ["static_hyper_connections", "hyper_connections", "frac_connections", "depth_weighted_average"]
)
def test_before_training_it_is_the_residual_network(name: str) -> None:
    torch.testing.assert_close(network(COUNTS[name][0])(images()), network(Identity)(images()))


def test_before_training_mhc_is_nearly_the_residual_network() -> None:
    """Its dynamic weights are small but not 0, so that the streams become different."""
    logits, expected = network(ManifoldHyperConnections)(images()), network(Identity)(images())
    assert not torch.allclose(logits, expected)
    assert (logits - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("dynamic", [False, True])
def test_hyper_connections(dynamic: bool) -> None:
    """Equations 1 and 10 to 13 of the paper for each position, with its matrix of hyper-connections."""
    n, c = 3, 4
    module = randomise(HyperConnections(c, c, 1, n, dynamic=dynamic))
    assert isinstance(module, HyperConnections)
    state, fx = torch.randn(2, n, c, 3, 3, dtype=torch.float64), values(c)
    read, written = module.read(state), module.write(state, fx)
    for image, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3)).tolist():
        h = state[image, :, :, row, column]  # H (n, c), as in the paper
        a_m, b, a_r = module.p[:, None], module.q[None], module.r.T
        if dynamic:
            normed = nn.functional.layer_norm(h, (c,))
            b = b + module.t * (normed @ module.v[:, None]).tanh().T
            a_m = a_m + module.s * (normed @ module.u[:, None]).tanh()
            a_r = a_r + module.s * (normed @ module.w.T).tanh()
        torch.testing.assert_close(read[image, :, row, column], (a_m.T @ h)[0])
        expected = b.T @ fx[image, :, row, column][None] + a_r.T @ h
        torch.testing.assert_close(written[image, :, :, row, column], expected)


def test_each_block_reads_the_next_stream() -> None:
    net = network(partial(HyperConnections, streams=4))
    read = [int(module.p.argmax()) for module in net.modules() if isinstance(module, HyperConnections)]
    assert read == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_manifold_hyper_connections() -> None:
    """Equations 7 to 9 of the paper for each position."""
    n, c = 3, 4
    module = randomise(ManifoldHyperConnections(c, c, 1, n))
    assert isinstance(module, ManifoldHyperConnections)
    state, fx = torch.randn(2, n, c, 3, 3, dtype=torch.float64), values(c)
    read, written = module.read(state), module.write(state, fx)
    for image, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3)).tolist():
        x = state[image, :, :, row, column]
        vector = x.reshape(-1)
        vector = vector / (vector.square().mean() + 1e-5).sqrt()
        pre = (module.s_p * (module.u @ vector) + module.a).sigmoid()
        post = 2 * (module.s_q * (module.v @ vector) + module.b).sigmoid()
        res = (module.s_r * (module.w.reshape(n * n, -1) @ vector).reshape(n, n) + module.c).exp()
        for _ in range(20):
            res = res / res.sum(0, keepdim=True)
            res = res / res.sum(1, keepdim=True)
        for dimension in (1, 0):
            res = res / res.sum(dimension, keepdim=True).clamp(min=1)
        rows, columns = 1 - res.sum(1), 1 - res.sum(0)
        res = res + torch.outer(rows, columns) / (rows.sum() + 1e-300)
        torch.testing.assert_close(read[image, :, row, column], pre @ x)
        expected = res @ x + post[:, None] * fx[image, :, row, column]
        torch.testing.assert_close(written[image, :, :, row, column], expected)


@given(st.integers(2, 6), st.floats(0, 100), st.integers(0, 2**31))
def test_mixing_matrices_of_mhc_are_doubly_stochastic(n: int, scale: float, seed: int) -> None:
    logits = scale * torch.randn(2, n, n, 2, 2, generator=Generator().manual_seed(seed))
    matrices = sinkhorn(logits + math.log(9 * (n - 1)) * torch.eye(n)[:, :, None, None])
    assert (matrices >= 0).all()
    for dimension in (1, 2):
        assert (matrices.sum(dimension) - 1).abs().max() < 1e-6


@given(st.integers(2, 6), st.floats(0, 20), st.integers(0, 2**31))
def test_the_gradient_of_mixing_matrices_is_that_of_the_divisions(n: int, scale: float, seed: int) -> None:
    generator = Generator().manual_seed(seed)
    logits = (scale * torch.randn(1, n, n, 1, 1, generator=generator, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(n, n, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * sinkhorn(logits)[0, :, :, 0, 0]).sum(), logits)
    matrix = (logits[0, :, :, 0, 0] - logits.max()).exp()
    for _ in range(20):
        matrix = matrix / matrix.sum(0, keepdim=True)
        matrix = matrix / matrix.sum(1, keepdim=True)
    (expected,) = torch.autograd.grad((weights * matrix).sum(), logits)
    torch.testing.assert_close(gradient, expected)


@given(st.integers(2, 6), st.floats(0, 300), st.integers(0, 2**31))
def test_the_gradient_of_mixing_matrices_is_finite(n: int, scale: float, seed: int) -> None:
    generator = Generator().manual_seed(seed)
    logits = (scale * torch.randn(1, n, n, 1, 1, generator=generator)).requires_grad_()
    weights = torch.randn(n, n, generator=generator)
    (gradient,) = torch.autograd.grad((weights * sinkhorn(logits)[0, :, :, 0, 0]).sum(), logits)
    assert gradient.isfinite().all()


def test_before_training_each_stream_of_mhc_keeps_nine_tenths_of_itself() -> None:
    matrix = sinkhorn(ManifoldHyperConnections(4, 4, 1, 3).c[None, :, :, None, None])[0, :, :, 0, 0]
    torch.testing.assert_close(matrix, 0.05 + 0.85 * torch.eye(3))


def test_the_iterations_of_mhc_are_not_kept_for_the_backward_pass() -> None:
    module = ManifoldHyperConnections(4, 4, 1, 4)
    state, kept = torch.randn(2, 4, 4, 3, 3), list[Tensor]()
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        mixing, _ = module.mixing_and_writing(state)
    assert sum(tensor.shape == mixing.shape for tensor in kept) < 5  # of the 40
    mixing.sum().backward()
    assert module.w.grad is not None


def test_frac_connections() -> None:
    module = randomise(FracConnections(6, 6, 1, 3))
    assert isinstance(module, FracConnections)
    x, fx = values(6), values(6)
    parts, branch = x.split(2, 1), fx.split(2, 1)
    p, q, r = module.p, module.q, module.r
    for i, (read, written) in enumerate(zip(module.read(x).split(2, 1), module.write(x, fx).split(2, 1), strict=True)):
        torch.testing.assert_close(read, p[i, 0] * parts[0] + p[i, 1] * parts[1] + p[i, 2] * parts[2])
        mixed = r[i, 0] * parts[0] + r[i, 1] * parts[1] + r[i, 2] * parts[2]
        torch.testing.assert_close(written, mixed + q[i] * branch[i])
    with pytest.raises(InputError, match="must divide the numbers of channels, which are 6 and 6"):
        FracConnections(6, 6, 1, 4)


def positioned(module: Any, index: int, total: int) -> Any:
    module.set_stage_position(index, total)
    return randomise(module)


def test_depth_weighted_average() -> None:
    first, second = (positioned(DepthWeightedAverage(4, 4, 1), k, 2) for k in (1, 2))
    x, f1, f2 = values(), values(), values()
    state = first.open(x)
    assert torch.equal(first.read(state), x)
    state = first.write(state, f1)
    y1 = first.weights[0] * x + first.weights[1] * (x + f1)
    torch.testing.assert_close(second.read(state), y1)
    a = second.weights
    expected = a[0] * x + a[1] * (x + f1) + a[2] * (y1 + f2)
    torch.testing.assert_close(second.close(second.write(state, f2)), expected)


def test_attention_residuals() -> None:
    first, second = (positioned(AttentionResiduals(4, 4, 1), k, 2) for k in (1, 2))
    x, f1, f2 = values(), values(), values()

    def attention(query: Tensor, *vs: Tensor) -> Tensor:
        keys = [v / (v.square().mean(1, keepdim=True) + 1e-5).sqrt() for v in vs]
        exponentials = [(query[:, None, None] * key).sum(1, keepdim=True).exp() for key in keys]
        total = sum(exponentials)
        assert isinstance(total, Tensor)
        result = sum(e / total * v for e, v in zip(exponentials, vs, strict=True))
        assert isinstance(result, Tensor)
        return result

    state = first.write(first.open(x), f1)
    torch.testing.assert_close(first.read(first.open(x)), x)
    torch.testing.assert_close(second.read(state), attention(second.query, x, f1))
    torch.testing.assert_close(second.close(second.write(state, f2)), attention(second.last_query, x, f1, f2))
    torch.testing.assert_close(attend(torch.zeros(4).double(), (x, f1)), (x + f1) / 2)


def test_dense() -> None:
    first, second = (positioned(Dense(4, 4, 1), k, 2) for k in (1, 2))
    x, f1, f2 = values(), values(), values()
    state = first.write(first.open(x), f1)
    assert torch.equal(first.read(x), x)
    w, t = second.bottleneck.weight[:, :, 0, 0], second.transition.weight[:, :, 0, 0]
    torch.testing.assert_close(second.read(state), torch.einsum("oc,nchw->nohw", w, torch.cat([x, f1], 1)))
    expected = torch.einsum("oc,nchw->nohw", t, torch.cat([x, f1, f2], 1))
    torch.testing.assert_close(second.close(second.write(state, f2)), expected)


def test_normalizer_free() -> None:
    first, second = (positioned(NormalizerFree(4, 4, 1, residual=0.5), k, 2) for k in (1, 2))
    x, f1, f2 = values(), values(), values()
    assert torch.equal(first.read(first.open(x)), x)
    state = first.write(x, f1)
    torch.testing.assert_close(second.read(state), (x + f1 / 2) / math.sqrt(1.25))
    torch.testing.assert_close(second.close(second.write(state, f2)), (x + f1 / 2 + f2 / 2) / math.sqrt(1.5))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", COUNTS)
def test_a_change_of_shape(name: str, stride: int) -> None:
    """A state has the shape of the branch's output after the first block of a stage."""
    connection: Any = COUNTS[name][0](4, 8, stride)
    x, side = torch.randn(2, 4, 6, 6), 6 // stride
    state = connection.open(x)
    assert connection.read(state).shape == x.shape
    assert connection.close(connection.write(state, torch.randn(2, 8, side, side))).shape == (2, 8, side, side)


def test_weights_are_not_rounded_under_autocast() -> None:
    """In bfloat16, 1.001 is 1."""
    module = HyperConnections(4, 4, 1, 1, dynamic=False)
    with torch.no_grad():
        module.p.fill_(1.001)
    state = torch.ones(1, 1, 4, 2, 2, dtype=torch.bfloat16)
    average = DepthWeightedAverage(4, 4, 1)
    with torch.no_grad():
        average.weights.fill_(1.001)
    x = state[:, 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.read(state), torch.full((1, 4, 2, 2), 1.001))
        y, *_ = average.write(average.open(x), 0 * x)
    torch.testing.assert_close(y, torch.full((1, 4, 2, 2), 2.002))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # from torch.compile itself
@pytest.mark.parametrize("name", COUNTS)
def test_networks_compile_and_export(name: str) -> None:
    net, x = network(COUNTS[name][0]), images()
    torch.compiler.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))
    net.eval()
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))


@pytest.mark.parametrize("name", COUNTS)
def test_description(name: str) -> None:
    """A connection has a row for its own parameters and its products of matrices."""
    net = network(COUNTS[name][0])
    description = describe(net, (3, 8, 8))
    assert sum(layer.parameters for layer in description.layers) == description.parameters
    assert sum(layer.multiply_adds for layer in description.layers) == description.multiply_adds
    rows = {layer.name: layer for layer in description.layers}
    own = rows["stages.2.1.shortcut"]  # 32 channels of 2x2 pixels
    last = {layer.name for layer in description.layers if layer.name.startswith("stages.2.1.")}
    if name == "static_hyper_connections":
        assert (own.output, own.parameters) == ((4, 32, 2, 2), 24)
        assert own.multiply_adds == (4 + 16) * 32 * 2 * 2
    elif name == "hyper_connections":  # u, v and w, besides
        assert own.multiply_adds == (4 + 16 + 4 * (1 + 1 + 4)) * 32 * 2 * 2
    elif name == "mhc":
        assert own.multiply_adds == (4 + 16 + 4 * (4 + 4 + 16)) * 32 * 2 * 2
    elif name == "frac_connections":
        assert own.multiply_adds == 2 * 4 * 32 * 2 * 2
    elif name == "depth_weighted_average":  # of three tensors
        assert own.multiply_adds == 3 * 32 * 2 * 2
    elif name == "attention_residuals":  # logits and average of two tensors
        assert (own.output, own.multiply_adds) == ((3, 32, 2, 2), 2 * 2 * 32 * 2 * 2)
    elif name == "dense":
        assert "stages.2.1.shortcut.bottleneck" in last
        assert (own.output, own.parameters, own.multiply_adds) == ((96, 2, 2), 0, 0)
    else:
        assert own.multiply_adds == 0


@pytest.mark.parametrize("order", ["full_preactivation", "relu_before_addition"])
def test_signals_of_one_stream_are_those_of_the_identity(order: str) -> None:
    measured = []
    for shortcut in (Identity, OneStream):
        net = CifarNet(3, 10, 20, 8, shortcut, block=BlockSpec(order=ORDERS[order]))
        he_fan_out(net, Generator().manual_seed(0))
        optimizer = torch.optim.SGD(net.named_parameters(), 0.1)
        measured.append(Signals(4, None).measure(net.train(), images().float(), torch.tensor([0, 1, 2, 3]), optimizer))
    shortcuts, streams = measured
    assert shortcuts == streams
    assert len(streams) == 9


@pytest.mark.parametrize("name", COUNTS)
def test_every_probe_measures_every_connection(name: str) -> None:
    net = network(COUNTS[name][0]).train()
    optimizer = torch.optim.SGD(net.named_parameters(), 0.1)
    sharpness = Sharpness(4, None, tolerance=0.9, max_iterations=9)
    for probe in (Signals(4, None), Responses(4, None), Gradients(4, None), GradientCorrelation(4, None), sharpness):
        net.zero_grad()
        rows = probe.measure(net, images(), torch.tensor([0, 1, 2, 3]), optimizer)
        assert all(math.isfinite(value) for row in rows for value in row.values() if not isinstance(value, str))


def test_gains_and_weights_of_streams() -> None:
    net = network(partial(HyperConnections, streams=2, dynamic=False))
    connections = [module for module in net.modules() if isinstance(module, HyperConnections)]
    generator = Generator().manual_seed(0)
    with torch.no_grad():
        for connection in connections:
            connection.r.copy_(torch.randn(2, 2, generator=generator))
            connection.p.copy_(torch.randn(2, generator=generator))
    optimizer = torch.optim.SGD(net.named_parameters(), 0.1)
    rows = Connections(4, None).measure(net, images(), torch.tensor([0, 1, 2, 3]), optimizer)
    product = torch.eye(2).double()
    for index, (row, connection) in enumerate(zip(rows, connections, strict=True)):
        product = connection.r @ (torch.eye(2).double() if index % 3 == 0 else product)
        assert row["forward_gain"] == pytest.approx(product.abs().sum(1).max().item())
        assert row["backward_gain"] == pytest.approx(product.abs().sum(0).max().item())
        assert [float(weight) for weight in str(row["reads"]).split()] == pytest.approx(connection.p.tolist(), rel=1e-5)
    assert not any("write" in vars(connection) for connection in connections)


@pytest.mark.parametrize("width", [8, 1])
def test_the_streams_of_mhc_have_a_gain_of_1(width: int) -> None:
    net = randomise(network(ManifoldHyperConnections))
    optimizer = torch.optim.SGD(net.named_parameters(), 0.1)
    narrow = images()[..., :width]  # its width does not change with its height
    for row in Connections(4, None).measure(net, narrow, torch.tensor([0, 1, 2, 3]), optimizer):
        assert row["forward_gain"] == pytest.approx(1)
        assert row["backward_gain"] == pytest.approx(1)


@pytest.mark.parametrize("shortcut", [DepthWeightedAverage, AttentionResiduals])
def test_weights_over_history(shortcut: ShortcutFactory) -> None:
    net = network(shortcut)
    optimizer = torch.optim.SGD(net.named_parameters(), 0.1)
    rows = Connections(4, None).measure(net, images(), torch.tensor([0, 1, 2, 3]), optimizer)
    average = shortcut is AttentionResiduals
    expected = [[1.0], [0.5, 0.5] if average else [0, 1], [1 / 3] * 3 if average else [0, 0, 1]] * 3
    assert [[float(w) for w in str(row["reads"]).split()] for row in rows] == [pytest.approx(e) for e in expected]
    assert all(math.isnan(float(row["forward_gain"])) for row in rows)


def test_blocks_without_a_state_have_neither_weights_nor_gains() -> None:
    net = network(Identity)
    optimizer = torch.optim.SGD(net.named_parameters(), 0.1)
    rows = Connections(4, None).measure(net, images(), torch.tensor([0, 1, 2, 3]), optimizer)
    assert rows == []
