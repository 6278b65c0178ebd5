"""What it takes to train a small network without a run: a recipe, a trainer, a logger, a recorder of its steps."""

import math
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from torch.fx.experimental.proxy_tensor import make_fx

from plainres.config.schema import Recipe
from plainres.training.epoch_loop import Replay


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "batch_size": 16,
        "epochs": None,
        "steps": 10,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "milestones": [0.5, 0.75],
        "gamma": 0.1,
        "warmup_lr": None,
        "warmup_until": 80.0,
    }
    return Recipe(**(values | changes))


class Rows(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({**metrics, "step": step or 0})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def bare_trainer(steps: int, steps_per_epoch: int, rows: Rows) -> pl.Trainer:
    """A trainer with nothing of ours, for so many steps."""
    return pl.Trainer(
        accelerator="cpu",
        min_epochs=0,
        max_epochs=math.ceil(steps / steps_per_epoch),
        logger=rows,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Recorder:
    """Captures as a GPU does: what a step does to tensors is recorded, and repeated without the Python behind it."""

    def __init__(self) -> None:
        self.graphs: list[Replay] = []

    def __call__(self, launch: Replay) -> Replay:
        def step() -> torch.Tensor:
            launch()
            return torch.zeros(())

        graph = make_fx(step)()  # carries it out, too, which a GPU's capture does not
        self.graphs.append(graph)
        replays: Iterator[Replay] = chain([lambda: None], repeat(graph))

        def replay() -> None:
            next(replays)()

        return replay
