"""Speed of options on the CPU: memory format, fused SGD, torch.compile (see COMPILERS); batch sizes.

    python experiments/throughput/cpu_options.py [OVERRIDES] [--steps 5] [--rounds 5]

Steps of a bare loop with each option are measured in alternation. The profiler then tells how much of a step each kind
of operation takes, and how much of it is arithmetic that a matrix product of this machine would do in less time.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from plainres.benchmark.ceiling import matrix_product_flop_per_s
from plainres.benchmark.loops import wait_for
from plainres.config.compose import compose
from plainres.config.instantiate import description_of, network_of, source_of
from plainres.config.schema import Config
from plainres.models.normalisation import convert_batch_norm_by_image
from plainres.processes.memory import keep_freed_memory
from plainres.training.classifier import full_precision
from plainres.training.compilation import compiled

CPU = torch.device("cpu")
EVALUATION_BATCH_SIZES = (64, 128, 256, 512)  # images


def apart(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile a network so that no result overwrites its input."""
    return torch.compile(network.forward, dynamic=False, options={"inplace_buffers": False})


def by_image(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile a network so that, besides, batch normalisation sums over each image first."""
    convert_batch_norm_by_image(network)
    return apart(network)


COMPILERS: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    "in place": lambda network, mixed: torch.compile(network.forward, dynamic=False),
    "apart": lambda network, mixed: apart(network),
    "by image": lambda network, mixed: by_image(network),
    "compiled": lambda network, mixed: compiled(network, CPU, mixed=mixed),  # as plainres does
}
OPTIONS = ("baseline", "contiguous", "fused SGD", *COMPILERS)  # the baseline is channels_last and eager


class Steps:
    """Training steps of one network on one batch."""

    def __init__(self, config: Config, option: str) -> None:
        source, recipe = source_of(config), config.optim
        layout = torch.contiguous_format if option == "contiguous" else torch.channels_last
        self.network = network_of(config, source).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        fused = option == "fused SGD" or None
        momentum, decay = recipe.momentum, recipe.weight_decay
        self.optimizer = SGD(self.network.parameters(), recipe.lr, momentum, weight_decay=decay, fused=fused)
        generator = torch.Generator().manual_seed(0)
        self.mixed = config.precision == "bf16-mixed"
        compiles = COMPILERS.get(option)
        self.logits_of = compiles(self.network, self.mixed) if compiles else self.network.forward
        self.images = torch.randn(recipe.batch_size, *source.shape, generator=generator).to(memory_format=layout)
        self.targets = torch.randint(source.classes, (recipe.batch_size,), generator=generator)

    def run(self, steps: int) -> float:
        """Run steps, and return the seconds per step."""
        started = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
                loss = F.cross_entropy(full_precision(self.logits_of(self.images)), self.targets)
            loss.backward()
            self.optimizer.step()
        return (time.perf_counter() - started) / steps


def shares(contender: Steps, steps: int) -> dict[str, float]:
    """Return the shares of convolutions, forward and backward, and of all else in the time of a step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        contender.run(steps)
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    forward, backward = (times[f"aten::{name}"] / total for name in ("mkldnn_convolution", "convolution_backward"))
    return {"convolution": forward, "its backward pass": backward, "all else": 1 - forward - backward}


def evaluation(
    config: Config, rounds: int, sizes: Sequence[int] = EVALUATION_BATCH_SIZES, device: torch.device = CPU
) -> dict[int, list[float]]:
    """Measure the evaluation time per image in milliseconds, by batch size."""
    source = source_of(config)
    network = network_of(config, source).to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
    times: dict[int, list[float]] = {size: [] for size in sizes}
    images = torch.randn(2 * max(sizes), *source.shape, device=device).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed"):
        for number in range(-1, rounds):  # round -1 is a warm-up
            for size, measured in times.items():
                wait_for(device)
                started = time.perf_counter()
                for batch in images.split(size):
                    network(batch)
                wait_for(device)
                if number >= 0:
                    measured.append(1000 * (time.perf_counter() - started) / len(images))
    return times


def main() -> None:
    """Measure the options in alternation, then the batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    given, overrides = parser.parse_known_args()
    config = compose(overrides)[0]
    torch.set_num_threads(config.trainer.threads)
    keep_freed_memory()
    contenders = {option: Steps(config, option) for option in OPTIONS}
    first = {option: 2 * contender.run(2) for option, contender in contenders.items()}
    times: dict[str, list[float]] = {option: [] for option in OPTIONS}
    for _ in range(given.rounds):
        for option, contender in contenders.items():
            times[option].append(contender.run(given.steps))
    for option in OPTIONS:
        ratios = sorted(base / own for base, own in zip(times[OPTIONS[0]], times[option], strict=True))
        print(
            f"{option:12} {1000 * median(times[option]):8.1f} ms/step, {median(ratios):.2f} times as fast as the "
            f"baseline ({ratios[0]:.2f} .. {ratios[-1]:.2f}); first two steps {first[option]:.1f} s"
        )
    ceiling = matrix_product_flop_per_s(CPU, config.precision)
    flop = 6 * description_of(config, source_of(config)).multiply_adds * config.optim.batch_size
    print(f"matrix products: {ceiling / 1e9:,.0f} GFLOP/s ({config.precision})")
    for option in ("baseline", "compiled"):
        rate = flop / median(times[option])
        parts = shares(contenders[option], given.steps)
        text = ", ".join(f"{name} {100 * share:.0f} %" for name, share in parts.items())
        convolutions = rate / (1 - parts["all else"])
        print(
            f"{option:12} {rate / 1e9:,.0f} GFLOP/s, {100 * rate / ceiling:.0f} % of that; {text}; convolutions alone "
            f"{100 * convolutions / ceiling:.0f} %"
        )
    for size, measured in evaluation(config, given.rounds).items():
        print(
            f"evaluation batches of {size:4}: {median(measured):.3f} ms/image "
            f"({min(measured):.3f} .. {max(measured):.3f})"
        )


if __name__ == "__main__":
    main()
