"""Training speed of several seeds stacked in one network, compared with separate networks.

    python experiments/throughput/stacked.py [OVERRIDES] [--seeds 1,2,4,8] [--rounds 5] [--steps 50] [--no-check]

Each convolution becomes a grouped one, with one group per seed, and each batch normalisation covers the channels of all
seeds, so that the computation of each seed stays the same. A check in float64 verifies this: after some steps, the
weights of each seed equal those of its separate training up to rounding. Then stacked and separate steps are measured
in alternation. On a GPU they are captured as CUDA graphs, so that launching operations does not limit either.
"""

import argparse
import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from plainres.arithmetic import set_arithmetic
from plainres.config.compose import compose
from plainres.config.instantiate import network_of, source_of
from plainres.config.schema import Config
from plainres.data.batches import DeviceImages, SampledBatch, TrainingBatches
from plainres.models.shortcuts import Identity, Plain
from plainres.training.epoch_loop import EAGER_STEPS, AnyBatch, StepGraph, cuda_graph


class StackedLinear(nn.Module):
    """Linear layers of several seeds: (N, seeds x in) -> (N, seeds, out)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight for layer in layers]).detach())
        self.bias = nn.Parameter(torch.stack([layer.bias for layer in layers]).detach())

    def forward(self, x: Tensor) -> Tensor:
        """Apply each seed's layer to its features."""
        features = x.unflatten(1, (len(self.weight), -1))
        return torch.einsum("nsi,soi->nso", features, self.weight) + self.bias


class StackedIdentity(nn.Module):
    """Identity shortcut of several seeds, which pads the channels of each seed with zeros."""

    def __init__(self, shortcut: Identity, seeds: int) -> None:
        super().__init__()
        self.shortcut, self.seeds = shortcut, seeds

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus the aligned `x`."""
        if not any(self.shortcut.padding):
            return self.shortcut(x, fx)
        n, _, height, width = x.shape
        aligned = self.shortcut.align(x.reshape(n * self.seeds, -1, height, width))
        return fx + aligned.reshape(n, -1, *aligned.shape[2:])


def stacked(networks: Sequence[nn.Module]) -> nn.Module:
    """Return one network that stacks several networks, which may differ only in their weights.

    Raises:
        TypeError: a module cannot be stacked.
    """
    network = copy.deepcopy(networks[0])
    for name, module in list(network.named_modules()):
        replacement = _stacked_module(module, [each.get_submodule(name) for each in networks])
        if replacement is not None and name:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, replacement)
    return network


def _stacked_module(module: nn.Module, modules: Sequence[nn.Module]) -> nn.Module | None:
    """Return the module that stacks `modules`, or None if the stacked network can use `module` itself."""
    if isinstance(module, nn.Conv2d):
        return _grouped_convolution(module, [m for m in modules if isinstance(m, nn.Conv2d)])
    if isinstance(module, nn.BatchNorm2d):
        norm = nn.BatchNorm2d(len(modules) * module.num_features, module.eps, module.momentum).to(module.weight)
        for key in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, key).data.copy_(torch.cat([getattr(m, key).detach() for m in modules]))
        return norm
    if isinstance(module, nn.Linear):
        return StackedLinear([m for m in modules if isinstance(m, nn.Linear)])
    if isinstance(module, Identity):
        return StackedIdentity(module, len(modules))
    if any(True for _ in module.parameters(recurse=False)) and not isinstance(module, Plain):
        raise TypeError(f"{type(module).__name__} cannot be stacked")
    return None


def _grouped_convolution(conv: nn.Conv2d, convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    seeds = len(convs)
    grouped = nn.Conv2d(
        seeds * conv.in_channels,
        seeds * conv.out_channels,
        conv.kernel_size,  # pyright: ignore[reportArgumentType]
        conv.stride,  # pyright: ignore[reportArgumentType]
        conv.padding,  # pyright: ignore[reportArgumentType]
        groups=seeds * conv.groups,
        bias=conv.bias is not None,
    ).to(conv.weight)
    grouped.weight.data.copy_(torch.cat([m.weight.detach() for m in convs]))
    if grouped.bias is not None:
        grouped.bias.data.copy_(torch.cat([m.bias.detach() for m in convs if m.bias is not None]))
    return grouped


def weights_of(network: nn.Module, seed: int, seeds: int) -> dict[str, Tensor]:
    """Return the weights of one seed in a stacked network, by their names in a separate network."""
    weights = {}
    for name, tensor in network.state_dict().items():
        if tensor.dim():  # skips the counters of batch normalisation
            weights[name] = tensor[seed] if name.startswith("head.linear") else tensor.chunk(seeds)[seed]
    return weights


class Training:
    """SGD steps of one network, or of several stacked ones, on the batches of their seeds."""

    def __init__(self, configs: Sequence[Config], device: torch.device, dtype: torch.dtype, mixed: bool) -> None:
        source = source_of(configs[0])
        images = source.load()
        self.seeds, self.device, self.dtype, self.mixed = len(configs), device, dtype, mixed
        networks = [network_of(config, source).to(dtype) for config in configs]
        network = stacked(networks) if len(configs) > 1 else networks[0]
        self.network = network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        recipe = configs[0].optim
        captured = device.type == "cuda"
        self.optimizer = SGD(
            self.network.parameters(),
            torch.tensor(recipe.lr, device=device) if captured else recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=captured or None,
        )
        self.take = StepGraph(self._step, cuda_graph) if captured else self._step
        self.pixels = DeviceImages(images.train, source, images.channel_statistics, device)
        self.step = 0
        self.loaders = [
            TrainingBatches(self.pixels, recipe.batch_size, config.seed, lambda: self.step) for config in configs
        ]
        self.epochs = [iter(loader) for loader in self.loaders]

    def _next_batch(self) -> AnyBatch:
        """Return the indices (seeds, N) of all seeds' images, and the keys (seeds,) of their augmentation."""
        if self.step % len(self.loaders[0]) == 0:
            self.epochs = [iter(loader) for loader in self.loaders]
        indices, keys = zip(*(next(epoch) for epoch in self.epochs), strict=True)
        return torch.stack(indices), torch.stack(keys)

    def _step(self, batch: AnyBatch) -> None:
        sampled = [SampledBatch(indices, key) for indices, key in zip(*batch, strict=True)]
        batches = [self.pixels.materialize(each) for each in sampled]
        images = torch.cat([images for images, _ in batches], 1).to(self.dtype)
        targets = torch.stack([targets for _, targets in batches], 1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
            # the sum of the mean losses of all seeds
            loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten()) * self.seeds
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def run(self, steps: int) -> None:
        """Run further steps."""
        for _ in range(steps):
            self.take(self._next_batch())
            self.step += 1


def check(configs: Sequence[Config], steps: int = 5) -> float:
    """Return the largest relative difference between stacked and separate weights after some steps in float64."""
    cpu = torch.device("cpu")
    together = Training(configs, cpu, torch.float64, mixed=False)
    together.run(steps)
    worst = 0.0
    for number, config in enumerate(configs):
        alone = Training([config], cpu, torch.float64, mixed=False)
        alone.run(steps)
        separate = alone.network.state_dict()
        for name, weight in weights_of(together.network, number, len(configs)).items():
            difference = (weight - separate[name]).abs().max() / separate[name].abs().max().clamp(min=1e-12)
            worst = max(worst, difference.item())
    return worst


def main() -> None:
    """Check that stacking does not change the training, then measure its speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,4,8")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of measurements; 0 only checks")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--no-check", action="store_true", help="measure without the check, which takes a minute")
    given, overrides = parser.parse_known_args()
    config = compose(overrides)[0]
    set_arithmetic(config.trainer.threads)
    counts = [int(count) for count in given.seeds.split(",")]
    if not given.no_check:
        worst = check([replace(config, seed=seed) for seed in range(3)])
        print(
            f"stacked and separate weights of 3 seeds: largest difference {worst:.1e}, relative to a tensor's maximum"
        )
        if worst > 1e-9:
            raise SystemExit("stacked and separate weights differ by more than rounding; the stacked network is wrong")
    if not given.rounds:
        return
    device = torch.device("cuda" if config.trainer.accelerator == "gpu" else "cpu")
    mixed = config.precision == "bf16-mixed"
    trainings = {n: Training([replace(config, seed=s) for s in range(n)], device, torch.float32, mixed) for n in counts}
    times: dict[int, list[float]] = {n: [] for n in counts}
    for training in trainings.values():
        training.run(EAGER_STEPS + 2)
    for _ in range(given.rounds):
        for n, training in trainings.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            training.run(given.steps)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[n].append((time.perf_counter() - started) / given.steps)
    for n in counts:
        gains = sorted(n * alone / together for alone, together in zip(times[counts[0]], times[n], strict=True))
        print(
            f"{n} seeds: {1000 * median(times[n]):.2f} ms/step, {median(gains):.2f} times the throughput of "
            f"{counts[0]} ({gains[0]:.2f} .. {gains[-1]:.2f}; {given.rounds} rounds)"
        )


if __name__ == "__main__":
    main()
