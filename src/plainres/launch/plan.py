"""Plan of a training command: what it would refuse, the state of each run, and the time that the rest takes here."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from plainres.config.compose import Jobs
from plainres.config.instantiate import check, source_of
from plainres.console import aligned, duration, quantity, say
from plainres.launch.devices import check_processes
from plainres.launch.estimate import EXACT, estimate
from plainres.launch.hints import hints
from plainres.launch.hydra_launchers import check_launcher
from plainres.launch.preflight import (
    check_alone,
    check_priority,
    check_unchanged,
    check_writable,
    in_order,
    preflight,
    preflight_jobs,
    slots,
)
from plainres.runs.record import Run, State


@dataclass(frozen=True)
class PlannedRun:
    """State of a run before a training command.

    Args:
        name: its name.
        folder: its folder.
        state: one of `plainres.runs.record.State`.
        reason: the reason why it has failed; None if it has not.
        step: the step that it resumes from.
        steps: its length in steps; None if it is not known here.
        seconds: the time that it needs alone on this machine; None if it is not left to train, or not known.
    """

    name: str
    folder: str
    state: str
    reason: str | None
    step: int
    steps: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """Runs of a training command, and the time that those take which are left.

    Args:
        runs: all runs.
        left: the number of runs that the command would train.
        at_a_time: the number of concurrent runs; None if another launcher decides.
        seconds: the time of all runs that are left; None if it is not known.
        measured: the day of the oldest measurement that it follows from.
        note: what `seconds` leaves out, or why it is not known; "" if there is nothing to say.
    """

    runs: list[PlannedRun]
    left: int
    at_a_time: int | None = None
    seconds: float | None = None
    measured: str | None = None
    note: str = ""

    def __str__(self) -> str:
        details = {State.INTERRUPTED.value: "at step {0.step}", State.FAILED.value: "{0.reason}"}
        rows = [(run.state, run.folder, details.get(run.state, "").format(run)) for run in self.runs]
        counts = Counter(run.state for run in self.runs)
        listed = ", ".join(f"{counts[state.value]} {state.value}" for state in State if counts[state.value])
        lines = [*aligned(rows), "", f"{quantity(len(rows), 'run')}: {listed}"]
        if self.seconds is not None and self.at_a_time is not None:
            most = "at most " if self.at_a_time > EXACT else ""
            several = f", {self.at_a_time} at a time" if self.at_a_time > 1 else ""
            included = sum(run.seconds is not None for run in self.runs)
            which = "1 run that is left" if included == 1 else f"{included} runs that are left"
            lines.append(
                f"{which}: {most}about {duration(self.seconds)} of training and evaluation{several}, "
                f"plus the start of each (plainres bench, {self.measured})"
            )
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)


def plan(jobs: Jobs, command: Sequence[str]) -> Plan:
    """Check what a training command checks before the first run trains, and plan its runs. Nothing is trained.

    Images that are not at hand are neither downloaded nor decoded, unless the shape of the networks depends on them.
    Hints are printed.

    Args:
        jobs: the composed command.
        command: its overrides, which the note repeats for `plainres bench`.

    Raises:
        InputError, OSError: the command would refuse to start.
    """
    runs = list({run.folder: run for run in map(Run.of, jobs.configs)}.values())
    check_priority(runs)
    states = {run.folder: run.state for run in runs}
    left = [run for run in runs if _is_left(run, states[run.folder])]
    finished = [run for run in runs if states[run.folder] is State.FINISHED]
    for hint in hints(left):
        say(hint)
    for run in left:
        run.check_configuration()
        check_writable(run)
    planned = {run.folder: _planned(run, states[run.folder]) for run in runs}
    if jobs.launcher != "basic":
        check_launcher(jobs)
        preflight_jobs(runs, [run for run in left if states[run.folder] is not State.RUNNING])
        note = f"the time is not known: hydra/launcher={jobs.launcher} decides where and when the runs train"
        return Plan([*planned.values()], len(left), note=note if left else "")
    if len(jobs.configs) > 1:
        check_alone()
    else:
        for run in left:
            check_processes(run)
    if not left:
        check_unchanged(finished)
        return Plan([*planned.values()], 0)
    configs = {repr(run.config.data): run.config for run in left}
    sources = {data: source_of(config) for data, config in configs.items()}
    # sources of the user's own may lack at_hand
    absent = [configs[data] for data, source in sources.items() if not getattr(source, "at_hand", True)]
    if absent:
        for run in {repr((run.config.model, run.config.data)): run for run in left}.values():
            check(run.config)
        names = ", ".join(sorted({f"data={config.options['data']}" for config in absent}))
        note = f"the time is not known: the images of {names} are downloaded or decoded when the command starts"
        return Plan([*planned.values()], len(left), note=note)
    costs, gpus = preflight(left, finished)
    at_a_time = len(slots(left, gpus, os.environ.get("CUDA_VISIBLE_DEVICES", ""))) if len(jobs.configs) > 1 else 1
    ordered = [run for _, run in reversed(in_order(costs, left))]
    here = [run for run in ordered if states[run.folder] is not State.RUNNING]
    loaded = {data: source.load() for data, source in sources.items()}
    images = {run.folder: loaded[repr(run.config.data)] for run in left}
    time = estimate(here, images, at_a_time, gpus, shlex.join(["plainres", "bench", *command]))
    for run in left:
        per_epoch = len(images[run.folder].train) // run.config.optim.batch_size
        steps = run.config.optim.length(per_epoch)
        planned[run.folder] = replace(planned[run.folder], steps=steps, seconds=time.alone.get(run.folder))
    elsewhere = len(left) - len(here)
    note = f"{quantity(elsewhere, 'run')} in training not included" if elsewhere and here else ""
    if not here:
        return Plan([*planned.values()], len(left), at_a_time)
    return Plan([*planned.values()], len(left), at_a_time, time.seconds, time.measured, time.note or note)


def _is_left(run: Run, state: State) -> bool:
    """Whether a command trains a run in this state, or waits for another process that does."""
    return state is not State.FINISHED and (state is not State.FAILED or run.config.sweep.retry_failed)


def _planned(run: Run, state: State) -> PlannedRun:
    reason = run.failure if state is State.FAILED else None
    steps = run.result.get("steps") if state is State.FINISHED else None
    return PlannedRun(run.name, str(run.folder), state.value, reason, steps or run.step, steps)
