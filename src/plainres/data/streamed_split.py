"""Splits of images of any size that are decoded at each use, to views of them.

The views of a training image are a function of the seed, the epoch and the image, so they do not depend on the process
that decodes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from plainres.data.decoding import decode
from plainres.data.encoded import DamagedImageError, Encoded, Subset
from plainres.data.sources import AnySplit, Split, channel_histograms, stratified
from plainres.data.views import RANDOM_NUMBERS, View, Views
from plainres.errors import InputError
from plainres.randomness import uniforms

STATISTICS_SAMPLE = 2000  # training images, by class, from which channel statistics are computed
DIGEST_SAMPLE = 1000  # images of each split, by class, whose files are part of the digest of the data
ORIENTED = b"Exif\0\0", b"tiff:Orientation"  # marks of EXIF and XMP, one of which a rotated JPEG file has


@dataclass(frozen=True)
class StreamedSplit(AnySplit):
    """Images of any size before decoding, and how a network views them."""

    encoded: Encoded
    views: Views
    targets: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", self.encoded.targets)

    def __getitem__(self, index: Tensor) -> "StreamedSplit":
        """Select the images at `index` (n,), or those where a mask (N,) is true."""
        return replace(self, encoded=Subset(self.encoded, torch.arange(len(self))[index]))

    def sample(self, count: int | None) -> "Split | StreamedSplit":
        """Decode the middle crops of the images of `stratified`, in their original order.

        None selects all images, which are then decoded with each use, also to their middle crops only.

        Raises:
            InputError: an image cannot be decoded.
        """
        if count is None or count >= len(self):
            return replace(self, views=replace(self.views, test_crops=1))
        index = stratified(self.targets, count)
        return Split(self.middle_crops(index), self.targets[index])

    def channel_histograms(self) -> Tensor:
        """Return the number of pixels with each value (C, 256) in middle crops.

        They are of STATISTICS_SAMPLE images by class, or of all images if there are fewer.
        """
        return channel_histograms(self.middle_crops(stratified(self.targets, STATISTICS_SAMPLE)))

    def arrays(self) -> Iterator[Tensor]:
        """Yield the arrays that identify the images: all targets, and the files of DIGEST_SAMPLE images by class."""
        yield self.targets
        for index in stratified(self.targets, DIGEST_SAMPLE).tolist():
            try:
                encoded = self.encoded.read(index)
            except DamagedImageError as error:
                raise InputError(f"{self.encoded.name(index)} {error}") from error
            yield torch.from_numpy(
                np.array(np.frombuffer(encoded, np.uint8) if isinstance(encoded, bytes) else encoded)
            )

    def middle_crops(self, index: Tensor) -> Tensor:
        """Decode the middle crops of the images at `index` (n,) in this process, as uint8 (n, H, W, C).

        Raises:
            InputError: an image cannot be decoded.
        """
        decoder = Decoder.of(self.encoded, replace(self.views, test_crops=1), slots=1, images=len(index), crops=1)
        decoder.decode(Part(0, 0, index.tolist(), None))
        return decoder.pixels[0, :, 0]


class Part(NamedTuple):
    """Images of a batch that one worker decodes."""

    slot: int  # of the ring
    first: int  # row of the batch
    indices: list[int]
    key: int | None  # of the epoch's augmentation; None: crops of a test


@dataclass(frozen=True)
class Decoder:
    """Decoder of images into a ring of batches, which processes share.

    Args:
        encoded: the images.
        views: how the network views them.
        pixels: ring (slots, images, crops, H, W, C), uint8.
        colours: values (slots, images, C), float32, to add to all pixels of an image.
    """

    encoded: Encoded
    views: Views
    pixels: Tensor
    colours: Tensor

    @classmethod
    def of(cls, encoded: Encoded, views: Views, slots: int, images: int, crops: int) -> "Decoder":
        """Return a decoder with an empty ring."""
        channels, height, width = views.shape
        pixels = torch.empty(slots, images, crops, height, width, channels, dtype=torch.uint8)
        return cls(encoded, views, pixels, torch.zeros(slots, images, channels, dtype=torch.float32))

    def decode(self, part: Part) -> None:
        """Decode a part of a batch into the ring.

        Raises:
            InputError: an image cannot be decoded.
        """
        _, _, _, height, width, channels = self.pixels.shape
        random = None if part.key is None else uniforms(part.key, torch.tensor(part.indices), RANDOM_NUMBERS).tolist()
        for number, index in enumerate(part.indices):
            try:
                image = _image(decoded(self.encoded.read(index), channels))
            except DamagedImageError as error:
                raise InputError(f"{self.encoded.name(index)} {error}") from error
            if random is None:
                views = self.views.test(image.height, image.width)
            else:
                views = [self.views.training(image.height, image.width, random[number])]
                shift = self.views.colour_shift(random[number])
                self.colours[part.slot, part.first + number] = torch.from_numpy(shift)
            for crop, view in enumerate(views):
                shown = _show(image, view, height, width).reshape(height, width, channels)
                self.pixels[part.slot, part.first + number, crop].numpy()[:] = shown


def decoded(encoded: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Decode an image to uint8 (H, W, channels), by the rule of `plainres.data.decoding`.

    The common JPEG files are decoded by simplejpeg, to the same pixels in half the time.

    Raises:
        DamagedImageError: the image cannot be decoded, or the rule refuses it.
    """
    jpeg = isinstance(encoded, bytes) and encoded.startswith(b"\xff\xd8")
    if jpeg and not any(mark in encoded for mark in ORIENTED):
        try:
            _, _, colours, _ = simplejpeg.decode_jpeg_header(encoded)
            if colours == "Gray" or (colours == "YCbCr" and channels == 3):
                return simplejpeg.decode_jpeg(encoded, "RGB" if channels == 3 else "GRAY")
        except ValueError:
            pass  # Pillow decodes it, or says what is wrong
    return decode(encoded, channels)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _show(image: Image.Image, view: View, height: int, width: int) -> np.ndarray:
    """Return a view of an image as uint8 (height, width) or (height, width, 3)."""
    box = (view.left, view.top, min(view.right, image.width), min(view.bottom, image.height))
    shown = image.resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.mirror else shown)
