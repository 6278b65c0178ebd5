"""Options of the optimizer: the parameters that weight decay applies to, Nesterov's momentum, and clipping."""

import copy
import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainres.config.schema import DECAYS
from plainres.models.blocks import BlockSpec
from plainres.models.networks import CifarNet
from plainres.models.shortcuts import Identity
from plainres.training import optimizer as module
from plainres.training.optimizer import clip_gradient, sgd
from support.shipped import CONNECTIONS, EVERY_SHORTCUT, ORDERS, SHORTCUTS
from support.training import recipe


def with_gradients(**options: Any) -> nn.Module:
    """Return a network of eight layers with the gradients of a batch."""
    torch.manual_seed(0)
    network = CifarNet(1, 10, 8, 4, Identity, **options)
    F.cross_entropy(network(torch.randn(6, 1, 8, 8)), torch.arange(6)).backward()
    return network


def gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(
    ("shortcut", "order"),
    [*product(SHORTCUTS, ORDERS), *((name, "full_preactivation") for name in CONNECTIONS)],
)
def test_each_parameter_is_in_one_group(shortcut: str, order: str, decay: str) -> None:
    network = CifarNet(1, 10, 8, 4, EVERY_SHORTCUT[shortcut], block=BlockSpec(order=ORDERS[order], bias=True))
    groups = sgd(network, recipe(decay=decay)).param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, parameters)) == sorted(map(id, network.parameters()))
    named = {name: parameter for group in groups for name, parameter in zip(group["param_names"], group["params"])}  # noqa: B905
    assert all(named[name] is parameter for name, parameter in network.named_parameters())
    if decay == "all":
        assert [group["weight_decay"] for group in groups] == [1e-4]


def test_decay_of_weights_leaves_out_normalisations_biases_and_scalars() -> None:
    network = CifarNet(1, 10, 8, 4, SHORTCUTS["rezero"], block=BlockSpec(order=ORDERS["fixup"], bias=True))
    network.append_norm = nn.BatchNorm2d(4)
    weights, others = sgd(network, recipe(decay="weights")).param_groups
    assert (weights["weight_decay"], others["weight_decay"]) == (1e-4, 0)
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert weights["param_names"] == [f"{name}.weight" for name in layers]
    assert {"head.linear.bias", "append_norm.weight", "append_norm.bias"} < set(others["param_names"])
    assert {"stages.0.0.shortcut.scale", "stages.0.0.residual.scale2.scale"} < set(others["param_names"])


def test_a_network_without_normalisations_and_biases_has_one_group() -> None:
    (group,) = sgd(nn.Linear(2, 3, bias=False), recipe(decay="weights")).param_groups
    assert group["weight_decay"] == 1e-4


def test_decay_of_weights_only_is_the_step_of_the_rest_without_decay() -> None:
    states = {}
    for name, options in {"all": {}, "weights": {"decay": "weights"}, "none": {"weight_decay": 0.0}}.items():
        network = with_gradients()
        sgd(network, recipe(**options)).step()
        states[name] = network.state_dict()
    for name, value in states["weights"].items():
        same = "all" if value.ndim > 1 else "none"
        assert torch.equal(value, states[same][name]), name
    assert not torch.equal(states["all"]["stem.norm.weight"], states["none"]["stem.norm.weight"])


def test_nesterov_adds_the_next_momentum() -> None:
    network = with_gradients()
    weight = network.get_parameter("stem.conv.weight")
    gradient, before = weight.grad, weight.detach().clone()
    assert gradient is not None
    optimizer = sgd(network, recipe(nesterov=True))
    buffer = torch.zeros_like(before)
    for _ in range(2):
        decayed = gradient + 1e-4 * before
        buffer = 0.9 * buffer + decayed
        before = before - 0.1 * (decayed + 0.9 * buffer)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), before)


def test_the_gradient_is_clipped_to_the_norm_of_all_parameters() -> None:
    network = with_gradients()
    before = gradients(network)
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in before))
    for decay in DECAYS:
        clipped = copy.deepcopy(network)
        for parameter, gradient in zip(clipped.parameters(), before, strict=True):
            parameter.grad = gradient.clone()
        options = recipe(clip_norm=norm / 4, decay=decay)
        clip_gradient(sgd(clipped, options), options)
        for gradient, expected in zip(gradients(clipped), before, strict=True):
            torch.testing.assert_close(gradient, expected / 4)


@pytest.mark.parametrize("factor", [1.01, math.inf])
def test_a_smaller_gradient_does_not_change_by_a_bit(factor: float) -> None:
    network = with_gradients()
    before = gradients(network)
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in before))
    options = recipe(clip_norm=norm * factor)
    clip_gradient(sgd(network, options), options)
    assert all(map(torch.equal, gradients(network), before))


def test_without_a_limit_no_norm_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "clip_grad_norm_", None)
    clip_gradient(sgd(with_gradients(), recipe()), recipe())
