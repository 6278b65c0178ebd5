from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from plainres.models.networks import CifarNet
from plainres.models.normalisation import convert_batch_norm_by_image
from plainres.models.pooling import AvgPool2dOfKept, convert_global_average
from plainres.models.shortcuts import Identity
from plainres.training.compilation import compiled
from support.compiler import needs_compiler


def converted(module: nn.Module) -> nn.Module:
    network = nn.Sequential(module)
    convert_global_average(network)
    return network[0]


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (1, 5, 3, 7), (2, 1, 1, 1)])
def test_the_average_and_its_gradient_are_those_of_torch(
    shape: tuple[int, int, int, int], compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    features, gradient = torch.randn(shape, dtype=torch.float64), torch.randn(*shape[:2], 1, 1, dtype=torch.float64)
    results = []
    for pool in (nn.AdaptiveAvgPool2d(1), converted(nn.AdaptiveAvgPool2d(1))):
        x = features.clone().requires_grad_()
        output = pool(x)
        output.backward(gradient)
        results.append((output.detach(), x.grad))
    for own, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-14, atol=1e-14)


def test_only_global_average_pooling_is_converted() -> None:
    assert type(converted(nn.AdaptiveAvgPool2d(1))) is AvgPool2dOfKept
    assert type(converted(nn.AdaptiveAvgPool2d((1, 1)))) is AvgPool2dOfKept
    assert type(converted(nn.AdaptiveAvgPool2d(2))) is nn.AdaptiveAvgPool2d
    assert type(converted(nn.AdaptiveAvgPool2d((1, None)))) is nn.AdaptiveAvgPool2d


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # from torch.compile itself
def test_a_compiled_network_keeps_no_truth_values() -> None:
    network = CifarNet(3, 10, 8, 16, Identity).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    convert_batch_norm_by_image(network)

    def kept(forward: Callable[[Tensor], Tensor]) -> set[torch.dtype]:
        dtypes: set[torch.dtype] = set()

        def note(tensor: Tensor) -> Tensor:
            dtypes.add(tensor.dtype)
            return tensor

        torch.compiler.reset()
        with torch.autocast("cpu", torch.bfloat16):
            forward(images)  # compiles; hooks would take part in that
            with saved_tensors_hooks(note, lambda tensor: tensor):
                forward(images)
        return dtypes

    assert kept(torch.compile(network.forward, dynamic=False)) == {torch.bool, torch.bfloat16, torch.float32}
    assert kept(compiled(network, torch.device("cpu"), mixed=True)) == {torch.bfloat16, torch.float32}
