"""Recipe, trainer, logger and step recorder for training a small network without a run."""

import math
import signal
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch.fx.experimental.proxy_tensor import make_fx

from plainres.config.schema import Recipe
from plainres.training.checkpoints import Checkpoints
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
    """Logger that keeps the rows in memory."""

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
    """Return a trainer without the callbacks of plainres, for the given number of steps."""
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


class StopAfter(Callback):
    """Callback that stops a run after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            (checkpoints,) = trainer.checkpoint_callbacks
            assert isinstance(checkpoints, Checkpoints)
            checkpoints.signals.received = signal.SIGINT


class Recorder:
    """CPU stand-in for CUDA graphs, which replays the tensor operations of a step without its Python code."""

    def __init__(self) -> None:
        self.graphs: list[Replay] = []

    def __call__(self, launch: Replay) -> Replay:
        def step() -> torch.Tensor:
            launch()
            return torch.zeros(())

        graph = make_fx(step)()  # also executes the step, unlike the capture of a GPU
        self.graphs.append(graph)
        replays: Iterator[Replay] = chain([lambda: None], repeat(graph))

        def replay() -> None:
            next(replays)()

        return replay
