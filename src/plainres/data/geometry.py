"""Size to which all images of a data set are decoded, given or found in the images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from plainres.console import bar
from plainres.data.decoding import decode, measure, quiet, resized_size
from plainres.data.encoded import DamagedImageError, Encoded
from plainres.data.passes import Damage, in_parallel
from plainres.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """Decoding of all images of a data set to one size.

    Args:
        size: height, width and channels of a decoded image.
        stored: length to which the shorter side is resized (default: no resizing).
        whole: with `stored`, keep whole images instead of their middle squares.
    """

    size: tuple[int, int, int]
    stored: int | None = None
    whole: bool = False

    def decode(self, encoded: bytes | np.ndarray) -> np.ndarray:
        """Return the pixels (H, W, C) of an image, uint8.

        Raises:
            DamagedImageError: the image cannot be decoded.
        """
        return decode(encoded, self.size[2], self.stored, whole=self.whole)


def survey(splits: Mapping[str, Encoded], damage: Damage) -> Counter[tuple[int, int, int]]:
    """Return the number of images of each channels, height and width, and add those that cannot be opened to `damage`.

    Args:
        splits: images.
        damage: damaged images, to which this adds.
    """
    sizes: Counter[tuple[int, int, int]] = Counter()
    total = sum(map(len, splits.values()))
    with quiet(), bar("measuring", "image", total, leave=False) as progress:
        for images in splits.values():
            for results in in_parallel(images, measure):
                for index, result in results:
                    if isinstance(result, DamagedImageError):
                        damage.add(images, index, str(result))
                    else:
                        sizes[result] += 1
                progress.update(len(results))
    return sizes


def geometry_of(
    sizes: Mapping[tuple[int, int, int], int], shape: Sequence[int] | None, stored: int | None, origin: str
) -> Geometry:
    """Return the size to which images are decoded.

    With `stored`, the shorter side of each image is resized to this length. If all images then have one size, they are
    kept whole; otherwise their middle squares are kept.

    Raises:
        InputError: the images have different sizes, and `stored` is not given.
    """
    channels = shape[0] if shape else max(size[0] for size in sizes)
    plain = {(height, width) for _, height, width in sizes}
    if stored is None:
        if len(plain) > 1:
            smallest, largest = min(plain, key=np.prod), max(plain, key=np.prod)
            raise InputError(
                f"{origin}: images have {len(plain)} different sizes, from {smallest[0]}x{smallest[1]} to "
                f"{largest[0]}x{largest[1]} (height x width); set data.stored=N to resize their shorter sides to N "
                "pixels, and data.shape=[3,H,W] for random crops of H x W"
            )
        ((height, width),) = plain
        return Geometry((height, width, channels))
    resized = {resized_size(height, width, stored) for height, width in plain}
    if len(resized) == 1:
        ((height, width),) = resized
        return Geometry((height, width, channels), stored, whole=True)
    return Geometry((stored, stored, channels), stored)
