"""Selection of the runs that a command trains, by the states of all its runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from plainres.console import quantity, say
from plainres.errors import InputError
from plainres.launch.preflight import check_priority
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
        InputError: a record is damaged, or no run has a key of `sweep.priority`.
    """
    check_priority(runs)
    return Selection([(run, run.state) for run in {run.folder: run for run in runs}.values()])


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
