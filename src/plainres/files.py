"""Atomic writes, CSV files, and the files of a run's checkpoints."""

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

CHECKPOINT = re.compile(r"step-[0-9]{9}\.ckpt")
TEMPORARY = ".tmp-"  # before the number of the process that writes the file


@contextmanager
def atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file for an atomic write. After a crash the file is complete, unchanged or absent."""
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
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


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint's file after a number of steps."""
    return f"step-{step:09d}.ckpt"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder by step, none if it does not exist. Files with other names are left out.

    Copies and files of other programs have other names, such as step-best.ckpt or step-000000020 (1).ckpt.
    """
    return [path for path in _entries(folder) if CHECKPOINT.fullmatch(path.name)]


def unfinished_checkpoints_in(folder: Path) -> list[Path]:
    """Return the temporary files of checkpoints that a killed process has left in a folder."""
    parts = [(path, path.name.partition(TEMPORARY)) for path in _entries(folder)]
    return [path for path, (name, _, process) in parts if CHECKPOINT.fullmatch(name) and process.isdecimal()]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []
