"""Test errors that others have published, found by the settings of a run."""

import json
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from plainres.config.compose import compose
from plainres.config.schema import Config
from plainres.runs.identity import identity, matches


@dataclass(frozen=True)
class Published:
    """A published test error, of runs with all of these settings."""

    test_error: str  # percent, or such as "> 20"
    source: str  # paper and table
    recipe: str  # an option of conf/optim
    settings: dict[str, Any]  # options and values that the recipe and the defaults of conf/ do not have


def published(config: Config) -> Published | None:
    """Return what others have found with such a run, None if published.yaml knows of nothing.

    Such a run has the identity of the one that the settings describe, its seed and precision aside.
    """
    for result in table():
        if matches(config, result.settings):
            optim = f"optim={result.recipe}"
            (described,) = compose([optim, *(f"{key}={json.dumps(value)}" for key, value in result.settings.items())])
            if identity(replace(described, seed=config.seed, precision=config.precision)) == identity(config):
                return result
    return None


@cache
def table() -> tuple[Published, ...]:
    """Return the results in published.yaml."""
    content = files("plainres.reporting").joinpath("published.yaml").read_text(encoding="utf-8")
    sources: Any = OmegaConf.to_container(OmegaConf.create(content))
    results = []
    for source in sources:
        for result in source["results"]:
            test_error, own = result.pop("test_error"), result
            results.append(Published(str(test_error), source["source"], source["recipe"], source["settings"] | own))
    return tuple(results)
