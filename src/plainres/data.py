"""Where images come from.

A source knows the shape and the classes of its images without loading them. `load` returns both splits as uint8 arrays;
sources that must download or decode keep a decoded copy on disk, which concurrent runs share.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from filelock import FileLock
from torch import Generator, Tensor

from plainres.errors import InputError

SPLITS = ("train", "test")


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


def _check_options(source: Any, **counts: int | None) -> None:
    """Raise InputError for a shape, a number of classes, a padding or a count of images that makes no sense."""
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
        _check_options(self)

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
        _check_options(self, train=self.train, test=self.test)

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


@dataclass(frozen=True)
class HubImages:
    """A classified image data set of the Hugging Face Hub with the splits train and test, or `test_split`.

    `name` is the Hub's name; `path`, if given, a folder that holds the same data set, and then nothing is downloaded.
    Images are of `shape`, or, with `stored`, of any size: then the middle square of each is kept, with sides of so many
    pixels, and the network is shown crops of `shape`. `mean` and `std` normalise the channels as somebody's weights
    want it, as shares of 255; by default they are those of the training images.

    The decoded copy lies under `cache` and is memory-mapped. A copy is made under another name and renamed when it is
    whole, so that a half-written one is never used.
    """

    name: str
    path: str | None
    cache: str
    image_column: str
    label_column: str
    classes: int
    shape: Sequence[int]
    train_per_class: int | None
    test_per_class: int | None
    pad: int
    flip: bool
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    stored: int | None = None
    test_split: str = "test"

    def __post_init__(self) -> None:
        _check_options(self, train_per_class=self.train_per_class, test_per_class=self.test_per_class)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.shape[0]:
                raise InputError(f"data.{name} has {len(values)} numbers; the images have {self.shape[0]} channels")
        if (self.mean is None) != (self.std is None):
            raise InputError("data.mean and data.std are given together, or neither")
        if self.stored is not None and self.stored < max(self.shape[1:]):
            raise InputError(f"data.stored is {self.stored}; it must be at least {max(self.shape[1:])}, as data.shape")

    def load(self) -> Images:
        """Return both splits, decoding them first if that has not been done.

        Raises:
            InputError: as `prepare`, or a class has fewer images than asked for.
        """
        self.prepare()
        folder = self._decoded
        splits = []
        for split in SPLITS:
            # copy-on-write: the pages are shared with other runs, and torch gets the writable array it wants
            images = np.load(folder / f"{split}_images.npy", mmap_mode="c")
            splits.append(Split(torch.from_numpy(images), torch.from_numpy(np.load(folder / f"{split}_targets.npy"))))
        train, test = splits
        return Images(
            train.first_per_class(self.train_per_class), test.first_per_class(self.test_per_class), self.mean, self.std
        )

    def prepare(self) -> None:
        """Download and decode the data set unless there is a decoded copy.

        Raises:
            InputError: the folder, the network, a split, a column or the cache is missing, a label is outside the
                classes, or an image has another shape.
        """
        folder = self._decoded
        if folder.exists():
            return
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{folder}.lock").acquire()
        except OSError as error:
            raise InputError(
                f"cannot write the cache {folder.parent}: {error.strerror}; set data.cache=FOLDER or PLAINRES_CACHE"
            ) from error
        with lock:
            if folder.exists():  # another run has decoded it meanwhile
                return
            unfinished = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                self._decode(unfinished)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)

    @property
    def _decoded(self) -> Path:
        """The folder of the decoded copy: another one if the data, or what is read of them, is another."""
        key: list[Any] = [self.name, self.image_column, self.label_column, self.classes, list(self.shape)]
        if self.stored is not None or self.test_split != "test":
            key += [self.stored, self.test_split]
        if self.path is not None:
            source = Path(self.path).expanduser().resolve()
            if not source.is_dir():
                raise InputError(f"data.path={self.path}: there is no such folder")
            key.append(str(source))
            key += [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(source.rglob("*")) if f.is_file()]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        return Path(self.cache).expanduser() / f"{self.name.replace('/', '--')}-{digest}"

    def _decode(self, folder: Path) -> None:
        from plainres.decoding import HubDataSet

        channels, height, width = self.shape
        HubDataSet(
            self.name,
            self.path,
            {"train": "train", "test": self.test_split},
            self.image_column,
            self.label_column,
            self.classes,
            (self.stored or height, self.stored or width, channels),
            squared=self.stored is not None,
        ).decode(folder)
