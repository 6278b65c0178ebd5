"""Sweeps: train the missing runs of a study, each in a fresh process, and report progress.

The processes are forked from a server that has done the imports. A run therefore starts in milliseconds and sees no
state of the runs before it.
"""

import math
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plainres.config.schema import Config
from plainres.console import first_that_fits, quantity, say, terminal_columns, unfailing_output
from plainres.errors import InputError, LockedError, StoppedError, reason_of
from plainres.launch.active import mark_active
from plainres.launch.devices import launch
from plainres.launch.hints import hints, unmeasured
from plainres.launch.messages import (
    print_outcome,
    print_states,
    print_summary,
    remaining_time,
    report_upload_problem,
    report_warning,
    without_hash,
)
from plainres.launch.preflight import check_alone, check_unchanged, in_order, preflight, slots
from plainres.launch.selection import adopt_report_options, select
from plainres.processes.environment import isolate
from plainres.processes.forkserver import attach_to_command, call_in_processes, forkserver
from plainres.processes.signals import StopSignals
from plainres.runs.record import Run
from plainres.tracking.wandb_alert import Alerts

# imported once, in the fork server; the W&B client imports wandb.sdk.launch when its first run starts
PRELOADED = ["plainres.training.train", "sklearn.datasets"]
PRELOADED_FOR_WANDB = ["plainres.tracking.wandb_logger", "wandb.sdk.launch"]
POLL_SECONDS = 0.5  # between two polls of the running processes


def sweep(runs: Sequence[Run | Config], others: Sequence[Run] = ()) -> int:
    """Train the unfinished runs on this machine.

    Args:
        runs: runs, or their configurations.
        others: trained runs of the command, whose images and classes must be those of its other runs.

    Returns:
        The number of failed runs.

    Raises:
        InputError: a configuration is invalid, or has `sweep.tune`, which `sweep_tuned` needs, or this process belongs
            to a group; no run has been trained.
        StoppedError: a signal arrived; the active runs are saved.
    """
    isolate()
    check_alone()
    if any(isinstance(run, Config) and run.tuning for run in runs):
        raise InputError("the configurations have sweep.tune; use sweep_tuned(configs), which chooses the values")
    started = time.monotonic()
    all_runs = [run if isinstance(run, Run) else Run.of(run) for run in runs]
    selection = select(all_runs)
    print_states(selection)
    selected, finished, failed = selection.left, selection.finished, selection.failed
    for hint in unmeasured(finished):
        say(hint)
    if selected:
        wandb = PRELOADED_FOR_WANDB if any(run.config.logger.wandb for run in selected) else []
        context = forkserver([*PRELOADED, *wandb])
        ((costs, gpus),) = call_in_processes(context, [(preflight, selected, [*finished, *others])])
        for hint in hints(selected):
            say(hint)
        adopt_report_options(finished)
        for run in selected:
            run.prepare()
        with StopSignals(started=True) as signals, mark_active(selected):
            free = slots(selected, gpus, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
            failed += _Pool(context, selected, costs, free, signals).train()
    else:
        check_unchanged([*finished, *others])
        adopt_report_options(finished)
    return print_summary(all_runs, selected, failed, time.monotonic() - started)


@dataclass(frozen=True)
class _Training:
    """A run in training, its process and its slot."""

    run: Run
    cost: float
    slot: str | None
    process: ForkServerProcess
    outcome: Any  # a Connection, whose type differs between Unix and Windows
    started: float
    progress: float  # share according to the curve when it started, with rows that it may discard


class _Pool:
    """Trains one run per slot, by `sweep.priority`, then most expensive first, each in a fresh process.

    The pool waits for runs that other processes are training. If one of these exits before its run finishes, the
    pool takes the run over.

    Args:
        context: the context of the processes.
        runs: the runs to train.
        costs: the relative duration of each run.
        free: one slot per concurrent run; see `plainres.launch.preflight.slots`.
        signals: the stop signals of this command.
    """

    def __init__(
        self,
        context: ForkServerContext,
        runs: Sequence[Run],
        costs: Sequence[float],
        free: Sequence[str | None],
        signals: StopSignals,
    ) -> None:
        self.context, self.signals = context, signals
        self.waiting = in_order(costs, runs)  # taken from the end
        self.elsewhere: list[tuple[float, Run]] = []
        self.free = list(free)
        # of the costs, what this command has to train
        self.left = {run.folder: _left(run, cost) for run, cost in zip(runs, costs, strict=True)}
        self.total, self.done, self.count = sum(self.left.values()), 0.0, len(runs)
        # earlier ones; those of others than sweep.retry_failed selects are of other commands, since this one began
        self.failures = {run.folder: run.failure if run.config.sweep.retry_failed else None for run in runs}
        self.outcomes: Counter[bool] = Counter()
        self.running: list[_Training] = []
        self.failed: list[tuple[Run, str]] = []
        self.not_uploaded: list[Run] = []
        self.warned = False
        self.alerts = Alerts()
        self.name_columns = max(len(run.name) for run in runs)
        self.started = time.monotonic()

    def train(self) -> list[tuple[Run, str]]:
        """Train all runs; return the failed ones, each with its reason.

        Raises:
            StoppedError: a signal arrived and the active runs are saved, or a second Ctrl-C arrived.
        """
        self.signals.deferring = True
        stopping = False
        try:
            with tqdm(total=1.0, bar_format="{desc}", leave=False, disable=None, dynamic_ncols=True) as status:
                while self.running or ((self.waiting or self.elsewhere) and not stopping):
                    if self.signals.received and not stopping:
                        stopping = True
                        # a process that is still starting, or has just finished, has nothing to save
                        saving = sum(training.process.is_alive() and training.run.locked for training in self.running)
                        what = f"stopping: saving {quantity(saving, 'run')}" if saving else "stopping"
                        say(f"{what}; press Ctrl-C again to stop at once")
                        for training in self.running:
                            training.process.terminate()
                    self._start(0 if stopping else len(self.free))
                    multiprocessing.connection.wait(
                        [training.process.sentinel for training in self.running], POLL_SECONDS
                    )
                    for training in [training for training in self.running if not training.process.is_alive()]:
                        self._collect(training)
                    self._poll_elsewhere()
                    self.warned = self.warned or report_warning(training.run for training in self.running)
                    status.set_description_str(self._status())
        finally:
            for training in self.running:
                training.process.kill()
        if stopping:
            left = self.count - self.outcomes.total()
            raise StoppedError(
                f"stopped: {left} of {quantity(self.count, 'run')} left; run the same command again to resume",
                self.signals.received,
            )
        self.signals.deferring = False  # there is nothing left to save
        self.alerts.wait()
        return self.failed

    def _start(self, count: int) -> None:
        """Start up to `count` runs, each in a free slot."""
        while self.waiting and count:
            cost, run = self.waiting.pop()
            if run.finished:  # by another command, since this one began
                self._report(run, None, None)
                continue
            if run.failure not in (None, self.failures[run.folder]):  # by another command as well
                self._report(run, run.failure, None)
                continue
            count -= 1
            slot = self.free.pop()
            run.warning_file.unlink(missing_ok=True)  # of an attempt that was killed
            receiver, sender = multiprocessing.connection.Pipe(duplex=False)
            process = self.context.Process(target=_work, args=(run, sender, slot))
            process.start()
            sender.close()
            self.running.append(_Training(run, cost, slot, process, receiver, time.monotonic(), _progress(run)))

    def _collect(self, training: _Training) -> None:
        """Handle the outcome of a process that has exited, and free its slot."""
        self.running.remove(training)
        self.free.append(training.slot)
        try:
            kind, reason = training.outcome.recv()
        except EOFError:
            code = training.process.exitcode or 0
            if self.signals.received and code == -signal.SIGTERM:  # the signal arrived before its handler was installed
                return
            name = signal.Signals(-code).name if code < 0 else f"code {code}"
            kind = "failed"
            reason = f"its process died ({name}), possibly out of memory; run the same command again to resume"
        if kind == "stopped" and not self.signals.received:  # a signal to this process alone
            kind, reason = "failed", "its process was stopped by a signal; run the same command again to resume"
        if kind == "locked":
            self.elsewhere.append((training.cost, training.run))
            say(f"waiting for {training.run.name}, which another process is training")
        elif kind != "stopped":
            self._report(training.run, reason, time.monotonic() - training.started)

    def _poll_elsewhere(self) -> None:
        """Report or take over the runs that other processes no longer train."""
        for cost, run in [pair for pair in self.elsewhere if not pair[1].locked]:
            self.elsewhere.remove((cost, run))
            if run.finished:
                self._report(run, None, None)
            else:
                self.total -= self.left[run.folder] - _left(run, cost)
                self.left[run.folder] = _left(run, cost)
                self.waiting.append((cost, run))

    def _report(self, run: Run, reason: str | None, seconds: float | None) -> None:
        """Account for a run that finished or failed, and print its outcome.

        Args:
            run: the run.
            reason: why it failed; None if it finished.
            seconds: the time that this command has trained it; None if another one has trained it.
        """
        self.outcomes[reason is None] += 1
        if reason is None and seconds is not None:
            self.done += self.left[run.folder]
        else:
            self.total -= self.left[run.folder]
        if reason is not None:
            self.failed.append((run, reason))
            self.alerts.send(run, reason)
        report_upload_problem(run, self.not_uploaded)
        print_outcome(
            self.outcomes.total(),
            self.count,
            run,
            reason,
            seconds=seconds,
            remaining=self._remaining(),
            name_columns=self.name_columns,
        )

    def _remaining(self) -> list[str]:
        """Describe the rest of the sweep, in versions from the most to the least detailed.

        The remaining time is extrapolated from the cost of the work that this command has done so far.
        """
        left = self.count - self.outcomes.total()
        if not left:
            return ["done"]
        done = self.done + sum(map(self._done, self.running))
        if not done:
            return [f"{left} left"]
        seconds = (time.monotonic() - self.started) * (self.total - done) / done
        return remaining_time(left, seconds, datetime.now())

    def _done(self, training: _Training) -> float:
        """Return the cost of what this command has done of a run in training; 0 until that has written a row."""
        progress = _progress(training.run)
        if progress == training.progress:
            return 0.0
        return max(0.0, self.left[training.run.folder] - training.cost * (1 - progress))

    def _status(self) -> str:
        """Return the line that shows the active runs, shortened to the width of the terminal."""
        if not self.running:
            return ""
        names = [training.run.name for training in self.running]
        shares = [_progress(training.run) for training in self.running]
        # there is no share before the first row of the curve
        parts = [f" {100 * share:.0f} %" if share else "" for share in shares]
        long = ", ".join(f"{name}{part}" for name, part in zip(names, parts, strict=True))
        short = ", ".join(f"{without_hash(name)}{part}" for name, part in zip(names, parts, strict=True))
        remaining = self._remaining()
        versions = [f"{left}; running: {shown}" for shown in (long, short) for left in remaining[:2]]
        versions += [f"{left}; {len(names)} running" for left in remaining]
        return first_that_fits(versions, terminal_columns())


def _left(run: Run, cost: float) -> float:
    """Return the part of a run's cost that is left at its newest checkpoint."""
    return cost * (1 - _progress(run, run.step))


def _progress(run: Run, until: float = math.inf) -> float:
    """Return the completed share of a run's epochs or steps, according to the rows of its curve until a step."""
    recipe = run.config.optim
    try:
        curve = [row for row in run.curve() if row["step"] <= until]
    except (OSError, ValueError, TypeError, KeyError):  # the run itself reports a damaged file
        return 0.0
    if not curve:
        return 0.0
    return curve[-1]["epoch"] / recipe.epochs if recipe.epochs else curve[-1]["step"] / (recipe.steps or 1)


def _work(run: Run, sender: "Connection[Any, Any]", gpus: str | None) -> None:
    """Train a run in this forked process; send its outcome and, if it failed, the reason.

    Args:
        run: the run as this command describes it; another command may have written another config.yaml since.
        sender: the connection to the pool.
        gpus: CUDA_VISIBLE_DEVICES, or None on the CPU.
    """
    attach_to_command()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    try:
        reason = train_quietly(run)
    except LockedError:
        sender.send(("locked", None))
    except StoppedError:
        sender.send(("stopped", None))
    else:
        sender.send(("finished" if reason is None else "failed", reason))


def train_quietly(run: Run) -> str | None:
    """Train a run with its output redirected to its log.

    Returns:
        The reason of a failure, None if the run finished.

    Raises:
        LockedError: another process is training the run.
        StoppedError: a signal arrived.
    """
    with unfailing_output(), _redirected_to(run.log):
        try:
            launch(run)
        except (LockedError, StoppedError) as error:
            print(error, file=sys.stderr)
            raise
        except BaseException as error:  # SystemExit as well: it would otherwise end the process silently
            traceback.print_exc()
            return reason_of(error)
    return None


@contextmanager
def _redirected_to(log: Path) -> Iterator[None]:
    """Append the standard output and error of this process and its children to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    streams = sys.stdout, sys.stderr
    saved = [os.dup(stream.fileno()) for stream in streams]
    with log.open("a") as file:
        for stream in streams:
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    try:
        yield
    finally:
        for stream, original in zip(streams, saved, strict=True):
            stream.flush()
            os.dup2(original, stream.fileno())
            os.close(original)
