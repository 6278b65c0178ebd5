"""What the loop around a step costs: ours, the same with nothing for a step, and Lightning's own, in turns.

    python experiments/throughput/loop.py [--rounds 5] [--steps 3000]

The network is a single linear layer. On a GPU, which is given its work and not waited for, no step can be shorter than
one of the empty loop.
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
    """Times a training, from its first step to its last."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin."""
        self.started = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End."""
        self.seconds = time.perf_counter() - self.started


def microseconds(side: str, steps: int) -> float:
    """Of a step, in a training of so many."""
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
    if side != LIGHTNINGS:
        trainer.fit_loop.epoch_loop = loop = EpochLoop(trainer)
        if side == EMPTY:
            loop.step = lambda batch: None
    trainer.fit(Classifier(network, recipe, steps, steps), datamodule=data)
    return 1e6 * clock.seconds / steps


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    times: dict[str, list[float]] = {side: [] for side in CONTENDERS}
    for _ in range(given.rounds):
        for side, found in times.items():
            found.append(microseconds(side, given.steps))
    for side, found in times.items():
        print(f"{side:16} {median(found):6.0f} us for each step ({min(found):.0f} .. {max(found):.0f})")


if __name__ == "__main__":
    main()
