"""Summary of a network: output shape, parameters and multiply-adds of each layer."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from plainres.console import aligned, narrowed
from plainres.models.connections import StatefulBlock


@dataclass(frozen=True)
class Layer:
    """Summary of one layer, a module without children."""

    name: str
    kind: str
    output: tuple[int, ...]  # (C, H, W), or (classes,)
    parameters: int
    multiply_adds: int  # per image


@dataclass(frozen=True)
class Description:
    """Layers of a network in the order of the forward pass, and the totals of the network."""

    layers: list[Layer]
    parameters: int
    multiply_adds: int  # of convolutions, linear layers and mixed streams, per image; the FLOPs of He et al. 2015

    def __str__(self) -> str:
        return self.table(sys.maxsize)

    def table(self, width: int) -> str:
        """Return a line for each layer. Above `width` columns, the kinds of the layers are dropped."""
        rows = [("layer", "kind", "output", "parameters", "multiply-adds")]
        for layer in self.layers:
            shape = " x ".join(map(str, layer.output))
            rows.append((layer.name, layer.kind, shape, f"{layer.parameters:,}", f"{layer.multiply_adds:,}"))
        rows.append(("total", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}"))
        kept, _ = narrowed(rows, ("kind",), width)
        last = len(kept[0]) - 1
        lines = aligned(kept, right=(last - 1, last))
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def describe(network: nn.Module, shape: Sequence[int]) -> Description:
    """Summarise the layers of `network` by a forward pass with one image of `shape` (C, H, W).

    The network may be on the meta device.
    """
    layers: list[Layer] = []
    flops = FlopCounterMode(display=False)

    def add_layer(name: str, module: nn.Module, output: Any, before: int) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        # the counter counts a multiply-add as two operations
        multiply_adds = (flops.get_total_flops() - before) // 2
        layers.append(Layer(name, type(module).__name__, tuple(output.shape[1:]), parameters, multiply_adds))

    def add_hooks(name: str, module: nn.Module) -> None:
        before = 0

        def enter(*_: object) -> None:
            nonlocal before
            before = flops.get_total_flops()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(lambda m, _, output: add_layer(name, m, output, before)))

    def add_connection_hooks(name: str, block: StatefulBlock) -> None:
        before, first = 0, 0

        def enter(*_: object) -> None:
            nonlocal before, first
            before, first = flops.get_total_flops(), len(layers)

        def leave(module: nn.Module, inputs: Any, state: Any) -> None:
            # a connection is not called as a module: what its block's layers do not account for is its own
            rest = (flops.get_total_flops() - before) // 2 - sum(layer.multiply_adds for layer in layers[first:])
            parameters = sum(p.numel() for p in block.shortcut.parameters(recurse=False))
            maps = [state] if isinstance(state, Tensor) else [tensor for tensor in state if tensor.ndim > 1]
            shape = (len(maps), *maps[0].shape[1:]) if len(maps) > 1 else maps[0].shape[1:]
            layers.append(Layer(f"{name}.shortcut", type(block.shortcut).__name__, tuple(shape), parameters, rest))

        handles.append(block.register_forward_pre_hook(enter))
        handles.append(block.register_forward_hook(leave))

    handles: list[Any] = []
    for name, module in network.named_modules():
        # a Sequential without children is an unused position of the layer order, such as an empty `pre`
        if not any(True for _ in module.children()) and not isinstance(module, nn.Sequential):
            add_hooks(name, module)
        elif isinstance(module, StatefulBlock):
            add_connection_hooks(name, module)
    training = network.training
    try:
        weight = next(network.parameters())
        with flops, torch.no_grad():
            network.eval()(torch.zeros(1, *shape, device=weight.device, dtype=weight.dtype))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    parameters = sum(p.numel() for p in network.parameters())
    return Description(layers, parameters, flops.get_total_flops() // 2)
