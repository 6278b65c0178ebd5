"""Which runs of a study belong together, what they are called, and which of them others have published.

A family is a shortcut, with whatever else tells the study's runs apart besides depth and seed. What a choice from
conf/ explains is told by its name (norm group), the rest by its values (width 16).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plainres.config import Config, Published
from plainres.runs import Run, flat, identity

SHORTCUT = "model/shortcut"
ASIDE = ("seed", "model.depth")  # what runs of one family differ by


def settings(config: Config) -> dict[str, str]:
    """What can tell a run from others: its choices, {"model/norm": "group"}, and its values, {"optim.lr": "0.1"}."""
    values = flat(identity(config))
    groups = {group: name for group, name in config.choices.items() if group.partition("/")[0] in identity(config)}
    # a projection's normalisation is the network's, seen a second time
    return groups | {key: value for key, value in values.items() if not key.startswith("model.shortcut.norm.")}


def matches(config: Config, of: Mapping[str, Any]) -> bool:
    """Whether a run has all of some settings."""
    own = settings(config)
    return all(key in own and _same(own[key], value) for key, value in of.items())


def _same(found: str, wanted: Any) -> bool:
    """Whether a setting is a value; numbers are equal however they are written."""
    try:
        return found == str(wanted) or float(found) == float(wanted)
    except (TypeError, ValueError):
        return False


def reference(config: Config) -> dict[str, Any]:
    """The settings of the runs that the others of a study are compared with: plain nets, unless it names others."""
    return config.reference or {SHORTCUT: "plain"}


def published(config: Config) -> Published | None:
    """What others have found with such a run, None if the study knows of nothing."""
    if not matches(config, config.published_if):
        return None
    return next((found for found in config.published if matches(config, found.of)), None)


def labelled(runs: Sequence[Run]) -> dict[str, tuple[str, dict[str, str]]]:
    """By a run's name: the label of its family, and what it consists of, by setting.

    A shortcut's own parameters are in the label alone: they are no difference to another shortcut.
    """
    own = {run.name: settings(run.config) for run in runs}
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


def _tells_apart(key: str, all_settings: Iterable[Mapping[str, str]]) -> bool:
    """Whether a setting varies among runs that have made the same choice of every group that it is part of."""
    path = _path(key)
    values: defaultdict[tuple[str, ...], set[str | None]] = defaultdict(set)
    for own in all_settings:
        above = [group for group in ("/".join(path[:length]) for length in range(1, len(path))) if group in own]
        values[tuple(own[group] for group in above)].add(own.get(key))
    return any(len(found) > 1 for found in values.values())


def _path(key: str) -> list[str]:
    """The names that a choice, model/norm, or a value, model.norm.groups, is reached by."""
    return key.replace("/", ".").split(".")
