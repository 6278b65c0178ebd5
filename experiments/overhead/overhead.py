"""Overhead of Lightning and of recording a run: a digits run compared with a bare loop over the same net and batches.

    python experiments/overhead/overhead.py [pairs]

Both build the network, train it for the study's 230 steps, evaluate the test set after each epoch, and evaluate both
sets after training. They alternate in one process. The bare loop uses only torch, without metrics, curves, checkpoints
or a result. Equal final weights show that both do the same work.
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
    """Train with a hand-written loop, and return the digest of the weights."""
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
        for sampled in batches:
            x, y = training.materialize(sampled)
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
    """Train as `plainres train` does, and return the digest of the weights."""
    with tempfile.TemporaryDirectory() as runs, redirect_stderr(io.StringIO()):  # hides the progress bar
        config.runs = runs
        run = Run.of(config)
        train(run)
        return run.result["weights_sha256"]


def seconds(train_once: Callable[[Config], str], config: Config, digests: set[str]) -> float:
    """Return the time of one run, and add the digest of its weights to `digests`."""
    started = time.perf_counter()
    digests.add(train_once(config))
    return time.perf_counter() - started


def main(pairs: int) -> None:
    torch.set_num_threads(1)
    config = compose(["model.width=8", "model.depth=20"])[0]
    digests: set[str] = set()
    for contender in (bare, through_lightning):
        seconds(contender, config, digests)  # warm-up, for imports and initialisation
    times = []
    for pair in range(pairs):
        order = (bare, through_lightning) if pair % 2 else (through_lightning, bare)
        taken = {contender: seconds(contender, config, digests) for contender in order}
        times.append((taken[through_lightning], taken[bare]))
        print(f"pair {pair + 1}: Lightning {times[-1][0]:.2f} s, bare loop {times[-1][1]:.2f} s", flush=True)
    ratios = sorted(ours / bare_loop for ours, bare_loop in times)
    assert len(digests) == 1, "Lightning and the bare loop have different final weights"
    print(f"ratio: median {median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}, {pairs} pairs; equal weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=integer(1), nargs="?", default=7, help="pairs of runs (default: 7)")
    main(parser.parse_args().pairs)
