"""Marker of an active sweep, by which `plainres status` distinguishes waiting runs from missing ones."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from plainres.locks import HeldError, held, is_held
from plainres.runs.record import Run

MARKER = ".sweep"  # a lock in a study's folder; the operating system frees it when the sweep's process exits


@contextmanager
def mark_active(runs: Sequence[Run]) -> Iterator[None]:
    """Mark the studies of `runs` as active, unless another sweep has marked them already."""
    with ExitStack() as stack:
        for folder in sorted({run.folder.parent for run in runs}):
            marker = folder / MARKER
            with suppress(OSError, HeldError):
                stack.enter_context(held(marker, timeout=0.5))  # longer than `is_active` holds it
                stack.callback(marker.unlink, missing_ok=True)
        yield


def is_active(folder: Path) -> bool:
    """Whether a sweep of the study in `folder` is in progress."""
    return is_held(folder / MARKER)
