"""A network layer by layer: output shape, parameters, multiply-adds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from plainres.console import aligned


@dataclass(frozen=True)
class Layer:
    """One layer: a module without children."""

    name: str
    kind: str
    output: tuple[int, ...]  # (C, H, W), or (classes,)
    parameters: int
    multiply_adds: int  # for one image


@dataclass(frozen=True)
class Description:
    """The layers of a network in the order of their computation, and the totals of the whole network."""

    layers: list[Layer]
    parameters: int
    multiply_adds: int  # of convolutions and linear layers, for one image, as the paper counts FLOPs

    def __str__(self) -> str:
        rows = [("layer", "kind", "output", "parameters", "multiply-adds")]
        for layer in self.layers:
            shape = " x ".join(map(str, layer.output))
            rows.append((layer.name, layer.kind, shape, f"{layer.parameters:,}", f"{layer.multiply_adds:,}"))
        rows.append(("total", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}"))
        lines = aligned(rows, right=(3, 4))
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def describe(network: nn.Module, shape: Sequence[int]) -> Description:
    """Run `network` on one image of `shape` (C, H, W), on the meta device too, and note what each layer does."""
    layers: list[Layer] = []
    flops = FlopCounterMode(display=False)

    def note(name: str, module: nn.Module, output: Any, before: int) -> None:
        parameters = sum(p.numel() for p in module.parameters())
        # a multiply and an add are two of the counter's operations
        multiply_adds = (flops.get_total_flops() - before) // 2
        layers.append(Layer(name, type(module).__name__, tuple(output.shape[1:]), parameters, multiply_adds))

    def watch(name: str, module: nn.Module) -> None:
        before = 0

        def enter(*_: object) -> None:
            nonlocal before
            before = flops.get_total_flops()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(lambda m, _, output: note(name, m, output, before)))

    handles: list[Any] = []
    for name, module in network.named_modules():
        empty = isinstance(module, nn.Sequential)  # nothing stands before a block, or behind the last
        if not any(True for _ in module.children()) and not empty:
            watch(name, module)
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
