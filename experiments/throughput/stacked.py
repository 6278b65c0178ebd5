"""Several seeds of one network as one network: does it train faster than one after another?

    python experiments/throughput/stacked.py [OVERRIDES] [--seeds 1,2,4,8] [--rounds 5] [--steps 50]

Each convolution becomes a grouped one, a group for each seed, and each batch normalisation one of all their channels:
the mathematics of each seed is what it was. First this is shown, in float64: after some steps on batches of their own,
the weights of each seed are those of its separate training, to rounding. Then stacked and separate steps take turns.
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

from plainres.config.compose import compose
from plainres.config.instantiate import network_of, source_of
from plainres.config.schema import Config
from plainres.data.batches import DeviceImages, SampledBatch, TrainingBatches
from plainres.models.shortcuts import Identity, Plain

Batch = tuple[Tensor, Tensor]  # images (N, seeds x C, H, W), a seed's channels side by side; targets (N, seeds)


class StackedLinear(nn.Module):
    """The linear layers of several seeds: (N, seeds x in) -> (N, seeds, out)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight for layer in layers]).detach())
        self.bias = nn.Parameter(torch.stack([layer.bias for layer in layers]).detach())

    def forward(self, x: Tensor) -> Tensor:
        """Apply each seed's layer to its features."""
        features = x.unflatten(1, (len(self.weight), -1))
        return torch.einsum("nsi,soi->nso", features, self.weight) + self.bias


class StackedIdentity(nn.Module):
    """The identity shortcut of several seeds: the zeros go to each seed's channels."""

    def __init__(self, shortcut: Identity, seeds: int) -> None:
        super().__init__()
        self.shortcut, self.seeds = shortcut, seeds

    def forward(self, x: Tensor, fx: Tensor) -> Tensor:
        """Return `fx` plus the aligned `x`."""
        if not any(self.shortcut.padding):
            return self.shortcut(x, fx)
        n, _, height, width = x.shape
        apart = self.shortcut.align(x.reshape(n * self.seeds, -1, height, width))
        return fx + apart.reshape(n, -1, *apart.shape[2:])


def stacked(networks: Sequence[nn.Module]) -> nn.Module:
    """One network of several that differ in nothing but their weights.

    Raises:
        TypeError: a module has parameters or a structure that is not known here.
    """
    one = copy.deepcopy(networks[0])
    for name, module in list(one.named_modules()):
        those = [network.get_submodule(name) for network in networks]
        made = _stacked_module(module, those)
        if made is not None and name:
            parent, _, child = name.rpartition(".")
            setattr(one.get_submodule(parent), child, made)
    return one


def _stacked_module(module: nn.Module, those: Sequence[nn.Module]) -> nn.Module | None:
    """What stands for a module in the stacked network; None: itself."""
    if isinstance(module, nn.Conv2d):
        return _widened_convolution(module, [m for m in those if isinstance(m, nn.Conv2d)])
    if isinstance(module, nn.BatchNorm2d):
        made = nn.BatchNorm2d(len(those) * module.num_features, module.eps, module.momentum).to(module.weight)
        for key in ("weight", "bias", "running_mean", "running_var"):
            getattr(made, key).data.copy_(torch.cat([getattr(m, key).detach() for m in those]))
        return made
    if isinstance(module, nn.Linear):
        return StackedLinear([m for m in those if isinstance(m, nn.Linear)])
    if isinstance(module, Identity):
        return StackedIdentity(module, len(those))
    if any(True for _ in module.parameters(recurse=False)) and not isinstance(module, Plain):
        raise TypeError(f"{type(module).__name__} cannot be stacked")
    return None


def _widened_convolution(conv: nn.Conv2d, those: Sequence[nn.Conv2d]) -> nn.Conv2d:
    seeds = len(those)
    made = nn.Conv2d(
        seeds * conv.in_channels,
        seeds * conv.out_channels,
        conv.kernel_size,  # pyright: ignore[reportArgumentType]
        conv.stride,  # pyright: ignore[reportArgumentType]
        conv.padding,  # pyright: ignore[reportArgumentType]
        groups=seeds * conv.groups,
        bias=conv.bias is not None,
    ).to(conv.weight)
    made.weight.data.copy_(torch.cat([m.weight.detach() for m in those]))
    if made.bias is not None:
        made.bias.data.copy_(torch.cat([m.bias.detach() for m in those if m.bias is not None]))
    return made


def weights_of(network: nn.Module, seed: int, seeds: int) -> dict[str, Tensor]:
    """The weights of one seed in a stacked network, by the names of its separate one."""
    found = {}
    for name, tensor in network.state_dict().items():
        if tensor.dim():  # all but the counters of batch normalisation
            found[name] = tensor[seed] if name.startswith("head.linear") else tensor.chunk(seeds)[seed]
    return found


class Training:
    """SGD steps of one network, or of several stacked, on the batches of their seeds."""

    def __init__(self, configs: Sequence[Config], device: torch.device, dtype: torch.dtype, mixed: bool) -> None:
        source = source_of(configs[0])
        images = source.load()
        self.seeds, self.device, self.dtype, self.mixed = len(configs), device, dtype, mixed
        networks = [network_of(config, source).to(dtype) for config in configs]
        network = stacked(networks) if len(configs) > 1 else networks[0]
        self.network = network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        recipe = configs[0].optim
        self.optimizer = SGD(
            self.network.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.pixels = DeviceImages(images.train, source, images.channel_statistics, device)
        self.step = 0
        self.loaders = [
            TrainingBatches(self.pixels, recipe.batch_size, config.seed, lambda: self.step) for config in configs
        ]
        self.epochs = [iter(loader) for loader in self.loaders]

    def _drawn(self) -> list[SampledBatch]:
        if self.step % len(self.loaders[0]) == 0:
            self.epochs = [iter(loader) for loader in self.loaders]
        return [next(epoch) for epoch in self.epochs]

    def run(self, steps: int) -> None:
        """Take so many more steps."""
        for _ in range(steps):
            made = [self.pixels.materialize(drawn) for drawn in self._drawn()]
            images = torch.cat([images for images, _ in made], 1).to(self.dtype)
            targets = torch.stack([targets for _, targets in made], 1)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                logits = self.network(images.contiguous(memory_format=torch.channels_last))
                # the sum over the seeds of each one's mean
                loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten()) * self.seeds
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1


def check(configs: Sequence[Config], steps: int = 5) -> float:
    """The largest relative difference of a weight, stacked and separate, after some steps in float64."""
    cpu = torch.device("cpu")
    together = Training(configs, cpu, torch.float64, mixed=False)
    together.run(steps)
    worst = 0.0
    for number, config in enumerate(configs):
        alone = Training([config], cpu, torch.float64, mixed=False)
        alone.run(steps)
        theirs = alone.network.state_dict()
        for name, mine in weights_of(together.network, number, len(configs)).items():
            difference = (mine - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-12)
            worst = max(worst, difference.item())
    return worst


def main() -> None:
    """Check, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,4,8")
    parser.add_argument("--rounds", type=int, default=5, help="0: check alone")
    parser.add_argument("--steps", type=int, default=50)
    given, overrides = parser.parse_known_args()
    config = compose(overrides)[0]
    torch.set_num_threads(config.trainer.threads)
    counts = [int(count) for count in given.seeds.split(",")]
    worst = check([replace(config, seed=seed) for seed in range(3)])
    print(f"weights of 3 seeds, stacked and separate: at most {worst:.1e} apart, relative to the largest of a tensor")
    if worst > 1e-9:
        raise SystemExit("the stacked network is not the separate ones")
    if not given.rounds:
        return
    device = torch.device("cuda" if config.trainer.accelerator == "gpu" else "cpu")
    mixed = config.precision == "bf16-mixed"
    sides = {n: Training([replace(config, seed=s) for s in range(n)], device, torch.float32, mixed) for n in counts}
    times: dict[int, list[float]] = {n: [] for n in counts}
    for training in sides.values():
        training.run(5)
    for _ in range(given.rounds):
        for n, training in sides.items():
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
            f"{n} seeds: {1000 * median(times[n]):.2f} ms/step, {median(gains):.2f} times as much done as by "
            f"{counts[0]} ({gains[0]:.2f} .. {gains[-1]:.2f}; {given.rounds} rounds)"
        )


if __name__ == "__main__":
    main()
