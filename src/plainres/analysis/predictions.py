"""Predictions on a test set: losses, errors, and their file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from plainres.errors import InputError
from plainres.files import atomically
from plainres.models.networks import misclassified


@dataclass(frozen=True)
class ClassError:
    """Error of the images of one class in percent."""

    number: int
    name: str | None
    images: int
    error: float


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and error in percent on a test set, the number of its images, and the error of each class it has."""

    loss: float
    error: float
    images: int
    classes: list[ClassError]

    def __str__(self) -> str:
        named = any(each.name is not None for each in self.classes)
        lines = [
            f"loss {self.loss:.4f}",
            f"error {self.error:.2f} % of {self.images:,} images",
            "",
            f"class  images  error in %{'  name' if named else ''}",
        ]
        for each in self.classes:
            name = "" if each.name is None else f"  {each.name}"
            lines.append(f"{each.number:5}  {each.images:6,}  {each.error:10.2f}{name}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Origin:
    """Network and images that predictions are of.

    Args:
        network: name of the run, or of the file of weights.
        step: step of a run after which the network had its weights; None if they are those of a file.
        data: the part of the images in a run's identity (see `plainres.runs.identity`).
        data_sha256: digest of all images and targets of the data set.
        precision: precision of the evaluation.
        own: whether images, normalisation and precision are those of the network's training.
    """

    network: str
    step: int | None
    data: Mapping[str, Any]
    data_sha256: str
    precision: str
    own: bool

    @property
    def suffix(self) -> str:
        """End of the name of a file, by which other predictions of the same network do not replace it."""
        if self.own:
            return ""
        distinct = json.dumps([self.data, self.data_sha256, self.precision], sort_keys=True)
        return f"-{hashlib.sha256(distinct.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Predictions:
    """Predictions of a network on a test set.

    Args:
        logits: its logits (N, classes), float32.
        targets: the targets (N,), int64.
        classes: the names of the classes.
        origin: what the predictions are of, if that is known.
    """

    logits: Tensor
    targets: Tensor
    classes: Sequence[str] | None = None
    origin: Origin | None = None

    @property
    def losses(self) -> Tensor:
        """Cross-entropy of each image (N,)."""
        return F.cross_entropy(self.logits, self.targets, reduction="none")

    @property
    def wrong(self) -> Tensor:
        """Whether each image is misclassified (N,)."""
        return misclassified(self.logits, self.targets)

    @property
    def evaluation(self) -> Evaluation:
        """Mean loss, and the errors of all images and of each class."""
        classes = [
            ClassError(
                number, self.classes[number] if self.classes else None, images, self._error(self.targets == number)
            )
            for number, images in enumerate(torch.bincount(self.targets).tolist())
            if images
        ]
        everywhere = torch.ones_like(self.targets, dtype=torch.bool)
        return Evaluation(self.losses.double().mean().item(), self._error(everywhere), len(self.targets), classes)

    def _error(self, chosen: Tensor) -> float:
        """Return the error in percent of the images for which `chosen` (N,) is True."""
        return 100 * self.wrong[chosen].double().mean().item()

    def __str__(self) -> str:
        return str(self.evaluation)

    def save(self, file: Path) -> None:
        """Write a Parquet file with one row per image: its index in the test set, target, prediction, loss and logits.

        Its metadata `plainres` is the origin as JSON.

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
        ).replace_schema_metadata({"plainres": json.dumps(None if self.origin is None else asdict(self.origin))})
        try:
            with atomically(file) as out:
                pq.write_table(table, out)
        except OSError as error:
            raise InputError(f"cannot write {file}: {error.strerror}") from error
