"""Chosen values of a tuned option (`sweep.tune`): families that are compared at them, a table and a figure.

The choice is made anew from the validation errors of the runs, and equals that of the sweep.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from plainres.config.schema import Tuning
from plainres.errors import InputError
from plainres.reporting.choices import Exponent, exponent, interval
from plainres.reporting.conditions import differing, edited_classes
from plainres.reporting.families import Family, families, labelled
from plainres.reporting.statistics import CONFIDENCE, INTERVAL_FROM
from plainres.runs.identity import matches
from plainres.runs.option_values import network, value_of, with_value
from plainres.runs.record import Run
from plainres.runs.tuning import Cell, Choice

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
        unequal: label of the network -> depth -> the conditions in which runs of one seed differ, and images or the
            user's own classes of which the runs have several.
        candidates: the runs among which was chosen, each with a label that names its value.
        unused: runs of these networks that are neither among those nor at a compared value.
        begun: family, seed and depth of each run at a compared value, finished or not.
    """

    option: str
    seeds: tuple[int, ...]
    choices: Mapping[str, Mapping[int, Choice]]
    unequal: Mapping[str, Mapping[int, Sequence[str]]]
    families: Sequence[Family]
    candidates: Sequence[tuple[str, Run]]
    unused: Sequence[Run]
    begun: Set[tuple[str, int, int]]

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
                notes = ["unfinished: the best value is at the edge of the grid"] if chosen.at_edge else []
                if names := self.unequal[label][depth]:
                    notes.append(f"unequal conditions ({', '.join(names)}): no range")
                if chosen.diverged:
                    notes.append(f"diverged: {', '.join(f'{value:g}' for value in chosen.diverged)}")
                span = "" if names else _span(chosen)
                error = f"{chosen.mean(chosen.best):.2f}"
                rows.append((label, str(depth), f"{chosen.best:g}", span, error, "; ".join(notes)))
        return rows

    def fitted(self, label: str) -> Exponent | None:
        """Fit a power of depth to the best values of a network, as far as conditions of the choice were equal."""
        unequal = self.unequal[label]
        return exponent({depth: chosen for depth, chosen in self.choices[label].items() if not unequal.get(depth)})

    @property
    def exponents(self) -> list[str]:
        """Sentence for each network on the exponent of the best value as a power of depth."""
        sentences = []
        for label in self.choices:
            fitted = self.fitted(label)
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


def _span(chosen: Choice) -> str:
    """Describe the values that are not distinguishable from the best one, "" if that is not known."""
    between = interval(chosen)
    if between is None:
        return ""
    low, high = between
    below, above = " or less" * (low == min(chosen.errors)), " or more" * (high == max(chosen.errors))
    return f"{low:g}{below} to {high:g}{above}"


def short(option: str) -> str:
    """Return the last part of an option."""
    return option.rpartition(".")[2]


def read_tuned(runs: Sequence[Run], reference: Mapping[str, Any]) -> tuple[Tuned | None, list[Run]]:
    """Separate the runs of tuned networks from the others, and choose a value for each network.

    Args:
        runs: all runs.
        reference: the settings of the reference family, which comes first.

    Returns:
        The runs of tuned networks, None if there are none; and the other runs.

    Raises:
        InputError: see `_merged`; or the report cannot distinguish two runs.
    """
    tunings = [run.config.tuning for run in runs if run.config.tuning]
    if not tunings:
        return None, list(runs)
    tuning = _merged(tunings)
    networks: dict[str, list[Run]] = defaultdict(list)
    others = []
    for run in runs:
        try:
            networks[network(run.config, tuning.option)].append(run)
        except InputError:  # it has no such option
            others.append(run)
    tuned = {key: members for key, members in networks.items() if any(run.config.tuning for run in members)}
    others += [run for key, members in networks.items() if key not in tuned for run in members]
    labels = _labels([run for members in tuned.values() for run in members], tuning.option)

    def place(members: Sequence[Run]) -> tuple[bool, str, int]:
        config = members[0].config
        return not matches(config, reference), labels[members[0].name][0], config.model["depth"]

    return _tuned(tuning, sorted(tuned.values(), key=place), labels), others


def _merged(tunings: Sequence[Tuning]) -> Tuning:
    """Return the grid of a study whose runs were trained by commands that may have extended it.

    Raises:
        InputError: the commands tuned different options, with different seeds or with different equal values.
    """
    for key, of in (("option", lambda t: t.option), ("seeds", lambda t: sorted(t.seeds)), ("equal", lambda t: t.equal)):
        found = {str(of(each)) for each in tunings if of(each) is not None}
        if len(found) > 1:
            raise InputError(
                f"the runs have different sweep.tune.{key} ({' and '.join(sorted(found))}); report on those of one "
                "command, with one study, at a time"
            )
    return replace(
        tunings[0],
        values=sorted({value for each in tunings for value in each.values}),
        equal=next((each.equal for each in tunings if each.equal is not None), None),
        extensions=max(each.extensions for each in tunings),
    )


def _labels(runs: Sequence[Run], option: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Return label and setting of each run's family as if all runs had one value of the option, by the run's name."""
    alike = {run.name: replace(run, config=with_value(run.config, option, 1.0)) for run in runs}
    labels = labelled(list({run.name: run for run in alike.values()}.values()))
    return {name: labels[run.name] for name, run in alike.items()}


def _tuned(
    tuning: Tuning, networks: Iterable[Sequence[Run]], labels: Mapping[str, tuple[str, dict[str, str]]]
) -> Tuned:
    """Choose a value for each network, and group the runs that are compared by the role of their value."""
    option = tuning.option
    equal_part, best_part = f"{short(option)} {tuning.equal}", f"best {short(option)}"
    at_best, at_equal, candidates, unused = [], [], [], []
    begun: set[tuple[str, int, int]] = set()
    choices: dict[str, dict[int, Choice]] = {}
    unequal: dict[str, dict[int, list[str]]] = {}
    for members in networks:
        config = next(run.config for run in members if run.config.tuning)
        config = replace(config, sweep=replace(config.sweep, tune=tuning))
        values, chosen = Cell(config, ()).grid({run.name: run for run in members})
        label, depth = labels[members[0].name][0], config.model["depth"]
        choices.setdefault(label, {})[depth] = chosen
        blocks: dict[int, list[Run]] = {seed: [] for seed in tuning.seeds}
        for run in members:
            value, seed = value_of(run.config, option), run.config.seed
            if seed in tuning.seeds:
                if value in values:
                    candidates.append((f"{_at(label, f'{short(option)} {value:g}')}: choice", run))
                    blocks[seed] += [run] if run.finished else []
                else:
                    unused.append(run)
                continue
            roles = [(at_best, best_part)] * (value == chosen.best) + [(at_equal, equal_part)] * (value == tuning.equal)
            for runs, part in roles:
                begun.add((_at(label, part), seed, depth))
                if run.finished:
                    runs.append(run)
            if not roles:
                unused.append(run)
        finished = [run for block in blocks.values() for run in block]
        names = {name for block in blocks.values() for name in differing(block)} | {*edited_classes(finished)}
        if len({run.result["data_sha256"] for run in finished}) > 1:
            names.add("images")
        unequal.setdefault(label, {})[depth] = sorted(names)
    grouped = []
    for runs, part in ((at_equal, equal_part), (at_best, best_part)):
        own = {run.name: labels[run.name] for run in runs}
        role = {option: part}  # the report claims nothing about networks whose settings differ
        grouped += families(runs, {name: (_at(label, part), setting | role) for name, (label, setting) in own.items()})
    return Tuned(option, tuple(tuning.seeds), choices, unequal, grouped, candidates, unused, begun)


def _at(label: str, part: str) -> str:
    """Add the role of the option's value to the label of a family."""
    return f"{label[:-1]}, {part})" if label.endswith(")") else f"{label} ({part})"
