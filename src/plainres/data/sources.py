"""Where images come from.

A source knows the shape and the classes of its images without loading them. `load` returns both splits as uint8 arrays;
sources that must download or decode keep a decoded copy on disk, which concurrent runs share.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from plainres.errors import InputError
from plainres.randomness import mix


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C), uint8, and their targets (N,), int64, in [0, classes)."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def first_per_class(self, count: int | None) -> "Split":
        """The first `count` images of each class, in their order; everything if None.

        Raises:
            InputError: a class has fewer.
        """
        if count is None:
            return self
        keep = []
        for target, size in enumerate(torch.bincount(self.targets).tolist()):
            if size < count:
                raise InputError(f"{count} images per class were asked for, but class {target} has only {size}")
            keep.append(torch.nonzero(self.targets == target).flatten()[:count])
        index = torch.cat(keep).sort().values
        return Split(self.images[index], self.targets[index])

    def sample(self, count: int | None) -> "Split":
        """Return the images of `stratified`, in their order; everything if None or no more than `count`."""
        if count is None or count >= len(self):
            return self
        index = stratified(self.targets, count)
        return Split(self.images[index], self.targets[index])


def stratified(targets: Tensor, count: int) -> Tensor:
    """Return the indices (min(count, N),), ascending, of a random sample of images with targets (N,), by class.

    Each class has its proportional share, rounded down or up: up where the remainder is largest, and of equal ones
    where the class comes first. The sample depends on nothing but the targets and the count, so that all runs on a data
    set have the same one.
    """
    total = len(targets)
    count = min(count, total)
    sizes = torch.bincount(targets)
    shares = count * sizes // total
    largest = (count * sizes % total).argsort(descending=True, stable=True)
    shares[largest[: count - int(shares.sum())]] += 1
    shuffled = torch.randperm(total, generator=Generator().manual_seed(mix("sample")))
    by_class = shuffled[targets[shuffled].argsort(stable=True)].split(sizes.tolist())
    return torch.cat([images[:share] for images, share in zip(by_class, shares.tolist(), strict=True)]).sort().values


def sample_size(count: int, total: int) -> str:
    """Name a sample of `count` of `total` images, as measurements record it: '500 of 1500', or '1500' for all."""
    return f"{count}" if count == total else f"{count} of {total}"


@dataclass(frozen=True)
class Images:
    """The splits of a data set, and by what its channels (C,) are to be normalised, as shares of 255."""

    train: Split
    test: Split
    mean: Sequence[float] | None = None  # None: that of the training pixels
    std: Sequence[float] | None = None

    @cached_property
    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) by which each channel is normalised, in units of pixel values.

        Those of the training pixels come from exact counts, so they depend neither on the order of summation nor on the
        number of threads.
        """
        if self.mean is not None and self.std is not None:
            return 255 * torch.tensor(self.mean), 255 * torch.tensor(self.std)
        levels = torch.arange(256, dtype=torch.float64)
        means, deviations = [], []
        for channel in self.train.images.unbind(-1):
            share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
            mean = (levels * share).sum()
            means.append(mean)
            deviations.append(((levels - mean).square() * share).sum().sqrt())
        return torch.stack(means).float(), torch.stack(deviations).float()

    def sha256(self) -> str:
        """A digest of all images and targets, to tell whether two runs saw the same data."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for array in (split.images, split.targets):
                digest.update(str(tuple(array.shape)).encode())
                digest.update(array.contiguous().numpy().data)
        return digest.hexdigest()


def check_options(source: Any, **counts: int | None) -> None:
    """Check the options that all sources share, and `counts` of images.

    Raises:
        InputError: the shape, the number of classes, the padding or a count is out of its range.
    """
    shape = list(source.shape)
    if len(shape) != 3 or not all(isinstance(size, int) and size >= 1 for size in shape):
        raise InputError(f"data.shape is {shape}; it must be [channels, height, width], whole numbers, at least 1")
    for name, value, least in (("classes", source.classes, 1), ("pad", source.pad, 0)):
        if value < least:
            raise InputError(f"data.{name} is {value}; it must be at least {least}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"data.{name} is {count}; it must be at least 1")


class Source(Protocol):
    """Where images come from, and how a training image is augmented: pad, random crop, mirror."""

    @property
    def shape(self) -> Sequence[int]:
        """Channels, height, width."""
        ...

    @property
    def classes(self) -> int:
        """The number of classes."""
        ...

    @property
    def pad(self) -> int:
        """Zeros on each side before a random crop of the image's size; 0: no crop."""
        ...

    @property
    def flip(self) -> bool:
        """Whether a training image is mirrored left-right with probability 1/2."""
        ...

    def prepare(self) -> None:
        """Do once what makes `load` quick: download, decode."""
        ...

    def load(self) -> Images:
        """Return both splits."""
        ...


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits (Alpaydin & Kaynak 1998): 1,500 training and 297 test images, grey, 8x8.

    scikit-learn has no split of its own; this one is a fixed permutation.
    """

    pad: int
    flip: bool

    shape: ClassVar = (1, 8, 8)
    classes: ClassVar = 10
    train_images: ClassVar = 1500

    def __post_init__(self) -> None:
        check_options(self)

    def prepare(self) -> None:
        """Nothing: the images are part of scikit-learn."""

    def load(self) -> Images:
        """Return both splits; pixel values are 0 to 16."""
        from sklearn.datasets import load_digits

        bunch: Any = load_digits()
        images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(-1)
        targets = torch.from_numpy(bunch.target.astype(np.int64))
        order = torch.randperm(len(targets), generator=Generator().manual_seed(0))
        train, test = order[: self.train_images], order[self.train_images :]
        return Images(Split(images[train], targets[train]), Split(images[test], targets[test]))


@dataclass(frozen=True)
class Synthetic:
    """Random images with random targets: `train` and `test` of them, of `shape` (C, H, W)."""

    shape: Sequence[int]
    classes: int
    train: int
    test: int
    pad: int
    flip: bool

    def __post_init__(self) -> None:
        check_options(self, train=self.train, test=self.test)

    def prepare(self) -> None:
        """Nothing."""

    def load(self) -> Images:
        """Return both splits, always the same."""
        generator = Generator().manual_seed(0)
        channels, height, width = self.shape

        def draw(count: int) -> Split:
            images = torch.randint(256, (count, height, width, channels), generator=generator, dtype=torch.uint8)
            return Split(images, torch.randint(self.classes, (count,), generator=generator))

        return Images(draw(self.train), draw(self.test))
