"""What W&B's client keeps on disk of a run, read without W&B: which rows, which configuration, how it ended.

In a run's folder there is wandb/, with a folder for each attempt in which the run was trained, `run-<time>-<id>` or
`offline-run-<time>-<id>`, and in it the transaction log `run-<id>.wandb`: the header b":W&B", three bytes of version,
and protobuf `Record`s in LevelDB's log format, but for the kind of CRC (blocks of 32 KiB; chunks of CRC-32, length,
kind, and bytes). `run-<id>.wandb.synced` beside it says that all of it has been sent.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEP = "trainer/global_step"  # the x axis: optimizer steps done
BLOCK = 32768  # bytes
HEADER = struct.Struct("<IHB")  # of a chunk
KIND_AT = 6  # in the header; the CRC is of the kind and the bytes
FULL, FIRST, LAST = 1, 2, 4  # kinds of chunks that begin and end a record


@dataclass
class Attempt:
    """What a transaction log holds."""

    file: Path
    id: str = ""  # of the W&B run; empty if the process was killed before it had written anything
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # with _step, the number of the row on the server
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)  # metric -> its x axis
    exit_code: int | None = None  # None: it has not been finished

    @property
    def folder(self) -> Path:
        """Which `wandb sync` takes."""
        return self.file.parent

    @property
    def online(self) -> bool:
        """Whether the rows were sent as they came."""
        return not self.folder.name.startswith("offline-")

    @property
    def sent(self) -> bool:
        """Whether all of it is known to be on the server."""
        return self.file.with_suffix(".wandb.synced").exists()

    def mark_sent(self) -> None:
        """Let neither us nor `wandb sync` send it, again."""
        self.file.with_suffix(".wandb.synced").touch()

    @property
    def steps(self) -> set[int]:
        """The optimizer steps of its rows."""
        return {int(row[STEP]) for row in self.rows if STEP in row}


def attempts(folder: Path) -> list[Attempt]:
    """The attempts in <folder>/wandb, in the order of time."""
    found = [read(file) for file in (folder / "wandb").glob("*run-*-*/run-*.wandb")]
    return sorted(found, key=lambda attempt: attempt.folder.name.removeprefix("offline-"))


def read(file: Path) -> Attempt:
    """Read a transaction log, up to where a killed process has left it, or up to the first damage."""
    attempt = Attempt(file)
    from google.protobuf.message import DecodeError

    with suppress(OSError, DecodeError, ValueError):  # the last: of JSON
        for record in _records(file):
            _take(attempt, record)
    return attempt


def _take(attempt: Attempt, record: Any) -> None:
    """Add what a record says to an attempt."""
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
        place = values
        for part in path:
            if not isinstance(place.get(part), dict):  # of a list the client may tell a place, too
                place[part] = {}
            place = place[part]
        place[key] = json.loads(item.value_json)


def _records(file: Path) -> Iterator[Any]:
    """The records of a transaction log, up to a torn or damaged one."""
    from wandb.proto import wandb_internal_pb2

    data = file.read_bytes()
    position, parts = 7, list[bytes]()
    while position + HEADER.size <= len(data):
        rest = BLOCK - position % BLOCK
        crc, length, kind = HEADER.unpack_from(data, position)
        if rest < HEADER.size or not kind:  # a block is filled up with zeros
            position += rest
            continue
        end = position + HEADER.size + length
        # a length that leads too far gives another CRC
        if zlib.crc32(data[position + KIND_AT : end]) != crc:
            return
        if kind in (FULL, FIRST):
            parts.clear()
        parts.append(data[position + HEADER.size : end])
        position = end
        if kind in (FULL, LAST):
            record: Any = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(b"".join(parts))
            yield record
