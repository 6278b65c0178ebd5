"""Predictions of a trained network on a test set, image by image."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plainres.config.compose import compose
from plainres.config.instantiate import check_devices, network_of, source_of
from plainres.config.schema import Config
from plainres.console import bar
from plainres.data.batches import DeviceImages, EvaluationBatches
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


def trained(run: Run) -> nn.Module:
    """The network of a run, with the weights of its newest checkpoint, in the type that they were trained in.

    Raises:
        InputError: there is none, or the run is finished and its checkpoints have not the weights of its result.
    """
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
    network = network_of(config, source_of(config))
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


def predict(network: nn.Module, config: Config, statistics: tuple[Tensor, Tensor] | None = None) -> Predictions:
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
