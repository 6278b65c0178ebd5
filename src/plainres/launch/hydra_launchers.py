"""A sweep by one of Hydra's launchers: joblib, SLURM, and whatever else there is a plugin for.

A launcher with a plugin needs no code here: `hydra/launcher=NAME` chooses it, and conf/hydra/launcher/ holds settings
for some. Each job trains one run, wherever the launcher starts it; this process follows the runs by their folders.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from plainres.config.compose import Jobs, chosen_options, typed
from plainres.config.instantiate import check
from plainres.console import say
from plainres.errors import LockedError, StoppedError, first_line
from plainres.launch.preflight import check_priority, urgency
from plainres.launch.sweep import outcome_text, summarise, tell_trouble, to_train, train_quietly
from plainres.processes.world import requeue
from plainres.runs.record import Run

POLL_SECONDS = 0.5  # between two looks at the folders of the runs
JOBS = ".jobs"  # the folder beside the runs that takes what a launcher writes


def sweep_with(jobs: Jobs) -> int:
    """Have the launcher train the runs that are not finished; return how many failed.

    Raises:
        InputError: a run's configuration cannot be carried out, or the launcher cannot start any; nothing was trained.
    """
    overrides = {Run.of(config).folder: each for config, each in zip(jobs.configs, jobs.overrides, strict=True)}
    unfinished, failed = to_train([Run.of(config) for config in jobs.configs])
    elsewhere = [run for run in unfinished if run.locked]
    missing = sorted((run for run in unfinished if run not in elsewhere), key=urgency)
    check_priority(missing)
    for run in missing:
        check(run.config, devices=False)  # they are elsewhere
    for run in missing:
        run.prepare()
        (run.folder / "failed.json").unlink(missing_ok=True)
    watch = _Watch([*missing, *elsewhere])
    with watch.looking():
        if missing:
            jobs_folder = missing[0].folder.parent / JOBS
            os.environ["PLAINRES_SCRATCH"] = str(jobs_folder.absolute())
            os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # what runs take as the end of their time
            say(f"hydra/launcher={jobs.launcher} starts {len(missing)} jobs; what it writes is in {jobs_folder}")
            _launch(jobs, missing, [overrides[run.folder] for run in missing], watch)
        for run in elsewhere:
            while run.locked:
                time.sleep(POLL_SECONDS)
            watch.conclude(run, "the process that trained it has ended before it; the same command goes on")
    return summarise(failed + watch.failed)


def _launch(jobs: Jobs, runs: Sequence[Run], overrides: Sequence[Sequence[str]], watch: "_Watch") -> None:
    """Launch, wait for the end of all jobs, and tell of those that the look at their folders does not explain."""
    error = ""
    returned: list[Any] = []
    with _patient_submitit():
        try:
            returned = [job.return_value for job in jobs.launch(overrides, train_job)]
        except (SystemExit, KeyboardInterrupt):
            raise
        except Exception as caught:
            error = f"{jobs.launcher} gave up: {type(caught).__name__}: {first_line(caught)}"
    for run, reason in zip(runs, [*returned, *[None] * (len(runs) - len(returned))], strict=True):
        watch.conclude(run, reason or error or "its job ended before its run: cancelled, killed, or out of memory")


class _Watch:
    """Looks at the folders of runs, and says at once what becomes of each."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs, self.ended = runs, set[Path]()
        self.failed: list[tuple[Run, str]] = []
        self.troubled: list[Run] = []
        self.started = time.monotonic()
        self.lock = threading.Lock()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look again and again, from another thread."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(POLL_SECONDS):
                self.look()

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def look(self) -> None:
        """Report the runs that have ended since the last look."""
        with self.lock:
            for run in self.runs:
                if run.folder not in self.ended and (run.finished or run.failure):
                    self._report(run, None if run.finished else run.failure)

    def conclude(self, run: Run, reason: str) -> None:
        """Nobody trains this run any more: if it has not ended, it has failed, for this reason."""
        self.look()
        with self.lock:
            if run.folder not in self.ended:
                self._report(run, reason)

    def _report(self, run: Run, reason: str | None) -> None:
        """One line for a run that has ended."""
        self.ended.add(run.folder)
        tell_trouble(run, self.troubled)
        if reason is not None:
            self.failed.append((run, reason))
        left, seconds = len(self.runs) - len(self.ended), time.monotonic() - self.started
        say(
            f"[{len(self.ended)}/{len(self.runs)}] {run.name:<30} {outcome_text(run, reason)}  "
            f"after {seconds:.0f} s, {left} left"
        )


def train_job(composed: DictConfig) -> str | None:
    """Train the run of one job, in the process that a launcher has made for it; return why it failed.

    Raises:
        StoppedError: a signal came. Under SLURM the job is back in the queue if its time was up.
    """
    run = Run.of(typed(composed, chosen_options()))
    if run.finished:
        return None
    try:
        return train_quietly(run)
    except LockedError as error:
        return str(error)
    except StoppedError as stop:
        requeue(stop)
        raise


@contextmanager
def _patient_submitit() -> Iterator[None]:
    """Let a cancelled job of submitit's say so, instead of ending the wait for all the others."""
    try:
        import submitit
        from hydra.core.utils import JobReturn, JobStatus
        from submitit.core.utils import FailedJobError, UncompletedJobError
    except ImportError:
        yield
        return
    job_class: Any = submitit.Job
    results = job_class.results

    def patient(job: Any) -> list[Any]:
        try:
            return results(job)
        except (FailedJobError, UncompletedJobError) as error:
            reason = f"job {job.job_id} did not end: {first_line(error)}; the same command goes on"
            return [JobReturn(status=JobStatus.COMPLETED, _return_value=reason)]

    job_class.results = patient
    try:
        yield
    finally:
        job_class.results = results
