"""Outcome of a training command: the state and the result of each of its runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from plainres.runs.record import Run, State


@dataclass(frozen=True)
class Outcome:
    """State of a run; the reason if it has failed, and the contents of result.json if it is finished."""

    name: str
    folder: str
    state: str
    reason: str | None
    result: dict[str, Any] | None


def outcomes(runs: Iterable[Run]) -> list[Outcome]:
    """Return the outcome of each distinct run.

    Raises:
        InputError: the record of a run is damaged.
    """
    distinct = {run.folder: run for run in runs}
    return [_outcome(run) for run in distinct.values()]


def _outcome(run: Run) -> Outcome:
    state = run.state
    reason = run.failure if state is State.FAILED else None
    result = run.result if state is State.FINISHED else None
    return Outcome(run.name, str(run.folder), state.value, reason, result)
