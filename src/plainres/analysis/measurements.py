"""Parallel, resumable measurements on finished runs.

A run's measurements are the rows of a CSV file in its folder. The first columns identify a measurement, the last ones
contain its values. Each row is written as soon as it has been measured, and rows that exist are not measured again, so
an interrupted command resumes with the missing ones.
"""

import csv
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import joblib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from plainres.analysis.evaluation import load_network
from plainres.arithmetic import set_arithmetic
from plainres.config.instantiate import source_of
from plainres.console import bar
from plainres.data.batches import Batch, EvaluationBatches
from plainres.data.sources import sample_size
from plainres.data.streamed_batches import pixels_on
from plainres.errors import InputError, LockedError, RunFailedError
from plainres.files import csv_text, read_rows, write_atomically
from plainres.models.networks import misclassified
from plainres.processes.forkserver import attach_to_command, forkserver
from plainres.processes.memory import keep_freed_memory
from plainres.reporting.figures import save
from plainres.runs.agreement import check_data
from plainres.runs.location import Location, located, location_in
from plainres.runs.record import Run

Row = dict[str, str]
# imported once in the fork server, instead of once in each process
PRELOADED = [
    *("plainres.analysis.lesion", "plainres.analysis.linearise", "plainres.analysis.landscape"),
    "sklearn.datasets",
]


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished run with its network in evaluation mode and its images without augmentation.

    The batches contain all images, or a sample by class (`plainres.data.sources.stratified`) of the `train_images` and
    `test_images`. The device is the one used for training, or the CPU if there is no GPU. Measurements use the run's
    precision, except that bf16-mixed becomes float32.
    """

    run: Run
    network: nn.Module
    training: EvaluationBatches
    test: EvaluationBatches
    train_images: int
    test_images: int

    @classmethod
    def read(cls, folder: Path, images: int | None = None, location: Location = ()) -> "Finished":
        """Read the run in a folder, with a sample of `images` images of each split, or with all images.

        Args:
            folder: the folder of the run.
            images: the size of the sample of each split; None takes all images.
            location: the location of the images (see `plainres.runs.location.located`).

        Raises:
            InputError: the folder contains no finished run, its checkpoint is missing or does not match its result, or
                its images cannot be read, or are others than in its training.
        """
        run = Run(located(Run.read_finished(folder).config, location), folder)
        gpu = run.config.trainer.accelerator == "gpu" and torch.cuda.is_available()
        device = torch.device("cuda" if gpu else "cpu")
        network = load_network(run, run.config.data).to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
        source = source_of(run.config)
        loaded = source.load()
        check_data(run, loaded.sha256())
        training, test = (
            EvaluationBatches(pixels_on(device, split.sample(images), source, loaded.channel_statistics))
            for split in (loaded.train, loaded.test)
        )
        return cls(run, network, training, test, len(loaded.train), len(loaded.test))

    @property
    def key(self) -> Row:
        """Columns common to all measurements: a digest of the weights, and the number of training images.

        A sample is written as '500 of 1500'. An older version wrote 500 and used the first 500 images, so the two must
        differ.
        """
        images = sample_size(self.training.image_count, self.train_images)
        return {"weights": self.run.result["weights_sha256"][:8], "images": images}


def read_finished(folders: Sequence[Path], images: int | None = None, location: Location = ()) -> list[Finished]:
    """Read the runs in `folders`, each once, and set this process's number of threads to that of their training.

    Raises:
        InputError: see `Finished.read`.
    """
    unique = {folder.resolve(): folder for folder in folders}
    runs = [Finished.read(folder, images, location) for folder in unique.values()]
    set_arithmetic(max(finished.run.config.trainer.threads for finished in runs))
    keep_freed_memory()
    return runs


def labels(runs: Iterable[Run]) -> list[str]:
    """Return a label for each run in a figure: the first of these that no other run has.

    They are shortcut and depth, the run's name, and its folder: runs of two studies may have one name.
    """
    versions = [
        (f"{run.config.shortcut}, {run.config.model['depth']} layers", run.name, str(run.folder)) for run in runs
    ]
    count = Counter(text for texts in versions for text in texts)
    return [next((text for text in texts if count[text] == 1), texts[-1]) for texts in versions]


def loss_and_error(network: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """Return the mean cross-entropy over all images, and the error in percent."""
    weight = next(network.parameters())  # defines the device and the dtype
    loss, wrong, images = 0.0, 0, 0
    with torch.no_grad():
        for x, y in batches:
            logits = network(x.to(weight))
            targets = y.to(logits.device)
            loss += F.cross_entropy(logits, targets, reduction="none").double().sum().item()
            wrong += int(misclassified(logits, targets).sum())
            images += len(y)
    return loss / images, 100 * wrong / images


Work = Callable[[Finished, Mapping[str, str]], Sequence[float]]


@dataclass(frozen=True)
class Plan:
    """Measurements to make on a run: one row each, without its values, and the name of their file."""

    finished: Finished
    name: str
    rows: Sequence[Row]

    @property
    def file(self) -> Path:
        """CSV file that contains the measurements."""
        return self.finished.run.folder / f"{self.name}.csv"

    def read(self, values: Sequence[str]) -> list[Row]:
        """Read the rows measured so far, including those with other options.

        Raises:
            InputError: the file is damaged, or has other columns.
        """
        if not self.file.exists():
            return []
        try:
            rows = read_rows(self.file)
            for row in rows:
                if list(row) != [*self.rows[0], *values]:
                    raise ValueError("unexpected columns")
                [float(row[value]) for value in values]
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise InputError(
                f"{self.file} was not written by plainres {self.name}, or is damaged ({error}); move it away"
            ) from error
        return rows


def measure(plans: Sequence[Plan], values: Sequence[str], work: Work, images: int | None, unit: str) -> list[list[Row]]:
    """Measure the missing rows, on the CPU with one process per core, and return the rows of each plan.

    Args:
        plans: one plan for each run.
        values: the names of the values that `work` returns.
        work: the function that measures one row; other processes must be able to import it.
        images: the size of the sample of each split, see `Finished.read`.
        unit: the unit of the progress bar, a name for one row.

    Raises:
        InputError: a file cannot be read or written.
        LockedError: another process trains or measures one of the runs.
        RunFailedError: a process died.
    """
    with ExitStack() as stack:
        for plan in plans:
            stack.enter_context(_locked(plan.finished.run))
        known = [{_key(row, values): row for row in plan.read(values)} for plan in plans]
        missing = [(i, row) for i, plan in enumerate(plans) for row in plan.rows if _key(row) not in known[i]]
        remains = not sys.stderr.isatty()  # in a pipe, where the bar of a short command would stay at its beginning
        with bar(plans[0].name, unit, sum(len(plan.rows) for plan in plans), leave=remains) as progress:
            progress.update(progress.total - len(missing))
            for plan, rows in zip(plans, known, strict=True):
                with writing(plan.file):  # drops a last row that was cut off
                    if rows:
                        write_atomically(plan.file, csv_text(list(rows.values())))
                    else:
                        plan.file.unlink(missing_ok=True)
            runs = [plan.finished.run for plan in plans]
            tasks = [(work, runs[i].folder, images, location_in(runs[i].config), row) for i, row in missing]
            gpu = any(next(plan.finished.network.parameters()).is_cuda for plan in plans)
            processes = 1 if gpu else min(joblib.cpu_count(), len(tasks))
            for task, result in _in_processes(tasks, processes):
                i, row = missing[task]
                complete = row | dict(zip(values, map(repr, result), strict=True))
                with writing(plans[i].file), plans[i].file.open("a") as file:
                    text = csv_text([complete])
                    file.write(text if file.tell() == 0 else text.split("\n", 1)[1])
                known[i][_key(row)] = complete
                progress.update()
            for plan, rows in zip(plans, known, strict=True):  # sort the rows, which were written as they finished
                keys = dict.fromkeys([*map(_key, plan.rows), *rows])
                with writing(plan.file):
                    write_atomically(plan.file, csv_text([rows[key] for key in keys]))
    return [[rows[_key(row)] for row in plan.rows] for plan, rows in zip(plans, known, strict=True)]


def _key(row: Mapping[str, str], values: Sequence[str] = ()) -> tuple[str, ...]:
    return tuple(text for column, text in row.items() if column not in values)


@contextmanager
def _locked(run: Run) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(run.lock())
        except LockedError as error:
            raise LockedError(
                f"{run.folder} is locked by another process; wait until that process has finished, or stop it"
            ) from error
        except OSError as error:
            raise InputError(f"cannot write into {run.folder}: {error.strerror}") from error
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError within the block into an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {error.filename or path}: {error.strerror}") from error


def _in_processes(tasks: Sequence[tuple[Any, ...]], processes: int) -> Iterator[tuple[int, Sequence[float]]]:
    """Yield the index and the result of each task in order of completion."""
    if not tasks:
        return
    other_children = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(processes, forkserver(PRELOADED), _begin)
    try:
        futures = {executor.submit(_work, *task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RunFailedError(
            "a process was killed, possibly out of memory; run the same command again to resume"
        ) from error
    finally:  # kill the pool's processes instead of waiting for their current tasks
        for process in set(multiprocessing.active_children()) - other_children:
            process.kill()
        executor.shutdown(cancel_futures=True)


def _begin() -> None:
    attach_to_command()
    set_arithmetic(1)  # since there is one process per core
    keep_freed_memory()


def _work(work: Work, folder: Path, images: int | None, location: Location, row: Row) -> Sequence[float]:
    return work(_cached(folder, images, location), row)


@lru_cache(maxsize=1)  # one entry suffices, since the rows of one run follow each other
def _cached(folder: Path, images: int | None, location: Location) -> Finished:
    return Finished.read(folder, images, location)


def draw_runs(draw: Callable[[Sequence[int]], Figure], runs: Sequence[Run], name: str) -> Path:
    """Draw a figure of each run into its folder, and one of all runs, if there are several, into their parent folder.

    Args:
        draw: draws the runs with the given indices.
        runs: the runs.
        name: the name of the files, <name>.svg and <name>.png.

    Returns:
        The SVG file of the last figure.

    Raises:
        InputError: a file cannot be written.
    """
    figures = [([i], run.folder) for i, run in enumerate(runs)]
    if len(runs) > 1:
        parent = os.path.commonpath([run.folder.resolve() for run in runs])
        figures.append((list(range(len(runs))), Path(os.path.relpath(parent))))
    for indices, folder in figures:
        with writing(folder):
            save(lambda indices=indices: draw(indices), folder / name)
    return figures[-1][1] / f"{name}.svg"
