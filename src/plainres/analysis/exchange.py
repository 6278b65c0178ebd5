"""Exchange of trained networks as files of weights: export of runs, and evaluation of files from anywhere."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import plainres.data
import plainres.models
from plainres.analysis.evaluation import (
    EVALUATION,
    compare_statistics,
    compose_one,
    evaluate,
    load_network,
    sets_statistics,
    training_statistics,
    with_overrides,
)
from plainres.analysis.predictions import Predictions
from plainres.analysis.training_images import TrainingImages
from plainres.config.instantiate import build_network, check
from plainres.config.schema import Config
from plainres.errors import InputError, first_line
from plainres.models.weights import config_in, published_statistics, save_weights, statistics_in
from plainres.runs.identity import NOT_IDENTITY, TARGET
from plainres.runs.location import located, location_of
from plainres.runs.record import Run

IMAGES = "images"  # key of what an exported file records of the images of its training
RECORDED = ("model", "data", "options", "precision")  # parts of a run's configuration in an exported file
TRUSTED = {
    *(f"plainres.models.{name}" for name in plainres.models.__all__),
    *(f"plainres.data.{name}" for name in plainres.data.__all__),
    *("torch.nn.BatchNorm2d", "torch.nn.Identity", "torch.nn.ReLU"),
}


def predict_with_file(file: Path, overrides: Sequence[str] = ()) -> tuple[Config, Predictions]:
    """Predict a test set with the network in a file of weights. Images are normalised as in training, if that is known.

    An exported file records its network, its data and the channel statistics of its training. Those of some published
    files are known. For other files the statistics of the data are used, and a line on stderr says so.

    Args:
        file: the file of weights.
        overrides: overrides of data, trainer and precision for an exported file. For others, and with overrides of
            model, they describe the network as well. data.mean and data.std replace the channel statistics of training.

    Returns:
        The configuration that was evaluated, and its predictions.

    Raises:
        InputError: the overrides are invalid, or do not describe the network; or as `evaluate`.
    """
    if any(override.lstrip("+").startswith("model.head=") for override in overrides):
        raise InputError("model.head=new draws a head that is not trained; use it to train, not to evaluate")
    config = config_of_file(file, overrides)
    check(config)
    network = build_network(config)
    trained = training_images(file, config, overrides)
    statistics, published = statistics_in(file), published_statistics(file)
    if statistics is None and published is not None:
        author, statistics = published
        if not sets_statistics(overrides):
            print(f"{file} is {author}'s; images are normalised as in its training", file=sys.stderr)
    if sets_statistics(overrides):
        if statistics is not None:
            compare_statistics(str(file), statistics, config)
        return config, evaluate(network, config, trained=trained)
    if statistics is None and config.data.get("mean") is None:
        hint = "; data.mean and data.std set others" if "mean" in config.data else ""
        print(
            f"{file} does not record the channel means and deviations of its training; those of the training "
            f"images of {config.options['data']} normalise images{hint}",
            file=sys.stderr,
        )
    return config, evaluate(network, config, statistics, trained)


def config_of_file(file: Path, overrides: Sequence[str]) -> Config:
    """Return the configuration for evaluating a file of weights: the recorded one, or that of the overrides.

    A recorded configuration is used unless an override is of other groups than data, trainer and precision. It may name
    only plainres's own classes, because to instantiate others would run code that the file chose.

    Raises:
        InputError: the overrides are invalid, or the recorded configuration is damaged or names another class.
    """
    recorded = _record_used(file, overrides)
    config = compose_one(overrides) if recorded is None else _recorded_config(file, recorded, overrides)
    return replace(config, model={**config.model, "weights": str(file), "head": None})


def training_images(file: Path, config: Config, overrides: Sequence[str]) -> TrainingImages:
    """Return what a file of weights records of the images of its training.

    Args:
        file: the file.
        config: its configuration of `config_of_file`.
        overrides: the overrides in it.

    Raises:
        InputError: the record is damaged.
    """
    images = (config_in(file) or {}).get(IMAGES)
    sha256, names = (images.get("data_sha256"), images.get("class_names")) if isinstance(images, dict) else (None, None)
    own = None
    if (recorded := _record_used(file, overrides)) is not None:  # of classes that `config_of_file` trusts
        location = {key: config.data[key] for key in NOT_IDENTITY["data"] if key in config.data}
        data = {**location, **recorded["data"]}
        own = replace(config, data=data, options=recorded["options"], precision=recorded["precision"])
    return TrainingImages(
        file,
        "as it records",
        None if recorded is None else recorded["data"],
        own,
        sha256 if isinstance(sha256, str) else None,
        list(map(str, names)) if isinstance(names, list) else None,
    )


def _record_used(file: Path, overrides: Sequence[str]) -> dict[str, Any] | None:
    """Return the configuration that a file records, None if it records none, or the overrides describe the network."""
    recorded = config_in(file)
    describes = [word for word in overrides if not word.lstrip("+").startswith((*EVALUATION, "--config-dir"))]
    return recorded if not describes and recorded is not None and recorded.keys() >= set(RECORDED) else None


def _recorded_config(file: Path, recorded: dict[str, Any], overrides: Sequence[str]) -> Config:
    """Return the configuration that a file records, with overrides and with the locations of this machine."""
    untrusted = [target for target in _targets(recorded) if target not in TRUSTED]
    if untrusted or "${" in json.dumps(recorded):
        raise InputError(
            f"{file} records a network with {untrusted[0] if untrusted else 'interpolations'}, which is not of "
            "plainres and is therefore not used; describe the network by overrides, as in its training"
        )
    folders = [word for word in overrides if word.startswith("--config-dir")]
    try:
        base = compose_one([f"data={recorded['options']['data']}", *folders])
        recorded["data"] = {key: base.data[key] for key in NOT_IDENTITY["data"] if key in base.data} | recorded["data"]
        config = replace(base, **{key: recorded[key] for key in RECORDED})
        _ = config.shortcut, config.data["_target_"], config.model["_target_"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} has damaged metadata ({first_line(error)}); export it again") from error
    return with_overrides(config, overrides)


def export(run: Run, file: Path, overrides: Sequence[str] = ()) -> str:
    """Write the weights of a run as safetensors, with its configuration, channel statistics and digest of its images.

    The configuration does not contain the locations of files.

    Args:
        run: the run.
        file: the file to write.
        overrides: as for `plainres.analysis.evaluation.load`.

    Returns:
        Naming scheme of the keys, "torchvision's" or "plainres's".

    Raises:
        InputError: as `load_network` and `training_statistics`; or the file cannot be written.
    """
    recorded: dict[str, Any] = {key: getattr(run.config, key) for key in RECORDED}
    recorded[IMAGES] = {"data_sha256": run.data_sha256, "class_names": run.class_names}
    for group, keys in NOT_IDENTITY.items():
        recorded[group] = {key: value for key, value in recorded[group].items() if key not in keys}
    config = located(run.config, location_of(overrides))
    return save_weights(load_network(run, config.data), recorded, training_statistics(run, config), file)


def _targets(node: Any) -> Iterator[str]:
    """Yield the classes and functions that a configuration names."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == TARGET:
                yield str(value)
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)
