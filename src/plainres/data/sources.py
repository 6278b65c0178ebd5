"""Sources of images, and the splits that they load.

A source knows the shape and number of classes of its images without loading them. `load` returns both splits as uint8
tensors. Sources that download or decode images cache a decoded copy on disk, which concurrent runs share.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor

from plainres.errors import InputError
from plainres.randomness import mix


class AnySplit(ABC):
    """Images and targets of a split: a `Split`, or a `plainres.data.streamed_split.StreamedSplit`."""

    targets: Tensor  # (N,), int64, in [0, classes)

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def __getitem__(self, index: Tensor) -> Self:
        """Select the images at `index` (n,), or those where a mask (N,) is true."""

    @abstractmethod
    def sample(self, count: int | None) -> "AnySplit":
        """Select the images of `stratified`, in their original order. None selects all images."""

    @abstractmethod
    def channel_histograms(self) -> Tensor:
        """Return the number of pixels with each value (C, 256), int64, from which channel statistics are computed."""

    @abstractmethod
    def arrays(self) -> Iterable[Tensor]:
        """Return the arrays that identify the images."""

    def first_per_class(self, count: int | None, classes: int, option: str) -> Self:
        """Select the first `count` images of each class, in their original order. None selects all images.

        Args:
            count: the number of images of each class.
            classes: the number of classes.
            option: the option that gives the count, for the message.

        Raises:
            InputError: a class has fewer than `count` images.
        """
        if count is None or not len(self):  # a test split alone has no training images
            return self
        keep = []
        for target, size in enumerate(torch.bincount(self.targets, minlength=classes).tolist()):
            if size < count:
                raise InputError(f"class {target} has only {size} images; {option} asks for {count} of each class")
            keep.append(torch.nonzero(self.targets == target).flatten()[:count])
        return self[torch.cat(keep).sort().values]

    def hold_out(self, per_class: int) -> tuple[Self, Self]:
        """Split off `per_class` random images of each class, and return the remaining images and those.

        Both keep the original order. The images are a function of the targets and of `per_class` only, so they are the
        same for all runs on a data set.

        Raises:
            InputError: a class has `per_class` images or fewer, so that none would remain.
        """
        sizes = torch.bincount(self.targets)
        if (smallest := int(sizes.min())) <= per_class:
            raise InputError(
                f"data.validation_per_class is {per_class}, but class {int(sizes.argmin())} has only {smallest} "
                f"training images; set it to less than {smallest}"
            )
        shuffled = torch.randperm(len(self), generator=Generator().manual_seed(mix("validation")))
        held_out = torch.zeros(len(self), dtype=torch.bool)
        for target in range(len(sizes)):
            held_out[shuffled[self.targets[shuffled] == target][:per_class]] = True
        return self[~held_out], self[held_out]


AnySplitT = TypeVar("AnySplitT", bound=AnySplit)


@dataclass(frozen=True)
class Split(AnySplit):
    """Images (N, H, W, C), uint8, and targets (N,), int64, in [0, classes).

    `histograms` (C, 256), int64, is the number of pixels with each value in all images, if it is known.
    """

    images: Tensor
    targets: Tensor
    histograms: Tensor | None = None

    def __getitem__(self, index: Tensor) -> "Split":
        """Select the images at `index` (n,), or those where a mask (N,) is true."""
        return Split(self.images[index], self.targets[index])

    def sample(self, count: int | None) -> "Split":
        """Select the images of `stratified`, in their original order. None selects all images."""
        if count is None or count >= len(self):
            return self
        return self[stratified(self.targets, count)]

    def channel_histograms(self) -> Tensor:
        """Return the number of pixels with each value (C, 256), int64, in all images."""
        return channel_histograms(self.images) if self.histograms is None else self.histograms

    def arrays(self) -> tuple[Tensor, Tensor]:
        """Return the arrays that identify the images."""
        return self.images, self.targets


def stratified(targets: Tensor, count: int) -> Tensor:
    """Return the ascending indices (min(count, N),) of a class-stratified random sample of images with targets (N,).

    The number of images of each class is proportional to its size, rounded by the largest remainder method. Ties go to
    the lower class. The sample is a function of the targets and the count only, so all runs on a data set use the same
    images.
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


def channel_histograms(images: Tensor) -> Tensor:
    """Return the number of pixels with each value (C, 256), int64, in images (N, H, W, C), uint8."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(-1)])


def sample_size(count: int, total: int) -> str:
    """Format the size of a sample of `count` out of `total` images: '500 of 1500', or '1500' for all of them."""
    return f"{count}" if count == total else f"{count} of {total}"


@dataclass(frozen=True)
class Images(Generic[AnySplitT]):
    """Splits of a data set, and the channel statistics (C,) for normalisation, as fractions of 255.

    Images that were decoded into a copy on disk may be larger than the memory. What describes all of them, their
    histograms and their digest, is therefore recorded in the copy.
    """

    train: AnySplitT
    test: AnySplitT
    validation: AnySplitT | None = None  # training images that were held out
    mean: Sequence[float] | None = None  # None: computed from the training images
    std: Sequence[float] | None = None  # None: computed from the training images
    classes: Sequence[str] | None = None  # names of the classes; None: they have numbers only
    digest: str | None = None  # of exactly these images and targets; None: computed by `sha256`
    left_out: int = 0  # damaged images of the data set that are in no split

    @property
    def evaluated(self) -> dict[str, AnySplitT]:
        """Splits that are evaluated after each epoch: test, and validation if there is one."""
        held_out = {} if self.validation is None else {"validation": self.validation}
        return {"test": self.test, **held_out}

    def with_validation(self, per_class: int | None) -> "Images[AnySplitT]":
        """Hold out `per_class` training images of each class for validation. None holds out none.

        Raises:
            InputError: as `AnySplit.hold_out`.
        """
        if per_class is None:
            return self
        train, validation = self.train.hold_out(per_class)
        return replace(self, train=train, validation=validation, digest=None)

    @cached_property
    def channel_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) for normalising each channel, in units of pixel values.

        Those of the training images are computed from exact histograms, so they do not depend on the order of summation
        or on the number of threads.

        Raises:
            InputError: there are no training images.
        """
        if self.mean is not None and self.std is not None:
            return 255 * torch.tensor(self.mean), 255 * torch.tensor(self.std)
        if not len(self.train):
            raise InputError(
                "there are no training images to compute the channel means from; set data.mean and data.std"
            )
        levels = torch.arange(256, dtype=torch.float64)
        means, deviations = [], []
        for counts in self.train.channel_histograms():
            share = counts.double() / counts.sum()
            mean = (levels * share).sum()
            means.append(mean)
            deviations.append(((levels - mean).square() * share).sum().sqrt())
        return torch.stack(means).float(), torch.stack(deviations).float()

    def sha256(self) -> str:
        """Return a digest of all images and targets, which identifies the data of a run.

        Of streamed images, which are too many to read, only a sample by class is part of it.
        """
        if self.digest is not None:
            return self.digest
        digest = hashlib.sha256()
        for split in filter(None, (self.train, self.test, self.validation)):
            for array in split.arrays():
                digest.update(str(tuple(array.shape)).encode())
                digest.update(array.contiguous().numpy().data)
        return digest.hexdigest()


def check_options(source: Any, **counts: int | None) -> None:
    """Check the options that all sources share, and the `counts` of images.

    Raises:
        InputError: the shape, the number of classes, the padding or a count is out of range.
    """
    shape = list(source.shape)
    if len(shape) != 3 or not all(isinstance(size, int) and size >= 1 for size in shape):
        raise InputError(f"data.shape is {shape}; it must be [channels, height, width], integers >= 1")
    for name, value, minimum in (("classes", source.classes, 1), ("pad", source.pad, 0)):
        if value < minimum:
            raise InputError(f"data.{name} is {value}; it must be at least {minimum}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"data.{name} is {count}; it must be at least 1")


class Source(Protocol):
    """Source of images, and the augmentation of its training images by padding, random cropping and flipping."""

    @property
    def shape(self) -> Sequence[int]:
        """Channels, height and width."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def pad(self) -> int:
        """Number of zeros on each side before a random crop to the original size; 0 for no crop."""
        ...

    @property
    def flip(self) -> bool:
        """Whether to flip training images horizontally with probability 1/2."""
        ...

    def prepare(self) -> None:
        """Download and decode the images once, so that `load` is fast."""
        ...

    def load(self) -> Images:
        """Return both splits."""
        ...


@dataclass(frozen=True)
class Digits:
    """Handwritten digits of scikit-learn (Alpaydin & Kaynak 1998): 1,500 training and 297 test images, grey, 8x8.

    scikit-learn does not define a split. This one is a fixed random permutation.
    """

    pad: int
    flip: bool
    validation_per_class: int | None = None

    shape: ClassVar = (1, 8, 8)
    classes: ClassVar = 10
    train_images: ClassVar = 1500

    def __post_init__(self) -> None:
        check_options(self, validation_per_class=self.validation_per_class)

    def prepare(self) -> None:
        """Do nothing, since the images are part of scikit-learn."""

    def load(self) -> Images:
        """Return both splits, with pixel values from 0 to 16."""
        from sklearn.datasets import load_digits

        bunch: Any = load_digits()
        images = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(-1)
        targets = torch.from_numpy(bunch.target.astype(np.int64))
        order = torch.randperm(len(targets), generator=Generator().manual_seed(0))
        train, test = order[: self.train_images], order[self.train_images :]
        images_of = Split(images, targets)
        return Images(images_of[train], images_of[test]).with_validation(self.validation_per_class)


@dataclass(frozen=True)
class Synthetic:
    """Random images of `shape` (C, H, W) with random targets, `train` and `test` of them."""

    shape: Sequence[int]
    classes: int
    train: int
    test: int
    pad: int
    flip: bool
    validation_per_class: int | None = None

    def __post_init__(self) -> None:
        check_options(self, train=self.train, test=self.test, validation_per_class=self.validation_per_class)

    def prepare(self) -> None:
        """Do nothing, since the images are generated by `load`."""

    def load(self) -> Images:
        """Return both splits, generated from a fixed seed."""
        generator = Generator().manual_seed(0)
        channels, height, width = self.shape

        def draw(count: int) -> Split:
            images = torch.randint(256, (count, height, width, channels), generator=generator, dtype=torch.uint8)
            return Split(images, torch.randint(self.classes, (count,), generator=generator))

        return Images(draw(self.train), draw(self.test)).with_validation(self.validation_per_class)
