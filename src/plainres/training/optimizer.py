"""Optimizer of a run: SGD with momentum, the parameters that weight decay applies to, and gradient clipping."""

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Optimizer

from plainres.config.schema import Recipe

Named = list[tuple[str, nn.Parameter]]


def sgd(network: nn.Module, recipe: Recipe, *, capturable: bool = False) -> SGD:
    """Return the optimizer of a recipe, for the device of the network.

    There is one group of parameters for `decay: all`. For `decay: weights` the second group has no weight decay.

    Args:
        network: the network to train.
        recipe: the options of SGD; the learning rate is that of the first step without a warm-up.
        capturable: whether steps are captured in a CUDA graph, which requires a tensor as learning rate.
    """
    named = list(network.named_parameters())
    device = named[0][1].device
    groups = [
        {"params": parameters, "weight_decay": decay} for parameters, decay in _decayed(named, recipe) if parameters
    ]
    implementation = fused(device, capturable=capturable)
    optimizer = SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.nesterov, fused=implementation)
    if capturable:
        for group in optimizer.param_groups:
            group["lr"] = torch.full((), recipe.lr, device=device)
    return optimizer


def _decayed(named: Named, recipe: Recipe) -> list[tuple[Named, float]]:
    """Return the groups of parameters, each with its weight decay."""
    if recipe.decay == "all":
        return [(named, recipe.weight_decay)]
    weights = [(name, parameter) for name, parameter in named if parameter.ndim > 1]
    others = [(name, parameter) for name, parameter in named if parameter.ndim <= 1]
    return [(weights, recipe.weight_decay), (others, 0.0)]


def fused(device: torch.device, *, capturable: bool) -> bool | None:
    """Whether a step on this device uses torch's fused implementation; None: torch decides."""
    return capturable or device.type == "cuda" or None


def clip_gradient(optimizer: Optimizer, recipe: Recipe) -> None:
    """Scale all gradients so that their global norm is at most the recipe's `clip_norm`. Do not wait for the device.

    Call it after the backward pass, in which DDP averages the gradients over the ranks.
    """
    if recipe.clip_norm is not None:
        parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        clip_grad_norm_(parameters, recipe.clip_norm)
