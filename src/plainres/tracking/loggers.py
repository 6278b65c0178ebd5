"""Loggers that write training curves to metrics.csv and TensorBoard.

plainres reads metrics.csv back; it never reads the TensorBoard events.
"""

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

VALUES = ("loss", "error")  # curves of each set of images


class RunLogger(Logger):
    """Base class of the loggers, which log one row per epoch. Only rank 0 has loggers."""

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Start logging.

        Args:
            rows: the rows of the epochs before the point where the run resumes; empty for a new run.
        """
        raise NotImplementedError

    def end(self, exit_code: int) -> None:
        """Finish logging.

        Args:
            exit_code: 0 if the run finished, 1 if it failed, 128 + the number of the signal that stopped it.
        """

    @property
    def version(self) -> str:
        """An empty string, because a run keeps a single version of its curves."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing; config.yaml holds the hyperparameters."""


class CsvLogger(RunLogger):
    """Writes metrics.csv, one row per epoch; errors in percent.

    When a run resumes, the file is rewritten from the rows in its checkpoint, so that rows of an interrupted attempt
    are never duplicated. Each row is appended in a single write.

    Args:
        file: the file.
        evaluated: the sets of images that are evaluated after each epoch.
    """

    def __init__(self, file: Path, evaluated: Sequence[str]) -> None:
        super().__init__()
        self.file = file
        curves = [f"{images}/{value}" for images in ("train", *evaluated) for value in VALUES]
        self.columns = ("epoch", "step", "lr", *curves)

    @property
    def name(self) -> str:
        """The file name."""
        return self.file.name

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write the header and the previous rows."""
        header = dict(zip(self.columns, self.columns, strict=True))
        write_atomically(self.file, self._lines([header, *rows]))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        with self.file.open("a") as file:
            file.write(self._lines([{**metrics, "step": step}]))

    def _lines(self, rows: Sequence[Mapping[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


class TensorBoardLogger(RunLogger):
    """Writes TensorBoard events.

    The events are rewritten whenever a run starts or resumes, so that no row is duplicated. If writing fails, the
    logger prints one warning and turns itself off; the run continues.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.writer: Any = None  # an EventsWriter, or None while the logger is off

    @property
    def name(self) -> str:
        """The folder name."""
        return self.folder.name

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Delete earlier events and write the previous rows."""
        with self._disabled_on_error():
            # SummaryWriter writes from a thread; after an error in that thread, training would block indefinitely
            from tensorboardX.event_file_writer import EventsWriter

            self.folder.mkdir(exist_ok=True)
            for file in self.folder.glob("events.*"):
                file.unlink()
            self.writer = EventsWriter(str(self.folder / "events"))
        for row in rows:
            self.log_metrics(dict(row), int(row["step"]))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write the values of one row."""
        if self.writer is None:
            return
        with self._disabled_on_error():
            from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboardX.summary import scalar

            for name, value in metrics.items():
                if name != "step":
                    self.writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self.writer.flush()

    def end(self, exit_code: int) -> None:
        """Close the event file."""
        if self.writer is not None:
            with self._disabled_on_error():
                self.writer.close()

    @contextmanager
    def _disabled_on_error(self) -> Iterator[None]:
        """Turn the logger off after any exception instead of failing the run."""
        try:
            yield
        except Exception as error:
            self.writer = None
            reason = first_line(error) or type(error).__name__
            say(f"cannot write TensorBoard events ({reason}); the run continues without them")
