"""What happens between two steps: the run is saved, stopped, or found to have failed.

A checkpoint is either complete or absent, and holds tensors, numbers and text alone, so that reading one runs no code.
It holds what Lightning keeps (weights, optimizer, progress), what `classifier` adds in `on_save_checkpoint` (sums,
curves, whether it is warming up), and what `Checkpoints` adds (the run's name, the seconds it has taken, its attempts).
`plainres.runs.record.Run.newest` reads one.
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
from plainres.errors import InputError, RunFailedError, StoppedError
from plainres.files import atomically
from plainres.processes.signals import StopSignals
from plainres.runs.record import Run, Saved
from plainres.training.classifier import Classifier

KEPT = 2  # the newest checkpoints that stay on disk
LOOK_EVERY = 100  # steps on a GPU between two looks at the loss: time enough for the answer to be there


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name beside the target, flushes to the disk, renames.

    Lightning's own writes to the system's temporary folder and moves; between file systems that is a copy, and a run
    killed meanwhile leaves a torn file under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            OSError: it cannot be written, for instance because the disk is full; what was there before still is.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = io.BytesIO()  # so that an error of the disk comes as such, and not as one of torch's archive
        torch.save(checkpoint, whole)
        try:
            with atomically(path) as file:
                file.write(whole.getbuffer())
        except OSError as error:
            older = sorted(path.parent.glob("step-*.ckpt"))
            kept = f"{older[-1].name} is intact" if older else "there is none before it"
            raise OSError(
                error.errno, f"cannot write the checkpoint ({error.strerror}); {kept}: make room and repeat", str(path)
            ) from error


class Checkpoints(Checkpoint):
    """Saves a run at the end of a step: when it is time, when a signal asks for the end, and when training has ended.

    All processes of a run act as one: after each step they agree on whether there was a signal, whether it is time to
    save, and whether the loss of one of them is no finite number.

    At the last step of an epoch all this waits for the epoch's evaluation and its row, since Lightning 2.6 cannot go on
    exactly from between the two. Lightning calls its kind of callback last, so the row is there by then.

    Args:
        run: whose folder takes the checkpoints.
        times: when to save.
        signals: those that this process receives.
        saved: where the run goes on.
        attempt: the conditions of this attempt (see `plainres.runs.provenance.conditions`).
    """

    def __init__(
        self, run: Run, times: CheckpointTimes, signals: StopSignals, saved: Saved, attempt: dict[str, Any]
    ) -> None:
        self.run, self.times, self.signals = run, times, signals
        self.resumed, self.attempt = saved, attempt
        self.saved_step = saved.step
        self.started = self.saved_at = time.monotonic()
        self.group: Any = None  # the processes of the run, if there are several

    @property
    def elapsed_s(self) -> float:
        """Seconds of this and all earlier attempts up to their last checkpoint."""
        return self.resumed.elapsed_s + time.monotonic() - self.started

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The conditions of all attempts, each with the step from which it trained."""
        return [*self.resumed.attempts, {"from_step": self.resumed.step, **self.attempt}]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal waits for the end of a step."""
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo")  # on the CPU: agreeing does not wait for a GPU
            steps = torch.tensor([self.saved_step, -self.saved_step])
            dist.all_reduce(steps, dist.ReduceOp.MAX, self.group)
            if steps[0] != -steps[1]:  # the training before was still writing one
                raise InputError(
                    f"the processes of {self.run.name} find different checkpoints, of steps {-steps[1]} "
                    f"and {steps[0]}; repeat the command"
                )
        self.signals.deferring = True
        self.signals.listen()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on all is saved, and a signal may stop at once."""
        self.signals.deferring = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save or stop in mid-epoch, if need be."""
        assert isinstance(pl_module, Classifier)
        if not (trainer.is_last_batch or trainer.global_step >= pl_module.steps):
            look = pl_module.device.type == "cpu" or trainer.global_step % LOOK_EVERY == 0
            self._between_steps(trainer, pl_module, look=look)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save or stop, if need be; save for good at the end of training."""
        assert isinstance(pl_module, Classifier)
        last = trainer.global_step >= pl_module.steps
        self._between_steps(trainer, pl_module, look=True, due=last)

    def _between_steps(self, trainer: pl.Trainer, classifier: Classifier, *, look: bool, due: bool = False) -> None:
        step, every = trainer.global_step, self.times.every_n_steps
        due |= time.monotonic() - self.saved_at >= 60 * self.times.every_minutes
        due |= every is not None and step // every > self.saved_step // every
        number, due, diverged = self._agree(self.signals.received, due, look and not classifier.look())
        save = due or number
        if save and not diverged:  # the loss may come before the weights
            *_, diverged = self._agree(0, False, not classifier.finite_weights)
        if diverged:
            good = f"step-{self.saved_step:09d}.ckpt" if self.saved_step else "none"
            raise RunFailedError(
                f"the training loss or a weight is no finite number after step {step}, with a learning rate of "
                f"{classifier.lr:g}: the run has diverged; last good checkpoint: {good}"
            )
        if save:
            self._save(trainer)
        if number:
            raise StoppedError(
                f"{self.run.name} is saved after step {step}; run the same command again to resume", number
            )

    def _agree(self, number: int, due: bool, diverged: bool) -> tuple[int, bool, bool]:
        """What any process has found, all processes know."""
        if self.group is None:
            return number, due, diverged
        found = torch.tensor([number, due, diverged])
        dist.all_reduce(found, dist.ReduceOp.MAX, self.group)
        return int(found[0]), bool(found[1]), bool(found[2])

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.global_step != self.saved_step:  # else it went on at an epoch's end and was stopped there
            trainer.save_checkpoint(self.run.checkpoints / f"step-{trainer.global_step:09d}.ckpt")
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            found = sorted(self.run.checkpoints.glob("step-*.ckpt"))
            newest = f"step-{self.saved_step:09d}.ckpt"
            beyond = [path for path in found if path.name > newest]  # which could not be read, and were passed over
            for old in [*[path for path in found if path not in beyond][:-KEPT], *beyond]:
                old.unlink()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep whose checkpoint it is, and what the run has cost so far."""
        checkpoint |= {"run": self.run.name, "elapsed_s": self.elapsed_s, "attempts": self.attempts}
