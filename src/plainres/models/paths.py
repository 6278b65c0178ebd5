"""Paths of a signal through a stack of blocks."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from plainres.models.activations import ACTIVATIONS
from plainres.models.initialisation import named_blocks

Value = TypeVar("Value")


def activations_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the activations of the backbone by name, in order."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, ACTIVATIONS) and "shortcut" not in name.split(".")
    }


def follow(
    network: nn.Module,
    value: Value,
    activate: Callable[[Value, str], Value],
    join: Callable[[Any, Value, Value], Value],
) -> Value:
    """Follow a property of the signal, such as its depth, from the images to the head of a stack of blocks.

    Args:
        network: the stack.
        value: the value for the images.
        activate: maps the value before an activation of the given name to the value after it.
        join: maps a block, the value after its branch and the value before its shortcut to the value of their join.

    Returns:
        The value for the features that enter the head.
    """
    names = list(activations_of(network))

    def through(value: Value, layers: str) -> Value:
        for name in names:
            if name.startswith(f"{layers}."):
                value = activate(value, name)
        return value

    value = through(value, "stem")
    for name, block in named_blocks(network):
        activated = through(value, f"{name}.pre")
        joined = join(block, through(activated, f"{name}.residual"), activated if block.shared else value)
        value = through(joined, f"{name}.post_add")
    return through(value, "tail")
