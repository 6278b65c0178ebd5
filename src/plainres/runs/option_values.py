"""Values of an option that is a decimal number, such as optim.lr, in a configuration."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.runs.identity import identity


def network(config: Config, option: str) -> str:
    """Return a text that is equal for runs that differ only in their seeds and in the value of an option.

    Raises:
        InputError: see `value_of`.
    """
    return json.dumps(identity(neutral(config, option)), sort_keys=True)


def neutral(config: Config, option: str) -> Config:
    """Return a configuration with the seed 0 and with 1 as the value of an option, if that is not empty.

    Raises:
        InputError: see `value_of`.
    """
    seedless = replace(config, seed=0)
    return with_value(seedless, option, 1.0) if option else seedless


def with_value(config: Config, option: str, value: float) -> Config:
    """Return a configuration with another value of an option, such as optim.lr.

    Raises:
        InputError: see `value_of`.
    """
    value_of(config, option)
    return _changed(config, option.split("."), value)


def value_of(config: Config, option: str) -> float:
    """Return the value of an option.

    Raises:
        InputError: the configuration has no such option, or it is not a decimal number.
    """
    node: Any = config
    for key in option.split("."):
        fields = _fields(node)
        if key not in fields:
            raise InputError(
                f"sweep.tune.option is {option}, but a network of this sweep has no such option; give one that all of "
                "them have, such as optim.lr"
            )
        node = fields[key]
    if not isinstance(node, float):
        raise InputError(
            f"sweep.tune.option is {option}, whose value is {'null' if node is None else node}; it must be an option "
            "whose value is a decimal number, such as optim.lr"
        )
    return node


def _fields(node: Any) -> Mapping[str, Any]:
    return vars(node) if is_dataclass(node) else node if isinstance(node, Mapping) else {}


def _changed(node: Any, keys: Sequence[str], value: float) -> Any:
    key, *rest = keys
    after = _changed(_fields(node)[key], rest, value) if rest else value
    return {**node, key: after} if isinstance(node, Mapping) else replace(node, **{key: after})
