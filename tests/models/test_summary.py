import torch
from torch import Tensor, nn

from plainres.models.networks import CifarNet
from plainres.models.shortcuts import Identity, Projection
from plainres.models.summary import describe


def test_layers_sum_to_the_totals() -> None:
    description = describe(CifarNet(3, 10, 20, 16, Projection), (3, 32, 32))
    assert sum(layer.parameters for layer in description.layers) == description.parameters
    assert sum(layer.multiply_adds for layer in description.layers) == description.multiply_adds
    stem = description.layers[0]
    assert (stem.name, stem.kind, stem.output) == ("stem.conv", "Conv2d", (16, 32, 32))
    assert (stem.parameters, stem.multiply_adds) == (432, 442368)
    assert description.layers[-1].output == (10,)


def test_totals_include_parameters_of_modules_with_children() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(3))
            self.linear = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1)) * self.gate.sum()

    description = describe(Gated(), (1, 2, 2))
    assert (description.parameters, description.multiply_adds) == (13, 8)


def test_describe_does_not_change_the_network() -> None:
    network = CifarNet(1, 10, 8, 4, Identity).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    describe(network, (1, 8, 8))
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_table_is_aligned() -> None:
    lines = str(describe(CifarNet(1, 10, 8, 4, Identity), (1, 8, 8))).splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds"]
    assert lines[-1].split() == ["total", "4,934", "48,544"]
    assert len({len(line) for line in (lines[0], *lines[2:-2], lines[-1])}) == 1


def test_the_table_drops_the_kinds_of_layers_in_a_narrow_terminal() -> None:
    description = describe(CifarNet(3, 10, 20, 16, Identity), (3, 32, 32))
    narrow = description.table(80).splitlines()
    assert max(map(len, narrow)) <= 80
    assert narrow[0].split() == ["layer", "output", "parameters", "multiply-adds"]
    assert narrow[-1].split() == str(description).splitlines()[-1].split()
    assert "Conv2d" in description.table(120)
