"""Atomic writes, and CSV files."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file for an atomic write. After a crash the file is complete, unchanged or absent."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text atomically. After a crash the file is complete, unchanged or absent."""
    with atomically(path) as file:
        file.write(text.encode())


def read_rows(file: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file, except a last row that is still being written."""
    lines = file.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return list(csv.DictReader(lines))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a CSV file with the given rows, at least one; a cell that a row lacks is empty."""
    file = io.StringIO()
    table = csv.DictWriter(file, {column: None for row in rows for column in row}, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return file.getvalue()
