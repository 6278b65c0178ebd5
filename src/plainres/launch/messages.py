"""Screen messages of a sweep: outcomes of runs, upload problems and the summary."""

import os
import shlex
from collections.abc import Sequence

from plainres.console import first_that_fits, say, terminal_columns
from plainres.runs.record import Run


def print_outcome(
    position: str, run: Run, reason: str | None, *, elapsed: str, remaining: Sequence[str], name_columns: int
) -> None:
    """Print one line about a run that finished or failed, shortened to the width of the terminal.

    Args:
        position: the number of the run among all runs of the sweep.
        run: the run.
        reason: why it failed, None if it finished.
        elapsed: the duration of the run.
        remaining: the rest of the sweep, in versions from the most to the least detailed.
        name_columns: the width of the column of names.
    """
    name, short = run.name, without_hash(run.name)
    if reason is not None:
        text = f"FAILED: {reason}"
        versions = [f"{position} {name:<{name_columns}} {text}  {elapsed}   {remaining[0]}"]
        versions.append(f"{position} {short} {text}")  # the summary repeats the reason in full
    else:
        train, test = f"{run.result['train_error_eval']:6.2f} %", f"{run.result['test_error']:6.2f} %"
        text, brief = f"train error {train}  test error {test}", f"train {train}  test {test}"
        short_columns = name_columns - len(name) + len(short)
        versions = [f"{position} {name:<{name_columns}} {text}  {elapsed}   {left}" for left in remaining]
        versions += [f"{position} {name:<{name_columns}} {brief}  {elapsed}   {left}" for left in remaining[-1:]]
        versions += [f"{position} {short:<{short_columns}} {brief}  {elapsed}   {left}" for left in remaining[-1:]]
        versions += [f"{position} {short:<{short_columns}} {brief}  {elapsed}", f"{position} {short} {brief}"]
    say(first_that_fits(versions, terminal_columns()))


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


def print_summary(runs: Sequence[Run], trained: Sequence[Run], failed: Sequence[tuple[Run, str]]) -> int:
    """Print where the results are, which commands come next, and which runs failed.

    Args:
        runs: all runs of the sweep.
        trained: the runs that this command trained.
        failed: the failed runs, each with its reason.

    Returns:
        The number of failed runs.
    """
    folders = sorted({str(run.folder.parent) for run in runs})
    if any(run.finished for run in runs):
        say(f"results are in {', '.join(folders)}; compare them with `plainres report {shlex.join(folders)}`")
    loggers = [run.config.logger for run in trained if not run.trouble_file.exists()]
    if any(logger.wandb and logger.mode == "offline" for logger in loggers):
        common = shlex.quote(os.path.commonpath(folders))
        say(f"W&B: logged offline in the runs' folders; `plainres wandb-sync {common}` uploads them for viewing")
    for run, reason in failed:
        say(f"failed: {run.name}: {reason}{f' (see {run.log})' if run.log.exists() else ''}")
    return len(failed)
