"""Families: the runs of a study that differ by depth and seed only, and their labels.

A family is a shortcut, with whatever else tells the study's runs apart. A label names the options from conf/ that
explain a difference (norm group), and otherwise the values (width 16).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.runs.identity import matches, settings
from plainres.runs.record import Run

SHORTCUT = "model/shortcut"
ASIDE = ("seed", "model.depth")  # what runs of one family differ by
REPEATED = "model.shortcut.norm."  # a projection's normalisation, by default the network's once more


@dataclass(frozen=True)
class Family:
    """Runs that differ by depth and seed only."""

    label: str
    setting: dict[str, str]  # what tells it from other families, a shortcut's own parameters aside
    runs: dict[int, dict[int, Run]]  # depth -> seed -> finished run, in ascending order

    def is_like(self, wanted: Mapping[str, Any]) -> bool:
        """Whether its runs are what a study compares the others with."""
        return all(matches(run.config, wanted) for by_seed in self.runs.values() for run in by_seed.values())


def families(runs: Sequence[Run], labels: Mapping[str, tuple[str, dict[str, str]]]) -> list[Family]:
    """Sort finished runs into families by their labels (see `labelled`).

    Raises:
        InputError: two runs have the same family, depth and seed, so that one would hide the other.
    """
    found: dict[str, Family] = {}
    for run in sorted(runs, key=lambda run: (run.config.model["depth"], run.config.seed)):
        label, setting = labels[run.name]
        family = found.setdefault(label, Family(label, setting, {}))
        first = family.runs.setdefault(run.config.model["depth"], {}).setdefault(run.config.seed, run)
        if first is not run:
            raise InputError(
                f"{first.folder} and {run.folder} differ, but the report cannot tell how: both are {label}, depth "
                f"{run.config.model['depth']}, seed {run.config.seed}; move one of them away"
            )
    return list(found.values())


def reference(config: Config) -> dict[str, Any]:
    """Return the settings of the runs that the others of a study are compared with."""
    return config.report.reference or {SHORTCUT: "plain"}


def labelled(runs: Sequence[Run]) -> dict[str, tuple[str, dict[str, str]]]:
    """By a run's name: the label of its family, and what it consists of, by setting.

    A shortcut's own parameters are in the label alone: they are no difference to another shortcut.
    """
    own = _with_options({run.name: _telling(settings(run.config)) for run in runs})
    keys = set().union(*own.values())
    varying = {key for key in keys if _tells_apart(key, list(own.values()))} - {SHORTCUT, *ASIDE}
    names = Counter(_path(key)[-1] for key in keys)
    found = {}
    for run in runs:
        parts = {}
        for key in sorted(varying & own[run.name].keys(), key=_path):
            name = _path(key)[-1]
            parts[key] = f"{name if names[name] == 1 else key} {own[run.name][key]}"
        label = f"{run.config.shortcut} ({', '.join(parts.values())})" if parts else run.config.shortcut
        setting = {key: part for key, part in parts.items() if not key.startswith("model.shortcut.")}
        found[run.name] = label, {SHORTCUT: run.config.shortcut, **setting}
    return found


def _with_options(own: Mapping[str, dict[str, str]]) -> Mapping[str, dict[str, str]]:
    """Name the options that a configuration from before there was such a group does not name, by another's values."""

    def values(settings: Mapping[str, str], group: str) -> dict[str, str]:
        return {key: value for key, value in settings.items() if key.startswith(f"{group.replace('/', '.')}.")}

    for group in {key for each in own.values() for key in each if "/" in key}:
        named = [each for each in own.values() if group in each]
        for each in own.values():
            if group not in each:
                for other in named:
                    if values(other, group) == values(each, group):
                        each[group] = other[group]
    return own


def _telling(own: Mapping[str, str]) -> dict[str, str]:
    """Leave out the normalisation of a shortcut where it repeats the network's."""
    return {
        key: value
        for key, value in own.items()
        if not (key.startswith(REPEATED) and own.get(f"model.norm.{key.removeprefix(REPEATED)}") == value)
    }


def _tells_apart(key: str, all_settings: Iterable[Mapping[str, str]]) -> bool:
    """Whether a setting varies among runs that have the same option of every group that it is part of."""
    path = _path(key)
    values: defaultdict[tuple[str, ...], set[str | None]] = defaultdict(set)
    for own in all_settings:
        above = [group for group in ("/".join(path[:length]) for length in range(1, len(path))) if group in own]
        values[tuple(own[group] for group in above)].add(own.get(key))
    return any(len(found) > 1 for found in values.values())


def _path(key: str) -> list[str]:
    """The names of the path to an option, model/norm, or a value, model.norm.groups."""
    return key.replace("/", ".").split(".")
