"""What is kept of a training and what is shown of it: the curves and the progress bar."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from plainres.progress import bar
from plainres.runs import write_atomically

COLUMNS: tuple[str, ...] = ("epoch", "step", "lr", "train/loss", "train/error", "test/loss", "test/error")


class Curves(Logger):
    """Keeps the curves as metrics.csv, a row for each epoch; errors in percent.

    The rows up to where a run goes on come from its checkpoint, whatever an interrupted training has left in the file.
    A row is appended in one write.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.file.name

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    @rank_zero_only
    def begin(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Write the header and the rows so far."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.file, text.getvalue())

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row."""
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow({**metrics, "step": step})
        with self.file.open("a") as file:
            file.write(text.getvalue())

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""


class Progress(Callback):
    """One bar for the whole run: the share done, the time left, the latest errors."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps = name, steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar where the run begins or goes on."""
        shown = trainer.is_global_zero
        self.bar = bar(self.name, "step", self.steps, initial=trainer.global_step, disable=not shown)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on; tqdm limits how often the screen is touched."""
        self.bar.update()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what the evaluation found."""
        evaluated = getattr(pl_module, "evaluated", {})
        if "test/error" in evaluated:
            self.bar.set_postfix_str(f"test error {evaluated['test/error']:.2f} %", refresh=False)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the line on the screen."""
        if stage == "fit" and hasattr(self, "bar"):
            self.bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the line on the screen, above what is said about the exception."""
        self.teardown(trainer, pl_module, "fit")
