"""Artifacts of W&B: files of a finished run that `logger.artifacts` asks for.

The model is a folder that plainres reads like the run's own: configuration, result and final checkpoint. Predictions
are the files that `plainres eval` has written.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plainres.files import checkpoints_in, write_atomically
from plainres.runs.record import Run

TIMEOUT = 60  # seconds, for one artifact to arrive


def unsent(run: Run) -> dict[str, list[Path]]:
    """Return the files of each artifact that W&B does not have in their present state.

    Empty for a run that is not finished, whose checkpoint will be replaced.
    """
    sent = _sent(run)
    return {kind: files for kind, files in _wanted(run).items() if files and sent.get(kind) != _state(run, files)}


def send(run: Run, wandb_run: Any, timeout: float | None = None) -> None:
    """Upload the unsent artifacts and wait until W&B has them.

    Args:
        run: the run.
        wandb_run: its online `wandb.Run`.
        timeout: seconds to wait for each artifact (default: TIMEOUT).

    Raises:
        Exception: any exception of the client, such as a timeout.
    """
    import wandb

    for kind, files in unsent(run).items():
        state = _state(run, files)
        artifact = wandb.Artifact(f"{run.name}-{kind}", kind)
        for file in files:
            name = file.relative_to(run.folder).as_posix()
            artifact.add_file(str(file), name, skip_cache=True, policy="immutable")  # no copies of the files
        wandb_run.log_artifact(artifact).wait(timeout=int(timeout or TIMEOUT))
        write_atomically(_record(run), json.dumps(_sent(run) | {kind: state}) + "\n")


def _wanted(run: Run) -> dict[str, list[Path]]:
    """Return the files of the artifacts that the configuration asks for, as far as they exist."""
    if not run.finished:
        return {}
    model = [run.folder / "config.yaml", run.folder / "result.json", *checkpoints_in(run.checkpoints)[-1:]]
    files = {"model": model, "predictions": sorted(run.folder.glob("predictions-*.parquet"))}
    return {kind: files[kind] for kind in run.config.logger.artifacts}


def _state(run: Run, files: list[Path]) -> Mapping[str, list[int]]:
    """Return size and time of modification of files, by which a later version is noticed."""
    return {file.relative_to(run.folder).as_posix(): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def _record(run: Run) -> Path:
    return run.folder / "wandb" / "artifacts.json"


def _sent(run: Run) -> dict[str, Any]:
    try:
        return dict(json.loads(_record(run).read_text()))
    except (OSError, ValueError, TypeError):
        return {}
