"""Views of images of any size: the crops and colours that training and tests show to the network.

A view is a rectangle of the image, resized to the network's input by a triangle filter whose width grows with the
reduction (Pillow's BILINEAR), which prevents aliasing. All random numbers are arguments.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from plainres.data.decoding import resized_size
from plainres.errors import InputError

Size = tuple[int, int]  # height and width

SCALE, INCEPTION = "scale", "inception"
TEST_CROPS = (1, 10)
RANDOM_NUMBERS = 27  # for each view: mirror, 3 for the colour, scale, 2 for the place, 20 for INCEPTION's shapes
ATTEMPTS = 10  # to place the rectangle of INCEPTION within the image
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of INCEPTION's rectangle: share of the image, width / height
# Principal components of ImageNet's RGB values in [0, 1], as published with fb.resnet.torch: standard deviations, and
# the components as columns. Krizhevsky et al. 2012 use the training set's own, which they do not print.
DEVIATIONS = np.array([0.2175, 0.0188, 0.0045])
COMPONENTS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class View(NamedTuple):
    """Rectangle of an image in units of its pixels, and whether it is mirrored."""

    left: float
    top: float
    right: float
    bottom: float
    mirror: bool = False


@dataclass(frozen=True)
class Views:
    """Views of the images of a data set in training and in tests.

    In training, `crop` chooses between:

    - scale (He et al. 2015, section 3.4): the shorter side is resized to a random integer length in `scales`, and a
      random crop of the network's input is taken.
    - inception (Szegedy et al. 2015, section 6): a random rectangle of 8 to 100 % of the image, with an aspect ratio
      between 3/4 and 4/3, is resized to the network's input. After ten rectangles that are larger than the image in
      one direction, the largest square in the middle is taken.

    In tests, the shorter side is resized to `test_scale`. One crop is the middle; ten crops are the corners, the
    middle, and their mirror images (Krizhevsky et al. 2012, section 4.1).

    Args:
        shape: channels, height and width of the network's input.
        flip: whether to mirror training images horizontally with probability 1/2.
        crop: scale or inception.
        scales: shortest and longest length of the shorter side in training (default: 256 and 480 for an input of 224
            pixels as in He et al. 2015, and in proportion for another one).
        colour: standard deviation of the random multiples of the principal components of RGB, which are added to all
            pixels of a training image (Krizhevsky et al. 2012, section 4.1); 0.1 in the paper, 0 for none.
        test_scale: length of the shorter side in tests (default: 256 for an input of 224 pixels, or in proportion).
        test_crops: number of crops of each image in tests, 1 or 10.

    Raises:
        InputError: a value is out of range.
    """

    shape: Sequence[int]
    flip: bool
    crop: str = SCALE
    scales: Sequence[int] | None = None
    colour: float = 0.0
    test_scale: int | None = None
    test_crops: int = 1

    def __post_init__(self) -> None:
        channels, height, width = self.shape
        if channels not in (1, 3):
            raise InputError(f"data.shape has {channels} channels; images that are streamed have 1 or 3")
        if self.crop not in (SCALE, INCEPTION):
            raise InputError(f"data.crop is {self.crop!r}; it must be {SCALE} or {INCEPTION}")
        least = max(height, width)
        if self.scales is not None and (len(self.scales) != 2 or not least <= self.scales[0] <= self.scales[1]):
            raise InputError(
                f"data.scales is {list(self.scales)}; it must be two lengths in ascending order, at least {least}, as "
                "in data.shape"
            )
        if self.test_scale is not None and self.test_scale < least:
            raise InputError(f"data.test_scale is {self.test_scale}; it must be at least {least}, as in data.shape")
        if self.test_crops not in TEST_CROPS:
            raise InputError(f"data.test_crops is {self.test_crops}; it must be 1 or 10")
        if not 0 <= self.colour < math.inf:
            raise InputError(f"data.colour is {self.colour}; it must be at least 0")
        if self.colour and channels != 3:
            raise InputError(f"data.colour needs images with 3 channels, but data.shape has {channels}; set it to 0")

    def training(self, height: int, width: int, random: Sequence[float]) -> View:
        """Return the view of a training image of `height` x `width` pixels.

        Args:
            height: of the image.
            width: of the image.
            random: RANDOM_NUMBERS numbers in [0, 1).
        """
        mirror = self.flip and random[0] < 0.5
        scale, down, right = random[4:7]
        if self.crop == SCALE:
            least, most = self.scales or (self._in_proportion(256), self._in_proportion(480))
            shorter = least + int(scale * (most - least + 1))
            _, rows, columns = self.shape
            resized = resized_size(height, width, shorter)
            top, left = (int(u * (a - b + 1)) for u, a, b in zip((down, right), resized, (rows, columns), strict=True))
            return self._crop((height, width), resized, (top, left), mirror)
        shapes = random[7:]
        for area, ratio in zip(shapes[:ATTEMPTS], shapes[ATTEMPTS:], strict=True):
            pixels = height * width * (AREA[0] + area * (AREA[1] - AREA[0]))
            aspect = math.exp(math.log(RATIO[0]) + ratio * math.log(RATIO[1] / RATIO[0]))
            columns, rows = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if 0 < columns <= width and 0 < rows <= height:
                left, top = int(right * (width - columns + 1)), int(down * (height - rows + 1))
                return View(left, top, left + columns, top + rows, mirror)
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        return View(left, top, left + side, top + side, mirror)

    def test(self, height: int, width: int) -> list[View]:
        """Return the views of a test image of `height` x `width` pixels, the middle first."""
        _, rows, columns = self.shape
        resized = resized_size(height, width, self.test_scale or self._in_proportion(256))
        down, right = resized[0] - rows, resized[1] - columns
        places = [(down // 2, right // 2)]
        if self.test_crops == 1:
            return [self._crop((height, width), resized, places[0], False)]
        places += [(0, 0), (0, right), (down, 0), (down, right)]
        return [self._crop((height, width), resized, place, mirror) for place in places for mirror in (False, True)]

    def colour_shift(self, random: Sequence[float]) -> np.ndarray:
        """Return the values (C,), in units of pixel values, that are added to each pixel of a training image.

        Args:
            random: as for `training`.
        """
        if not self.colour:
            return np.zeros(self.shape[0])
        normal = NormalDist(0, self.colour)
        multiples = [normal.inv_cdf(max(u, 2.0**-53)) for u in random[1:4]]
        return 255 * COMPONENTS @ (multiples * DEVIATIONS)

    def _in_proportion(self, length: int) -> int:
        """Return a length for the size of the network's input, given that for 224 pixels."""
        return round(length * max(self.shape[1:]) / 224)

    def _crop(self, size: Size, resized: Size, place: tuple[int, int], mirror: bool) -> View:
        """Return a crop at `place`, top and left, of the resized image, in units of the original image's pixels."""
        _, rows, columns = self.shape
        vertical, horizontal = (before / after for before, after in zip(size, resized, strict=True))
        top, left = place
        return View(left * horizontal, top * vertical, (left + columns) * horizontal, (top + rows) * vertical, mirror)
