"""Photographs for tests: smooth random images of several sizes, as JPEG files."""

import io
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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
    """Encoded images in memory, of targets that repeat 0, 1, 2; a double of `plainres.data.encoded.Encoded`."""

    files: list[bytes]
    targets: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", torch.arange(len(self.files)) % 3)

    @classmethod
    def of(cls, count: int) -> "Photographs":
        """Return images of different sizes."""
        return cls([jpeg(index, 40 + index % 5 * 7, 60 - index % 4 * 9) for index in range(count)])

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        """Return an encoded image."""
        return self.files[index]

    def name(self, index: int) -> str:
        """Return a name."""
        return f"photograph-{index}.jpg"
