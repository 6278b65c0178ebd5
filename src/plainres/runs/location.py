"""Location of the images of a trained run, which may have moved since its training."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from plainres.config.overrides import as_typed, parse
from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.runs.identity import NOT_IDENTITY

KEYS = NOT_IDENTITY["data"]

Location = tuple[tuple[str, Any], ...]  # pairs of a key of `data` and its value


def location_of(overrides: Sequence[str]) -> Location:
    """Return the location that overrides give.

    Raises:
        InputError: one of them is of another key than data.path and data.cache, or has no single value.
    """
    location: dict[str, Any] = {}
    for word in overrides:
        override = parse(as_typed(word))
        group, _, key = override.key_or_group.partition(".")
        value = override.value()
        if group != "data" or key not in KEYS or override.is_delete() or not isinstance(value, str | None):
            raise InputError(
                f"{word}: cannot be overridden here; data.path=FOLDER and data.cache=FOLDER locate images that have "
                "moved since the training"
            )
        location[key] = value
    return tuple(location.items())


def located(config: Config, location: Location = ()) -> Config:
    """Return the configuration of a trained run with its images at another location.

    The environment variable PLAINRES_CACHE replaces the cache of the run's training, and `location` replaces both.
    """
    cache = os.environ.get("PLAINRES_CACHE")
    moved = {"cache": cache} if cache and "cache" in config.data else {}
    return replace(config, data={**config.data, **moved, **dict(location)})


def location_in(config: Config) -> Location:
    """Return the location that a configuration contains."""
    return tuple((key, config.data[key]) for key in KEYS if key in config.data)
