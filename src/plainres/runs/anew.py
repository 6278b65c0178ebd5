"""A run that begins anew in a folder with files of earlier attempts: those that do not belong to it are set aside."""

import shutil
from pathlib import Path

from plainres.console import say
from plainres.errors import InputError
from plainres.runs.code import code_of
from plainres.runs.record import CODE, DATA, Run

OF_WEIGHTS = ("predictions-*", "step-*-predictions-*", *(f"{name}.*" for name in ("lesion", "linearise", "sharpness")))
OF_WEIGHTS += ("landscape.*", "landscape-?d.*")  # what was measured on weights of which no checkpoint is left
OF_TRAINING = ("metrics.csv", "probes", "tensorboard", "wandb")
DESCRIPTION = ("config.yaml", DATA, CODE)  # copied, so that `plainres wandb-sync` can upload what is set aside


def set_aside(run: Run, data_sha256: str) -> None:
    """Move files of earlier attempts into a hidden folder of the run, `.earlier-<number>`, and say so.

    They are measurements of earlier weights; and, if the earlier attempts had other images, other classes of the user's
    or another training code of plainres, also their curves, the measurements of their probes and their W&B data, which
    a resumed run would continue. Call it for a run without a checkpoint, before `Run.begin`. The caller holds the lock.

    Args:
        run: the run.
        data_sha256: the digest of the images and targets on which it begins.

    Raises:
        InputError: the files cannot be moved.
    """
    changed = [name for name, differs in _differences(run, data_sha256).items() if differs]
    patterns = (*OF_WEIGHTS, *OF_TRAINING) if changed else OF_WEIGHTS
    files = sorted(file for pattern in patterns for file in run.folder.glob(pattern))
    if not files:
        return
    folder = _unused(run.folder)
    try:
        folder.mkdir()
        for name in DESCRIPTION:
            if (run.folder / name).exists():
                shutil.copyfile(run.folder / name, folder / name)
        for file in files:
            file.rename(folder / file.name)
    except OSError as error:
        raise InputError(f"cannot move {', '.join(map(str, files))} into {folder}: {error.strerror}") from error
    reason = f", with {' and '.join(changed)}" if changed else ""
    say(f"{run.name} begins anew{reason}; {', '.join(file.name for file in files)} of before: now in {folder}")


def _differences(run: Run, data_sha256: str) -> dict[str, bool]:
    """Return whether the images and the code are others than those with which the run began before."""
    before, now = ({**code, **code.get("classes", {})} for code in (run.code, code_of(run.config)))
    compared = before.keys() & now.keys() - {"plainres", "git_commit", "classes"}  # a probe may be new
    return {
        "other images": run.data_sha256 not in (None, data_sha256),
        "other code": any(before[name] != now[name] for name in compared),
    }


def _unused(folder: Path) -> Path:
    """Return the first path `.earlier-<number>` in a folder that does not exist."""
    number = 1
    while (path := folder / f".earlier-{number}").exists():
        number += 1
    return path
