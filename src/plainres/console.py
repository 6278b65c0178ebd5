"""What a person reads on the screen: progress bars, lines, tables, durations."""

import sys
import textwrap
from collections.abc import Collection, Sequence
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


def aligned(
    rows: Sequence[Sequence[str]], *, right: Collection[int] = (), indent: str = "", width: int | None = None
) -> list[str]:
    """Return a line for each row, its columns aligned two spaces apart.

    Args:
        rows: cells. The last cell of a row that is shorter than others may run over the columns behind it.
        right: the columns whose cells are flush right.
        indent: what each line begins with.
        width: of a line in characters; a last cell that does not fit is wrapped. None: nothing is wrapped.
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
            later = " " * min(len(start), width // 2)
            lines.append(textwrap.fill(last, width, initial_indent=start, subsequent_indent=later))
    return lines
