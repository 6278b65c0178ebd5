"""What happens inside a network, layer by layer: measured at the beginning of a training, now and then, and at its end.

A probe looks at a copy of the network, on a random sample of the training set, by class, not augmented, with the
statistics of this batch in its normalisations. So none of them changes a bit of the training. What they find is kept
beside the run, probes/<name>.csv, a row for each layer and step.

A layer is a weighted layer of the backbone, in the order of computation, layers on shortcuts left out.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from plainres.errors import InputError
from plainres.models.initialisation import blocks
from plainres.models.normalisation import SyncBatchNorm2d

Row = dict[str, float | int | str]


class Probe(Protocol):
    """Measures something about a network; every class of this module is one."""

    @property
    def images(self) -> int:
        """The size of the sample of images that it looks at."""
        ...

    @property
    def every_n_steps(self) -> int | None:
        """How often it looks, besides at the beginning and the end; None: not at all."""
        ...

    @property
    def looks_at(self) -> str:
        """What a network must have: a key of `PARTS`, or anything else if it need not have anything."""
        ...

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """Look at a copy of the network, in training mode, with images (N, C, H, W) and targets (N,)."""
        ...


class _Timed:
    """The options that all probes have."""

    looks_at = "layers"

    def __init__(self, images: int, every_n_steps: int | None) -> None:
        if images < 2:
            raise InputError(f"a probe looks at {images} images; it must be at least 2")
        if every_n_steps is not None and every_n_steps < 1:
            raise InputError(f"a probe's every_n_steps is {every_n_steps}; it must be at least 1, or null")
        self.images, self.every_n_steps = images, every_n_steps


class Responses(_Timed):
    """The standard deviation of each layer's response, over images, channels and places.

    He et al. 2015, figure 7: the response of a convolution is what comes out of its batch normalisation, before
    activation and addition; without one behind it, what comes out of the convolution itself. The figure, there and in
    the report, leaves the head out. Costs one forward pass.
    """

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """Rows of layer, name, std."""
        found: list[Row] = []
        names = {response: name for name, _, response in layers(network)}

        def note(module: nn.Module, output: Tensor) -> None:
            found.append(_row(len(found), names[module], std=output.double().std().item()))

        with _watching(names, note), torch.no_grad():
            network(images)
        return found


class Gradients(_Timed):
    """For the weights W of each layer: the norms of W, of the loss's gradient, and of the update relative to W.

    The loss is the mean cross-entropy of the images. The update is learning rate times momentum buffer, as the last
    step has left both; before the first step it is what the gradient of the images would make at that step's rate.
    Relative to weights of norm 0 an update is infinite, or NaN if it is 0, too. Costs one forward and backward pass.
    """

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """Rows of layer, name, weight, gradient, update_to_weight."""
        F.cross_entropy(network(images), targets).backward()
        (group,) = optimizer.param_groups
        # the copy's parameters are in the order of the original's
        originals = dict(zip(network.parameters(), group["params"], strict=True))
        rows = []
        for index, (name, layer, _) in enumerate(layers(network)):
            weight = layer.weight
            assert isinstance(weight, nn.Parameter)
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad  # None: the loss ignores it
            buffer = optimizer.state[originals[weight]].get("momentum_buffer")
            step = gradient + group["weight_decay"] * weight if buffer is None else buffer
            norm = weight.norm().double()
            # a rate that a captured step reads is a tensor
            ratio = float(group["lr"]) * step.norm().double() / norm
            values = {"weight": norm, "gradient": gradient.norm(), "update_to_weight": ratio}
            rows.append(_row(index, name, **{column: value.item() for column, value in values.items()}))
        return rows


class GradientCorrelation(_Timed):
    """How alike the gradients of different images are: shattered gradients look like white noise.

    Balduzzi et al. 2017 (The Shattered Gradients Problem), abstract: the correlation between gradients decays
    exponentially with depth in plain nets, sublinearly with skip-connections. Here: the gradients of the images' summed
    loss with respect to the pixels of each image, and the correlation coefficients of these gradients for all pairs of
    images: their mean, and the mean of their absolute values (of independent noise about sqrt(2 / (pi D)) for D
    pixels). A constant gradient, such as 0, has no correlation with others. The mean leaves out its pairs, and is NaN
    if no others are left. Where a normalisation takes its statistics from the batch, the losses of the other images
    depend on an image's pixels too and have a part in its gradient. Costs one forward and backward pass.
    """

    looks_at = "pixels"

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """One row: correlation, absolute_correlation."""
        pixels = images.clone().requires_grad_()
        F.cross_entropy(network(pixels), targets, reduction="sum").backward()
        assert pixels.grad is not None
        gradients = pixels.grad.flatten(1).double()
        gradients -= gradients.mean(1, keepdim=True)
        gradients /= gradients.norm(dim=1, keepdim=True)
        pairs = (gradients @ gradients.T)[tuple(torch.triu_indices(len(gradients), len(gradients), 1))]
        return [
            _row(0, "pixels", correlation=pairs.nanmean().item(), absolute_correlation=pairs.abs().nanmean().item())
        ]


class Signals(_Timed):
    """Mean and variance of what each block gives, over images, channels and places, and of the gradient there.

    The gradient is that of the images' summed cross-entropy with respect to the block's output. Whether either vanishes
    or explodes with depth is what normalisation, initialisation and shortcuts are said to decide. Costs one forward and
    backward pass.
    """

    looks_at = "blocks"

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """Rows of layer (the block's number), name, mean, variance, gradient_variance."""
        outputs: list[tuple[str, Tensor]] = []
        names = {block: name for name, block in blocks(network)}

        def keep(module: nn.Module, output: Tensor) -> None:
            if output.requires_grad:
                output.retain_grad()
            outputs.append((names[module], output))

        with _watching(names, keep):
            F.cross_entropy(network(images), targets, reduction="sum").backward()
        rows = []
        for index, (name, output) in enumerate(outputs):
            values = output.detach().double()
            gradient = torch.zeros_like(values) if output.grad is None else output.grad.double()
            variances = {"variance": values.var().item(), "gradient_variance": gradient.var().item()}
            rows.append(_row(index, name, mean=values.mean().item(), **variances))
        return rows


def layers(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear, nn.Module]]:
    """Name and module of each weighted layer of the backbone, and the module whose output is its response."""
    for name, module in network.named_modules():
        if "shortcut" in name.split(".") or not isinstance(module, nn.Sequential):
            continue
        children = [*module.named_children(), ("", nn.Identity())]
        for (child, layer), (after, response) in pairwise(children):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                yield f"{name}.{child}", layer, response if after.startswith("norm") else layer


PARTS = {  # what a probe looks at: the function that finds it, and what that knows it by
    "layers": (layers, "convolutions and linear layers in an nn.Sequential"),
    "blocks": (blocks, "modules with a residual and a shortcut"),
}
OURS = {
    "responses": Responses,
    "gradients": Gradients,
    "signals": Signals,
    "gradient_correlation": GradientCorrelation,
}


def check_probes(probes: Mapping[str, Probe], network: nn.Module) -> None:
    """See whether a network has what probes look at; it may be on the meta device.

    Raises:
        InputError: it has not.
    """
    there = {part: any(True for _ in find(network)) for part, (find, _) in PARTS.items()}
    for name, probe in probes.items():
        if not there.get(probe.looks_at, True):
            suited = [other for other, made in OURS.items() if there.get(made.looks_at, True)]
            raise InputError(
                f"probes.{name} looks at {probe.looks_at} ({PARTS[probe.looks_at][1]}), "
                f"of which {type(network).__name__} has none; probes that suit it: {', '.join(suited)}"
            )


def a_copy(network: nn.Module) -> nn.Module:
    """A copy in training mode, with weights and statistics of its own, that needs no other process."""
    network = copy.deepcopy(network).train()
    for module in list(network.modules()):
        if type(module) is SyncBatchNorm2d:
            # the same parameters and buffers, another forward
            module.__class__ = nn.BatchNorm2d  # pyright: ignore[reportAttributeAccessIssue]
    network.zero_grad()
    return network


@contextmanager
def _watching(modules: Mapping[nn.Module, str], look: Callable[[nn.Module, Tensor], object]) -> Iterator[None]:
    """Call `look(module, output)` for each output of some modules."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        look(module, output)

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _row(layer: int, name: str, **values: float) -> Row:
    row: Row = {"layer": layer, "name": name}
    row.update(values)
    return row
