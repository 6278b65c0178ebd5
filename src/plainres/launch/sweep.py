"""Many runs: which are missing, train each in a fresh process, tell how far it is and when it will end.

The processes are forked from one that has done the imports, so that a run starts in milliseconds, and none can see what
another left behind.
"""

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
from datetime import datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plainres.config.schema import Config
from plainres.console import duration, say
from plainres.errors import LockedError, StoppedError, first_line
from plainres.launch.devices import launch
from plainres.launch.hints import hints
from plainres.launch.preflight import preflight, slots, urgency
from plainres.processes.forkserver import begin, call_in_processes, forkserver
from plainres.processes.signals import StopSignals
from plainres.runs.record import Run, State

# imported once, not once in each process; wandb.sdk.launch is what the client imports when it first begins
PRELOADED = ["plainres.training.train", "sklearn.datasets"]
PRELOADED_FOR_WANDB = ["plainres.tracking.wandb_logger", "wandb.sdk.launch"]
POLL_SECONDS = 0.5  # between two looks at the running


def to_train(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Run, str]]]:
    """Say what there is of a sweep; return what is to be trained, and what has failed and is not to be tried again."""
    states = {run.folder: (run, run.state) for run in runs}
    found: dict[State, list[Run]] = {state: [] for state in State}
    for run, state in states.values():
        found[state].append(run)
    say(f"{', '.join(sorted({str(run.folder.parent) for run in runs}))}: {len(states)} runs")
    details = {
        State.INTERRUPTED: lambda run: f"{run.name} at step {run.step}",
        State.FAILED: lambda run: f"{run.name}: {run.failure}",
        State.RUNNING: lambda run: run.name,
    }
    for state, those in found.items():
        if those:
            say(f"  {len(those):5} {state.value}")
            for run in those if state in details else []:
                say(f"          {details[state](run)}")
    failed = [(run, str(run.failure)) for run in found[State.FAILED] if not run.config.sweep.retry_failed]
    if failed:
        say("  sweep.retry_failed=true tries the failed again")
    left_out = {run.folder for run, _ in failed} | {run.folder for run in found[State.FINISHED]}
    return [run for run, _ in states.values() if run.folder not in left_out], failed


def summarise(failed: Sequence[tuple[Run, str]]) -> int:
    """Name the runs that failed, last of all; return how many."""
    for run, reason in failed:
        say(f"failed: {run.name}: {reason}{f' (see {run.log})' if run.log.exists() else ''}")
    return len(failed)


def sweep(runs: Sequence[Run | Config]) -> int:
    """Train the runs that are not finished, on this machine; return how many failed.

    Args:
        runs: runs, or their configurations.

    Raises:
        InputError: a run's configuration cannot be carried out; then nothing has been trained.
        StoppedError: a signal came; what was running is saved.
    """
    missing, failed = to_train([run if isinstance(run, Run) else Run.of(run) for run in runs])
    for hint in hints(missing):
        say(hint)
    if missing:
        wandb = PRELOADED_FOR_WANDB if any(run.config.logger.wandb for run in missing) else []
        context = forkserver([*PRELOADED, *wandb])
        ((costs, gpus),) = call_in_processes(context, [(preflight, missing)])
        for run in missing:
            run.prepare()
        with StopSignals() as signals:
            free = slots(missing, gpus, os.environ.get("CUDA_VISIBLE_DEVICES", ""))
            failed += _Pool(context, missing, costs, free, signals).train()
    return summarise(failed)


@dataclass(frozen=True)
class _Training:
    """A run that is being trained, in a process of its own, in a slot."""

    run: Run
    cost: float
    slot: str | None
    process: ForkServerProcess
    outcome: Any  # a Connection; the types of the two systems differ
    started: float


class _Pool:
    """Train one run per slot, by `sweep.priority`, then most expensive first, each in a fresh process.

    A run that another process is at is waited for, and taken over if that ends before the run does.
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
        # the next one comes last
        self.waiting = sorted(zip(costs, runs, strict=True), key=lambda pair: (-urgency(pair[1]), pair[0]))
        self.elsewhere: list[tuple[float, Run]] = []
        self.free = list(free)
        self.total, self.done, self.count = sum(costs), 0.0, len(runs)
        self.outcomes: Counter[bool] = Counter()
        self.running: list[_Training] = []
        self.failed: list[tuple[Run, str]] = []
        self.troubled: list[Run] = []
        self.started = time.monotonic()

    def train(self) -> list[tuple[Run, str]]:
        """Train all; return those that failed, and why.

        Raises:
            StoppedError: after a signal, when the running are saved; after a second Ctrl-C at once.
        """
        self.signals.deferring = True
        told = False
        try:
            with tqdm(total=1.0, bar_format="{desc}", leave=False, disable=None) as status:
                while self.running or ((self.waiting or self.elsewhere) and not told):
                    if self.signals.received and not told:
                        told = True
                        say(f"stopping: {len(self.running)} runs are being saved; Ctrl-C stops at once")
                        for training in self.running:
                            training.process.terminate()
                    self._start(0 if told else len(self.free))
                    multiprocessing.connection.wait(
                        [training.process.sentinel for training in self.running], POLL_SECONDS
                    )
                    for training in [training for training in self.running if not training.process.is_alive()]:
                        self._end(training)
                    self._look_elsewhere()
                    status.set_description_str(self._status())
        finally:
            for training in self.running:
                training.process.kill()
        if told:
            left = self.count - self.outcomes.total()
            raise StoppedError(
                f"stopped: {left} of {self.count} runs are left; the same command goes on", self.signals.received
            )
        return self.failed

    def _start(self, count: int) -> None:
        while self.waiting and count:
            count -= 1
            (cost, run), slot = self.waiting.pop(), self.free.pop()
            outcome, theirs = multiprocessing.connection.Pipe(duplex=False)
            process = self.context.Process(target=_work, args=(run.folder, theirs, slot))
            process.start()
            theirs.close()
            self.running.append(_Training(run, cost, slot, process, outcome, time.monotonic()))

    def _end(self, training: _Training) -> None:
        """Take in what a process that has ended has to tell."""
        self.running.remove(training)
        self.free.append(training.slot)
        try:
            kind, reason = training.outcome.recv()
        except EOFError:
            code = training.process.exitcode or 0
            if self.signals.received and code == -signal.SIGTERM:  # before it could take the signal otherwise
                return
            name = signal.Signals(-code).name if code < 0 else f"code {code}"
            kind, reason = "failed", f"its process died ({name}): killed, or out of memory; the same command goes on"
        if kind == "locked":
            self.elsewhere.append((training.cost, training.run))
            say(f"{training.run.name} is being trained by another process; it is waited for")
        elif kind != "stopped":
            self._report(training.run, training.cost, reason, time.monotonic() - training.started)

    def _look_elsewhere(self) -> None:
        for cost, run in [pair for pair in self.elsewhere if not pair[1].locked]:
            self.elsewhere.remove((cost, run))
            if run.finished:
                self._report(run, cost, None, 0)
            else:
                self.waiting.append((cost, run))

    def _report(self, run: Run, cost: float, reason: str | None, seconds: float) -> None:
        """One line for a run that has ended."""
        self.outcomes[reason is None] += 1
        ended = self.outcomes.total()
        if reason is None:
            self.done += cost
        else:
            self.total -= cost
            self.failed.append((run, reason))
        tell_trouble(run, self.troubled)
        text = outcome_text(run, reason)
        say(f"[{ended:>{len(str(self.count))}}/{self.count}] {run.name:<30} {text}  {seconds:5.0f} s   {self._left()}")

    def _left(self) -> str:
        """How many runs are left and when they will have ended, if the rest is as fast as what is done."""
        left = self.count - self.outcomes.total()
        if not left:
            return f"all done in {duration(time.monotonic() - self.started)}"
        done = self.done + sum(training.cost * _progress(training.run) for training in self.running)
        if not done:
            return f"{left} left"
        seconds = (time.monotonic() - self.started) * (self.total - done) / done
        end = datetime.now() + timedelta(seconds=seconds)
        return f"{left} left, about {duration(seconds)}, until {end:%H:%M}"

    def _status(self) -> str:
        running = ", ".join(f"{training.run.name} {_progress(training.run):.0%}" for training in self.running)
        return f"{self._left()}; running: {running}" if running else ""


def outcome_text(run: Run, reason: str | None) -> str:
    """What a run has come to, in a line."""
    if reason is not None:
        return f"FAILED: {reason}"
    result = run.result
    return f"train error {result['train_error_eval']:6.2f} %  test error {result['test_error']:6.2f} %"


def tell_trouble(run: Run, troubled: list[Run]) -> None:
    """Say what a run's log says of W&B, if it is the first of a sweep to have such trouble; add it to the others."""
    if run.config.logger.wandb and run.trouble_file.exists():
        if not troubled:
            say(
                f"{run.name}: {run.trouble_file.read_text()}; the runs go on, "
                f"and `plainres wandb-sync {run.folder.parent}` sends them later"
            )
        troubled.append(run)


def _progress(run: Run) -> float:
    """The share of a run's epochs or steps that its curves show."""
    recipe = run.config.optim
    try:
        curve = run.curve()
    except (OSError, ValueError, TypeError):  # not for the one who looks on to worry about
        return 0.0
    if not curve:
        return 0.0
    return curve[-1]["epoch"] / recipe.epochs if recipe.epochs else curve[-1]["step"] / (recipe.steps or 1)


def _work(folder: Path, outcome: "Connection[Any, Any]", gpus: str | None) -> None:
    """Train the run in `folder`, in a process of its own on the GPUs named; tell how it ended, and why."""
    begin()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    try:
        reason = train_quietly(Run.read(folder))
    except LockedError:
        outcome.send(("locked", None))
    except StoppedError:
        outcome.send(("stopped", None))
    else:
        outcome.send(("finished" if reason is None else "failed", reason))


def train_quietly(run: Run) -> str | None:
    """Train a run; what it prints goes into its log. Return why it failed, None if it did not.

    Raises:
        LockedError: another process trains the run.
        StoppedError: a signal came.
    """
    with _printing_to(run.log):
        try:
            launch(run)
        except (LockedError, StoppedError) as error:
            print(error, file=sys.stderr)
            raise
        except BaseException as error:  # whatever ends the run is told, not only what Python calls an exception
            traceback.print_exc()
            return f"{type(error).__name__}: {first_line(error)}"
    return None


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Let what this process and those it starts print go to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    streams = sys.stdout, sys.stderr
    kept = [os.dup(stream.fileno()) for stream in streams]
    with log.open("a") as file:
        for stream in streams:
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    try:
        yield
    finally:
        for stream, before in zip(streams, kept, strict=True):
            stream.flush()
            os.dup2(before, stream.fileno())
            os.close(before)
