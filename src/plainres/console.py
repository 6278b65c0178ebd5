"""Console output: progress bars, lines, tables and durations."""

import io
import os
import sys
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from tqdm import tqdm

# the contents of a progress bar, richest first
BAR_FORMATS = (
    "{desc}: {percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    "{desc}: {percentage:3.0f} %| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    "{desc}: {n_fmt}/{total_fmt} [{remaining} left, {rate_fmt}{postfix}]",
    "{desc}: {n_fmt}/{total_fmt} [{remaining} left{postfix}]",
    "{desc}: {n_fmt}/{total_fmt} [{remaining} left]",
)
# the same before the first step, when neither the rate nor the remaining time is known
STARTING_FORMATS = (
    "{desc}: {percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
    "{desc}: {percentage:3.0f} %| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
    "{desc}: {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
    "{desc}: {n_fmt}/{total_fmt} [{elapsed}]",
)
FIRST_CUT = 2  # the first of the formats in which the description is cut before anything else is dropped
LEAST_BAR = 5  # columns; a shorter bar is dropped
LEAST_DESCRIPTION = 8  # columns of a description that is cut


class _Bar(tqdm):  # pyright: ignore[reportMissingTypeArgument]
    """A tqdm bar that keeps its numbers in narrow terminals, where tqdm would cut them off, and omits unknown ones."""

    def __str__(self) -> str:
        values = self.format_dict
        columns, description = values["ncols"], str(values["prefix"]).removesuffix(": ")
        if self.total is None:
            return super().__str__()
        formats = BAR_FORMATS if values["rate"] or values["n"] > values["initial"] else STARTING_FORMATS
        if columns is None:
            return self._formatted(prefix=description, bar_format=formats[0])
        text = ""
        for number, template in enumerate(formats):
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


class _Unfailing(io.FileIO):
    """Output that loses what cannot be written."""

    def write(self, data: Any, /) -> int:
        """Write bytes, or lose them; return their number."""
        with suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Let nothing that is printed raise an exception.

    What a reader that has exited, a lost terminal or a full disk does not take is lost, and a character that the
    encoding lacks is replaced. Streams that are not files, as in a notebook, are left alone.
    """
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        with suppress(OSError, ValueError, AttributeError):
            file = io.BufferedWriter(_Unfailing(stream.fileno(), "w", closefd=False))
            with suppress(OSError):
                stream.flush()
            setattr(sys, name, io.TextIOWrapper(file, stream.encoding, errors="replace", line_buffering=True))
    try:
        yield
    finally:
        for name, stream in streams.items():
            if getattr(sys, name) is not stream:
                getattr(sys, name).flush()
            setattr(sys, name, stream)


def open_closed_streams() -> None:
    """Open the null device for each standard stream that is closed.

    Otherwise the next file that is opened would take its place, and receive what is printed.
    """
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # open takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


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
        width: maximum length of a line, at which the last cell is wrapped, or moved below the others if they take more
            than half of the line. None: no wrapping.
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
        elif len(start) > width // 2 and len(start + last) > width:  # too little room beside the first cells
            lines += wrapped(start.rstrip(), width, f"{indent}  ")
            lines += wrapped(last, width, f"{indent}    ", first=f"{indent}    ")
        else:
            lines += wrapped(last, width, " " * len(start), first=start) or [start.rstrip()]
    return lines


def wrapped(text: str, width: int, indent: str = "", *, first: str = "") -> list[str]:
    """Return the lines of a text of at most `width` columns, unless a single word is longer.

    Words are never split, so that names of runs, which have hyphens, remain whole.

    Args:
        text: the text; line breaks count as spaces.
        width: the maximum length of a line.
        indent: prefix of the lines after the first one.
        first: prefix of the first line.
    """
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def narrowed(
    table: Sequence[Sequence[str]], expendable: Sequence[str], width: int
) -> tuple[list[list[str]], list[str]]:
    """Drop columns from a table until its lines, with columns two spaces apart, fit into a width.

    Args:
        table: the head, then rows of as many cells.
        expendable: heads of the columns that may be dropped, first the one to drop first.
        width: the maximum length of a line.

    Returns:
        The table, and the heads of the dropped columns in their order in the table.
    """
    head, *_ = table
    widths = {name: 2 + max(map(len, column)) for name, column in zip(head, zip(*table, strict=True), strict=True)}
    dropped: set[str] = set()
    for name in (name for name in expendable if name in widths):
        if sum(widths.values()) - 2 <= width:
            break
        dropped.add(name)
        del widths[name]
    kept = [[cell for name, cell in zip(head, cells, strict=True) if name not in dropped] for cells in table]
    return kept, [name for name in head if name in dropped]
