"""Choice of the value of an option for each network of a sweep, on the validation set (`sweep.tune`).

A network at its own best learning rate is compared fairly with another one at its own. The runs among which is chosen
and the runs that are compared have different seeds. The test set has no part in the choice: neither its images nor its
errors are read here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from plainres.config.instantiate import check
from plainres.config.schema import Config, Tuning
from plainres.errors import InputError
from plainres.runs.option_values import network, with_value
from plainres.runs.record import Run


@dataclass(frozen=True)
class Choice:
    """Validation errors of a network in percent by value and seed, and the best value.

    Args:
        errors: value -> seed -> error, infinite if the run diverged; the values ascend. A run that is neither finished
            nor diverged is missing.
        seeds: the seeds that every value needs.
    """

    errors: Mapping[float, Mapping[int, float]]
    seeds: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether no run is missing."""
        return all(seed in by_seed for by_seed in self.errors.values() for seed in self.seeds)

    def mean(self, value: float) -> float:
        """Return the mean error of a value over the seeds."""
        return mean(self.errors[value][seed] for seed in self.seeds)

    @property
    def best(self) -> float | None:
        """The value with the lowest mean error, the smallest of equals; None if a run is missing or all diverged."""
        if not self.complete:
            return None
        value = min(self.errors, key=lambda each: (self.mean(each), each))
        return value if math.isfinite(self.mean(value)) else None

    @property
    def diverged(self) -> list[float]:
        """Values at which a run diverged."""
        return [value for value, by_seed in self.errors.items() if math.inf in by_seed.values()]

    @property
    def at_edge(self) -> bool:
        """Whether the best value is the smallest or the largest one, so that a better one may lie outside."""
        return self.best in (min(self.errors), max(self.errors))


def choice(runs: Mapping[float, Mapping[int, Run]], seeds: Sequence[int]) -> Choice:
    """Choose among runs, given as value -> seed -> run.

    Raises:
        InputError: a record is damaged.
    """
    errors = {
        value: {seed: error for seed, run in by_seed.items() if (error := _validation_error(run)) is not None}
        for value, by_seed in sorted(runs.items())
    }
    return Choice(errors, tuple(seeds))


def _validation_error(run: Run) -> float | None:
    if run.finished:
        return run.result["validation_error"]
    return math.inf if run.diverged else None


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
        """The option, and the values and seeds among which is chosen."""
        assert self.config.tuning
        return self.config.tuning

    def run(self, value: float, seed: int) -> Run:
        """Return the run with a value of the option and a seed."""
        return Run.of(with_value(replace(self.config, seed=seed), self.tuning.option, value))

    def candidates(self, values: Sequence[float]) -> dict[float, dict[int, Run]]:
        """Return the runs among which is chosen, value -> seed -> run."""
        return {value: {seed: self.run(value, seed) for seed in self.tuning.seeds} for value in values}

    def compared(self, best: float | None) -> list[Run]:
        """Return the runs with the seeds of the sweep, at the equal value and at the best one, as far as there are."""
        values = dict.fromkeys(value for value in (self.tuning.equal, best) if value is not None)
        return [self.run(value, seed) for value in values for seed in self.seeds]

    def grid(self, known: Mapping[str, Run] | None = None) -> tuple[list[float], Choice]:
        """Return the values of the grid, extended as far as the runs tell and the option allows, and the choice.

        Args:
            known: the runs by name; None reads them from the disk.

        Raises:
            InputError: a record is damaged.
        """

        def chosen_from(values: Sequence[float]) -> Choice:
            runs = self.candidates(values)
            if known is not None:
                runs = {
                    value: {seed: known[run.name] for seed, run in by_seed.items() if run.name in known}
                    for value, by_seed in runs.items()
                }
            return choice(runs, self.tuning.seeds)

        values = list(self.tuning.values)
        chosen = chosen_from(values)
        while (more := extended(values, chosen, self.tuning)) != values:
            (added,) = set(more) - set(values)
            if known is not None and not known.keys() & {run.name for run in self.candidates([added])[added].values()}:
                break  # not begun, or refused; to tell which may take the images
            if self._refuses(added, known) and not self._refuses(values[0], {}):  # else something other is wrong
                break
            values, chosen = more, chosen_from(more)
        return values, chosen

    def _refuses(self, value: float, known: Mapping[str, Run] | None) -> bool:
        """Whether the network cannot have a value of the option. A probability, for example, is not above 1.

        A value of which there is a run is not checked, which may take the images.
        """
        try:
            run = self.run(value, self.tuning.seeds[0])
            if not (run.folder.exists() if known is None else run.name in known):
                check(run.config, devices=False)
        except InputError:
            return True
        return False


def is_candidate(run: Run) -> bool:
    """Whether a run is one of those among which is chosen."""
    tuning = run.config.tuning
    return tuning is not None and run.config.seed in tuning.seeds


def is_settled(run: Run) -> bool:
    """Whether a run has diverged with a value of a choice, which then counts as infinitely bad and is not retried."""
    return is_candidate(run) and run.diverged


def cells(configs: Sequence[Config]) -> list[Cell]:
    """Group the configurations of a sweep that differ only in their seeds.

    Raises:
        InputError: there is no validation set; the option is no decimal number, changes no result or is swept as well;
            or a seed is both among those of the choice and those of the sweep.
    """
    groups: dict[tuple[str, str], list[Config]] = {}
    for config in configs:
        option = config.sweep.tune.option
        _check(config, option)
        members = groups.setdefault((config.study, network(config, option)), [])
        if config.seed in {member.seed for member in members}:
            raise InputError(f"{option} is chosen by sweep.tune, so the sweep cannot have several values of it")
        members.append(config)
    return [Cell(members[0], tuple(member.seed for member in members)) for members in groups.values()]


def _check(config: Config, option: str) -> None:
    if len({network(with_value(config, option, value), "") for value in (0.5, 1.0)}) < 2:
        raise InputError(f"sweep.tune.option is {option}, which does not change the result of a run; choose another")
    if not config.data.get("validation_per_class"):
        raise InputError(
            "sweep.tune chooses on the validation set, and there is none; set data.validation_per_class, for example "
            "to a tenth of the images of a class"
        )
    if config.seed in config.sweep.tune.seeds:
        raise InputError(
            f"seed {config.seed} is in sweep.tune.seeds and in the sweep; a choice is judged by other seeds than those "
            "it was made from"
        )


def is_tuned(configs: Sequence[Config]) -> bool:
    """Whether a sweep has sweep.tune.

    Raises:
        InputError: only a part of it has.
    """
    tuned = [config.tuning is not None for config in configs]
    if any(tuned) and not all(tuned):
        raise InputError("some runs of this sweep have sweep.tune and others have not; train them in two commands")
    return any(tuned)


def runs_of(configs: Sequence[Config]) -> list[Run]:
    """Return the runs of a training command, those of tuned networks as far as their values are known.

    Raises:
        InputError: see `cells`; or only a part of the configurations has sweep.tune.
    """
    if not is_tuned(configs):
        return [Run.of(config) for config in configs]
    runs = []
    for cell in cells(configs):
        values, chosen = cell.grid()
        runs += [run for by_seed in cell.candidates(values).values() for run in by_seed.values()]
        runs += cell.compared(chosen.best)
    return runs


def undecided(configs: Sequence[Config]) -> bool:
    """Whether a value is still to be chosen.

    Raises:
        InputError: see `runs_of`.
    """
    return is_tuned(configs) and not all(cell.grid()[1].complete for cell in cells(configs))


def extended(values: Sequence[float], chosen: Choice, tuning: Tuning) -> list[float]:
    """Return the values with another one beside the best, if that lies at an edge that may still be extended."""
    before, ascending = tuning.values, list(values)
    if chosen.best == ascending[0] and sum(value < before[0] for value in ascending) < tuning.extensions:
        return [_rounded(ascending[0] ** 2 / ascending[1]), *ascending]
    if chosen.best == ascending[-1] and sum(value > before[-1] for value in ascending) < tuning.extensions:
        return [*ascending, _rounded(ascending[-1] ** 2 / ascending[-2])]
    return ascending


def _rounded(value: float) -> float:
    """Round to six significant digits, so that the names of runs do not depend on the last bit."""
    return float(f"{value:.6g}")
