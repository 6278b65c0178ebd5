"""Test errors that others have published, found by the settings of a run."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from plainres.config.schema import Config
from plainres.runs.identity import matches


@dataclass(frozen=True)
class Published:
    """A published test error, of runs with all of these settings."""

    test_error: str  # percent, or such as "> 20"
    source: str  # paper and table
    settings: dict[str, Any]


def published(config: Config) -> Published | None:
    """Return what others have found with such a run, None if published.yaml knows of nothing."""
    return next((result for result in table() if matches(config, result.settings)), None)


@cache
def table() -> tuple[Published, ...]:
    """Return the results in published.yaml."""
    content = files("plainres.reporting").joinpath("published.yaml").read_text(encoding="utf-8")
    sources: Any = OmegaConf.to_container(OmegaConf.create(content))
    results = []
    for source in sources:
        for result in source["results"]:
            test_error, own = result.pop("test_error"), result
            results.append(Published(str(test_error), source["source"], source["settings"] | own))
    return tuple(results)
