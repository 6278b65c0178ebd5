"""Evaluation of trained networks: load the network of a run, and predict a test set with it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plainres.analysis.predictions import Predictions
from plainres.analysis.training_images import TrainingImages, have_one_place
from plainres.arithmetic import set_arithmetic
from plainres.config.compose import compose
from plainres.config.instantiate import build_network, check_devices, source_of
from plainres.config.schema import Config
from plainres.console import bar
from plainres.data.batches import DeviceImages, EvaluationBatches
from plainres.data.sources import Images, Source, Split
from plainres.data.streamed_batches import pixels_on
from plainres.data.workers import worker_count
from plainres.errors import InputError, first_line
from plainres.models.networks import over_crops
from plainres.models.weights import load_weights
from plainres.processes.environment import check_torch
from plainres.processes.memory import keep_freed_memory
from plainres.runs.agreement import check_code, check_data, data_of
from plainres.runs.code import check_imported
from plainres.runs.location import located, location_in, location_of
from plainres.runs.provenance import weights_sha256
from plainres.runs.record import Run
from plainres.runs.saved import newest

DIVISION = ("test_split", "test_share")  # options of data that divide them into training and test images
EVALUATION = ("data", "trainer", "precision")  # config groups that may differ from training


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Return a run's configuration with another data set, trainer or precision.

    Without data=..., overrides of single data options apply to the run's data set, whose cache is PLAINRES_CACHE if
    that is set.

    Raises:
        InputError: an override is invalid, is not of data, trainer or precision, or divides the images of training
            into other training and test images.
    """
    for override in overrides:
        if not override.lstrip("+").startswith((*EVALUATION, "--config-dir")):
            raise InputError(
                f"{override}: cannot be overridden for a trained run; override only {', '.join(EVALUATION)}, for "
                "example data=cifar10 or data.path=FOLDER"
            )
    config = located(config)
    changes = [f"precision={config.precision}", *overrides]
    other_data = any(override.lstrip("+").startswith("data=") for override in overrides)
    composed = compose_one([*changes, *([] if other_data else [f"data={config.options['data']}"])])
    data = composed.data
    if not other_data:  # keep the run's data options, except those that are overridden
        keys = [override.split("=")[0].split(".")[1] for override in overrides if "data." in override.split("=")[0]]
        data = config.data | {key: data[key] for key in keys}
    check_division(config.data, data)
    options = {**config.options, "data": composed.options["data"]}
    return replace(config, data=data, trainer=composed.trainer, precision=composed.precision, options=options)


def check_division(training: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Check that images without a test set of their own are divided as in training.

    Raises:
        InputError: they are not, so that test images would be among those that the network was trained on.
    """
    shares = [each.get("test_share") for each in (training, data)]
    if shares[0] is not None and shares[0] != shares[1] and have_one_place(training, data):
        raise InputError(
            f"data.test_share is {shares[1]}, but {shares[0]} in the training of this network, which has seen some of "
            f"those test images; set data.test_share={shares[0]}, or give images of its own test set"
        )


def compose_one(overrides: Sequence[str]) -> Config:
    """Compose a single configuration from overrides.

    Raises:
        InputError: the overrides are invalid, or describe several configurations.
    """
    configs = compose(overrides)
    if len(configs) != 1:
        raise InputError(
            f"{' '.join(overrides)}: describes {len(configs)} networks, but one is evaluated at a time; give each "
            "option a single value"
        )
    return configs[0]


class ReadyNetwork(nn.Module):
    """A trained network in evaluation mode that takes raw images and normalises them as in training.

    Args:
        network: normalised images (N, C, H, W) -> logits (N, classes).
        source: the data set that the network was trained on, which defines the shape of its images.
        statistics: mean and standard deviation (C,) of each channel, in units of pixel values.
    """

    def __init__(self, network: nn.Module, source: Source, statistics: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.network, self.source, self.statistics = network, source, statistics
        self.eval()

    def forward(self, images: Any) -> Tensor:
        """Return the logits (N, classes) float32 of images (N, H, W, C) uint8, a tensor or an array.

        Images larger than the network's are cropped at the centre.

        Raises:
            InputError: the images have the wrong type or number of channels, or are too small.
        """
        pixels = torch.as_tensor(images)
        channels, height, width = self.source.shape
        fits = pixels.ndim == 4 and pixels.shape[1] >= height and pixels.shape[2] >= width
        if pixels.dtype != torch.uint8 or not fits or pixels.shape[3] != channels:
            raise InputError(
                f"images are {pixels.dtype} {list(pixels.shape)}; the network takes torch.uint8 "
                f"[N, {height}, {width}, {channels}] or larger; pass pixel values as stored in the data set"
            )
        weight = next(self.network.parameters())
        split = Split(pixels, torch.zeros(len(pixels), dtype=torch.int64))
        x, _ = DeviceImages(split, self.source, self.statistics, weight.device).batch(torch.arange(len(pixels)))
        return self.network(x.to(weight)).float()


def load(run: Run | Path | str, overrides: Sequence[str] = ()) -> ReadyNetwork:
    """Load a run's trained network, ready to predict from raw images, in evaluation mode.

    Args:
        run: a run, or its folder.
        overrides: data.path=FOLDER or data.cache=FOLDER, if the images have moved since the training. They are read
            only if the run does not record its channel statistics or the shape of its images.

    Raises:
        InputError: the run has no checkpoint, its channel statistics are unknown, or an override is invalid.
    """
    run = run if isinstance(run, Run) else Run.read(Path(run))
    config = located(run.config, location_of(overrides))
    return ReadyNetwork(load_network(run, config.data), source_of(config), training_statistics(run, config))


def load_network(run: Run | Path | str, data: Mapping[str, Any] | None = None) -> nn.Module:
    """Load the network of a run with the weights of its newest checkpoint, in the dtype used for training.

    The network is in training mode and takes normalised images. `load` returns one that is ready to predict.

    Args:
        run: a run, or its folder.
        data: the run's data set at another location (default: at that of its training). It is read only if the run's
            configuration leaves the shape or the number of classes to the data.

    Raises:
        InputError: the run has no checkpoint, or it is finished and its checkpoint does not match its result; or one
            of the user's own classes has changed since its training.
    """
    return _loaded(run if isinstance(run, Run) else Run.read(Path(run)), data)[0]


def _loaded(run: Run, data: Mapping[str, Any] | None) -> tuple[nn.Module, int]:
    """Return the network of `load_network`, and the step of its weights."""
    check_torch(inference=True)
    check_code(run)
    check_imported(run.config)
    saved = newest(run)
    if saved.path is None:
        if run.finished:
            raise InputError(
                f"{run.folder} is finished but has no readable checkpoint; delete its result.json and train it again"
            )
        raise InputError(f"{run.folder} has no checkpoint yet; train it first")
    if not run.finished:
        print(f"{run.name} is not finished; using its weights after step {saved.step}", file=sys.stderr)
    # The checkpoint replaces the initial weights, whose file may no longer exist.
    model = {**run.config.model, "weights": None, "head": None}
    config = replace(run.config, model=model, data=data or located(run.config).data)
    network = build_network(config)
    if config.precision == "64-true":
        network.double()
    load_weights(network, saved.path)
    if run.finished and weights_sha256(network) != run.result["weights_sha256"]:  # the final checkpoint was damaged
        raise InputError(
            f"the newest readable checkpoint in {run.folder} does not match its result.json; delete its result.json "
            "and train it again"
        )
    return network, saved.step


def training_statistics(run: Run, config: Config) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation (C,) with which a run's training images were normalised.

    They are read from the result.json of a finished run. If the run is not finished, or an older version wrote its
    result, they are computed from its training images. The location of these images is taken from `config` if both
    have the same data set.

    Raises:
        InputError: the run does not record them, and its training images cannot be read, or have changed.
    """
    if (recorded := _recorded_statistics(run)) is not None:
        return recorded
    own = _with_location(run, config)
    try:
        images = source_of(own).load()
    except InputError as error:
        raise InputError(
            f"{run.folder} does not record its channel means, and the training images to compute them from cannot be "
            f"read: {error}"
        ) from error
    check_data(Run(own, run.folder), images.sha256())
    return images.channel_statistics


def _recorded_statistics(run: Run) -> tuple[Tensor, Tensor] | None:
    if not run.finished or "channel_mean" not in run.result:
        return None
    return torch.tensor(run.result["channel_mean"]), torch.tensor(run.result["channel_std"])


def _with_location(run: Run, config: Config) -> Config:
    """Return the configuration of a run with the location of `config`, if both have the same data set."""
    return located(run.config, location_in(config) if config.options == run.config.options else ())


def predict(run: Run | Path | str, overrides: Sequence[str] = ()) -> Predictions:
    """Predict a test set with a run's network. Images are normalised as in training.

    Args:
        run: a run, or its folder.
        overrides: overrides of data, trainer and precision, such as data=cifar100. The default is the run's own test
            set. data.mean and data.std replace the channel statistics of training.

    Raises:
        InputError: see `load_network`, `with_overrides`, `evaluate` and `TrainingImages.check`.
    """
    run = run if isinstance(run, Run) else Run.read(Path(run))
    config = with_overrides(run.config, overrides)
    check_devices(config)
    own = _with_location(run, config)
    # the network may need the images for their shape and classes; those at hand need not be divided as in training
    network, step = _loaded(
        run, own.data | {key: config.data[key] for key in DIVISION if key in own.data.keys() & config.data}
    )
    source = source_of(config)
    images = source.load()
    trained = TrainingImages(run.folder, data_of(run.config), run.config.data, own, run.data_sha256, run.class_names)
    statistics = _recorded_statistics(run)
    if sets_statistics(overrides):
        if statistics is not None:
            compare_statistics(run.name, statistics, config)
        statistics = None
    elif statistics is None and not trained.are_those_of(config):
        statistics = training_statistics(run, config)
    return _evaluate(network, config, source, images, statistics=statistics, trained=trained, step=step)


def sets_statistics(overrides: Sequence[str]) -> bool:
    """Whether overrides set the channel statistics."""
    return any(override.lstrip("+").startswith(("data.mean=", "data.std=")) for override in overrides)


def compare_statistics(name: str, training: tuple[Tensor, Tensor], config: Config) -> None:
    """Print a line on stderr if data.mean and data.std are not the statistics of a network's training.

    Args:
        name: name of the network.
        training: mean and standard deviation (C,) of each channel in its training, in units of pixel values.
        config: configuration with data.mean and data.std.

    Raises:
        InputError: a value is invalid.
    """
    source_of(config)
    chosen = [config.data.get(key) for key in ("mean", "std")]
    if None in chosen or len(chosen[0]) != len(training[0]):
        return
    if not all(torch.allclose(a, 255 * torch.tensor(b), rtol=1e-4) for a, b in zip(training, chosen, strict=True)):
        mean, std = (",".join(f"{value:.4g}" for value in (each / 255).tolist()) for each in training)
        print(
            f"{name} was trained with data.mean=[{mean}] data.std=[{std}], but data.mean and data.std normalise images "
            "otherwise; leave them out to normalise as in training",
            file=sys.stderr,
        )


def evaluate(
    network: nn.Module,
    config: Config,
    statistics: tuple[Tensor, Tensor] | None = None,
    trained: TrainingImages | None = None,
) -> Predictions:
    """Predict the test set of `config` on its device and in its precision.

    Args:
        network: normalised images (N, C, H, W) -> logits (N, classes).
        config: the data set, the device and the precision.
        statistics: mean and standard deviation (C,) of each channel in the network's training, in units of pixel
            values. None uses those of the data set.
        trained: what is known of the images of the network's training; None if nothing is.

    Raises:
        InputError: the images cannot be read, the network does not fit their shape or number of classes, or as
            `TrainingImages.check`.
    """
    check_devices(config)
    source = source_of(config)
    return _evaluate(network, config, source, source.load(), statistics=statistics, trained=trained)


def _evaluate(
    network: nn.Module,
    config: Config,
    source: Source,
    images: Images,
    *,
    statistics: tuple[Tensor, Tensor] | None,
    trained: TrainingImages | None,
    step: int | None = None,
) -> Predictions:
    check_torch(inference=True)
    if trained is not None:
        trained.check(config, images)
    device = torch.device(config.trainer.device_type)
    set_arithmetic(config.trainer.threads)
    keep_freed_memory()
    statistics = statistics or images.channel_statistics
    channels = len(statistics[0])
    if channels != source.shape[0]:
        raise InputError(
            f"the network cannot process images of shape {list(source.shape)}: it was trained on images with "
            f"{channels} channel{'s' * (channels != 1)}"
        )
    workers = worker_count(config.trainer.workers, 1)
    pixels = pixels_on(device, images.test, source, statistics, workers)
    network = network.to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
    network.to(torch.float64 if config.precision == "64-true" else torch.float32)
    logits = []
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed"),
        bar("evaluating", "image", len(images.test), leave=False, delay=1, disable=None) as progress,
    ):
        for x, _ in EvaluationBatches(pixels):
            x = x.to(device, next(network.parameters()).dtype)  # noqa: PLW2901
            try:
                logits.append(over_crops(lambda crops: network(crops).float(), x).cpu())
            except (torch.OutOfMemoryError, torch.AcceleratorError):  # not a question of the shape
                raise
            except RuntimeError as error:
                reason = first_line(error)
                raise InputError(
                    f"the network cannot process images of shape {list(source.shape)}: {reason}"
                ) from error
            progress.update(len(x))
    all_logits = torch.cat(logits)
    if all_logits.shape[1] != source.classes:
        raise InputError(
            f"the network has {all_logits.shape[1]} output classes, but the data set has {source.classes}; choose a "
            "data set with as many classes"
        )
    origin = None if trained is None else trained.origin(config, images, step)
    return Predictions(all_logits, images.test.targets, images.classes, origin)
