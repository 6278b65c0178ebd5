"""What Lightning and our record cost: a digits run against a bare loop over the same net and batches.

    python experiments/overhead/overhead.py [pairs]

Both sides make the network, train it for the study's 230 steps, evaluate the test set after each epoch and both sets at
the end, in alternation and in one process. The bare loop is what one writes by hand, with torch alone: no metrics, no
curves, no checkpoint, no record. That both end with the same weights shows that they did the same work.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from statistics import median

import torch
import torch.nn.functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from plainres.cli.arguments import integer
from plainres.config.compose import compose
from plainres.config.instantiate import network_of, source_of
from plainres.config.schema import Config
from plainres.data.batches import DeviceImages, EvaluationBatches, TrainingBatches
from plainres.runs.provenance import weights_sha256
from plainres.runs.record import Run
from plainres.training.train import train

CPU = torch.device("cpu")


def bare(config: Config) -> str:
    """Train by a hand-written loop; return the digest of the weights."""
    source, recipe = source_of(config), config.optim
    network = network_of(config, source).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = source.load()
    statistics = images.channel_statistics
    training, test = (DeviceImages(split, source, statistics, CPU) for split in (images.train, images.test))
    step = 0
    batches = TrainingBatches(training, recipe.batch_size, config.seed, lambda: step)
    steps = recipe.length(len(batches))
    optimizer = SGD(network.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    schedule = LambdaLR(optimizer, lambda done: recipe.lr_factor(done, steps))

    def error(pixels: DeviceImages) -> float:
        network.eval()
        with torch.no_grad():
            wrong = sum(int((network(x).argmax(1) != y).sum()) for x, y in EvaluationBatches(pixels))
        network.train()
        return 100 * wrong / len(pixels.targets)

    while step < steps:
        for drawn in batches:
            x, y = training.materialize(drawn)
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
            schedule.step()
            step += 1
        error(test)
    error(test)
    error(training)
    return weights_sha256(network)


def through_lightning(config: Config) -> str:
    """Train as `plainres train` does; return the digest of the weights."""
    with tempfile.TemporaryDirectory() as runs, redirect_stderr(io.StringIO()):  # without the progress bar
        config.runs = runs
        run = Run.of(config)
        train(run)
        return run.result["weights_sha256"]


def seconds(side: Callable[[Config], str], config: Config, digests: set[str]) -> float:
    """The time of one run; its digest joins `digests`."""
    started = time.perf_counter()
    digests.add(side(config))
    return time.perf_counter() - started


def main(pairs: int) -> None:
    torch.set_num_threads(1)
    config = compose(["model.width=8", "model.depth=20"])[0]
    digests: set[str] = set()
    for side in (bare, through_lightning):
        seconds(side, config, digests)  # the first of each pays for what is imported and compiled once
    times = []
    for pair in range(pairs):
        order = (bare, through_lightning) if pair % 2 else (through_lightning, bare)
        taken = {side: seconds(side, config, digests) for side in order}
        times.append((taken[through_lightning], taken[bare]))
        print(f"pair {pair + 1}: Lightning {times[-1][0]:.2f} s, bare loop {times[-1][1]:.2f} s", flush=True)
    ratios = sorted(ours / theirs for ours, theirs in times)
    assert len(digests) == 1, "the two sides ended with different weights"
    print(f"ratio: median {median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}, {pairs} pairs; equal weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=integer(1), nargs="?", default=7, help="of runs, one of each side (7)")
    main(parser.parse_args().pairs)
