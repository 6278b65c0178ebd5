"""Published test errors, looked up by the settings of a run."""

import json
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from omegaconf import OmegaConf

from plainres.config.compose import compose
from plainres.config.schema import Config
from plainres.runs.identity import identity, include, settings

LENGTH, AUGMENTATION = ("steps", "epochs"), ("pad", "flip")  # options of optim and data that may differ, and are named


@dataclass(frozen=True)
class Published:
    """A published test error and the settings of its runs."""

    test_error: str  # in percent, possibly a bound such as "> 20"
    source: str  # paper and table
    recipe: str  # an option of conf/optim
    settings: dict[str, Any]  # options and values that differ from the recipe and the defaults of conf/
    unlike: str = ""  # length and augmentation of its runs, as far as they differ from those of the run looked up

    @cached_property
    def described(self) -> Config:
        """Configuration of its runs, with the default seed and precision."""
        options = [f"{key}={json.dumps(value)}" for key, value in self.settings.items()]
        (config,) = compose([f"optim={self.recipe}", *options])
        return config

    @property
    def cell(self) -> str:
        """Cell of a table, with the error and the differences from the run looked up."""
        return self.test_error + (f" ({self.unlike})" if self.unlike else "")


def published(config: Config) -> Published | None:
    """Look up the published result of a run, or return None if published.yaml has none.

    Except for seed and precision, the run must have the identity that the published settings describe. Its length and
    augmentation may differ; `unlike` then contains the published ones.
    """
    actual = settings(config)
    for result in table():
        # the same network may be of another option of model, such as preactivation
        if include(actual, {key: value for key, value in result.settings.items() if key != "model"}):
            described = replace(result.described, seed=config.seed, precision=config.precision)
            ours = replace(
                config,
                optim=replace(config.optim, **{key: getattr(described.optim, key) for key in LENGTH}),
                data=config.data | {key: described.data[key] for key in AUGMENTATION if key in described.data},
            )
            if identity(ours) == identity(described):
                return replace(result, unlike=", ".join(_unlike(described, config)))
    return None


def _unlike(described: Config, config: Config) -> list[str]:
    """Describe the published length and augmentation, as far as those of `config` differ."""
    steps, epochs = described.optim.steps, described.optim.epochs
    length = f"{epochs} epochs" if steps is None else f"{steps:,} steps"
    augmentation = {
        "pad": f"random crops, padded by {described.data.get('pad')}" if described.data.get("pad") else "no crops",
        "flip": "mirrored" if described.data.get("flip") else "not mirrored",
    }
    differences = [text for key, text in augmentation.items() if config.data.get(key) != described.data.get(key)]
    return [*([length] if (config.optim.steps, config.optim.epochs) != (steps, epochs) else []), *differences]


@cache
def table() -> tuple[Published, ...]:
    """Read the results in published.yaml."""
    content = files("plainres.reporting").joinpath("published.yaml").read_text(encoding="utf-8")
    sources: Any = OmegaConf.to_container(OmegaConf.create(content))
    results = []
    for source in sources:
        for result in source["results"]:
            test_error, own = result.pop("test_error"), result
            results.append(Published(str(test_error), source["source"], source["recipe"], source["settings"] | own))
    return tuple(results)
