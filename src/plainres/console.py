"""Console output: progress bars, lines, tables and durations."""

import os
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import Any, TextIO

from tqdm import tqdm

# the contents of a progress bar, richest first
BAR_FORMATS = (
    "{l_bar}{bar}{r_bar}",
    "{desc}: {percentage:3.0f}%| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    "{desc}: {n_fmt}/{total_fmt} [{remaining} left, {rate_fmt}{postfix}]",
    "{desc}: {n_fmt}/{total_fmt} [{remaining} left{postfix}]",
    "{desc}: {n_fmt}/{total_fmt} [{remaining} left]",
)
FIRST_CUT = 2  # the first of the formats in which the description is cut before anything else is dropped
LEAST_BAR = 5  # columns; a shorter bar is dropped
LEAST_DESCRIPTION = 8  # columns of a description that is cut


class _Bar(tqdm):  # pyright: ignore[reportMissingTypeArgument]
    """A tqdm bar that keeps its numbers in narrow terminals, where tqdm would cut them off."""

    def __str__(self) -> str:
        columns = self.format_dict["ncols"]
        if columns is None or self.total is None:
            return super().__str__()
        description = str(self.format_dict["prefix"]).removesuffix(": ")
        text = ""
        for number, template in enumerate(BAR_FORMATS):
            text = self._formatted(prefix=description, ncols=None, bar_format=template.replace("{bar}", ""))
            excess = len(text) + LEAST_BAR * ("{bar}" in template) - columns
            if excess <= 0:
                return self._formatted(prefix=description, bar_format=template)
            if number >= FIRST_CUT and len(description) - excess >= LEAST_DESCRIPTION:
                return text.replace(description, shortened(description, len(description) - excess), 1)
        return text[:columns]

    def _formatted(self, **changes: Any) -> str:
        values: dict[str, Any] = dict(self.format_dict)
        values.update(changes)
        return self.format_meter(**values)


def bar(description: str, unit: str, total: int | None = None, **options: Any) -> "tqdm[Any]":
    """Return a progress bar on standard error. `options` are passed to tqdm.

    In a file or a pipe, the bar is updated rarely, so that a log of hours remains small.
    """
    interval = 0.2 if sys.stderr.isatty() else 10  # seconds
    return _Bar(desc=description, unit=unit, total=total, mininterval=interval, dynamic_ncols=True, **options)


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(text: str) -> None:
    """Print a line to standard error, above any progress bar."""
    tqdm.write(text, file=sys.stderr)


def quantity(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 run", "2 runs"; `plural` defaults to `singular` + "s"."""
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"


def terminal_columns(stream: TextIO | None = None) -> int | None:
    """Return the width of the terminal on a stream, by default standard error; None if it is not a terminal."""
    try:
        return os.get_terminal_size((stream or sys.stderr).fileno()).columns or None
    except (OSError, ValueError):  # redirected to a file or to an object without a descriptor
        return None


def shortened(text: str, columns: int) -> str:
    """Cut a text to a number of columns, with an ellipsis at its end if anything is lost."""
    return text if len(text) <= columns else f"{text[: max(0, columns - 1)]}…"[:columns]


def first_that_fits(lines: Sequence[str], columns: int | None) -> str:
    """Return the first of several versions of a line, longest first, that fits; cut the last one if none does.

    Args:
        lines: the versions.
        columns: the width of the terminal; None: any length fits.
    """
    if columns is None:
        return lines[0]
    return next((line for line in lines if len(line) < columns), shortened(lines[-1], columns - 1))


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
