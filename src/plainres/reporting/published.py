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

LENGTH, AUGMENTATION = ("steps", "epochs"), ("pad", "flip")  # of optim and of data: a run may differ, and it is named


@dataclass(frozen=True)
class Published:
    """A published test error, of runs with all of these settings."""

    test_error: str  # percent, or such as "> 20"
    source: str  # paper and table
    recipe: str  # an option of conf/optim
    settings: dict[str, Any]  # options and values that the recipe and the defaults of conf/ do not have
    unlike: str = ""  # what its run had and the run beside it has not

    @property
    def cell(self) -> str:
        """The error as a table shows it, with what its run had and ours has not."""
        return self.test_error + (f" ({self.unlike})" if self.unlike else "")


def published(config: Config) -> Published | None:
    """Return what others have found with such a run, None if published.yaml knows of nothing.

    Such a run has the identity of the one that the settings describe, its seed and precision aside. It may be of
    another length, or augment its images otherwise; then `unlike` says what was published.
    """
    for result in table():
        if matches(config, result.settings):
            optim = f"optim={result.recipe}"
            (described,) = compose([optim, *(f"{key}={json.dumps(value)}" for key, value in result.settings.items())])
            described = replace(described, seed=config.seed, precision=config.precision)
            ours = replace(
                config,
                optim=replace(config.optim, **{key: getattr(described.optim, key) for key in LENGTH}),
                data=config.data | {key: described.data[key] for key in AUGMENTATION if key in described.data},
            )
            if identity(ours) == identity(described):
                return replace(result, unlike=", ".join(_unlike(described, config)))
    return None


def _unlike(described: Config, config: Config) -> list[str]:
    """Return the length and the augmentation of a published run where those of ours are others."""
    steps, epochs = described.optim.steps, described.optim.epochs
    length = f"{epochs} epochs" if steps is None else f"{steps:,} steps"
    augmentation = {
        "pad": f"random crops, padded by {described.data.get('pad')}" if described.data.get("pad") else "no crops",
        "flip": "mirrored" if described.data.get("flip") else "not mirrored",
    }
    others = [text for key, text in augmentation.items() if config.data.get(key) != described.data.get(key)]
    return [*([length] if (config.optim.steps, config.optim.epochs) != (steps, epochs) else []), *others]


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
