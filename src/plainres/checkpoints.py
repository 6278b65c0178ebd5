"""When a run is saved, and how: a checkpoint is either there whole or not at all."""

import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from plainres.runs import atomically

KEPT = 2  # the newest checkpoints that stay on disk


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name beside the target, flushes to the disk, renames.

    Lightning's own writes to the system's temporary folder and moves; between file systems that is a copy, and a run
    killed meanwhile leaves a torn file under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomically(path) as file:
            torch.save(checkpoint, file)


def newest(folder: Path) -> tuple[Path, int] | None:
    """The checkpoint with the most steps that can be read, and its steps; a damaged one is named and passed over."""
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        try:
            return path, torch.load(path, weights_only=True, map_location="cpu")["global_step"]
        except Exception as error:  # whatever a damaged file makes of the unpickler
            print(f"{path} is damaged and passed over ({type(error).__name__})", file=sys.stderr)
    return None


class Checkpoints(Checkpoint):
    """Saves at the first epoch's end after `every_minutes`, and at the end of training; keeps the newest KEPT.

    Lightning calls its kind last, so the row of an epoch is written before the checkpoint that will not repeat it.
    """

    def __init__(self, folder: Path, every_minutes: float) -> None:
        self.folder, self.every_minutes = folder, every_minutes
        self.saved_at = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if it is time; all processes decide as the first one does, for saving is a common act."""
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = last or time.monotonic() - self.saved_at >= 60 * self.every_minutes
        if not trainer.strategy.broadcast(due):
            return
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:09d}.ckpt")
        self.saved_at = time.monotonic()
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step-*.ckpt"))[:-KEPT]:
                old.unlink()
