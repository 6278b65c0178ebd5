"""Screen messages of a sweep: states and outcomes of runs, upload problems and the summary."""

import os
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from plainres.console import duration, first_that_fits, quantity, say, shortened, terminal_columns
from plainres.launch.selection import Selection
from plainres.runs.option_values import value_of
from plainres.runs.record import Run, State
from plainres.runs.tuning import is_candidate, is_settled

FAILURE_COLUMNS = 120  # of a line about a failure that is not printed to a terminal; the summary has the whole reason


def print_states(selection: Selection) -> None:
    """Print the number of runs in each state, and the names of those that are not simply finished or missing."""
    runs = [run for run, _ in selection.states]
    say(f"{', '.join(sorted({str(run.folder.parent) for run in runs}))}: {quantity(len(runs), 'run')}")
    for state in State:
        if members := selection.in_state(state):
            say(f"  {len(members):5} {state.value}")
            for run in members if state in (State.INTERRUPTED, State.FAILED, State.RUNNING) else ():
                step = f" at step {run.step}" if state is State.INTERRUPTED else ""
                say(first_that_fits([f"          {run.name}{step}"], terminal_columns()))


def print_outcome(
    done: int,
    total: int,
    run: Run,
    reason: str | None,
    *,
    seconds: float | None,
    remaining: Sequence[str],
    name_columns: int,
) -> None:
    """Print one line about a run that finished or failed, shortened to the width of the terminal.

    The training error is that of the final weights, evaluated on the whole training set. For a run of `sweep.tune` the
    line has the value of the option, and the validation error.

    Args:
        done: the number of runs of the sweep that have finished or failed.
        total: the number of runs of the sweep.
        run: the run.
        reason: why it failed, None if it finished.
        seconds: the duration of the run, None if it is unknown.
        remaining: the rest of the sweep, in versions from the most to the least detailed.
        name_columns: the width of the column of names.
    """
    name, short = run.name, without_hash(run.name)
    short_columns = name_columns - len(name) + len(short)
    position = f"[{done:>{len(str(total))}}/{total}]"
    long, brief = (f"{position} {text}" for text in (f"{name:<{name_columns}}", f"{short:<{short_columns}}"))
    elapsed = f"{'' if seconds is None else duration(seconds):>6}"
    if reason is not None:
        versions = [f"{row}  {elapsed}  FAILED: {reason}" for row in (long, brief)]
        columns = terminal_columns()
        say(shortened(versions[0], FAILURE_COLUMNS) if columns is None else first_that_fits(versions, columns))
        return
    text = _errors(run)
    versions = [f"{long}  {elapsed}  {text}  {left}" for left in remaining]
    versions += [f"{long}  {elapsed}  {text}", f"{brief}  {elapsed}  {text}  {remaining[-1]}"]
    versions += [f"{brief}  {elapsed}  {text}", f"{short}  {text}"]
    say(first_that_fits(versions, terminal_columns()))


def _errors(run: Run) -> str:
    tuning = run.config.tuning
    errors = {"train (eval)": "train_error_eval"} | ({"validation": "validation_error"} if tuning else {})
    shown = [f"{name} {run.result[key]:6.2f} %" for name, key in (errors | {"test": "test_error"}).items()]
    value = [f"{tuning.option.rpartition('.')[2]}={value_of(run.config, tuning.option):<8g}"] if tuning else []
    return "  ".join([*value, *shown])


def remaining_time(left: int, seconds: float, now: datetime) -> list[str]:
    """Describe the rest of a sweep, in versions from the most to the least detailed.

    Args:
        left: the number of runs that have not finished.
        seconds: the estimated time until the last one finishes.
        now: the current time.
    """
    end = now + timedelta(seconds=seconds)
    clock = f"{end:%H:%M}" if end.date() == now.date() else f"{end:%a %H:%M}"
    about = f"{left} left, about {duration(seconds)}"
    return [f"{about}, ends around {clock}", about, f"{left} left"]


def without_hash(name: str) -> str:
    """Return the name of a run without the hash of its configuration, for narrow terminals."""
    return name.rpartition("-")[0]


def report_upload_problem(run: Run, affected: list[Run]) -> None:
    """Print the run's W&B warning if it is the first of the sweep; add the run to `affected`."""
    if run.config.logger.wandb and run.trouble_file.exists():
        if not affected:
            say(
                f"{run.name}: {run.trouble_file.read_text()}; the runs continue, "
                f"and `plainres wandb-sync {run.folder.parent}` uploads them later"
            )
        affected.append(run)


def report_warning(runs: Iterable[Run]) -> bool:
    """Print the warning of the first of the runs in training that has one; return whether there is one.

    One is enough for a sweep, whose runs share their machine.
    """
    for run in runs:
        with suppress(OSError):  # there is no warning
            say(f"{run.name}: {run.warning_file.read_text().strip()}")
            return True
    return False


def print_summary(
    runs: Sequence[Run], trained: Sequence[Run], failed: Sequence[tuple[Run, str]], seconds: float
) -> int:
    """Print which runs failed, how many finished, where the results are, and which commands come next.

    Args:
        runs: all runs of the sweep.
        trained: the runs that this command trained.
        failed: the failed runs, each with its reason.
        seconds: the duration of the sweep.

    Returns:
        The number of failed runs.
    """
    for run, reason in failed:
        say(f"failed: {run.name}: {reason}{f' (see {run.log})' if run.log.exists() else ''}")
    if any(run.failure and not is_settled(run) for run, _ in failed):
        say("add sweep.retry_failed=true to train failed runs again")
    if trained:
        finished = sum(run.finished for run in trained)
        counts = [f"{finished} finished"] + [f"{len(trained) - finished} failed"] * (finished < len(trained))
        say(f"done in {duration(seconds)}: {', '.join(counts)}")
    folders = sorted({str(run.folder.parent) for run in runs})
    if any(run.finished and not is_candidate(run) for run in runs):
        say(f"results are in {', '.join(folders)}; compare them with `plainres report {shlex.join(folders)}`")
    loggers = [run.config.logger for run in trained if not run.trouble_file.exists()]
    if any(logger.wandb and logger.mode == "offline" for logger in loggers):
        common = shlex.quote(os.path.commonpath(folders))
        say(f"W&B: logged offline in the runs' folders; `plainres wandb-sync {common}` uploads them for viewing")
    return len(failed)
