import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from plainres.models.normalisation import BatchNorm2dByImage, convert_batch_norm_by_image
from plainres.training.compilation import compiled
from support.compiler import needs_compiler


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Build a batch normalisation with weights that are not 0 and 1."""
    module = nn.BatchNorm2d(channels)
    nn.init.uniform_(module.weight, 0.5, 1.5)
    nn.init.uniform_(module.bias)
    return module


def by_image(module: nn.BatchNorm2d) -> nn.Module:
    """Return a converted copy."""
    network = nn.Sequential(copy.deepcopy(module))
    convert_batch_norm_by_image(network)
    assert type(network[0]) is BatchNorm2dByImage
    return network[0]


def pass_through(module: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return the output, the gradients of the input and the weights, and the buffers after a pass."""
    x = x.clone().requires_grad_()
    output = module(x)
    output.backward(gradient.to(output.dtype))
    gradients = [tensor.grad for tensor in (x, *module.parameters())]
    return [output.detach(), *(each for each in gradients if each is not None), *module.buffers()]


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(2, 6)),
    mean=st.floats(-10, 10),
    seed=st.integers(0, 2**32),
)
def test_sums_by_image_normalise_as_torch_does(shape: tuple[int, int, int, int], mean: float, seed: int) -> None:
    torch.manual_seed(seed)
    torchs = batch_norm(shape[1]).double()
    x, gradient = mean + torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as monkeypatch:
        own = by_image(torchs)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        results = pass_through(own, x, gradient)
    for result, expected in zip(results, pass_through(torchs, x, gradient), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-9)


def test_eager_passes_and_evaluation_are_those_of_torch_to_the_bit() -> None:
    torchs = batch_norm(3)
    own = by_image(torchs)
    assert own.state_dict().keys() == torchs.state_dict().keys()
    x, gradient = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    for training in (True, False):
        results = (pass_through(module.train(training), x, gradient) for module in (own, torchs))
        for result, expected in zip(*results, strict=True):
            assert torch.equal(result, expected)


def test_a_single_value_per_channel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        by_image(batch_norm(3))(torch.randn(1, 3, 1, 1))


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_other_kinds_of_batch_normalisation_stay_as_they_are(options: dict[str, bool | None]) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3, **options))  # pyright: ignore[reportArgumentType]
    convert_batch_norm_by_image(network)
    assert type(network[0]) is nn.BatchNorm2d


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # from torch.compile itself
def test_compiled_gradients_in_bfloat16_use_statistics_that_are_not_rounded() -> None:
    torch.manual_seed(0)
    x, gradient = (3.3 + torch.randn(64, 16, 16, 16)).bfloat16(), torch.randn(64, 16, 16, 16).bfloat16()
    torchs = batch_norm(16)
    exact = pass_through(copy.deepcopy(torchs).double(), x.double(), gradient.double())[2]
    torch.compiler.reset()
    compiled(torchs, torch.device("cpu"), mixed=True)(x).backward(gradient)
    assert torchs.weight.grad is not None
    error = (torchs.weight.grad.double() - exact).norm() / exact.norm()
    assert error < 1e-5  # 0.013 with torch 2.13's own, which rounds them
