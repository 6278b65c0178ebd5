"""Where a run's curves go besides metrics.csv: W&B, TensorBoard. They are mirrors, and nothing reads them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from plainres.errors import StoppedError, first_line
from plainres.progress import say
from plainres.runs import Run


class Mirror(Logger):
    """Shows the rows of a run's curves somewhere else."""

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Show `rows`, those up to where the run begins or goes on, and get ready for more."""
        raise NotImplementedError

    def end(self, exit_code: int) -> None:
        """Show how the run ended: 0 for well, 1 for a failure, 128 + the signal that stopped it."""
        raise NotImplementedError

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: what Lightning calls so is shown by `begin`."""


@contextmanager
def mirrors(run: Run, rows: Sequence[Mapping[str, float]]) -> Iterator[list[Mirror]]:
    """What shows a run besides metrics.csv, begun with `rows`, and ended however the run ends."""
    made: list[Mirror] = []
    if run.config.logger.wandb:
        from plainres.wandb_logger import WandbMirror

        made.append(WandbMirror(run))
    if run.config.logger.tensorboard:
        made.append(TensorBoard(run.folder / "tensorboard"))
    exit_code = 1
    try:
        for mirror in made:
            mirror.begin(rows)
        yield made
        exit_code = 0
    except StoppedError as stop:
        exit_code = 128 + stop.number
        raise
    finally:
        for mirror in made:
            mirror.end(exit_code)


class TensorBoard(Mirror):
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
