"""Probes, which measure the inside of a network before training, every few steps, and after training.

A probe runs on a copy of the network in training mode, so it does not change the training. Its images are a
class-stratified random sample of the training set, without augmentation. Normalisations use the statistics of this
batch. The run stores the rows of a probe, one per layer and step, in probes/<name>.csv.

A layer here is a weighted layer of the backbone, in the order of the forward pass. Layers on shortcuts are excluded.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from plainres.errors import InputError
from plainres.models.connections import Mixing, StatefulBlock, Weighted
from plainres.models.curvature import estimates
from plainres.models.initialisation import named_blocks
from plainres.models.normalisation import SyncBatchNorm2d

Row = dict[str, float | int | str]


class Probe(Protocol):
    """Measurement of a network. Every public class in this module is one."""

    @property
    def images(self) -> int:
        """Number of sampled images."""
        ...

    @property
    def every_n_steps(self) -> int | None:
        """Number of steps between measurements; None measures only before and after training."""
        ...

    @property
    def requires(self) -> str:
        """Key of `REQUIREMENTS` that a network must satisfy. Any other string requires nothing."""
        ...

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """Measure a copy of the network in training mode, with images (N, C, H, W) and targets (N,)."""
        ...


class _BaseProbe:
    """Options shared by all probes."""

    requires = "layers"

    def __init__(self, images: int, every_n_steps: int | None) -> None:
        if images < 2:
            raise InputError(f"a probe has images={images}; it must be at least 2")
        if every_n_steps is not None and every_n_steps < 1:
            raise InputError(f"a probe has every_n_steps={every_n_steps}; it must be at least 1, or null")
        self.images, self.every_n_steps = images, every_n_steps


class Responses(_BaseProbe):
    """Standard deviation of each layer's response, over images, channels and positions.

    Following He et al. 2015, figure 7, the response of a convolution is the output of its batch normalisation, before
    activation and addition. Without a normalisation it is the output of the convolution. The figures, in the paper and
    in the report, omit the head. Costs one forward pass.
    """

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """Return rows with layer, name and std."""
        rows: list[Row] = []
        names = {response: name for name, _, response in weighted_layers(network)}

        def add_row(module: nn.Module, output: Tensor) -> None:
            rows.append(_row(len(rows), names[module], std=output.double().std().item()))

        with _forward_hooks(names, add_row), torch.no_grad():
            network(images)
        return rows


class Gradients(_BaseProbe):
    """Norms of each layer's weights W and of their gradient, and norm of the update relative to that of W.

    The loss is the mean cross-entropy of the images. The update is the change of W in the last step. Before the first
    step it is the update that the gradient of the images, not clipped, would cause at the first step's learning rate.
    If W is 0, the relative update is infinite, or NaN if the update is also 0. Costs one forward and backward pass.
    """

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """Return rows with layer, name, weight, gradient and update_to_weight."""
        F.cross_entropy(network(images), targets).backward()
        groups = {
            name: (parameter, group)
            for group in optimizer.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
        }
        rows = []
        for index, (name, layer, _) in enumerate(weighted_layers(network)):
            weight = layer.weight
            assert isinstance(weight, nn.Parameter)
            original, group = groups[f"{name}.weight"]
            # the learning rate is a tensor if the step is a CUDA graph
            lr, gradient = float(group["lr"]), weight.grad
            if gradient is None:  # the loss does not depend on the weights, and SGD leaves them as they are
                gradient = update = torch.zeros_like(weight)
            else:
                update = _update(original, gradient, lr, group, optimizer)
            norm = weight.norm().double()
            ratio = lr * update.norm().double() / norm
            values = {"weight": norm, "gradient": gradient.norm(), "update_to_weight": ratio}
            rows.append(_row(index, name, **{column: value.item() for column, value in values.items()}))
        return rows


def _update(weight: Tensor, gradient: Tensor, lr: float, group: Mapping[str, Any], optimizer: Optimizer) -> Tensor:
    """Return the change of a weight by SGD in the last step, divided by the learning rate and negated.

    Before the first step, return the change that `gradient` would cause.
    """
    decay, momentum = group["weight_decay"], group["momentum"]
    buffer = optimizer.state[weight].get("momentum_buffer")  # SGD has none without momentum
    if weight.grad is None:  # before the first step
        return (gradient + decay * weight) * (1 + momentum if group["nesterov"] else 1)
    if buffer is not None and not group["nesterov"]:
        return buffer
    # u = g + decay * (weight before the step) + momentum * buffer, and the weight before is weight + lr * u
    return (weight.grad + decay * weight + (0 if buffer is None else momentum * buffer)) / (1 - lr * decay)


class GradientCorrelation(_BaseProbe):
    """Mean correlation, and mean absolute correlation, between the input gradients of pairs of images.

    Balduzzi et al. 2017 (The Shattered Gradients Problem), abstract: the correlation between gradients decays
    exponentially with depth in plain networks, and sublinearly with skip connections. Shattered gradients resemble
    white noise.

    The input gradient of an image is that of the batch's summed loss with respect to the pixels of the image. Batch
    statistics couple the images, so it includes contributions from the losses of other images. Correlations are
    averaged over all pairs of images. For independent noise of D pixels the mean absolute correlation is about
    sqrt(2 / (pi D)).

    The correlation with a constant gradient, such as 0, is undefined. The means exclude such pairs, and are NaN if no
    pair remains. Costs one forward and backward pass.
    """

    requires = "pixels"

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """Return one row with layer, name, correlation and absolute_correlation."""
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


class Signals(_BaseProbe):
    """Mean and variance of each block's output, and variance of its gradient, over images, channels and positions.

    The gradient is that of the images' summed cross-entropy with respect to the block's output. The probe shows whether
    activations or gradients vanish or explode with depth. Where blocks hand on a state, the output is what the next
    block reads of it. Costs one forward and backward pass.
    """

    requires = "blocks"

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """Return rows with layer (index of the block), name, mean, variance and gradient_variance."""
        outputs: list[tuple[str, Tensor]] = []

        def keep(name: str, output: Tensor) -> None:
            if output.requires_grad:
                output.retain_grad()
            outputs.append((name, output))

        with ExitStack() as hooks:
            blocks = [*named_blocks(network)]
            for (name, block), (_, following) in zip(blocks, [*blocks[1:], ("", None)], strict=True):
                if isinstance(block, StatefulBlock) and not block.closes:
                    assert following is not None
                    hook = following.pre.register_forward_pre_hook(lambda _, x, name=name: keep(name, x[0]))
                else:
                    hook = block.register_forward_hook(lambda _, __, y, name=name: keep(name, y))
                hooks.callback(hook.remove)
            F.cross_entropy(network(images), targets, reduction="sum").backward()
        rows = []
        for index, (name, output) in enumerate(outputs):
            values = output.detach().double()
            gradient = torch.zeros_like(values) if output.grad is None else output.grad.double()
            variances = {"variance": values.var().item(), "gradient_variance": gradient.var().item()}
            rows.append(_row(index, name, mean=values.mean().item(), **variances))
        return rows


class Connections(_BaseProbe):
    """Weights of what each block reads, and gains of its streams, for connections with a state.

    `reads` lists the weights of the sources that the branch of a block reads, such as streams or earlier outputs, as
    means over images and positions. The gains are NaN where a block has no streams, as in histories. Blocks without
    weights and streams have no row: those of shortcuts without a state, fractions, `Dense` and `NormalizerFree`.

    The gains are after Xie et al. 2025 (mHC, arXiv 2512.24880), section 3.1: of the product of the mixing matrices of
    all blocks from the first of the stage to this one, the largest sum of the absolute values of a row
    (`forward_gain`) and of a column (`backward_gain`), as means over images and the positions of the block's input,
    also those that a stride skips. In each position they bound the amplification of signals and gradients along the
    streams. Costs one forward pass.
    """

    requires = "blocks"

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """Return rows with layer (index of the block), name, reads, forward_gain and backward_gain."""
        rows = {
            block: _row(i, name, forward_gain=math.nan, backward_gain=math.nan)
            for i, (name, block) in enumerate(named_blocks(network))
            if isinstance(block, StatefulBlock) and isinstance(block.shortcut, Weighted | Mixing)
        }
        product = torch.ones(0)

        def observe(block: Any, write: Callable[[Any, Tensor], Any], state: Any, fx: Tensor) -> Any:
            nonlocal product
            connection, row = block.shortcut, rows[block]
            if isinstance(connection, Weighted):
                weights = connection.reading(state).mean((0, 2, 3)).tolist()
                row["reads"] = " ".join(f"{weight:.6g}" for weight in weights)
            if isinstance(connection, Mixing):
                matrices = connection.mixing(state).double().movedim((1, 2), (-2, -1))  # (N, H, W, n, n)
                product = matrices if block.opens else matrices @ product
                for gain, summed in (("forward_gain", -1), ("backward_gain", -2)):
                    row[gain] = product.abs().sum(summed).amax(-1).mean().item()
                down, across = (-(-size // after) for size, after in zip(state.shape[-2:], fx.shape[-2:], strict=True))
                product = product[:, ::down, ::across]  # at the positions that remain
            return write(state, fx)

        with torch.no_grad(), ExitStack() as restored:
            for block in rows:
                connection = block.shortcut
                connection.write = partial(observe, block, connection.write)
                restored.callback(delattr, connection, "write")
            network(images)
        return [row | {"reads": row.get("reads", "")} for row in rows.values()]


class Sharpness(_BaseProbe):
    """Largest eigenvalue of the Hessian of the training loss, in relation to the learning rate.

    Cohen et al. 2021 (Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability), section 2 and
    appendix B: on a quadratic, gradient descent with learning rate lr and momentum b diverges if the largest eigenvalue
    exceeds (2 + 2 b) / lr, and with Nesterov's momentum (2 + 2 b) / (lr (1 + 2 b)). `to_stable` is the eigenvalue
    divided by this bound. Training with small batches may be unstable below 1.

    An eigenvalue whose estimate has not converged after `max_iterations` is NaN. An iteration costs about two forward
    and two backward passes.

    Args:
        images: number of sampled images.
        every_n_steps: number of steps between measurements; None measures only before and after training.
        tolerance: the residual of a converged estimate, relative to the eigenvalue.
        max_iterations: largest number of iterations.
    """

    requires = ""

    def __init__(self, images: int, every_n_steps: int | None, tolerance: float, max_iterations: int) -> None:
        super().__init__(images, every_n_steps)
        if not 0 < tolerance < 1 or max_iterations < 1:
            raise InputError(
                f"probes.sharpness has tolerance={tolerance} and max_iterations={max_iterations}; tolerance must be "
                "between 0 and 1, and max_iterations at least 1"
            )
        self.tolerance, self.max_iterations = tolerance, max_iterations

    def measure(self, network: nn.Module, images: Tensor, targets: Tensor, optimizer: Optimizer) -> list[Row]:
        """Return one row with layer, name, sharpness, lr and to_stable."""
        found = estimates(network, _OneBatch(images, targets), self.tolerance, seed=0)
        *_, last = islice(found, self.max_iterations)
        eigenvalue = last.eigenvalue if last.converged else math.nan
        group = optimizer.param_groups[0]
        lr, momentum = float(group["lr"]), group["momentum"]
        bound = (2 + 2 * momentum) / (1 + 2 * momentum if group["nesterov"] else 1)
        return [_row(0, "weights", sharpness=eigenvalue, lr=lr, to_stable=eigenvalue * lr / bound)]


@dataclass(frozen=True)
class _OneBatch:
    """Images as one batch, so that normalisations use the statistics of all."""

    images: Tensor
    targets: Tensor

    @property
    def image_count(self) -> int:
        return len(self.targets)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.images, self.targets


def weighted_layers(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear, nn.Module]]:
    """Yield each weighted layer of the backbone: its name, its module, and the module whose output is its response."""
    for name, module in network.named_modules():
        if "shortcut" in name.split(".") or not isinstance(module, nn.Sequential):
            continue
        children = [*module.named_children(), ("", nn.Identity())]
        for (child, layer), (after, response) in pairwise(children):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                yield f"{name}.{child}", layer, response if after.startswith("norm") else layer


REQUIREMENTS = {  # function that yields the required modules, and their description in messages
    "layers": (weighted_layers, "convolutions or linear layers in an nn.Sequential"),
    "blocks": (named_blocks, "modules with a residual and a shortcut"),
}
PROBES = {
    "responses": Responses,
    "gradients": Gradients,
    "signals": Signals,
    "gradient_correlation": GradientCorrelation,
    "connections": Connections,
    "sharpness": Sharpness,
}


def check_probes(probes: Mapping[str, Probe], network: nn.Module) -> None:
    """Check that a network, which may be on the meta device, has the modules that probes require.

    Raises:
        InputError: it has none of the modules that a probe requires.
    """
    satisfied = {key: any(True for _ in modules(network)) for key, (modules, _) in REQUIREMENTS.items()}
    for name, probe in probes.items():
        if not satisfied.get(probe.requires, True):
            supported = [other for other, kind in PROBES.items() if satisfied.get(kind.requires, True)]
            raise InputError(
                f"probes.{name} needs {probe.requires} ({REQUIREMENTS[probe.requires][1]}), but "
                f"{type(network).__name__} has none; probes for this network: {', '.join(supported)}"
            )


def copy_for_probing(network: nn.Module) -> nn.Module:
    """Copy a network, and set the copy to training mode.

    The copy does not share weights or statistics with the network, and does not communicate with other ranks.
    """
    network = copy.deepcopy(network).train()
    for module in list(network.modules()):
        if type(module) is SyncBatchNorm2d:
            # keeps parameters and buffers, and replaces forward
            module.__class__ = nn.BatchNorm2d  # pyright: ignore[reportAttributeAccessIssue]
    network.zero_grad()
    return network


@contextmanager
def _forward_hooks(modules: Iterable[nn.Module], function: Callable[[nn.Module, Tensor], object]) -> Iterator[None]:
    """Call `function(module, output)` after each forward pass of the modules."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        function(module, output)

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
