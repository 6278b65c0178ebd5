"""Decoding of one image, by a rule that is stated here and in docs/data.md.

- Grey (Pillow's modes 1, L, I;16) and colour images (P, RGB, CMYK, YCbCr) become 8-bit grey or RGB. Grey becomes RGB
  by repetition, and RGB becomes grey by ITU-R 601-2 luma.
- Of 16 bits per channel, the more significant 8 are kept.
- An alpha channel or a transparent colour is dropped if every pixel is opaque; otherwise the image is refused.
- The EXIF orientation is applied. Colour profiles (ICC) are ignored.
- Refused are images of floating-point numbers or 32-bit integers, LAB and HSV, and files with several frames. Of the
  several pictures of a camera's MPO file, the first is used.
- Arrays of pixels must be uint8 with 1 or 3 channels.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from plainres.data.encoded import DamagedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "AVIF")  # of Pillow, safe to open
GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N")
COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
ORIENTATION = 0x0112  # EXIF tag
# Pillow's Transpose for each EXIF orientation
TRANSPOSE = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
SWAPPED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


def decode(encoded: bytes | np.ndarray, channels: int, stored: int | None = None, *, whole: bool = False) -> np.ndarray:
    """Decode an image.

    Args:
        encoded: encoded file, or pixels (H, W) or (H, W, C).
        channels: 1 for grey, 3 for RGB.
        stored: length in pixels to which the shorter side is resized (default: no resizing).
        whole: with `stored`, keep the whole image instead of its middle square.

    Returns:
        Pixels (H, W, channels), uint8.

    Raises:
        DamagedImageError: the image cannot be decoded, or the rule refuses it.
    """
    image = _from_pixels(encoded) if isinstance(encoded, np.ndarray) else _from_file(encoded)
    image = image.convert("RGB" if channels == 3 else "L")
    if stored is not None:
        image = _resized(image, stored) if whole else _middle_square(image, stored)
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels)


def measure(encoded: bytes | np.ndarray) -> tuple[int, int, int]:
    """Return channels, height and width of the decoded image, without decoding all of it.

    Raises:
        DamagedImageError: the image cannot be opened, or the rule refuses its type.
    """
    if isinstance(encoded, np.ndarray):
        image = _from_pixels(encoded)
        return len(image.getbands()), image.height, image.width
    with _damage_reported(), _opened(encoded) as image:
        if image.format == "TIFF":
            image.load()  # applies the orientation
        swapped = image.getexif().get(ORIENTATION) in SWAPPED
        height, width = (image.width, image.height) if swapped else (image.height, image.width)
        return 1 if image.mode in GREY else 3, height, width


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings, about large images and damaged EXIF tags among others. Not for use in a thread."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def resized_size(height: int, width: int, stored: int) -> tuple[int, int]:
    """Return height and width of a whole image whose shorter side is resized to `stored`."""
    shorter = min(height, width)
    return round(height * stored / shorter), round(width * stored / shorter)


def _from_pixels(pixels: np.ndarray) -> Any:
    from PIL import Image

    if pixels.dtype != np.uint8:
        raise DamagedImageError(f"has {pixels.dtype} pixels; they must be uint8")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] != 3):
        raise DamagedImageError(f"has shape {list(pixels.shape)}; it must be [H, W], [H, W, 1] or [H, W, 3]")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _from_file(encoded: bytes) -> Any:
    """Return an upright image in mode L or RGB."""
    with _damage_reported(), _opened(encoded) as image:
        image.load()
        orientation = image.getexif().get(ORIENTATION)
        converted = _eight_bits(image) if image.mode.startswith("I;16") else _opaque(image)
        return converted.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else converted


@contextmanager
def _damage_reported() -> Iterator[None]:
    """Turn any error of Pillow into a DamagedImageError. Damaged files raise errors of many types."""
    try:
        yield
    except DamagedImageError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if "cannot identify image file" in reason:
            reason = f"it is not a complete image in one of the formats {', '.join(FORMATS)}"
        raise DamagedImageError(f"cannot be decoded: {reason}") from error


@contextmanager
def _opened(encoded: bytes) -> Iterator[Any]:
    """Open an encoded file if the rule accepts its type."""
    from PIL import Image

    if not encoded:
        raise DamagedImageError("is empty")
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if image.mode not in GREY + COLOUR:
            raise DamagedImageError(f"is of type {image.mode}, which is not converted; store it as 8-bit grey or RGB")
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise DamagedImageError(f"has {frames} frames; store one of them as an image")
        yield image


def _eight_bits(image: Any) -> Any:
    """Keep the more significant 8 bits of a grey image of 16 bits."""
    from PIL import Image

    pixels = np.asarray(image)
    transparent = image.info.get("transparency")
    if transparent is not None and (pixels == transparent).any():
        raise DamagedImageError("has transparent pixels; put it on a background")
    return Image.fromarray((pixels >> 8).astype(np.uint8))


def _opaque(image: Any) -> Any:
    """Return an image without its alpha channel.

    Raises:
        DamagedImageError: a pixel is transparent.
    """
    grey = image.mode in GREY
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("LA" if grey else "RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise DamagedImageError("has transparent pixels; put it on a background")
    return image.convert("L" if grey else "RGB")


def _middle_square(image: Any, side: int) -> Any:
    """Crop to the middle square and resize that to `side` x `side` pixels."""
    shorter = min(image.size)
    left, top = ((length - shorter) / 2 for length in image.size)
    return image.resize((side, side), resample=2, box=(left, top, left + shorter, top + shorter), reducing_gap=3)


def _resized(image: Any, shorter: int) -> Any:
    """Resize the whole image so that its shorter side has a length."""
    height, width = resized_size(image.height, image.width, shorter)
    return image.resize((width, height), resample=2, reducing_gap=3)
