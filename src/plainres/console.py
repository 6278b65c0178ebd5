"""Console output: progress bars, lines, tables and durations."""

import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import Any

from tqdm import tqdm


def bar(description: str, unit: str, total: int | None = None, **options: Any) -> "tqdm[Any]":
    """Return a progress bar on standard error. `options` are passed to tqdm."""
    interval = 0.2 if sys.stderr.isatty() else 30  # seconds
    return tqdm(desc=description, unit=unit, total=total, mininterval=interval, dynamic_ncols=True, **options)


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(text: str) -> None:
    """Print a line to standard error, above any progress bar."""
    tqdm.write(text, file=sys.stderr)


def aligned(
    rows: Sequence[Sequence[str]], *, right: Collection[int] = (), indent: str = "", width: int | None = None
) -> list[str]:
    """Return one line for each row, with columns aligned and two spaces apart.

    Args:
        rows: cells of each row. In a row that is shorter than others, the last cell may extend over later columns.
        right: indices of the right-aligned columns.
        indent: prefix of each line.
        width: maximum length of a line, at which the last cell is wrapped. None: no wrapping.
    """
    columns = max(map(len, rows))
    widths = [0] * columns
    for row in rows:
        for i, cell in enumerate(row if len(row) == columns else row[:-1]):
            widths[i] = max(widths[i], len(cell))
    lines = []
    for row in rows:
        *cells, last = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=False))
        ]
        start = indent + "".join(f"{cell}  " for cell in cells)
        if width is None:
            lines.append((start + last).rstrip())
        else:
            hanging = " " * min(len(start), width // 2)
            lines.append(textwrap.fill(last, width, initial_indent=start, subsequent_indent=hanging))
    return lines
