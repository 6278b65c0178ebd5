"""Choice of the value of an option for each network of a sweep, on the validation set (`sweep.tune`).

A network at its own best learning rate is compared fairly with another one at its own. The runs among which is chosen
and the runs that are compared have different seeds, and the test set has no part in the choice: neither its images nor
its errors are read here.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from statistics import mean
from typing import Any

from plainres.config.schema import Config, Tuning
from plainres.errors import InputError
from plainres.runs.identity import identity
from plainres.runs.record import Run


@dataclass(frozen=True)
class Cell:
    """Runs of a sweep that differ only in their seeds, and the value of the tuned option that is chosen for them.

    Args:
        config: the configuration of one of them.
        seeds: the seeds that are trained with the chosen value.
    """

    config: Config
    seeds: tuple[int, ...]

    @property
    def tuning(self) -> Tuning:
        """What is chosen, and from which values."""
        assert self.config.sweep.tune is not None
        return self.config.sweep.tune

    def run(self, value: float, seed: int) -> Run:
        """Return the run with a value of the option and a seed."""
        return Run.of(with_value(replace(self.config, seed=seed), self.tuning.option, value))

    def candidates(self, values: Sequence[float]) -> list[Run]:
        """Return the runs among which is chosen."""
        return [self.run(value, seed) for value in values for seed in self.tuning.seeds]


@dataclass(frozen=True)
class Choice:
    """Mean validation errors of a cell in percent by value, infinite if a run failed, and the best value.

    Args:
        errors: the mean error of each value, in ascending order of the values.
    """

    errors: Mapping[float, float]

    @property
    def best(self) -> float | None:
        """The value with the lowest error, the smallest of equals; None if every value failed."""
        value = min(self.errors, key=lambda each: (self.errors[each], each))
        return value if math.isfinite(self.errors[value]) else None

    @property
    def at_edge(self) -> bool:
        """Whether the best value is the smallest or the largest one, so that a better one may lie outside."""
        return self.best in (min(self.errors), max(self.errors))


def cells(configs: Sequence[Config]) -> list[Cell]:
    """Group the configurations of a sweep that differ only in their seeds.

    Raises:
        InputError: there is no validation set, the option is not a number of the configuration, or a seed is both
            chosen from and trained afterwards.
    """
    groups: dict[str, list[Config]] = {}
    for config in configs:
        groups.setdefault(json.dumps([identity(replace(config, seed=0)), config.study]), []).append(config)
    found = [Cell(members[0], tuple(dict.fromkeys(each.seed for each in members))) for members in groups.values()]
    for cell in found:
        _check(cell)
    return found


def _check(cell: Cell) -> None:
    tuning = cell.tuning
    if not cell.config.data.get("validation_per_class"):
        raise InputError(
            "sweep.tune chooses on the validation set, and there is none; set data.validation_per_class, for example "
            "to a tenth of the images of a class"
        )
    if both := sorted(set(tuning.seeds) & set(cell.seeds)):
        raise InputError(
            f"seeds {', '.join(map(str, both))} are in sweep.tune.seeds and in the sweep; a choice is judged by other "
            "seeds than those it was made from"
        )
    cell.run(tuning.values[0], tuning.seeds[0])


def with_value(config: Config, option: str, value: float) -> Config:
    """Return a configuration with another value of a numerical option, such as optim.lr.

    Raises:
        InputError: the configuration has no such option, or it is not a number.
    """
    return _changed(config, option.split("."), value, option)


def _changed(node: Any, keys: Sequence[str], value: float, option: str) -> Any:
    key, *rest = keys
    values: Mapping[str, Any] = vars(node) if is_dataclass(node) else node if isinstance(node, Mapping) else {}
    before = values.get(key)
    number = isinstance(before, int | float) and not isinstance(before, bool)
    if key not in values or (not rest and not number):
        raise InputError(f"sweep.tune.option is {option}; it must be an option that is a number, such as optim.lr")
    after = _changed(before, rest, value, option) if rest else value
    return replace(node, **{key: after}) if is_dataclass(node) else {**values, key: after}  # pyright: ignore


def choose(cell: Cell, values: Sequence[float]) -> Choice:
    """Choose from finished and failed runs."""
    errors = {}
    for value in values:
        runs = [cell.run(value, seed) for seed in cell.tuning.seeds]
        errors[value] = mean(run.result["validation_error"] if run.finished else math.inf for run in runs)
    return Choice(errors)


def extended(values: Sequence[float], choice: Choice, tuning: Tuning) -> list[float]:
    """Return the values with another one beside the best, if that lies at an edge that may still be extended."""
    before, ascending = tuning.values, list(values)
    if choice.best == ascending[0] and sum(value < before[0] for value in ascending) < tuning.extensions:
        return [_rounded(ascending[0] ** 2 / ascending[1]), *ascending]
    if choice.best == ascending[-1] and sum(value > before[-1] for value in ascending) < tuning.extensions:
        return [*ascending, _rounded(ascending[-1] ** 2 / ascending[-2])]
    return ascending


def _rounded(value: float) -> float:
    """Round to six significant digits, so that the names of runs do not depend on the last bit."""
    return float(f"{value:.6g}")


def grids(found: Sequence[Cell]) -> Iterator[tuple[Cell, list[float], Choice]]:
    """Yield each cell with its values and the choice from them, as far as its runs are finished or failed.

    A grid is extended as long as its runs exist, so that a repeated command finds the same values again.
    """
    for cell in found:
        values = list(cell.tuning.values)
        choice = choose(cell, values)
        while (more := extended(values, choice, cell.tuning)) != values and _done(cell, more):
            values, choice = more, choose(cell, more)
        yield cell, values, choice


def _done(cell: Cell, values: Sequence[float]) -> bool:
    return all(run.finished or run.failure is not None for run in cell.candidates(values))
