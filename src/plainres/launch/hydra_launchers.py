"""Sweeps by a Hydra launcher: joblib, SLURM, or any other launcher plugin.

A launcher plugin needs no code here: `hydra/launcher=NAME` selects it, and conf/hydra/launcher/ holds settings for some
of them. Each job trains one run wherever the launcher starts it; this process monitors the folders of the runs.
"""

import os
import pickle
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from plainres.config.compose import Jobs
from plainres.console import quantity, say
from plainres.errors import InputError, StoppedError, first_line
from plainres.launch.active import mark_active
from plainres.launch.hints import hints, unmeasured
from plainres.launch.messages import print_outcome, print_states, print_summary, report_upload_problem, report_warning
from plainres.launch.preflight import check_alone, check_settings, preflight_jobs, urgency
from plainres.launch.selection import adopt_report_options, select
from plainres.launch.sweep import train_quietly
from plainres.processes.environment import isolate
from plainres.processes.signals import StopSignals
from plainres.processes.world import requeue
from plainres.runs.record import Run
from plainres.runs.tuning import is_tuned
from plainres.tracking.wandb_alert import Alerts

POLL_SECONDS = 0.5  # between two polls of the folders of the runs
EXITED_EARLY = "its job exited early: cancelled, killed or out of memory; run the same command again to resume"
JOBS = ".jobs"  # the folder next to the runs for the output of the launcher


def sweep_with(jobs: Jobs) -> int:
    """Train the unfinished runs with the launcher that `jobs` names.

    Returns:
        The number of failed runs.

    Raises:
        InputError: a configuration is invalid, or the launcher cannot start a job; no run has been trained.
    """
    check_launcher(jobs)
    started = time.monotonic()
    overrides = {Run.of(config).folder: each for config, each in zip(jobs.configs, jobs.overrides, strict=True)}
    runs = [Run.of(config) for config in jobs.configs]
    selection = select(runs)
    print_states(selection)
    unfinished, failed = selection.left, selection.failed
    elsewhere = [run for run in unfinished if run.locked]
    missing = sorted((run for run in unfinished if run not in elsewhere), key=urgency)
    preflight_jobs(runs, missing)
    for hint in [*hints(unfinished), *unmeasured(selection.finished)]:
        say(hint)
    adopt_report_options(selection.finished)
    for run in missing:
        run.prepare()
        if not run.locked:  # by another command, since this one began
            for file in (run.folder / "failed.json", run.owner_file, run.warning_file):  # of earlier attempts
                file.unlink(missing_ok=True)
    monitor = _Monitor([*missing, *elsewhere])
    with StopSignals(started=True), mark_active(missing), monitor.polling():
        if missing:
            jobs_folder = missing[0].folder.parent / JOBS
            os.environ["PLAINRES_SCRATCH"] = str(jobs_folder.absolute())
            os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # runs save themselves and exit on SIGUSR1
            say(
                f"hydra/launcher={jobs.launcher} starts {quantity(len(missing), 'job')}; its output is in {jobs_folder}"
            )
            _launch(jobs, missing, [overrides[run.folder] for run in missing], monitor)
        for run in elsewhere:
            while run.locked:
                time.sleep(POLL_SECONDS)
            monitor.conclude(run, "its training process exited early; run the same command again to resume")
    monitor.alerts.wait()
    return print_summary(runs, missing, failed + monitor.failed, time.monotonic() - started)


def check_launcher(jobs: Jobs) -> None:
    """Check that the launcher is installed, and that it has a sweep to start from this process, without sweep.tune.

    Raises:
        InputError: it is not, or has not.
    """
    check_alone()
    if not jobs.overrides:
        raise InputError(f"hydra/launcher={jobs.launcher} starts the runs of a sweep: add -m")
    jobs.check_installed()
    if is_tuned(jobs.configs):
        raise InputError(
            f"sweep.tune needs hydra/launcher=basic, not {jobs.launcher}, since its runs follow from others"
        )


def _launch(jobs: Jobs, runs: Sequence[Run], overrides: Sequence[Sequence[str]], monitor: "_Monitor") -> None:
    """Launch all jobs, wait for them, and report the runs whose folders do not explain how their jobs exited.

    Raises:
        InputError: the launcher failed before any run had started.
    """
    error = ""
    returned: list[Any] = []
    with _tolerating_lost_jobs(jobs.launcher):
        try:
            # a launcher composes again on the other machine, and another command may write another config.yaml;
            # submitit stores the task with every job
            composed = zlib.compress(pickle.dumps([Run(run.config, run.folder.absolute()) for run in runs]))
            task = partial(train_job, composed)
            launched = [[*each, "hydra.job.chdir=false"] for each in overrides]  # paths are relative to this folder
            returned = [job.return_value for job in jobs.launch(launched, task)]
        except (SystemExit, KeyboardInterrupt):
            raise
        except Exception as caught:
            error = f"hydra/launcher={jobs.launcher} failed: {type(caught).__name__}: {first_line(caught).rstrip('.')}"
    if error and not monitor.started and not monitor.reported:
        raise InputError(f"{error}; no run has been trained")
    for run, reason in zip(runs, [*returned, *[None] * (len(runs) - len(returned))], strict=True):
        monitor.conclude(run, reason or error or EXITED_EARLY)


class _Monitor:
    """Polls the folders of runs, and reports each run as soon as it finishes or fails."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs, self.reported = runs, set[Path]()
        self.failed: list[tuple[Run, str]] = []
        self.not_uploaded: list[Run] = []
        self.warned = False
        self.alerts = Alerts()
        self.started: dict[Path, float] = {}  # time at which each run was first seen in training
        self.lock = threading.Lock()

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Poll from another thread."""
        stop = threading.Event()

        def poll_until_stopped() -> None:
            while not stop.wait(POLL_SECONDS):
                self.poll()

        thread = threading.Thread(target=poll_until_stopped, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def poll(self) -> None:
        """Report the runs that have finished or failed since the last poll."""
        with self.lock:
            self.warned = self.warned or report_warning(self.runs)
            for run in self.runs:
                if run.folder not in self.started and run.owner_file.exists():
                    self.started[run.folder] = time.monotonic()
                if run.folder not in self.reported and (run.finished or (run.failure and not run.locked)):
                    self._report(run, None if run.finished else run.failure)

    def conclude(self, run: Run, reason: str) -> None:
        """Report a run that no process trains any more; unless its folder says otherwise, it failed for `reason`."""
        self.poll()
        with self.lock:
            if run.folder not in self.reported:
                self._report(run, reason)

    def _report(self, run: Run, reason: str | None) -> None:
        """Account for a run that finished or failed, and print its outcome."""
        self.reported.add(run.folder)
        report_upload_problem(run, self.not_uploaded)
        if reason is not None:
            self.failed.append((run, reason))
            self.alerts.send(run, reason)
        count, total = len(self.reported), len(self.runs)
        started = self.started.get(run.folder)  # None if it took less than POLL_SECONDS
        print_outcome(
            count,
            total,
            run,
            reason,
            seconds=None if started is None else time.monotonic() - started,
            remaining=[f"{total - count} left" if count < total else "done"],
            name_columns=max(len(each.name) for each in self.runs),
        )


def train_job(runs: bytes, composed: DictConfig) -> str | None:
    """Train the run of one job in the process that the launcher started for it.

    Args:
        runs: the run of each job, as the command composed them: pickled and compressed.
        composed: the configuration that the launcher has composed again, of which only the job's number is used.

    Returns:
        The reason of a failure, None if the run finished.

    Raises:
        StoppedError: a signal arrived. If it announced SLURM's time limit, the job is back in the queue.
    """
    run: Run = pickle.loads(zlib.decompress(runs))[HydraConfig.get().job.num]
    if run.finished:
        return None
    try:
        isolate()
        check_settings([run])  # a machine without the devices is no failure of the run
        return train_quietly(run)
    except InputError as error:
        return str(error)
    except StoppedError as stop:
        requeue(stop)
        raise


@contextmanager
def _tolerating_lost_jobs(launcher: str) -> Iterator[None]:
    """Return the reason of a lost job, where submitit and Ray would raise and stop waiting for the other jobs."""
    with ExitStack() as stack:
        for tolerating in (_submitit_tolerating, _ray_tolerating) if launcher != "joblib" else ():
            with suppress(ImportError):
                stack.enter_context(tolerating())
        yield


@contextmanager
def _submitit_tolerating() -> Iterator[None]:
    import submitit
    from submitit.core.utils import FailedJobError, UncompletedJobError

    job_class: Any = submitit.Job
    results = job_class.results

    def results_or_reason(job: Any) -> list[Any]:
        try:
            return results(job)
        except (FailedJobError, UncompletedJobError) as error:
            return [_lost(f"job {job.job_id}", error)]

    with _replaced(job_class, "results", results_or_reason):
        yield


@contextmanager
def _ray_tolerating() -> Iterator[None]:
    ray: Any = import_module("ray")
    errors: Any = import_module("ray.exceptions")
    get = ray.get

    def get_or_reason(task: Any, **options: Any) -> Any:
        try:
            return get(task, **options)
        except errors.RayError as error:
            return _lost("its Ray task", error)

    with _replaced(ray, "get", get_or_reason):
        yield


def _lost(job: str, error: Exception) -> JobReturn:
    reason = f"{job} did not finish: {first_line(error)}; run the same command again to resume"
    return JobReturn(status=JobStatus.COMPLETED, _return_value=reason)


@contextmanager
def _replaced(owner: Any, name: str, function: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)
