"""Speeds of networks on this machine, measured by `plainres bench` and kept in the cache for estimates of sweeps.

A speed is found again only under the conditions in which it was measured: network, data, recipe, precision, trainer,
probes, machine, versions and training code. The seed and the length of a run do not matter, nor does the value of a
tuned option.
"""

import hashlib
import json
import math
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import joblib

from plainres.config.instantiate import description_of, source_of
from plainres.config.schema import AUTO, Config
from plainres.console import say
from plainres.data.batches import batches_per_epoch
from plainres.data.copies import cache_folder
from plainres.data.sources import AnySplit, Images
from plainres.errors import InputError
from plainres.files import write_atomically
from plainres.runs.identity import complete
from plainres.runs.option_values import neutral
from plainres.runs.provenance import SOURCE_SHA256, device_name, versions
from plainres.training.compilation import pays

FOLDER = "speeds"  # in the cache, beside the decoded copies


@dataclass(frozen=True)
class Speed:
    """Speed of a network's training, with times in seconds.

    Args:
        step: time of an optimizer step of a run that trains alone.
        evaluation: time to evaluate the test set.
        compilation: time before the first step of a compiled run, after the network has been compiled once here.
        at_a_time: number of concurrent runs for which `gain` was measured.
        gain: images/s of concurrent runs together, relative to one that trains alone.
        measured: day of the measurement, such as 2025-01-31.
    """

    step: float
    evaluation: float
    compilation: float
    at_a_time: int
    gain: float
    measured: str

    def seconds(self, config: Config, images: Images[AnySplit], done: int = 0) -> float:
        """Return the time that a run needs alone after `done` steps.

        It evaluates the test set and the validation set after each epoch, and all images at the end.
        """
        per_epoch = batches_per_epoch(len(images.train), config.optim.batch_size)
        steps = config.optim.length(per_epoch)
        evaluated = sum(map(len, images.evaluated.values()))
        images_evaluated = (math.ceil(steps / per_epoch) - done // per_epoch + 1) * evaluated + len(images.train)
        evaluation = images_evaluated / len(images.test) * self.evaluation
        return self.compilation + (steps - done) * self.step + evaluation


def resolve_compile(config: Config) -> Config:
    """Replace `trainer.compile=auto` by true or false, according to the length of the run."""
    if config.trainer.compile != AUTO:
        return config
    source = source_of(config)
    steps = config.optim.length(batches_per_epoch(len(source.load().train), config.optim.batch_size))
    compile = pays(config, description_of(config, source).multiply_adds, steps)
    return replace(config, trainer=replace(config.trainer, compile=compile))


def keep(config: Config, speed: Speed) -> None:
    """Keep the speed of a configuration, after `resolve_compile`; print a line if it cannot be written."""
    conditions = _conditions(config)
    try:
        file = _file(conditions)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"conditions": conditions, "speed": asdict(speed)}, indent=2) + "\n")
    except (OSError, InputError) as error:
        say(f"the speed is not kept for plainres train --dry-run: {error}")


def kept(config: Config) -> Speed | None:
    """Return the speed of a configuration, after `resolve_compile`; None if it was not measured in these conditions."""
    conditions = _conditions(config)
    with suppress(OSError, ValueError, TypeError, KeyError):
        record = json.loads(_file(conditions).read_text())
        if _canonical(record["conditions"]) == _canonical(conditions):
            return Speed(**record["speed"])
    return None


def _conditions(config: Config) -> dict[str, object]:
    """Return all that a speed may depend on."""
    identity = complete(neutral(config, config.sweep.tune.option))
    recipe = {key: value for key, value in identity["optim"].items() if key not in ("epochs", "steps")}
    source = source_of(config)
    images = source.load()
    return {
        "run": identity | {"optim": recipe},
        "images": {"shape": list(source.shape), "classes": source.classes, "train": len(images.train)}
        | {name: len(split) for name, split in images.evaluated.items()},
        "trainer": asdict(config.trainer),
        "probes": config.probes,
        "machine": {
            "host": platform.node(),
            "device": device_name(config.trainer.accelerator),
            "cpus": joblib.cpu_count(),
        },
        "versions": versions(),
        "source_sha256": SOURCE_SHA256,
    }


def _canonical(conditions: object) -> str:
    return json.dumps(conditions, sort_keys=True)


def _file(conditions: object) -> Path:
    return cache_folder() / FOLDER / f"{hashlib.sha256(_canonical(conditions).encode()).hexdigest()[:16]}.json"
