"""Overhead of the loop around a training step: ours, ours with an empty step, and Lightning's own, in alternation.

    python experiments/throughput/loop.py [--rounds 5] [--steps 3000]

The network is a single linear layer. On a GPU, whose work is launched asynchronously, the time of the empty loop is a
lower bound for the time of a step.
"""

import argparse
import logging
import time
import warnings
from collections import OrderedDict
from statistics import median

import lightning.pytorch as pl
import torch
from torch import nn

from plainres.config.schema import Recipe
from plainres.data.datamodule import ImageBatches
from plainres.data.sources import Synthetic
from plainres.training.classifier import Classifier
from plainres.training.epoch_loop import EpochLoop

BATCH = 8
OURS, EMPTY, LIGHTNINGS = CONTENDERS = ("ours", "ours, empty", "Lightning's own")


class Clock(pl.Callback):
    """Measures the time from the first training step to the last."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self.started


def microseconds(contender: str, steps: int) -> float:
    """Return the mean time of a step in microseconds, over `steps` training steps."""
    source = Synthetic([1, 4, 4], 10, BATCH * steps, 10, 0, False)
    recipe = Recipe(BATCH, None, steps, 0.01, 0.9, 1e-4, [], 0.1, None, 80.0)
    data = ImageBatches(source.load(), source, BATCH, 0)
    network = nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear=nn.Linear(16, 10)))
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if contender != LIGHTNINGS:
        trainer.fit_loop.epoch_loop = loop = EpochLoop(trainer)
        if contender == EMPTY:
            loop.step = lambda batch: None
    trainer.fit(Classifier(network, recipe, steps, steps), datamodule=data)
    return 1e6 * clock.seconds / steps


def main() -> None:
    """Measure the contenders in alternation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    times: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    for _ in range(given.rounds):
        for contender, measured in times.items():
            measured.append(microseconds(contender, given.steps))
    for contender, measured in times.items():
        print(f"{contender:16} {median(measured):6.0f} us/step ({min(measured):.0f} .. {max(measured):.0f})")


if __name__ == "__main__":
    main()
