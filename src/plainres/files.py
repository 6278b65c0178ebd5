"""Files that are either complete or absent, and rows as CSV."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that will be there whole or not at all, also after a crash."""
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
    """Write a text that will be there whole or not at all."""
    with atomically(path) as file:
        file.write(text.encode())


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file but for a last one that is still being written."""
    whole = file.read_text().splitlines(keepends=True)
    if whole and not whole[-1].endswith("\n"):
        whole.pop()
    return list(csv.DictReader(whole))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same columns, at least one -> the text of a CSV file."""
    file = io.StringIO()
    table = csv.DictWriter(file, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return file.getvalue()
