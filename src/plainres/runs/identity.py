"""What identifies a run: its identity, its settings, its name.

A run is identified by what determines its result: model, data, recipe, seed, precision. The identity is written in one
form, whichever way a configuration was written: classes by their public path (`plainres.models.Identity`, wherever the
file lies), whole numbers as integers (1.0 is 1), and nothing that is at its default. A default is what the signature of
the class or the dataclass declares. So an option that is added later renames no run, and an older config.yaml, which
lacks it, means what it meant.
"""

import hashlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from typing import Any

from plainres.config.schema import MODEL_DEFAULTS, Config, Recipe

TARGET, PARTIAL = "_target_", "_partial_"
NOT_IDENTITY = {"model": ("weights",), "data": ("path", "cache")}  # where these are found, not which they are


def identity(config: Config) -> dict[str, Any]:
    """Return what determines the result of a run, without what is at its default, as plain nested values."""
    return _parts(config, complete=False)


def complete(config: Config) -> dict[str, Any]:
    """Return the identity with all defaults, as plain nested values."""
    return _parts(config, complete=True)


def settings(config: Config) -> dict[str, str]:
    """Return what can tell a run from others, flat and with all defaults: {"model/norm": "group", "optim.lr": "0.1"}.

    Keys with slashes are options chosen from conf/, keys with dots are values.
    """
    parts = complete(config)
    return {group: name for group, name in config.options.items() if group.partition("/")[0] in parts} | flat(parts)


def matches(config: Config, of: Mapping[str, Any]) -> bool:
    """Whether a run has all of some settings."""
    own = settings(config)
    return all(key in own and _same(own[key], value) for key, value in of.items())


def _same(own: str, value: Any) -> bool:
    """Whether a setting is a value; numbers are equal however they are written."""
    try:
        return own == str(value) or float(own) == float(value)
    except (TypeError, ValueError):
        return False


def run_name(config: Config) -> str:
    """Return a readable name, unique by the first 8 hexadecimal digits of the identity's SHA-256."""
    canonical = json.dumps(identity(config), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    model = config.model
    return f"{config.shortcut}-{model['depth']}-w{model['width']}-s{config.seed}-{digest}"


def flat(value: Any, key: str = "") -> dict[str, str]:
    """Flatten nested dictionaries: {"optim": {"lr": 0.05}} -> {"optim.lr": "0.05"}."""
    if not isinstance(value, dict):
        return {key: str(value)}
    return {k: v for name, part in value.items() for k, v in flat(part, f"{key}.{name}".lstrip(".")).items()}


def public_path(target: Any) -> str | None:
    """Return the shortest path under which a class or function can be imported, None if it has none."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    packages = str(module).split(".")
    paths = [".".join(packages[: length + 1]) for length in range(len(packages))]
    holder = next((path for path in paths if name and getattr(sys.modules.get(path), name, None) is target), None)
    return f"{holder}.{name}" if holder else None


def _parts(config: Config, *, complete: bool) -> dict[str, Any]:
    parts = {
        "model": _fit(_one_form(config.model, complete), MODEL_DEFAULTS, complete),
        "data": _one_form(config.data, complete),
        "optim": _fit(_one_form(asdict(config.optim), complete), _defaults(Recipe), complete),
        "seed": config.seed,
        "precision": config.precision,
    }
    for group, keys in NOT_IDENTITY.items():
        parts[group] = {key: value for key, value in parts[group].items() if key not in keys}
    if config.weights_sha256:
        parts["model"]["weights_sha256"] = config.weights_sha256
    return parts


def _one_form(value: Any, complete: bool) -> Any:
    """Bring a value from YAML to its one form."""
    if isinstance(value, Mapping):
        node = {key: _one_form(part, complete) for key, part in value.items()}
        if TARGET not in node:
            return node
        target = _resolve(str(node[TARGET]))
        node[TARGET] = public_path(target) or node[TARGET]
        return _fit(node, _defaults(target), complete)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_one_form(part, complete) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fit(node: dict[str, Any], defaults: Mapping[str, Any], complete: bool) -> dict[str, Any]:
    """Add the defaults to a node, or leave out what is at its default."""
    written = {key: _one_form(_as_node(default), complete) for key, default in defaults.items()}
    if complete:
        return written | node
    return {key: value for key, value in node.items() if key not in written or not _equal(value, written[key])}


def _equal(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # which tells true from 1


def _as_node(default: Any) -> Any:
    """Write a default as conf/ would: a dataclass or a callable as a node, anything else as it is."""
    if is_dataclass(default) and not isinstance(default, type):
        values = {each.name: _as_node(getattr(default, each.name)) for each in fields(default)}
        return {TARGET: public_path(type(default)), **values}
    return {TARGET: public_path(default), PARTIAL: True} if callable(default) else default


@cache
def _resolve(path: str) -> Any:
    """Return what a path names, None if it cannot be imported: a report needs no class that only training needs."""
    try:
        return pkgutil.resolve_name(path)
    except Exception:  # whatever somebody's module raises; training reports it
        return None


@cache
def _defaults(target: Any) -> dict[str, Any]:
    """Return the declared defaults of a class, a dataclass or a function."""
    if is_dataclass(target):
        made = {
            each.name: each.default if each.default_factory is MISSING else each.default_factory()
            for each in fields(target)
        }
        return {name: default for name, default in made.items() if default is not MISSING}
    parameters = inspect.signature(target).parameters.values() if callable(target) else ()
    return {each.name: each.default for each in parameters if each.default is not each.empty}
