"""What is measured on finished runs after their training: in parallel, kept as it comes, and not measured twice.

A run's measurements are the rows of a CSV file in its folder: columns that say what was asked for, then the values. A
row is written as soon as it is measured, so that a command that was stopped goes on with what is missing.
"""

import csv
import multiprocessing
import os
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
from plainres.config.instantiate import source_of
from plainres.console import bar
from plainres.data.batches import Batch, DeviceImages, EvaluationBatches
from plainres.data.sources import sample_size
from plainres.errors import InputError, LockedError, RunFailedError
from plainres.files import csv_text, read_rows, write_atomically
from plainres.processes.forkserver import attach_to_command, forkserver
from plainres.reporting.figures import save
from plainres.runs.record import Run

Row = dict[str, str]
# imported once, not once in each process
PRELOADED = ["plainres.analysis.lesion", "plainres.analysis.landscape", "sklearn.datasets"]


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished run: its network in evaluation mode, on the run's kind of device, and its images as they are.

    The images are a sample, by class (`plainres.data.sources.stratified`), of `train_images` and `test_images`. Where
    there is no GPU, a run that was trained on one is measured on the CPU. The numbers are those of the run's precision,
    but for bf16-mixed, where they are float32.
    """

    run: Run
    network: nn.Module
    training: EvaluationBatches
    test: EvaluationBatches
    train_images: int
    test_images: int

    @classmethod
    def read(cls, folder: Path, images: int | None = None) -> "Finished":
        """Return the run in a folder, with a sample of `images` of each split, or all.

        Raises:
            InputError: there is no finished run, or it has no checkpoint, or one of other weights than those of its
                result, or its images cannot be had.
        """
        run = Run.read_finished(folder)
        gpu = run.config.trainer.accelerator == "gpu" and torch.cuda.is_available()
        device = torch.device("cuda" if gpu else "cpu")
        network = load_network(run).to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
        source = source_of(run.config)
        found = source.load()
        training, test = (
            EvaluationBatches(DeviceImages(split.sample(images), source, found.channel_statistics, device))
            for split in (found.train, found.test)
        )
        return cls(run, network, training, test, len(found.train), len(found.test))

    @property
    def key(self) -> Row:
        """What every measurement depends on: the digest of the weights, and how many images of the training set.

        A sample is written as '500 of 1500'. A plain 500 in a file of an older version were the first 500 images, which
        are not measured again under that name.
        """
        images = sample_size(len(self.training.index), self.train_images)
        return {"weights": self.run.result["weights_sha256"][:8], "images": images}


def finished(folders: Sequence[Path], images: int | None = None) -> list[Finished]:
    """The runs in different folders, for this process, which then has as many threads as they were trained with.

    Raises:
        InputError: as `Finished.read`.
    """
    found = [Finished.read(folder, images) for folder in {folder.resolve(): folder for folder in folders}.values()]
    torch.set_num_threads(max(one.run.config.trainer.threads for one in found))
    return found


def labels(runs: Iterable[Run]) -> list[str]:
    """What each of several runs is called in a figure: shortcut and depth, or, where that is not enough, its name."""
    runs = list(runs)
    short = [f"{run.config.shortcut}, {run.config.model['depth']} layers" for run in runs]
    count = Counter(short)
    return [text if count[text] == 1 else run.name for text, run in zip(short, runs, strict=True)]


def loss_and_error(network: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """The mean cross-entropy over all images, and the error in percent."""
    weight = next(network.parameters())  # where and how exactly the network computes
    loss, wrong, images = 0.0, 0, 0
    with torch.no_grad():
        for x, y in batches:
            logits = network(x.to(weight))
            targets = y.to(logits.device)
            loss += F.cross_entropy(logits, targets, reduction="none").double().sum().item()
            wrong += int((logits.argmax(1) != targets).sum())
            images += len(y)
    return loss / images, 100 * wrong / images


Work = Callable[[Finished, Mapping[str, str]], Sequence[float]]


@dataclass(frozen=True)
class Plan:
    """What is to be measured on a run: a row for each measurement, and in which file of its folder they are kept."""

    of: Finished
    name: str
    wanted: Sequence[Row]

    @property
    def file(self) -> Path:
        """The file that keeps the measurements."""
        return self.of.run.folder / f"{self.name}.csv"

    def read(self, values: Sequence[str]) -> list[Row]:
        """The rows that are there already, of these options or of others.

        Raises:
            InputError: the file is not such a table, or damaged.
        """
        if not self.file.exists():
            return []
        try:
            rows = read_rows(self.file)
            for row in rows:
                if list(row) != [*self.wanted[0], *values]:
                    raise ValueError("other columns")
                [float(row[value]) for value in values]
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise InputError(f"{self.file} is no table of plainres {self.name} ({error}); move it away") from error
        return rows


def measure(plans: Sequence[Plan], values: Sequence[str], work: Work, images: int | None, unit: str) -> list[list[Row]]:
    """Measure what is missing, on the CPU in as many processes as there are cores; return each plan's rows.

    Args:
        plans: one for each run.
        values: the names of what `work` returns.
        work: the measurement for one row, a function that other processes can import.
        images: the size of the sample of each split, as `Finished.read`.
        unit: what a row is, for the bar.

    Raises:
        InputError: a file cannot be read or written.
        LockedError: another process is at one of the runs.
        RunFailedError: a process died.
    """
    with ExitStack() as stack:
        for plan in plans:
            stack.enter_context(_alone(plan.of.run))
        known = [{_key(row, values): row for row in plan.read(values)} for plan in plans]
        missing = [(i, row) for i, plan in enumerate(plans) for row in plan.wanted if _key(row) not in known[i]]
        with bar(plans[0].name, unit, sum(len(plan.wanted) for plan in plans), leave=False) as shown:
            shown.update(shown.total - len(missing))
            for plan, rows in zip(plans, known, strict=True):
                with writing(plan.file):  # without a last row that is half-written
                    if rows:
                        write_atomically(plan.file, csv_text(list(rows.values())))
                    else:
                        plan.file.unlink(missing_ok=True)
            tasks = [(work, plans[i].of.run.folder, images, row) for i, row in missing]
            gpu = any(next(plan.of.network.parameters()).is_cuda for plan in plans)
            processes = 1 if gpu else min(joblib.cpu_count(), len(tasks))
            for task, found in _in_processes(tasks, processes):
                i, row = missing[task]
                whole = row | dict(zip(values, map(repr, found), strict=True))
                with writing(plans[i].file), plans[i].file.open("a") as file:
                    text = csv_text([whole])
                    file.write(text if file.tell() == 0 else text.split("\n", 1)[1])
                known[i][_key(row)] = whole
                shown.update()
            for plan, rows in zip(plans, known, strict=True):  # the same order, whichever came first
                keys = dict.fromkeys([*map(_key, plan.wanted), *rows])
                with writing(plan.file):
                    write_atomically(plan.file, csv_text([rows[key] for key in keys]))
    return [[rows[_key(row)] for row in plan.wanted] for plan, rows in zip(plans, known, strict=True)]


def _key(row: Mapping[str, str], values: Sequence[str] = ()) -> tuple[str, ...]:
    return tuple(text for column, text in row.items() if column not in values)


@contextmanager
def _alone(run: Run) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(run.lock())
        except LockedError as error:
            raise LockedError(f"{run.folder}: another process is at this run; wait for it, or stop it first") from error
        except OSError as error:
            raise InputError(f"cannot write into {run.folder}: {error.strerror}") from error
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within, a file that cannot be written is a mistake that is told in one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {error.filename or path}: {error.strerror}") from error


def _in_processes(tasks: Sequence[tuple[Any, ...]], processes: int) -> Iterator[tuple[int, Sequence[float]]]:
    """The number and the result of each task, as they come."""
    if not tasks:
        return
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(processes, forkserver(PRELOADED), _begin)
    try:
        futures = {executor.submit(_work, *task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RunFailedError("a process died: killed, or out of memory; the same command goes on") from error
    finally:  # of what is stopped, nothing is waited for
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        executor.shutdown(cancel_futures=True)


def _begin() -> None:
    attach_to_command()
    torch.set_num_threads(1)  # there are as many processes as cores


def _work(work: Work, folder: Path, images: int | None, row: Row) -> Sequence[float]:
    return work(_opened(folder, images), row)


@lru_cache(maxsize=1)  # the rows of one run come together
def _opened(folder: Path, images: int | None) -> Finished:
    return Finished.read(folder, images)


def draw_runs(draw: Callable[[Sequence[int]], Figure], runs: Sequence[Run], name: str) -> Path:
    """Draw each run by itself, into its folder, and, if there are several, all side by side, into the folder above.

    Args:
        draw: makes the figure of the runs with these numbers.
        runs: the runs.
        name: of the files, <name>.svg and <name>.png.

    Returns:
        The SVG file of the last figure.

    Raises:
        InputError: a file cannot be written.
    """
    places = [([i], run.folder) for i, run in enumerate(runs)]
    if len(runs) > 1:
        above = os.path.commonpath([run.folder.resolve() for run in runs])
        places.append((list(range(len(runs))), Path(os.path.relpath(above))))
    for numbers, folder in places:
        with writing(folder):
            save(lambda numbers=numbers: draw(numbers), folder / name)
    return places[-1][1] / f"{name}.svg"
