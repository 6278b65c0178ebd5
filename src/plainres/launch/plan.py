"""Plan of a training command: what it would refuse, the state of each run, and the time that the rest takes here."""

import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from plainres.config.compose import Jobs
from plainres.config.instantiate import source_of
from plainres.console import aligned, duration, quantity, say
from plainres.data.batches import batches_per_epoch
from plainres.launch.estimate import EXACT, estimate
from plainres.launch.hints import hints, unmeasured
from plainres.launch.hydra_launchers import check_launcher
from plainres.launch.preflight import (
    check_alone,
    check_settings,
    check_unchanged,
    in_order,
    preflight,
    preflight_jobs,
    slots,
)
from plainres.launch.selection import Selection, select
from plainres.runs.agreement import check_code
from plainres.runs.record import Run, State
from plainres.runs.tuning import runs_of, undecided

CHOSEN_LATER = "runs with values that are not yet chosen (sweep.tune) are not included"


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
    launched = jobs.launcher != "basic"
    if launched:
        check_launcher(jobs)
    runs = runs_of(jobs.configs)
    if len(runs) > 1 and not launched:
        check_alone()
    selection = select(runs)
    planned = _in_jobs(selection, jobs.launcher) if launched else _here(selection, len(runs) > 1, command)
    if undecided(jobs.configs):
        planned = replace(planned, note="; ".join(filter(None, (planned.note, CHOSEN_LATER))))
    for hint in [*hints(selection.left), *unmeasured(selection.finished)]:
        say(hint)
    return planned


def _in_jobs(selection: Selection, launcher: str) -> Plan:
    """Check the runs of a sweep with a launcher, and plan them."""
    running = {run.folder for run in selection.in_state(State.RUNNING)}
    preflight_jobs([run for run, _ in selection.states], [run for run in selection.left if run.folder not in running])
    note = f"the time is not known: hydra/launcher={launcher} decides where and when the runs train"
    return Plan(
        [_planned(*each) for each in selection.states], len(selection.left), note=note if selection.left else ""
    )


def _here(selection: Selection, sweep: bool, command: Sequence[str]) -> Plan:
    """Check one run, or the runs of a sweep, that this machine trains, and plan them."""
    left = selection.left
    planned = {run.folder: _planned(run, state) for run, state in selection.states}
    if not left:
        check_unchanged(selection.finished)
        return Plan([*planned.values()], 0)
    configs = {repr(run.config.data): run.config for run in left}
    sources = {data: source_of(config) for data, config in configs.items()}
    # sources of the user's own may lack at_hand
    absent = [configs[data] for data, source in sources.items() if not getattr(source, "at_hand", True)]
    if absent:
        for run in (*left, *selection.finished):
            check_code(run)
        check_settings(left)
        names = ", ".join(sorted({f"data={config.options['data']}" for config in absent}))
        note = f"the time is not known: the images of {names} are downloaded or decoded when the command starts"
        return Plan([*planned.values()], len(left), note=note)
    costs, gpus = preflight(left, selection.finished)
    at_a_time = len(slots(left, gpus, os.environ.get("CUDA_VISIBLE_DEVICES", ""))) if sweep else 1
    elsewhere = {run.folder for run in selection.in_state(State.RUNNING)}
    here = [run for _, run in reversed(in_order(costs, left)) if run.folder not in elsewhere]
    loaded = {data: source.load() for data, source in sources.items()}
    images = {run.folder: loaded[repr(run.config.data)] for run in left}
    time = estimate(here, images, at_a_time, gpus, shlex.join(["plainres", "bench", *command]))
    for run in left:
        per_epoch = batches_per_epoch(len(images[run.folder].train), run.config.optim.batch_size)
        steps = run.config.optim.length(per_epoch)
        planned[run.folder] = replace(planned[run.folder], steps=steps, seconds=time.alone.get(run.folder))
    note = f"{quantity(len(elsewhere), 'run')} in training not included" if elsewhere and here else ""
    if not here:
        return Plan([*planned.values()], len(left), at_a_time)
    return Plan([*planned.values()], len(left), at_a_time, time.seconds, time.measured, time.note or note)


def _planned(run: Run, state: State) -> PlannedRun:
    reason = run.failure if state is State.FAILED else None
    steps = run.result.get("steps") if state is State.FINISHED else None
    return PlannedRun(run.name, str(run.folder), state.value, reason, steps or run.step, steps)
