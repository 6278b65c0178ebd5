"""Bars for long work: lively on a terminal, sparse in a log file."""

import sys
from typing import Any

from tqdm import tqdm


def bar(description: str, unit: str, total: int | None = None, **options: Any) -> "tqdm[Any]":
    """A bar on standard error; `options` are tqdm's."""
    interval = 0.2 if sys.stderr.isatty() else 30  # seconds
    return tqdm(desc=description, unit=unit, total=total, mininterval=interval, dynamic_ncols=True, **options)
