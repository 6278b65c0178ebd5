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
    check_division,
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
    trained = training_images(file, config)
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
        InputError: the overrides are invalid, or divide the images of the training into other training and test images;
            or the recorded configuration is damaged or names another class.
    """
    recorded = config_in(file)
    if recorded is None or not recorded.keys() >= set(RECORDED):
        config = compose_one(overrides)
    elif _describe_network(overrides):
        config = compose_one(overrides)
        if isinstance(recorded["data"], dict):
            check_division(recorded["data"], config.data)
    else:
        config = _recorded_config(file, recorded, overrides)
    return replace(config, model={**config.model, "weights": str(file), "head": None})


def training_images(file: Path, config: Config) -> TrainingImages:
    """Return what a file of weights records of the images of its training.

    They are known even if overrides describe the network, unless they are of a class that is not plainres's.

    Args:
        file: the file.
        config: its configuration of `config_of_file`, which says where the images lie now.

    Raises:
        InputError: the record is damaged.
    """
    recorded = config_in(file) or {}
    images = recorded.get(IMAGES)
    sha256, names = (images.get("data_sha256"), images.get("class_names")) if isinstance(images, dict) else (None, None)
    data, own = recorded.get("data"), None
    if isinstance(data, dict) and recorded.keys() >= set(RECORDED) and not _distrusted(data):
        location = {key: config.data[key] for key in NOT_IDENTITY["data"] if key in config.data}
        changes = {"options": recorded["options"], "precision": recorded["precision"]}
        own = replace(config, data={**location, **data}, **changes)
    return TrainingImages(
        file,
        "as it records",
        data if own else None,
        own,
        sha256 if isinstance(sha256, str) else None,
        list(map(str, names)) if isinstance(names, list) else None,
    )


def _describe_network(overrides: Sequence[str]) -> bool:
    """Whether overrides describe a network, in place of the one that a file records."""
    return not all(override.lstrip("+").startswith((*EVALUATION, "--config-dir")) for override in overrides)


def _distrusted(recorded: Any) -> str:
    """Return why a part of a recorded configuration is not used, "" if it may be."""
    untrusted = [target for target in _targets(recorded) if target not in TRUSTED]
    return untrusted[0] if untrusted else "interpolations" if "${" in json.dumps(recorded) else ""


def _recorded_config(file: Path, recorded: dict[str, Any], overrides: Sequence[str]) -> Config:
    """Return the configuration that a file records, with overrides and with the locations of this machine."""
    if reason := _distrusted(recorded):
        raise InputError(
            f"{file} records a network with {reason}, which is not of plainres and is therefore not used; describe the "
            "network by overrides, as in its training"
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
