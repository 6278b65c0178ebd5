"""The command `plainres train`, which imports its dependencies when it is called."""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from plainres.cli.descriptions import TRAIN
from plainres.cli.output import print_json, standard_output_free
from plainres.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from plainres.config.compose import Jobs
    from plainres.runs.record import Run

DRY_RUN, JSON = "--dry-run", "--json"  # options that are not Hydra's


def train(arguments: list[str]) -> int:
    """Train one network, or every run of a sweep, or say what that would do."""
    if {"-h", "--help"} & set(arguments):
        print(TRAIN, end="")
        return 0
    from plainres.processes.signals import StopSignals
    from plainres.processes.world import World

    world, as_json = World.current(), JSON in arguments
    with StopSignals(early=world.size == 1):
        from plainres.config.compose import compose_jobs
        from plainres.runs.tuning import runs_of

        overrides = [word for word in arguments if word not in (DRY_RUN, JSON)]
        _check_flags(overrides)
        with standard_output_free(as_json):
            jobs = compose_jobs(overrides)
        runs = runs_of(jobs.configs)
        if as_json and not runs:
            raise InputError("--json is about runs, and there are none here: leave out --json, or --cfg and --info")
        if DRY_RUN in arguments:
            from plainres.launch.plan import plan

            with standard_output_free(as_json):
                planned = plan(jobs, overrides)
            if runs and world.rank == 0:
                print_json(asdict(planned)) if as_json else print(planned)
            return 0
        try:
            with standard_output_free(as_json):
                failed = _train(jobs, runs)
        except RunFailedError:
            if as_json and world.rank == 0:
                _print_outcomes(runs_of(jobs.configs))
            raise
        if as_json and world.rank == 0:
            _print_outcomes(runs_of(jobs.configs))
    return 1 if failed else 0


def _check_flags(words: Sequence[str]) -> None:
    """Refuse a misspelt option of this command, before it is compared with Hydra's and with keys.

    Raises:
        InputError: there is one.
    """
    for word in words:
        close = difflib.get_close_matches(word.replace("_", "-"), (DRY_RUN, JSON, "--help"), 1, 0.8)
        if word.startswith("-") and close:
            raise InputError(f"there is no option {word}; did you mean {close[0]}?")


def _print_outcomes(runs: Sequence["Run"]) -> None:
    from plainres.launch.outcomes import outcomes
    from plainres.runs.record import Run

    print_json({"runs": [asdict(each) for each in outcomes(Run.of(run.config) for run in runs)]})


def _train(jobs: "Jobs", runs: Sequence["Run"]) -> int:
    """Train runs, and return the number of failed ones.

    Raises:
        InputError, RunFailedError, StoppedError: see `plainres.launch.devices.train` and `plainres.launch.sweep.sweep`.
    """
    from plainres.runs.tuning import is_tuned

    if jobs.launcher != "basic":
        from plainres.launch.hydra_launchers import sweep_with

        return sweep_with(jobs)
    if is_tuned(jobs.configs):
        from plainres.launch.tuned_sweep import sweep_tuned

        return sweep_tuned(jobs.configs)
    if len(runs) > 1:
        from plainres.launch.sweep import sweep

        return sweep(runs)
    for run in runs:
        _train_one(run)
    return 0


def _train_one(run: "Run") -> None:
    from plainres.launch.devices import train
    from plainres.launch.hints import unmeasured
    from plainres.processes.world import World

    first = World.current().rank == 0
    finished = run.finished and run.result
    result = train(run).result
    if first and finished:
        print(f"{run.name} is finished already", *unmeasured([run]), sep="\n", file=sys.stderr)
    if first:
        print(
            f"train error {result['train_error']:.2f} % (running), {result['train_error_eval']:.2f} % (eval); "
            f"test error {result['test_error']:.2f} %"
        )
        print(run.folder)
