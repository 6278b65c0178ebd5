"""Predictions of a trained network on a test set, image by image."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainres.config.compose import compose
from plainres.config.instantiate import build_network, check_devices, source_of
from plainres.config.schema import Config
from plainres.console import bar
from plainres.data.batches import DeviceImages, EvaluationBatches
from plainres.data.sources import Source, Split
from plainres.errors import InputError, first_line
from plainres.files import atomically
from plainres.models.weights import load_weights
from plainres.runs.identity import NOT_IDENTITY
from plainres.runs.provenance import weights_sha256
from plainres.runs.record import Run

EVALUATION = ("data", "trainer", "precision")  # what may differ from the training


@dataclass(frozen=True)
class Predictions:
    """A test set and what a network makes of it: logits (N, classes) float32 and targets (N,) int64."""

    logits: Tensor
    targets: Tensor

    @property
    def losses(self) -> Tensor:
        """The cross-entropy of each image (N,)."""
        return F.cross_entropy(self.logits, self.targets, reduction="none")

    @property
    def wrong(self) -> Tensor:
        """Whether each image is misjudged (N,)."""
        return self.logits.argmax(1) != self.targets

    def __str__(self) -> str:
        lines = [
            f"loss {self.losses.double().mean().item():.4f}",
            f"error {100 * self.wrong.double().mean().item():.2f} % of {len(self.targets):,} images",
            "",
            "class  images  error in %",
        ]
        for target, images in enumerate(torch.bincount(self.targets).tolist()):
            if images:
                error = 100 * self.wrong[self.targets == target].double().mean().item()
                lines.append(f"{target:5}  {images:6,}  {error:10.2f}")
        return "\n".join(lines)

    def save(self, file: Path) -> None:
        """Write a row for each image: its number in the test set, target, prediction, loss, logits.

        Raises:
            InputError: the file cannot be written.
        """
        table = pa.table(
            {
                "image": pa.array(range(len(self.targets)), pa.int64()),
                "target": self.targets.numpy(),
                "prediction": self.logits.argmax(1).numpy(),
                "loss": self.losses.numpy(),
                "logits": pa.FixedSizeListArray.from_arrays(self.logits.flatten().numpy(), self.logits.shape[1]),
            }
        )
        try:
            with atomically(file) as out:
                pq.write_table(table, out)
        except OSError as error:
            raise InputError(f"cannot write {file}: {error.strerror}") from error


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """A run's configuration with other data, or another place to compute, than it was trained with.

    Raises:
        InputError: an override is of something else, or wrong.
    """
    for override in overrides:
        if not override.lstrip("+").startswith((*EVALUATION, "--config-dir")):
            raise InputError(
                f"{override}: a run is evaluated as it was trained; {', '.join(EVALUATION)} can be given, as in "
                "data=cifar10 or data.path=FOLDER"
            )
    given = [f"precision={config.precision}", *overrides]
    others = any(override.startswith("data=") for override in overrides)
    composed = the_one([*given, *([] if others else [f"data={config.options['data']}"])])
    data = composed.data
    if not others:  # the run's data, with what is to be different
        keys = [override.split("=")[0].split(".")[1] for override in overrides if "data." in override.split("=")[0]]
        data = config.data | {key: data[key] for key in keys}
    options = {**config.options, "data": composed.options["data"]}
    return replace(config, data=data, trainer=composed.trainer, precision=composed.precision, options=options)


def the_one(overrides: Sequence[str]) -> Config:
    """The configuration that overrides make.

    Raises:
        InputError: they make several, or are wrong.
    """
    configs = compose(overrides)
    if len(configs) != 1:
        raise InputError(f"{' '.join(overrides)}: one network is evaluated at a time, and these are {len(configs)}")
    return configs[0]


class ReadyNetwork(nn.Module):
    """A trained network that takes images as a data set keeps them, and normalises them as in its training.

    Args:
        network: normalised images (N, C, H, W) -> logits (N, classes); in evaluation mode.
        source: the shape of the images that the network was trained on.
        statistics: mean and standard deviation (C,) by which each channel was normalised, in units of pixel values.
    """

    def __init__(self, network: nn.Module, source: Source, statistics: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.network, self.source, self.statistics = network, source, statistics
        self.eval()

    def forward(self, images: Any) -> Tensor:
        """Return the logits (N, classes) float32 of images (N, H, W, C) uint8, a tensor or an array.

        Of larger images the network sees the middle.

        Raises:
            InputError: the images have another type, fewer pixels or another number of channels.
        """
        pixels = torch.as_tensor(images)
        channels, height, width = self.source.shape
        fits = pixels.ndim == 4 and pixels.shape[1] >= height and pixels.shape[2] >= width
        if pixels.dtype != torch.uint8 or not fits or pixels.shape[3] != channels:
            raise InputError(
                f"images of {pixels.dtype} {list(pixels.shape)}: the network takes torch.uint8 "
                f"[N, {height}, {width}, {channels}], pixel values as they are in the data set"
            )
        weight = next(self.network.parameters())
        split = Split(pixels, torch.zeros(len(pixels), dtype=torch.int64))
        x, _ = DeviceImages(split, self.source, self.statistics, weight.device).batch(torch.arange(len(pixels)))
        return self.network(x.to(weight)).float()


def load(run: Run | Path | str) -> ReadyNetwork:
    """Return a run's trained network, ready to predict: in evaluation mode, on images as the data set keeps them.

    Args:
        run: a run, or its folder.

    Raises:
        InputError: the run has no checkpoint, or the channel statistics of its training are not known.
    """
    run = run if isinstance(run, Run) else Run.read(Path(run))
    return ReadyNetwork(load_network(run), source_of(run.config), training_statistics(run, run.config))


def load_network(run: Run | Path | str) -> nn.Module:
    """Return the network of a run, with the weights of its newest checkpoint, in the type that they were trained in.

    It is in training mode, as every new module is, and takes normalised images; `load` returns one that is ready.

    Args:
        run: a run, or its folder.

    Raises:
        InputError: there is none, or the run is finished and its checkpoints have not the weights of its result.
    """
    run = run if isinstance(run, Run) else Run.read(Path(run))
    saved = run.newest()
    if saved.path is None:
        if run.finished:
            raise InputError(
                f"{run.folder} has no checkpoint that can be read; delete its result.json and repeat the run"
            )
        raise InputError(f"{run.folder} has no checkpoint yet; train it first")
    if not run.finished:
        print(f"{run.name} is not finished: these are its weights after step {saved.step}", file=sys.stderr)
    config = replace(
        run.config, model={**run.config.model, "weights": None}
    )  # with which it began, and which may be gone
    network = build_network(config)
    if config.precision == "64-true":
        network.double()
    load_weights(network, saved.path)
    if run.finished and weights_sha256(network) != run.result["weights_sha256"]:  # the last was damaged
        raise InputError(
            f"the newest checkpoint in {run.folder} that can be read has not the weights of its result.json; "
            "delete that and repeat the run"
        )
    return network


def training_statistics(run: Run, config: Config) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation (C,) by which each channel was normalised in a run's training.

    A finished run has them in its result.json. For any other run, and for one of an older version, they are computed
    from the run's training images, which are read from where `config` finds them if its data set is the run's.

    Raises:
        InputError: the run has no record of them, and its training images cannot be read.
    """
    if run.finished and "channel_mean" in run.result:
        return torch.tensor(run.result["channel_mean"]), torch.tensor(run.result["channel_std"])
    places = NOT_IDENTITY["data"] if config.options == run.config.options else ()
    data = run.config.data | {key: config.data[key] for key in places if key in config.data}
    try:
        return source_of(replace(run.config, data=data)).load().channel_statistics
    except InputError as error:
        raise InputError(
            f"{run.folder} has no record of the channel means of its training, and the images to compute them from "
            f"cannot be read: {error}"
        ) from error


def predict(run: Run | Path | str, overrides: Sequence[str] = ()) -> Predictions:
    """Predict the test set of a run, or another, with the run's network and the channel statistics of its training.

    Args:
        run: a run, or its folder.
        overrides: of data, trainer and precision, such as data=cifar100. With data.mean and data.std these are the
            channel statistics.

    Raises:
        InputError: as `load_network`, `with_overrides` and `evaluate`.
    """
    run = run if isinstance(run, Run) else Run.read(Path(run))
    config = with_overrides(run.config, overrides)
    return evaluate(load_network(run), config, None if normalises(overrides) else training_statistics(run, config))


def normalises(overrides: Sequence[str]) -> bool:
    """Whether overrides give channel statistics."""
    return any(override.startswith(("data.mean=", "data.std=")) for override in overrides)


def evaluate(network: nn.Module, config: Config, statistics: tuple[Tensor, Tensor] | None = None) -> Predictions:
    """Predict the test set of `config`, on its device and in its precision.

    Args:
        network: images (N, C, H, W) -> logits (N, classes).
        config: the data set, the device and the precision.
        statistics: mean and standard deviation (C,) by which each channel is normalised, in units of pixel values, as
            in the network's training. None: those of the data set.

    Raises:
        InputError: the images cannot be had, or the network is not made for such.
    """
    check_devices(config)
    device = torch.device("cuda" if config.trainer.accelerator == "gpu" else "cpu")
    torch.set_num_threads(config.trainer.threads)
    source = source_of(config)
    images = source.load()
    statistics = statistics or images.channel_statistics
    channels = len(statistics[0])
    if channels != source.shape[0]:
        raise InputError(
            f"the network is not made for images of shape {list(source.shape)}: it was trained on images of {channels} "
            f"channel{'s' * (channels != 1)}"
        )
    pixels = DeviceImages(images.test, source, statistics, device)
    network = network.to(device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
    network.to(torch.float64 if config.precision == "64-true" else torch.float32)
    logits = []
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed"),
        bar("evaluating", "image", len(images.test), leave=False, delay=1, disable=None) as shown,
    ):
        for x, _ in EvaluationBatches(pixels):
            x = x.to(device, next(network.parameters()).dtype)  # noqa: PLW2901
            try:
                logits.append(network(x).float().cpu())
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = first_line(error)
                raise InputError(
                    f"the network is not made for images of shape {list(source.shape)}: {reason}"
                ) from error
            shown.update(len(x))
    found = torch.cat(logits)
    if found.shape[1] != source.classes:
        raise InputError(f"the network tells {found.shape[1]} classes apart, the data have {source.classes}")
    return Predictions(found, images.test.targets)
