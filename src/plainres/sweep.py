"""Many runs: which are missing, train each in a fresh process, tell how far it is and when it will end.

The processes are forked from one that has done the imports, so that a run starts in milliseconds, and none can see what
another left behind.
"""

import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime, timedelta
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import joblib
from tqdm import tqdm

from plainres.errors import InputError
from plainres.runs import Run

PRELOADED = ["plainres.train", "sklearn.datasets"]  # imported once, not once in each process
POLL_SECONDS = 1.0  # between two looks at the curves of the running


def say(text: str) -> None:
    """Print to standard error, above the status line if there is one."""
    tqdm.write(text, file=sys.stderr)


def sweep(runs: Sequence[Run]) -> int:
    """Train the runs that are not finished; return how many failed.

    Raises:
        InputError: a run's configuration cannot be carried out; then nothing has been trained.
    """
    runs = list({run.folder: run for run in runs}.values())
    missing = [run for run in runs if not (run.finished and run.result)]
    studies = ", ".join(sorted({str(run.folder.parent) for run in runs}))
    say(f"{studies}: {len(runs)} runs, {len(runs) - len(missing)} finished, {len(missing)} to train")
    if not missing:
        return 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # BLAS libraries read these when they are imported; torch's threads are set for each run
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is this process's to report, not its server's
    ensure_running()
    signal.signal(signal.SIGINT, interrupt)
    with ProcessPoolExecutor(1, mp_context=context) as executor:  # what it imports, the runs need not import again
        costs = executor.submit(_costs, missing).result()
    for run in missing:
        run.prepare()
    return _Pool(context, missing, costs).train()


def _costs(runs: Sequence[Run]) -> list[float]:
    """Multiply-adds for each run, from which follows how long it takes relative to the others.

    All that could be wrong with a run comes up here, before the first one trains: its network is made, its data are
    prepared.
    """
    import torch

    from plainres.build import architecture_of, check, source_of
    from plainres.describe import describe

    images: dict[str, int] = {}
    multiply_adds: dict[str, int] = {}
    costs = []
    for run in runs:
        config = run.config
        source = source_of(config)
        data, network = repr(config.data), repr((config.model, config.data))
        if data not in images:
            images[data] = len(source.load().train)
        if network not in multiply_adds:
            check(config)
            with torch.device("meta"):
                multiply_adds[network] = describe(architecture_of(config, source), source.shape).multiply_adds
        batch_size = config.optim.batch_size
        if batch_size > images[data]:
            raise InputError(f"optim.batch_size is {batch_size}, but there are only {images[data]} training images")
        costs.append(float(multiply_adds[network] * batch_size * config.optim.length(images[data] // batch_size)))
    return costs


class _Pool:
    """As many runs at a time as there is room for, the longest first.

    Each place is an executor of its own with one process, which ends with its run: when a process dies, it is known
    whose it was, and the others go on.
    """

    def __init__(
        self, context: multiprocessing.context.ForkServerContext, runs: Sequence[Run], costs: Sequence[float]
    ) -> None:
        self.context = context
        self.waiting = sorted(zip(costs, runs, strict=True), key=lambda pair: pair[0])
        self.total, self.done = sum(costs), 0.0
        self.count = len(runs)
        self.outcomes: Counter[bool] = Counter()
        self.running: dict[Future[str | None], tuple[float, Run, float]] = {}
        self.started = time.monotonic()

    def train(self) -> int:
        """Train all; return how many failed."""
        trainers = [run.config.trainer for _, run in self.waiting]
        threads = max(trainer.threads * trainer.devices for trainer in trainers)
        on_cpu = all(trainer.accelerator == "cpu" for trainer in trainers)
        places = joblib.cpu_count() // threads if on_cpu else 1
        failed: list[tuple[Run, str]] = []
        with tqdm(total=1.0, bar_format="{desc}", leave=False, disable=None) as status:
            for _ in range(max(1, places)):
                self._start_next()
            while self.running:
                done, _ = wait(self.running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    cost, run, started = self.running.pop(future)
                    self._start_next()
                    reason = _outcome(future)
                    self.outcomes[reason is None] += 1
                    if reason is None:
                        self.done += cost
                    else:
                        self.total -= cost
                        failed.append((run, reason))
                    self._report(run, reason, time.monotonic() - started)
                status.set_description_str(self._status())
        for run, reason in failed:
            say(f"failed: {run.name}: {reason} (see {run.log})")
        return len(failed)

    def _start_next(self) -> None:
        if self.waiting:
            cost, run = self.waiting.pop()
            executor = ProcessPoolExecutor(1, mp_context=self.context)
            self.running[executor.submit(_train_quietly, run.folder)] = (cost, run, time.monotonic())
            executor.shutdown(wait=False)  # the process ends with its run

    def _report(self, run: Run, reason: str | None, seconds: float) -> None:
        """One line for a run that has ended."""
        ended = self.outcomes.total()
        if reason is None:
            result = run.result
            text = f"train error {result['train_error_eval']:6.2f} %  test error {result['test_error']:6.2f} %"
        else:
            text = f"FAILED: {reason}"
        say(f"[{ended:>{len(str(self.count))}}/{self.count}] {run.name:<30} {text}  {seconds:5.0f} s   {self._left()}")

    def _left(self) -> str:
        """How many runs are left and when they will have ended, if the rest is as fast as what is done."""
        left = self.count - self.outcomes.total()
        if not left:
            return f"all done in {_duration(time.monotonic() - self.started)}"
        done = self.done + sum(cost * _progress(run) for cost, run, _ in self.running.values())
        if not done:
            return f"{left} left"
        seconds = (time.monotonic() - self.started) * (self.total - done) / done
        end = datetime.now() + timedelta(seconds=seconds)
        return f"{left} left, about {_duration(seconds)}, until {end:%H:%M}"

    def _status(self) -> str:
        running = ", ".join(f"{run.name} {_progress(run):.0%}" for _, run, _ in self.running.values())
        return f"{self._left()}; running: {running}" if running else ""


def _duration(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _progress(run: Run) -> float:
    """The share of a run's epochs or steps that its curves show."""
    curve, recipe = run.curve(), run.config.optim
    if not curve:
        return 0.0
    return curve[-1]["epoch"] / recipe.epochs if recipe.epochs else curve[-1]["step"] / (recipe.steps or 1)


def _outcome(future: Future[str | None]) -> str | None:
    """Why a run failed; None if it did not."""
    try:
        return future.result()
    except BrokenProcessPool:
        return "its process died: killed, or out of memory"


def _end_with_the_sweep() -> None:
    """Wait for the end of the process that sweeps, however it comes, and end this one: nobody waits for it any more."""
    sweeping = multiprocessing.parent_process()
    assert sweeping is not None
    multiprocessing.connection.wait([sweeping.sentinel])
    os._exit(1)


def _train_quietly(folder: Path) -> str | None:
    """Train the run in `folder`, in a process of its own; what it prints goes into its log. Return why it failed."""
    import traceback

    from plainres.train import launch

    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    run = Run.read(folder)
    with run.log.open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    try:
        launch(run)
    except BaseException as error:  # whatever ends the run is told, not only what Python calls an exception
        traceback.print_exc()
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None
