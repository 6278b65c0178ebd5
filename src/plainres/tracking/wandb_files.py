"""Reader of the W&B client's transaction logs: rows, configuration and exit code of each attempt.

A run's wandb/ folder contains one folder per attempt, `run-<time>-<id>` or `offline-run-<time>-<id>`, which holds the
transaction log `run-<id>.wandb`. The log starts with b":W&B" and three version bytes. Protobuf `Record`s follow in
LevelDB's log format: blocks of 32 KiB, chunks of CRC-32, length, kind and bytes; only the CRC variant differs. An empty
file `run-<id>.wandb.synced` next to the log marks it as uploaded.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEP = "trainer/global_step"  # the x axis, in completed optimizer steps
BLOCK = 32768  # bytes
HEADER = struct.Struct("<IHB")  # of a chunk
KIND_OFFSET = 6  # in the header; the CRC covers the kind and the bytes
FULL, FIRST, LAST = 1, 2, 4  # chunk kinds that start or complete a record


@dataclass
class Attempt:
    """Contents of one transaction log."""

    file: Path
    id: str = ""  # of the W&B run; empty if the process was killed before it wrote anything
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # including _step, the row number on the server
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)  # metric -> its x axis
    exit_code: int | None = None  # None if the attempt was killed

    @property
    def folder(self) -> Path:
        """The attempt's folder, the argument of `wandb sync`."""
        return self.file.parent

    @property
    def online(self) -> bool:
        """Whether the rows were uploaded during training."""
        return not self.folder.name.startswith("offline-")

    @property
    def sent(self) -> bool:
        """Whether the whole log is known to be on the server."""
        return self.file.with_suffix(".wandb.synced").exists()

    def mark_sent(self) -> None:
        """Mark the log as uploaded, so that neither plainres nor `wandb sync` uploads it again."""
        self.file.with_suffix(".wandb.synced").touch()

    @property
    def steps(self) -> set[int]:
        """The optimizer steps of the logged rows."""
        return {int(row[STEP]) for row in self.rows if STEP in row}


def attempts(folder: Path) -> list[Attempt]:
    """Return the attempts in <folder>/wandb, oldest first."""
    logs = [read(file) for file in (folder / "wandb").glob("*run-*-*/run-*.wandb")]
    return sorted(logs, key=lambda attempt: attempt.folder.name.removeprefix("offline-"))


def read(file: Path) -> Attempt:
    """Read a transaction log up to its end or the first torn or damaged record."""
    attempt = Attempt(file)
    from google.protobuf.message import DecodeError

    with suppress(OSError, DecodeError, ValueError):  # ValueError: invalid JSON
        for record in _records(file):
            _apply(attempt, record)
    return attempt


def _apply(attempt: Attempt, record: Any) -> None:
    """Update an attempt with one record."""
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run = record.run
        attempt.id, attempt.name, attempt.project = run.run_id, run.display_name, run.project
        attempt.group, attempt.job_type, attempt.tags = run.run_group, run.job_type, list(run.tags)
        _update(attempt.config, run.config.update)
    elif kind == "config":
        _update(attempt.config, record.config.update)
    elif kind == "history":
        row: dict[str, Any] = {"_step": record.history.step.num}
        _update(row, record.history.item)
        attempt.rows.append(row)
    elif kind == "summary":
        _update(attempt.summary, record.summary.update)
    elif kind == "metric":
        attempt.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    elif kind == "exit":
        attempt.exit_code = record.exit.exit_code


def _update(values: dict[str, Any], items: Any) -> None:
    for item in items:
        *path, key = list(item.nested_key) or [item.key]
        target = values
        for part in path:
            if not isinstance(target.get(part), dict):  # absent, or a list, whose items the client may update as well
                target[part] = {}
            target = target[part]
        target[key] = json.loads(item.value_json)


def _records(file: Path) -> Iterator[Any]:
    """Yield the records of a transaction log up to the first torn or damaged one."""
    from wandb.proto import wandb_internal_pb2

    data = file.read_bytes()
    position, parts = 7, list[bytes]()
    while position + HEADER.size <= len(data):
        rest = BLOCK - position % BLOCK
        crc, length, kind = HEADER.unpack_from(data, position)
        if rest < HEADER.size or not kind:  # zero padding up to the end of a block
            position += rest
            continue
        end = position + HEADER.size + length
        # the CRC also rejects a damaged length
        if zlib.crc32(data[position + KIND_OFFSET : end]) != crc:
            return
        if kind in (FULL, FIRST):
            parts.clear()
        parts.append(data[position + HEADER.size : end])
        position = end
        if kind in (FULL, LAST):
            record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(b"".join(parts))
            yield record
