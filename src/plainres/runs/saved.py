"""Checkpoints from which a run resumes."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from plainres.errors import InputError
from plainres.files import checkpoints_in
from plainres.runs.record import Run


@dataclass(frozen=True)
class Saved:
    """Checkpoint from which a run resumes. Without a path it is the beginning of the run."""

    path: Path | None = None
    step: int = 0
    elapsed_s: float = 0.0  # time of training and evaluation in all attempts
    attempts: list[dict[str, Any]] = field(default_factory=list)  # first step, conditions and peak memory of each
    rows: list[dict[str, float]] = field(default_factory=list)  # the curves up to this step


def newest(run: Run) -> Saved:
    """Return the readable checkpoint of a run with the most steps. Report and skip damaged ones.

    Raises:
        InputError: the checkpoint belongs to another run, or the user may not read it.
    """
    for path in reversed(checkpoints_in(run.checkpoints)):
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            name = state["run"]
            saved = Saved(path, state["global_step"], state["elapsed_s"], state["attempts"], state["rows"])
        except PermissionError as error:  # unlike a damaged one, it may be the newest
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        except Exception as error:  # a damaged file can make the unpickler raise anything
            kind = type(error).__name__
            print(f"skipping {path}: it is damaged, or not a checkpoint of plainres ({kind})", file=sys.stderr)
            continue
        if name != run.name:
            raise InputError(f"{path} is a checkpoint of another run, {name}; move it away")
        return saved
    return Saved()
