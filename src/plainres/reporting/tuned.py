"""Chosen values of a tuned option (`sweep.tune`): families that are compared at them, a table and a figure.

The choice is made anew from the validation errors of the runs, and equals that of the sweep.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from plainres.errors import InputError
from plainres.reporting.families import Family, families, labelled
from plainres.reporting.statistics import CONFIDENCE, INTERVAL_FROM, RESOLUTION, paired_difference
from plainres.runs.identity import matches
from plainres.runs.record import Run
from plainres.runs.tuning import Choice, choice, network, value_of, with_value

EXPECTED = {"optim.lr": (-1.5, "arXiv:2602.07494")}  # published exponents of the best value against depth
HEAD = ("network", "depth", "best", "range", "validation error (%)", "")


@dataclass(frozen=True)
class Tuned:
    """Runs of a study in which the value of an option was chosen for each network.

    Args:
        option: the option.
        seeds: the seeds of the choice.
        choices: label of the network -> depth -> choice.
        families: the families of the runs with other seeds: at an equal value, and each at its own best one.
        candidates: the runs among which was chosen, with the label of their network.
    """

    option: str
    seeds: tuple[int, ...]
    choices: Mapping[str, Mapping[int, Choice]]
    families: Sequence[Family]
    candidates: Sequence[tuple[str, Run]]

    @property
    def name(self) -> str:
        """Name of the option without its group."""
        return short(self.option)

    @property
    def values(self) -> list[float]:
        """All values of the grids, ascending."""
        choices = [chosen for by_depth in self.choices.values() for chosen in by_depth.values()]
        return sorted({value for chosen in choices for value in chosen.errors})

    @property
    def caption(self) -> str:
        """Sentences that explain the table."""
        seeds = ", ".join(map(str, self.seeds))
        sentences = (
            f"Choice of {self.option} by the mean validation error over seeds {seeds}; the test set has no part in it. "
        )
        if len(self.seeds) >= INTERVAL_FROM:
            return sentences + (
                "range: the values around the best one whose error is not shown to be higher (paired over seeds, "
                f"Student's {100 * CONFIDENCE:.0f} % interval)."
            )
        return sentences + f"There is no range with fewer than {INTERVAL_FROM} seeds."

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Rows of the table, by HEAD."""
        rows = []
        for label, by_depth in self.choices.items():
            for depth, chosen in by_depth.items():
                if chosen.best is None:
                    note = "every value diverged" if chosen.complete else "unfinished: runs are missing"
                    rows.append((label, str(depth), "", "", "", note))
                    continue
                between = interval(chosen)
                span = "" if between is None else "{:g} to {:g}".format(*between)
                note = "unfinished: the best value is at the edge of the grid" if chosen.at_edge else ""
                error = f"{chosen.mean(chosen.best):.2f}"
                rows.append((label, str(depth), f"{chosen.best:g}", span, error, note))
        return rows

    @property
    def exponents(self) -> list[str]:
        """Sentence for each network on the exponent of the best value as a power of depth."""
        sentences = []
        for label, by_depth in self.choices.items():
            fitted = exponent(by_depth)
            if fitted is None:
                sentences.append(f"{label}: no exponent, which needs {INTERVAL_FROM} depths with a finished choice.")
                continue
            low, high = fitted.interval or (math.nan, math.nan)
            between = f", {100 * CONFIDENCE:.0f} % interval [{low:+.2f}, {high:+.2f}]" if fitted.interval else ""
            used = f"depths {', '.join(map(str, fitted.depths))}"
            sentences.append(f"{label}: best {self.name} ~ depth^({fitted.slope:+.2f}){between} ({used}).")
        if self.option in EXPECTED:
            power, source = EXPECTED[self.option]
            sentences.append(f"Expected by {source}: depth^({power:+.2f}).")
        return sentences


@dataclass(frozen=True)
class Exponent:
    """Least-squares fit log(best) = slope log(depth) + intercept.

    Args:
        slope: the exponent.
        intercept: the logarithm of the value at depth 1.
        interval: Student's 95 % interval of the slope; None if the fit is exact.
        depths: the depths that were used.
    """

    slope: float
    intercept: float
    interval: tuple[float, float] | None
    depths: tuple[int, ...]


def exponent(choices: Mapping[int, Choice]) -> Exponent | None:
    """Fit a power of depth to the best values; None for fewer than three depths with a best value inside its grid."""
    best = {depth: chosen.best for depth, chosen in choices.items() if not chosen.at_edge}
    points = {depth: value for depth, value in best.items() if value is not None}
    if len(points) < INTERVAL_FROM:
        return None
    x, y = np.log(list(points)), np.log(list(points.values()))
    slope, intercept = np.polyfit(x, y, 1)
    freedom = len(points) - 2
    residual = float(np.sum((y - slope * x - intercept) ** 2))
    error = math.sqrt(residual / freedom / float(np.sum((x - x.mean()) ** 2)))
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    between = (slope - half, slope + half) if error > 1e-9 else None
    return Exponent(float(slope), float(intercept), between, tuple(points))


def interval(chosen: Choice) -> tuple[float, float] | None:
    """Return the smallest and largest value around the best one whose error is not shown to be higher than its error.

    Returns:
        The two values, the best one included; None without a best value, and for fewer than three seeds.
    """
    best = chosen.best
    if best is None or len(chosen.seeds) < INTERVAL_FROM:
        return None
    values = list(chosen.errors)
    at = values.index(best)
    low = high = best
    for value in reversed(values[:at]):
        if _is_higher(chosen, value, best):
            break
        low = value
    for value in values[at + 1 :]:
        if _is_higher(chosen, value, best):
            break
        high = value
    return low, high


def _is_higher(chosen: Choice, value: float, best: float) -> bool:
    """Whether the error of a value is shown to be higher than that of the best one."""
    if not math.isfinite(chosen.mean(value)):
        return True
    difference = paired_difference(chosen.errors[value], chosen.errors[best])
    if difference.interval is None:  # the same difference in every seed
        return (difference.mean or 0.0) >= RESOLUTION
    return difference.interval[0] > 0


def short(option: str) -> str:
    """Return the last part of an option."""
    return option.rpartition(".")[2]


def read_tuned(runs: Sequence[Run], reference: Mapping[str, Any]) -> tuple[Tuned | None, list[Run]]:
    """Separate the runs of tuned networks from the others, and choose a value for each network.

    Args:
        runs: finished runs, and those that diverged.
        reference: the settings of the reference family, which comes first.

    Returns:
        The runs of tuned networks, None if there are none; and the other runs.

    Raises:
        InputError: two options were tuned; or the report cannot distinguish two runs.
    """
    tunings = [run.config.tuning for run in runs if run.config.tuning]
    if not tunings:
        return None, list(runs)
    if len(options := sorted({each.option for each in tunings})) > 1:
        raise InputError(f"the runs choose the values of {' and '.join(options)}; report on one option at a time")
    option, seeds = options[0], tuple(sorted({seed for each in tunings for seed in each.seeds}))
    groups: dict[str, list[Run]] = defaultdict(list)
    others = []
    for run in runs:
        try:
            groups[network(run.config, option)].append(run)
        except InputError:  # it has no such option
            others.append(run)
    tuned = {key: members for key, members in groups.items() if any(run.config.tuning for run in members)}
    others += [run for key, members in groups.items() if key not in tuned for run in members]
    labels = _labels([run for members in tuned.values() for run in members], option)

    def place(members: Sequence[Run]) -> tuple[bool, str, int]:
        config = members[0].config
        return not matches(config, reference), labels[members[0].name][0], config.model["depth"]

    equal = next((each.equal for each in tunings if each.equal is not None), None)
    return _tuned(option, seeds, equal, sorted(tuned.values(), key=place), labels), others


def _labels(runs: Sequence[Run], option: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Return label and setting of each run's family as if all runs had one value of the option, by the run's name."""
    neutral = {run.name: replace(run, config=with_value(run.config, option, 1.0)) for run in runs}
    labels = labelled(list({run.name: run for run in neutral.values()}.values()))
    return {name: labels[run.name] for name, run in neutral.items()}


def _tuned(
    option: str,
    seeds: tuple[int, ...],
    equal: float | None,
    networks: Iterable[Sequence[Run]],
    labels: Mapping[str, tuple[str, dict[str, str]]],
) -> Tuned:
    """Choose a value for each network, and group the runs that are compared at the same role of their value."""
    at_best, at_equal, candidates = [], [], []
    choices: dict[str, dict[int, Choice]] = {}
    for members in networks:
        chosen = choice(_among(members, option, seeds), seeds)
        label = labels[members[0].name][0]
        choices.setdefault(label, {})[members[0].config.model["depth"]] = chosen
        for run in members:
            if run.config.seed in seeds:
                candidates += [(f"{label}, choice of {option}", run)]
            else:
                at_best += [run] * (run.finished and value_of(run.config, option) == chosen.best)
                at_equal += [run] * (run.finished and value_of(run.config, option) == equal)
    grouped = []
    for runs, part in (
        (at_equal, f"{short(option)} {equal:g}" if equal is not None else ""),
        (at_best, f"best {short(option)}"),
    ):
        grouped += families(runs, {run.name: _at(labels[run.name], option, part) for run in runs})
    return Tuned(option, seeds, choices, grouped, candidates)


def _among(members: Sequence[Run], option: str, seeds: Sequence[int]) -> dict[float, dict[int, Run]]:
    """Return the runs among which is chosen, value -> seed -> run, with every value of the grid."""
    runs: dict[float, dict[int, Run]] = {}
    for run in members:
        for value in run.config.sweep.tune.values if run.config.tuning else ():
            runs.setdefault(value, {})
        if run.config.seed in seeds:
            runs.setdefault(value_of(run.config, option), {})[run.config.seed] = run
    return runs


def _at(labelling: tuple[str, dict[str, str]], option: str, part: str) -> tuple[str, dict[str, str]]:
    """Add the role of the option's value to a label and its settings."""
    label, setting = labelling
    text = f"{label[:-1]}, {part})" if label.endswith(")") else f"{label} ({part})"
    return text, setting | {option: part}
