"""Loggers of a run's curves: metrics.csv, TensorBoard. Except for metrics.csv, plainres never reads what they write."""

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from plainres.console import say
from plainres.errors import first_line
from plainres.files import write_atomically

COLUMNS: tuple[str, ...] = ("epoch", "step", "lr", "train/loss", "train/error", "test/loss", "test/error")


class RunLogger(Logger):
    """Logs a row after each epoch of a run. Only the first process of a run has loggers."""

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log `rows`, those up to where the run begins or resumes, and get ready for more."""
        raise NotImplementedError

    def end(self, exit_code: int) -> None:
        """Log how the run exited: 0 if it finished, 1 if it failed, 128 + the number of the signal that stopped it."""

    @property
    def version(self) -> str:
        """An empty string: a run has one version of its curves."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""


class CsvLogger(RunLogger):
    """Keeps the curves as metrics.csv, a row for each epoch; errors in percent.

    The rows up to where a run resumes come from its checkpoint, whatever an interrupted attempt has left in the file.
    A row is appended in one write.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.file.name

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write the header and the rows so far."""
        header = dict(zip(COLUMNS, COLUMNS, strict=True))
        write_atomically(self.file, _lines([header, *rows]))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row."""
        with self.file.open("a") as file:
            file.write(_lines([{**metrics, "step": step}]))


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
    return text.getvalue()


class TensorBoardLogger(RunLogger):
    """Writes the rows as TensorBoard's events, anew at each beginning, so that none is there twice.

    If they cannot be written there is one line about it, and the run goes on without.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.writer: Any = None  # while events can be written

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write what there is so far."""
        with self._or_off():
            # not SummaryWriter: its thread would die of an error, and the training wait for it for ever
            from tensorboardX.event_file_writer import EventsWriter

            self.folder.mkdir(exist_ok=True)
            for file in self.folder.glob("events.*"):
                file.unlink()
            self.writer = EventsWriter(str(self.folder / "events"))
        for row in rows:
            self.log_metrics(dict(row), int(row["step"]))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write a row."""
        if self.writer is None:
            return
        with self._or_off():
            from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboardX.summary import scalar

            for name, value in metrics.items():
                if name != "step":
                    self.writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self.writer.flush()

    def end(self, exit_code: int) -> None:
        """Close the file."""
        if self.writer is not None:
            with self._or_off():
                self.writer.close()

    @contextmanager
    def _or_off(self) -> Iterator[None]:
        """Let nothing that goes wrong end the training."""
        try:
            yield
        except Exception as error:
            self.writer = None
            reason = first_line(error) or type(error).__name__
            say(f"TensorBoard's events cannot be written ({reason}); the run goes on without")
