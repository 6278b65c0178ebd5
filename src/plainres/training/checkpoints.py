"""Checkpoints, and the decisions between two steps: save, stop, or report divergence.

A checkpoint is either complete or absent. It contains only tensors, numbers and text, so loading it runs no code:

- Lightning's own state: weights, optimizer and progress;
- the classifier's state: sums, curves and whether it is warming up;
- the state of `Checkpoints`: the run's name, its training time in seconds and its attempts.

`plainres.runs.saved.newest` reads the newest one.
"""

import io
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from plainres.config.schema import CheckpointTimes
from plainres.errors import RunFailedError, StoppedError
from plainres.files import atomically, checkpoint_name, checkpoints_in
from plainres.processes.signals import StopSignals
from plainres.runs.provenance import peak_memory_mib
from plainres.runs.record import DIVERGED, Run
from plainres.runs.saved import Saved
from plainres.training.classifier import Classifier
from plainres.training.ranks import ALIKE, RESUME, check_alike

KEPT = 2  # checkpoints that stay on disk, the newest ones
# Steps between two checks of the loss on a GPU: the copy started by one check has arrived by the next.
LOSS_CHECK_INTERVAL = 100


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint IO that writes to a temporary file next to the target, flushes it to disk and renames it.

    Lightning writes to the system's temporary folder and moves the file. Across file systems a move is a copy, so a run
    killed in the middle leaves a truncated file under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            OSError: the file cannot be written, for example because the disk is full. Earlier checkpoints are intact.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()  # torch.save would report a full disk as an error of its archive writer
        torch.save(checkpoint, buffer)
        try:
            with atomically(path) as file:
                file.write(buffer.getbuffer())
        except OSError as error:
            older = checkpoints_in(path.parent)
            kept = f"{older[-1].name} is intact" if older else "there is no earlier one"
            raise OSError(
                error.errno,
                f"cannot write the checkpoint ({error.strerror}); {kept}; free some space and run the same command "
                "again to resume",
                str(path),
            ) from error


class Checkpoints(Checkpoint):
    """Callback that saves a run when a checkpoint is due, when a signal has arrived, and after the last step.

    All ranks act alike. After each step they agree on whether a signal has arrived, whether a checkpoint is due, and
    whether any rank's loss is NaN or infinite.

    After the last step of an epoch, saving and stopping wait for the epoch's evaluation and its row: Lightning 2.6
    cannot resume exactly from between the step and the evaluation. Lightning calls checkpoint callbacks last, so the
    row has been logged by then.

    Args:
        run: the run, whose folder receives the checkpoints.
        times: when to save.
        signals: the signals that this process receives.
        saved: the checkpoint from which the run resumes.
        attempt: the conditions of this attempt (see `plainres.runs.provenance.conditions`).
        data_sha256: the digest of this rank's images and targets.
    """

    def __init__(
        self,
        run: Run,
        times: CheckpointTimes,
        signals: StopSignals,
        saved: Saved,
        attempt: dict[str, Any],
        *,
        data_sha256: str,
    ) -> None:
        self.run, self.times, self.signals, self.data_sha256 = run, times, signals, data_sha256
        self.resumed, self.attempt = saved, attempt
        self.saved_step = saved.step
        self.started = self.saved_at = time.monotonic()
        self.group: Any = None  # process group of the run, if its world size is above 1

    @property
    def elapsed_s(self) -> float:
        """Training time in seconds: this attempt, and all earlier ones up to their last checkpoint."""
        return self.resumed.elapsed_s + time.monotonic() - self.started

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Conditions of all attempts, each with its first step and its peak memory.

        Earlier ones end with their last checkpoint, from which the run has resumed.
        """
        peak = peak_memory_mib(self.run.config.trainer.accelerator)
        return [*self.resumed.attempts, {"from_step": self.resumed.step, **self.attempt, "peak_memory_mib": peak}]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Defer signals to the end of a step, and check that all ranks have the same checkpoint, images and code.

        Raises:
            InputError: they differ.
        """
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo")  # on the CPU, so that agreeing does not wait for a GPU
            classes = [f"{name} with the digest {digest[:8]}" for name, digest in self.attempt["classes"].items()]
            versions = [f"{name} {version}" for name, version in self.attempt["versions"].items()]
            mine = {
                "checkpoints": (f"of step {self.saved_step}", RESUME),
                "images": (f"with the digest {self.data_sha256[:8]}", ALIKE),
                "code of plainres": (f"with the digest {self.attempt['source_sha256'][:8]}", ALIKE),
                "classes of your own": (", ".join(classes) or "none", ALIKE),
                "versions": (", ".join(versions), ALIKE),
            }
            check_alike(self.run.name, mine, self.group)
        self.signals.deferring = True
        self.signals.listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the run has started, for the message of a stop."""
        self.signals.started = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let signals stop the process immediately, since the run has been saved."""
        self.signals.deferring = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save or stop within an epoch, if necessary."""
        assert isinstance(pl_module, Classifier)
        if not (trainer.is_last_batch or trainer.global_step >= pl_module.steps):
            check_loss = pl_module.device.type == "cpu" or trainer.global_step % LOSS_CHECK_INTERVAL == 0
            self._between_steps(trainer, pl_module, check_loss=check_loss)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save or stop after an epoch, if necessary; always save after the last step."""
        assert isinstance(pl_module, Classifier)
        last = trainer.global_step >= pl_module.steps
        self._between_steps(trainer, pl_module, check_loss=True, due=last)

    def _between_steps(
        self, trainer: pl.Trainer, classifier: Classifier, *, check_loss: bool, due: bool = False
    ) -> None:
        step, interval = trainer.global_step, self.times.every_n_steps
        due |= time.monotonic() - self.saved_at >= 60 * self.times.every_minutes
        due |= interval is not None and step // interval > self.saved_step // interval
        diverged = check_loss and not classifier.finite_losses()
        number, due, diverged = self._agree(self.signals.received, due, diverged)
        save = due or number
        if save and not diverged:  # a step's loss is computed before its update, so the weights can diverge first
            *_, diverged = self._agree(0, False, not classifier.finite_weights)
        if diverged:
            good = f"; the last good checkpoint is {checkpoint_name(self.saved_step)}" if self.saved_step else ""
            raise RunFailedError(
                f"{DIVERGED}: the training loss or a weight is NaN or infinite after step {step}, with a "
                f"learning rate of {classifier.lr:g}{good}; lower optim.lr, or warm up with optim.warmup_lr"
            )
        if save:
            self._save(trainer)
        if number:
            raise StoppedError(
                f"{self.run.name} is saved after step {step}; run the same command again to resume", number
            )

    def _agree(self, number: int, due: bool, diverged: bool) -> tuple[int, bool, bool]:
        """Combine the flags of all ranks by their maximum, so that all ranks act alike."""
        if self.group is None:
            return number, due, diverged
        flags = torch.tensor([number, due, diverged])
        dist.all_reduce(flags, dist.ReduceOp.MAX, self.group)
        return int(flags[0]), bool(flags[1]), bool(flags[2])

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.global_step != self.saved_step:  # equal if it resumed at the end of an epoch and stopped there
            trainer.save_checkpoint(self.run.checkpoints / checkpoint_name(trainer.global_step))
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            paths = checkpoints_in(self.run.checkpoints)
            newest = checkpoint_name(self.saved_step)
            unreadable = [path for path in paths if path.name > newest]  # skipped when the run resumed
            for old in [*[path for path in paths if path not in unreadable][:-KEPT], *unreadable]:
                old.unlink()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the run's name, its training time so far and its attempts."""
        checkpoint |= {"run": self.run.name, "elapsed_s": self.elapsed_s, "attempts": self.attempts}
