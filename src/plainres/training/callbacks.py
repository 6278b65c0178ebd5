"""Callbacks: the progress bar and the probes of a run."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from plainres.console import bar, say
from plainres.data.datamodule import ImageBatches
from plainres.data.sources import sample_size, stratified
from plainres.files import csv_text, read_rows, write_atomically
from plainres.models.probes import Probe, copy_for_probing
from plainres.training.classifier import Classifier

TOLD_EVERY_S = 5  # seconds between two writings of progress.json


class Progress(Callback):
    """One bar for the whole run: the share done, the time left, the latest errors.

    The file progress.json has the same for those who look on: the step, of how many, and steps per second.
    """

    def __init__(self, name: str, steps: int, file: Path) -> None:
        self.name, self.steps, self.file = name, steps, file
        self.told_at, self.told_step = time.monotonic(), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar where the run begins or goes on."""
        shown = trainer.is_global_zero
        self.bar = bar(self.name, "step", self.steps, initial=trainer.global_step, disable=not shown)
        self.told_at, self.told_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on; tqdm limits how often the screen is touched."""
        self.bar.update()
        seconds = time.monotonic() - self.told_at
        if seconds > TOLD_EVERY_S and trainer.is_global_zero:
            step = trainer.global_step
            told = {"step": step, "steps": self.steps, "steps_per_s": (step - self.told_step) / seconds}
            write_atomically(self.file, json.dumps(told))
            self.told_at, self.told_step = time.monotonic(), step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what the evaluation found."""
        evaluated = getattr(pl_module, "evaluated", {})
        if "test/error" in evaluated:
            self.bar.set_postfix_str(f"test error {evaluated['test/error']:.2f} %", refresh=False)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the line on the screen."""
        if stage == "fit" and hasattr(self, "bar"):
            self.bar.close()
            if trainer.is_global_zero:
                self.file.unlink(missing_ok=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the line on the screen, above what is said about the exception."""
        self.teardown(trainer, pl_module, "fit")


class Probes(Callback):
    """Lets the probes of a run look, and keeps what they find: <name>.csv, a row for each layer and step.

    A row says of how many images it is, such as '256 of 1500'. Rows of another sample, or of an older version, which
    looked at the first images, are not continued.

    Args:
        probes: by the name of their file.
        folder: of the files.
        steps: the length of the run.
    """

    def __init__(self, probes: Mapping[str, Probe], folder: Path, steps: int) -> None:
        self.probes, self.folder, self.steps = probes, folder, steps
        self.samples: dict[str, Tensor] = {}  # the indices of the images that each looks at

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take back what was found after the step at which the run goes on; look at the beginning."""
        if not trainer.is_global_zero:
            return
        targets = self._data(trainer).images.train.targets
        self.samples = {name: stratified(targets, probe.images) for name, probe in self.probes.items()}
        self.folder.mkdir(exist_ok=True)
        for name in self.probes:
            file = self.folder / f"{name}.csv"
            rows = []
            if trainer.global_step > 0 and file.exists():  # else it looks at the beginning anew
                before = [row for row in read_rows(file) if int(row["step"]) <= trainer.global_step]
                rows = [row for row in before if row.get("images") == self._sample(trainer, name)]
                if len(rows) < len(before):
                    say(f"{file}: {len(before) - len(rows)} rows of another sample of images are removed")
            write_atomically(file, csv_text(rows) if rows else "")
        if trainer.global_step == 0:
            self._look(trainer, pl_module, list(self.probes))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look if it is time; before the run is saved, so that what is saved has been looked at."""
        step = trainer.global_step
        if trainer.is_global_zero:
            every = {name: probe.every_n_steps for name, probe in self.probes.items()}
            due = [name for name, n in every.items() if step >= self.steps or (n is not None and step % n == 0)]
            if due:
                self._look(trainer, pl_module, due)

    def _data(self, trainer: pl.Trainer) -> ImageBatches:
        data = getattr(trainer, "datamodule", None)
        assert isinstance(data, ImageBatches)
        return data

    def _sample(self, trainer: pl.Trainer, name: str) -> str:
        return sample_size(len(self.samples[name]), len(self._data(trainer).images.train))

    def _look(self, trainer: pl.Trainer, classifier: pl.LightningModule, names: Sequence[str]) -> None:
        assert isinstance(classifier, Classifier)
        (optimizer,) = trainer.optimizers
        (group,) = optimizer.param_groups
        rate = group["lr"]
        if trainer.global_step == 0:  # the classifier sets that of the first step only when the step begins
            recipe = classifier.recipe
            factor = recipe.lr_factor(0, classifier.steps)
            group["lr"] = recipe.lr * factor if recipe.warmup_lr is None else recipe.warmup_lr
        for name in names:
            probe = self.probes[name]
            images, targets = self._data(trainer).training.batch(self.samples[name])
            network = copy_for_probing(classifier.network)
            weight = next(network.parameters())
            # Lightning evaluates its hooks without gradients where it may
            with torch.enable_grad(), torch.autocast(weight.device.type, enabled=False):
                rows = probe.measure(
                    network, images.to(weight.device, weight.dtype), targets.to(weight.device), optimizer
                )
            if not rows:  # the network never comes by what the probe looks at
                continue
            file = self.folder / f"{name}.csv"
            key = {"step": trainer.global_step, "images": self._sample(trainer, name)}
            text = csv_text([{**key, **row} for row in rows])
            with file.open("a") as out:
                out.write(text.partition("\n")[2] if file.stat().st_size else text)
        group["lr"] = rate
