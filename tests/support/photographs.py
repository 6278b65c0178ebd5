"""Photographs for tests: smooth random images of several sizes, as JPEG files."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plainres.data.sources import Images
from plainres.data.streamed_split import StreamedSplit
from plainres.data.views import Views


def jpeg(seed: int, height: int, width: int, mode: str = "RGB", format: str = "JPEG") -> bytes:
    """Return an encoded image of smooth random colours with some noise."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC))
    pixels = np.clip(smooth.astype(int) + generator.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()


@dataclass(frozen=True)
class Photographs:
    """Encoded images in memory, of targets that repeat 0, 1, 2; a double of `plainres.data.encoded.Encoded`.

    Each process that reads an image leaves an empty file with its number in the folder `readers`.
    """

    files: list[bytes]
    readers: str | None = None
    targets: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", torch.arange(len(self.files)) % 3)

    @classmethod
    def of(cls, count: int, readers: str | None = None) -> "Photographs":
        """Return images of different sizes."""
        return cls([jpeg(index, 40 + index % 5 * 7, 60 - index % 4 * 9) for index in range(count)], readers)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        """Return an encoded image."""
        if self.readers is not None:
            (Path(self.readers) / str(os.getpid())).touch()
        return self.files[index]

    def name(self, index: int) -> str:
        """Return a name."""
        return f"photograph-{index}.jpg"


@dataclass(frozen=True)
class StreamedPhotographs:
    """Source of `train` and `test` photographs that are decoded while training."""

    train: int
    test: int
    shape: Sequence[int]
    readers: str | None = None
    crop: str = "scale"
    test_crops: int = 1
    classes: int = 3
    pad: int = 0
    flip: bool = True

    def prepare(self) -> None:
        """Do nothing."""

    def load(self) -> Images[StreamedSplit]:
        """Return both splits."""
        views = Views(self.shape, self.flip, self.crop, colour=0.1, test_crops=self.test_crops)
        one_crop = Views(self.shape, self.flip, self.crop, colour=0.1)
        train, test = (Photographs.of(count, self.readers) for count in (self.train, self.test))
        return Images(StreamedSplit(train, one_crop), StreamedSplit(test, views), mean=[0.5] * 3, std=[0.25] * 3)
