"""The gains of options on the CPU: memory format, fused SGD, torch.compile; steps of a bare loop in turns. Then
the number of images that are evaluated at a time.

python experiments/throughput/cpu_options.py [OVERRIDES] [--steps 5] [--rounds 5]
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch
import torch.nn.functional as F
from torch.optim import SGD

from plainres.benchmark.baselines import wait_for
from plainres.config.compose import compose
from plainres.config.instantiate import network_of, source_of
from plainres.config.schema import Config

CPU = torch.device("cpu")
EVALUATED_AT_A_TIME = (64, 128, 256, 512)  # images
OPTIONS = ("as it is", "contiguous", "fused SGD", "compiled")  # the first: channels_last, eager


class Steps:
    """Steps of one network on one batch."""

    def __init__(self, config: Config, option: str) -> None:
        source, recipe = source_of(config), config.optim
        layout = torch.contiguous_format if option == "contiguous" else torch.channels_last
        self.network = network_of(config, source).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        forward = self.network.forward
        self.logits_of = torch.compile(forward, dynamic=False) if option == "compiled" else forward
        fused = option == "fused SGD" or None
        momentum, decay = recipe.momentum, recipe.weight_decay
        self.optimizer = SGD(self.network.parameters(), recipe.lr, momentum, weight_decay=decay, fused=fused)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(recipe.batch_size, *source.shape, generator=generator).to(memory_format=layout)
        self.targets = torch.randint(source.classes, (recipe.batch_size,), generator=generator)

    def run(self, steps: int) -> float:
        """Take so many steps; return the seconds of one."""
        started = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            F.cross_entropy(self.logits_of(self.images), self.targets).backward()
            self.optimizer.step()
        return (time.perf_counter() - started) / steps


def evaluation(
    config: Config, rounds: int, sizes: Sequence[int] = EVALUATED_AT_A_TIME, device: torch.device = CPU
) -> dict[int, list[float]]:
    """The milliseconds that an image takes, by how many are evaluated at a time."""
    source = source_of(config)
    network = network_of(config, source).to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
    times: dict[int, list[float]] = {size: [] for size in sizes}
    images = torch.randn(2 * max(sizes), *source.shape, device=device).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed"):
        for number in range(-1, rounds):  # the first pays for what is done once
            for size, found in times.items():
                wait_for(device)
                started = time.perf_counter()
                for batch in images.split(size):
                    network(batch)
                wait_for(device)
                if number >= 0:
                    found.append(1000 * (time.perf_counter() - started) / len(images))
    return times


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    given, overrides = parser.parse_known_args()
    config = compose(overrides)[0]
    torch.set_num_threads(config.trainer.threads)
    contenders = {option: Steps(config, option) for option in OPTIONS}
    first = {option: 2 * contender.run(2) for option, contender in contenders.items()}
    times: dict[str, list[float]] = {option: [] for option in OPTIONS}
    for _ in range(given.rounds):
        for option, contender in contenders.items():
            times[option].append(contender.run(given.steps))
    for option in OPTIONS:
        ratios = sorted(base / own for base, own in zip(times[OPTIONS[0]], times[option], strict=True))
        print(
            f"{option:12} {1000 * median(times[option]):8.1f} ms/step, {median(ratios):.2f} times as fast as it is "
            f"({ratios[0]:.2f} .. {ratios[-1]:.2f}); the first two steps {first[option]:.1f} s"
        )
    for size, found in evaluation(config, given.rounds).items():
        print(
            f"{size:4} images evaluated at a time: {median(found):.3f} ms each ({min(found):.3f} .. {max(found):.3f})"
        )


if __name__ == "__main__":
    main()
