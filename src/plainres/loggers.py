"""Where a run's curves go besides metrics.csv: W&B, TensorBoard. They are mirrors, and nothing reads them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from plainres.errors import StoppedError
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
    """Writes the rows as TensorBoard's events, anew at each beginning, so that none is there twice."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    def begin(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write what there is so far."""
        from tensorboardX import SummaryWriter

        for file in self.folder.glob("events.*"):
            file.unlink()
        self.writer = SummaryWriter(str(self.folder))
        for row in rows:
            self.log_metrics(dict(row), int(row["step"]))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write a row."""
        for name, value in metrics.items():
            if name != "step":
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def end(self, exit_code: int) -> None:
        """Close the file."""
        if hasattr(self, "writer"):
            self.writer.close()
