"""Identity, settings and name of a run.

The identity consists of everything that determines the result: model, data, recipe, seed and precision. It has a
canonical form, so that equivalent configurations are equal. Classes are named by their public path
(`plainres.models.Identity`), integral floats are integers (1.0 is 1), and values equal to their default are left out. A
default is the one declared in the signature of a class or function.

Therefore an option that is added later renames no run, and an older config.yaml without it keeps its meaning. This
applies to the classes of plainres, whose defaults never change, and of torch. Defaults of other classes may change, so
the identity contains every value that the configuration gives to them.
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
STABLE = ("plainres", "torch")  # packages whose defaults do not change
NOT_IDENTITY = {"model": ("weights",), "data": ("path", "cache")}  # locations of files, not their content


def identity(config: Config) -> dict[str, Any]:
    """Return the identity of a run as nested plain values, without values equal to their default."""
    return _parts(config, complete=False)


def complete(config: Config) -> dict[str, Any]:
    """Return the identity of a run as nested plain values, with all defaults."""
    return _parts(config, complete=True)


def settings(config: Config) -> dict[str, str]:
    """Return the settings that distinguish runs, such as {"model/norm": "group", "optim.lr": "0.1"}.

    The dictionary is flat and contains all defaults. Keys with slashes are options chosen from conf/; keys with dots
    are values.
    """
    parts = complete(config)
    return {group: name for group, name in config.options.items() if group.partition("/")[0] in parts} | flat(parts)


def measurement(probe: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a probe that determine its values: all but its interval and those equal to a default."""
    return {key: value for key, value in flat(_canonical(probe, complete=False)).items() if key != "every_n_steps"}


def matches(config: Config, of: Mapping[str, Any]) -> bool:
    """Whether a run has all the settings of a mapping."""
    return include(settings(config), of)


def include(actual: Mapping[str, str], of: Mapping[str, Any]) -> bool:
    """Whether the settings of a run, as from `settings`, include all those of a mapping."""
    return all(key in actual and _same(actual[key], value) for key, value in of.items())


def _same(actual: str, value: Any) -> bool:
    """Whether a setting equals a value. Numbers are compared by value, not by notation."""
    try:
        return actual == str(value) or float(actual) == float(value)
    except (TypeError, ValueError):
        return False


def run_name(config: Config) -> str:
    """Return a readable name that ends with the first 8 hexadecimal digits of the identity's SHA-256."""
    canonical = json.dumps(identity(config), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    model = config.model
    return f"{config.shortcut}-{model['depth']}-w{model['width']}-s{config.seed}-{digest}"


def flat(value: Any, key: str = "") -> dict[str, str]:
    """Flatten nested dictionaries, such as {"optim": {"lr": 0.05}} to {"optim.lr": "0.05"}."""
    if not isinstance(value, dict):
        return {key: str(value)}
    return {k: v for name, part in value.items() for k, v in flat(part, f"{key}.{name}".lstrip(".")).items()}


def public_path(target: Any) -> str | None:
    """Return the shortest path from which a class or function can be imported, None if it has none."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    packages = str(module).split(".")
    paths = [".".join(packages[: length + 1]) for length in range(len(packages))]
    holder = next((path for path in paths if name and getattr(sys.modules.get(path), name, None) is target), None)
    return f"{holder}.{name}" if holder else None


def _parts(config: Config, *, complete: bool) -> dict[str, Any]:
    parts = {
        "model": _complete_or_strip(_canonical(config.model, complete), MODEL_DEFAULTS, complete),
        "data": _canonical(config.data, complete),
        "optim": _complete_or_strip(_canonical(asdict(config.optim), complete), _defaults(Recipe), complete),
        "seed": config.seed,
        "precision": config.precision,
    }
    for group, keys in NOT_IDENTITY.items():
        parts[group] = {key: value for key, value in parts[group].items() if key not in keys}
    if config.weights_sha256:
        parts["model"]["weights_sha256"] = config.weights_sha256
    return parts


def _canonical(value: Any, complete: bool) -> Any:
    """Return the canonical form of a value from YAML."""
    if isinstance(value, Mapping):
        node = {key: _canonical(part, complete) for key, part in value.items()}
        if TARGET not in node:
            return node
        target = _resolve(str(node[TARGET]))
        node[TARGET] = public_path(target) or node[TARGET]
        return _complete_or_strip(node, _defaults(target), complete)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_canonical(part, complete) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _complete_or_strip(node: dict[str, Any], defaults: Mapping[str, Any], complete: bool) -> dict[str, Any]:
    """Add the missing defaults to a node, or remove the values equal to their default."""
    canonical = {key: _canonical(_as_node(default), complete) for key, default in defaults.items()}
    if complete:
        return canonical | node
    return {key: value for key, value in node.items() if key not in canonical or not _equal(value, canonical[key])}


def _equal(a: Any, b: Any) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)  # unlike ==, distinguishes true from 1


def _as_node(default: Any) -> Any:
    """Return a default in the notation of conf/, where a dataclass or a callable is a node."""
    if is_dataclass(default) and not isinstance(default, type):
        values = {each.name: _as_node(getattr(default, each.name)) for each in fields(default)}
        return {TARGET: public_path(type(default)), **values}
    return {TARGET: public_path(default), PARTIAL: True} if callable(default) else default


@cache
def _resolve(path: str) -> Any:
    """Return the object at an import path, None for other packages and for paths that do not exist.

    Training reports paths that do not exist.
    """
    if path.partition(".")[0] not in STABLE:
        return None
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None


@cache
def _defaults(target: Any) -> dict[str, Any]:
    """Return the declared defaults of a class, a dataclass or a function."""
    if is_dataclass(target):
        declared = {
            each.name: each.default if each.default_factory is MISSING else each.default_factory()
            for each in fields(target)
        }
        return {name: default for name, default in declared.items() if default is not MISSING}
    parameters = inspect.signature(target).parameters.values() if callable(target) else ()
    return {each.name: each.default for each in parameters if each.default is not each.empty}
