"""How long work is shown: bars, lively on a terminal and sparse in a log file, and durations."""

import sys
from typing import Any

from tqdm import tqdm


def bar(description: str, unit: str, total: int | None = None, **options: Any) -> "tqdm[Any]":
    """A bar on standard error; `options` are tqdm's."""
    interval = 0.2 if sys.stderr.isatty() else 30  # seconds
    return tqdm(desc=description, unit=unit, total=total, mininterval=interval, dynamic_ncols=True, **options)


def duration(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(text: str) -> None:
    """Print a line to standard error, above the bar if there is one."""
    tqdm.write(text, file=sys.stderr)
