"""Agreement of a run's record with the images and classes at hand.

A run that has trained continues, is evaluated and is measured only on its own images and with its own classes.
"""

from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.runs.code import own_classes
from plainres.runs.record import Run


def check_data(run: Run, sha256: str) -> None:
    """Compare images at hand with those that the run was trained on, if it has passed a checkpoint.

    Args:
        run: the run, whose configuration names the images at hand.
        sha256: the digest of the images and targets at hand.

    Raises:
        InputError: they differ.
    """
    recorded = run.data_sha256
    if recorded in (None, sha256) or not _has_trained(run):
        return
    before, now = (data_of(each.config) for each in (Run.read(run.folder), run))
    raise InputError(
        f"{run.folder} was trained on other images ({before}, digest {recorded[:8]}) than these ({now}, digest "
        f"{sha256[:8]}); to train on these as well, add study=NAME"
    )


def check_code(run: Run) -> None:
    """Compare the user's own classes with those that the run was trained with, if it has passed a checkpoint.

    Raises:
        InputError: the source of a class has changed.
    """
    if not _has_trained(run):
        return
    now, before = own_classes(run.config), run.code.get("classes", {})
    edited = sorted(name for name in now.keys() & before.keys() if now[name] != before[name])
    if edited:
        digests = ", ".join(f"{name} (digest {before[name][:8]}, now {now[name][:8]})" for name in edited)
        raise InputError(
            f"{run.folder} was trained with another source of {digests}; to train with this one as well, add "
            "study=NAME, or else undo the edit"
        )


def data_of(config: Config) -> str:
    """Name the data set of a configuration for messages, with its folder if it has one."""
    path = config.data.get("path")
    return f"data={config.options['data']}" + (f" data.path={path}" if path else "")


def _has_trained(run: Run) -> bool:
    """Whether the folder holds an outcome of training, from which the run does not begin anew."""
    return run.finished or run.step > 0 or (run.diverged and not run.config.sweep.retry_failed)
