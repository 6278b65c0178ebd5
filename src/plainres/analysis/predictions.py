"""Predictions on a test set: losses, errors, and their file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from plainres.errors import InputError
from plainres.files import atomically


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
class Predictions:
    """A network's logits (N, classes) float32 on a test set, its targets (N,) int64, and the names of the classes."""

    logits: Tensor
    targets: Tensor
    classes: Sequence[str] | None = None

    @property
    def losses(self) -> Tensor:
        """Cross-entropy of each image (N,)."""
        return F.cross_entropy(self.logits, self.targets, reduction="none")

    @property
    def wrong(self) -> Tensor:
        """Whether each image is misclassified (N,)."""
        return self.logits.argmax(1) != self.targets

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
