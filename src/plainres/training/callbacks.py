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
from plainres.errors import InputError
from plainres.files import csv_text, read_rows, write_atomically
from plainres.models.probes import Probe, copy_for_probing
from plainres.training.classifier import Classifier

SETTINGS = "settings.json"  # of the probes whose rows are in its folder
PROGRESS_INTERVAL_S = 5  # seconds between two writes of progress.json


class Progress(Callback):
    """Progress bar over all steps of a run, with the time left and the latest test error.

    It also writes progress.json, from which other processes read the current step, the number of steps and the steps
    per second. The run's lock removes it.
    """

    def __init__(self, name: str, steps: int, file: Path) -> None:
        self.name, self.steps, self.file = name, steps, file
        self.written_at, self.written_step = time.monotonic(), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar at the step from which the run starts or resumes."""
        disable = not trainer.is_global_zero
        self.bar = bar(self.name, "step", self.steps, initial=trainer.global_step, disable=disable)
        self.written_at, self.written_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar, which tqdm redraws only now and then, and write progress.json if it is due."""
        self.bar.update()
        seconds = time.monotonic() - self.written_at
        if seconds > PROGRESS_INTERVAL_S and trainer.is_global_zero:
            step = trainer.global_step
            speed = (step - self.written_step) / seconds
            write_atomically(self.file, json.dumps({"step": step, "steps": self.steps, "steps_per_s": speed}))
            self.written_at, self.written_step = time.monotonic(), step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the latest test error."""
        evaluated = getattr(pl_module, "evaluated", {})
        if "test/error" in evaluated:
            self.bar.set_postfix_str(f"test error {evaluated['test/error']:.2f} %", refresh=False)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar and leave its line on the screen."""
        if stage == "fit" and hasattr(self, "bar"):
            self.bar.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar before the exception's message is printed."""
        self.teardown(trainer, pl_module, "fit")


class Probes(Callback):
    """Callback that runs probes and appends their measurements to <name>.csv, one row per layer and step.

    Each row records its sample of images, such as '256 of 1500', and settings.json the settings of each probe. On
    resuming, rows of a different sample or of other settings are removed. An older version used the first images
    instead of a sample by class, and recorded no settings.

    Args:
        probes: the probes, by the name of their file.
        settings: what determines the values of each probe: its settings (see `plainres.runs.identity.measurement`), and
            the digest of its class, if that is the user's own.
        folder: the folder of the files.
        steps: the length of the run in optimizer steps.
    """

    def __init__(
        self, probes: Mapping[str, Probe], settings: Mapping[str, dict[str, str]], folder: Path, steps: int
    ) -> None:
        self.probes, self.settings, self.folder, self.steps = probes, settings, folder, steps
        self.samples: dict[str, Tensor] = {}  # indices of the training images that each probe uses

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove rows later than the step from which the run resumes; at step 0, measure the initial network.

        Raises:
            InputError: settings.json is damaged.
        """
        if not trainer.is_global_zero:
            return
        targets = self._data(trainer).images.train.targets
        self.samples = {name: stratified(targets, probe.images) for name, probe in self.probes.items()}
        self.folder.mkdir(exist_ok=True)
        recorded = self._recorded_settings()
        for name in self.probes:
            file = self.folder / f"{name}.csv"
            rows = []
            if trainer.global_step > 0 and file.exists():  # at step 0, the initial network is measured again
                previous = [row for row in read_rows(file) if int(row["step"]) <= trainer.global_step]
                rows = [row for row in previous if row.get("images") == self._sample(trainer, name)]
                if len(rows) < len(previous):
                    say(f"{file}: removed {len(previous) - len(rows)} rows of a different sample of images")
                if rows and recorded.get(name, self.settings[name]) != self.settings[name]:
                    say(f"{file}: removed {len(rows)} rows that were measured with other settings of the probe")
                    rows = []
            write_atomically(file, csv_text(rows) if rows else "")
        # after the rows: if the process is killed in between, none is left that could have other settings
        write_atomically(self.folder / SETTINGS, json.dumps({**recorded, **self.settings}, indent=2) + "\n")
        if trainer.global_step == 0:
            self._measure(trainer, pl_module, list(self.probes))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Run the probes that are due. This precedes saving, so that every checkpoint's rows are on disk."""
        step = trainer.global_step
        if trainer.is_global_zero:
            intervals = {name: probe.every_n_steps for name, probe in self.probes.items()}
            due = [name for name, n in intervals.items() if step >= self.steps or (n is not None and step % n == 0)]
            if due:
                self._measure(trainer, pl_module, due)

    def _recorded_settings(self) -> dict[str, dict[str, str]]:
        file = self.folder / SETTINGS
        try:
            return dict(json.loads(file.read_text())) if file.exists() else {}
        except (ValueError, TypeError) as error:
            raise InputError(f"{file} is damaged ({error}); delete the folder {self.folder} to measure anew") from error

    def _data(self, trainer: pl.Trainer) -> ImageBatches:
        data = getattr(trainer, "datamodule", None)
        assert isinstance(data, ImageBatches)
        return data

    def _sample(self, trainer: pl.Trainer, name: str) -> str:
        return sample_size(len(self.samples[name]), len(self._data(trainer).images.train))

    def _measure(self, trainer: pl.Trainer, classifier: pl.LightningModule, names: Sequence[str]) -> None:
        assert isinstance(classifier, Classifier)
        (optimizer,) = trainer.optimizers
        rates = [group["lr"] for group in optimizer.param_groups]
        if trainer.global_step == 0:  # the classifier sets the first learning rate only when the first step starts
            recipe = classifier.recipe
            factor = recipe.lr_factor(0, classifier.steps)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * factor if recipe.warmup_lr is None else recipe.warmup_lr
        for name in names:
            probe = self.probes[name]
            images, targets = self._data(trainer).training.batch(self.samples[name])
            network = copy_for_probing(classifier.network)
            weight = next(network.parameters())
            # Lightning may call hooks with gradients disabled or autocast enabled
            with torch.enable_grad(), torch.autocast(weight.device.type, enabled=False):
                rows = probe.measure(
                    network, images.to(weight.device, weight.dtype), targets.to(weight.device), optimizer
                )
            if not rows:  # the network has no layer that the probe measures
                continue
            file = self.folder / f"{name}.csv"
            key = {"step": trainer.global_step, "images": self._sample(trainer, name)}
            text = csv_text([{**key, **row} for row in rows])
            with file.open("a") as out:
                out.write(text.partition("\n")[2] if file.stat().st_size else text)
        for group, lr in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
