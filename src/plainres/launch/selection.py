"""Selection of the runs that a command trains, by the states of all its runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from plainres.console import quantity, say
from plainres.errors import InputError
from plainres.launch.preflight import check_priority
from plainres.runs.identity import flat
from plainres.runs.record import Run, State


@dataclass(frozen=True)
class Selection:
    """Runs of a command, each once, with its state when the command started."""

    states: Sequence[tuple[Run, State]]

    def in_state(self, state: State) -> list[Run]:
        """Return the runs in a state."""
        return [run for run, each in self.states if each is state]

    @property
    def left(self) -> list[Run]:
        """Runs to train, including runs that another process is training."""
        return [run for run, state in self.states if state is not State.FINISHED and not _given_up(run, state)]

    @property
    def finished(self) -> list[Run]:
        """Finished runs."""
        return self.in_state(State.FINISHED)

    @property
    def failed(self) -> list[tuple[Run, str]]:
        """Failed runs that are not retried, each with its reason."""
        return [(run, str(run.failure)) for run, state in self.states if _given_up(run, state)]


def select(runs: Sequence[Run]) -> Selection:
    """Read the states of runs, of which some may be named several times, and check `sweep.priority`.

    Raises:
        InputError: a record is damaged, no run has a key of `sweep.priority`, or two runs of one name differ.
    """
    check_priority(runs)
    first: dict[Path, Run] = {}
    for run in runs:
        _check_same(first.setdefault(run.folder, run), run)
    return Selection([(run, run.state) for run in first.values()])


def _check_same(run: Run, other: Run) -> None:
    """Check that two runs of one name have equal settings, also those that do not identify a run.

    Raises:
        InputError: they have not, as in a sweep over trainer.devices.
    """
    one, another = (flat({**asdict(each.config), "options": None}) for each in (run, other))
    if unlike := sorted(key for key in one.keys() | another.keys() if one.get(key) != another.get(key)):
        raise InputError(
            f"two runs of this command have the name {run.name} and differ in {', '.join(unlike)}, which is not part "
            "of a run's identity; train them in two commands, each with a study=NAME of its own"
        )


def adopt_report_options(finished: Sequence[Run]) -> None:
    """Write the report options of a command into the folders of its finished runs, from which a report reads them.

    A folder that cannot be read or written remains as it is, and is named on the screen.
    """
    problems = []
    for run in finished:
        try:
            run.adopt_report_options()
        except InputError as error:
            problems.append(error)
    if problems:
        say(f"report.reference of {quantity(len(problems), 'finished run')} is unchanged: {problems[0]}")


def _given_up(run: Run, state: State) -> bool:
    return state is State.FAILED and not run.config.sweep.retry_failed
