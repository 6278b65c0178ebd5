"""Families of runs that differ only by depth and seed, and their labels.

A family is defined by its shortcut and by every other setting that varies within the study. Its label names the options
from conf/ that explain a difference (norm group), or else the values (width 16).
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
OF_SHORTCUT = "model.shortcut."  # begins the keys of a shortcut's parameters
WITHIN_FAMILY = ("seed", "model.depth")  # settings that vary within a family
UNSET = {  # how a label names an option that is null
    "data.validation_per_class": "no validation split",
    "data.train_per_class": "all training images",
    "data.test_per_class": "all test images",
    "optim.clip_norm": "not clipped",
    "optim.warmup_lr": "no warm-up",
}
REPEATED = f"{OF_SHORTCUT}norm."  # a projection's normalisation, by default the same as the network's


@dataclass(frozen=True)
class Family:
    """Runs that differ only by depth and seed."""

    label: str
    setting: dict[str, str]  # its shortcut, and the settings that distinguish it from other families, as in the label
    runs: dict[int, dict[int, Run]]  # depth -> seed -> finished run, in ascending order

    def is_like(self, settings: Mapping[str, Any]) -> bool:
        """Whether all its runs have these settings."""
        return all(matches(run.config, settings) for by_seed in self.runs.values() for run in by_seed.values())


def families(runs: Sequence[Run], labels: Mapping[str, tuple[str, dict[str, str]]]) -> list[Family]:
    """Group finished runs into families by their labels (see `labelled`).

    Raises:
        InputError: two different runs have the same family, depth and seed.
    """
    by_label: dict[str, Family] = {}
    for run in sorted(runs, key=lambda run: (run.config.model["depth"], run.config.seed)):
        label, setting = labels[run.name]
        family = by_label.setdefault(label, Family(label, setting, {}))
        first = family.runs.setdefault(run.config.model["depth"], {}).setdefault(run.config.seed, run)
        if first is not run:
            raise InputError(
                f"{first.folder} and {run.folder} differ, but the report cannot distinguish them: both are {label}, "
                f"depth {run.config.model['depth']}, seed {run.config.seed}; move one of them away"
            )
    return list(by_label.values())


def reference(config: Config) -> dict[str, Any]:
    """Return the settings that define the reference family of a study."""
    return config.report.reference or {SHORTCUT: "plain"}


def references(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return the settings of `reference` according to each run, each once, those of the first run first."""
    found: list[dict[str, Any]] = []
    for run in runs:
        if (named := reference(run.config)) not in found:
            found.append(named)
    return found


def labelled(runs: Sequence[Run]) -> dict[str, tuple[str, dict[str, str]]]:
    """Return, for each run's name, the label of its family and the settings that distinguish the family."""
    own = _with_options({run.name: _without_repeated_norm(settings(run.config)) for run in runs})
    keys = set().union(*own.values())
    varying = {key for key in keys if _varies(key, list(own.values()))} - {SHORTCUT, *WITHIN_FAMILY}
    names = Counter(_path(key)[-1] for key in keys)
    labels = {}
    for run in runs:
        parts = {}
        for key in sorted(varying & own[run.name].keys(), key=_path):
            name, value = _path(key)[-1], own[run.name][key]
            unset = UNSET.get(key) if value == "None" else None
            parts[key] = unset or f"{name if names[name] == 1 else key} {value}"
        label = f"{run.config.shortcut} ({', '.join(parts.values())})" if parts else run.config.shortcut
        labels[run.name] = label, {SHORTCUT: run.config.shortcut, **parts}
    return labels


def _with_options(own: Mapping[str, dict[str, str]]) -> Mapping[str, dict[str, str]]:
    """Add the options of groups that an older configuration lacks, if another run's option has the same values."""

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


def _without_repeated_norm(own: Mapping[str, str]) -> dict[str, str]:
    """Remove the settings of a shortcut's normalisation that repeat the network's."""
    return {
        key: value
        for key, value in own.items()
        if not (key.startswith(REPEATED) and own.get(f"model.norm.{key.removeprefix(REPEATED)}") == value)
    }


def _varies(key: str, all_settings: Iterable[Mapping[str, str]]) -> bool:
    """Whether a setting varies among runs with the same option of every group that contains it."""
    path = _path(key)
    values: defaultdict[tuple[str, ...], set[str | None]] = defaultdict(set)
    for own in all_settings:
        groups = [group for group in ("/".join(path[:length]) for length in range(1, len(path))) if group in own]
        values[tuple(own[group] for group in groups)].add(own.get(key))
    return any(len(each) > 1 for each in values.values())


def _path(key: str) -> list[str]:
    """Split the path of an option, such as model/norm, or of a value, such as model.norm.groups."""
    return key.replace("/", ".").split(".")
