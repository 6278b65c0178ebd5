"""Images of a split as they are stored: files of a folder, rows of a table, or arrays of pixels."""

import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from plainres.errors import InputError

SMALL_GROUP = 20  # rows of a row group, up to which reading it takes less time than decoding one image
NO_LABEL = torch.iinfo(torch.int64).min  # target of an image whose label is null


class DamagedImageError(InputError):
    """An image that cannot be used. The message is the reason, to which the caller adds the name of the image."""


class Encoded(Protocol):
    """Images of a split before decoding, and their targets.

    Instances can be pickled, and reading from several processes at once is safe.
    """

    @property
    def targets(self) -> Tensor:
        """Targets (N,), int64, in [0, classes)."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | np.ndarray:
        """Return the encoded file of an image, or its pixels (H, W) or (H, W, C) if they are stored as such.

        Raises:
            DamagedImageError: the image cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """Return the file or row of an image, for messages."""
        ...


@dataclass(frozen=True)
class Labelled:
    """Splits of a data set before decoding, and the names of its classes in the order of their targets.

    `classes` is None if the classes have numbers only. `notes` are sentences for the user, about files that were
    ignored.
    """

    splits: Mapping[str, Encoded]
    classes: Sequence[str] | None
    notes: Sequence[str] = ()


class Layout(Protocol):
    """Data set in one of the layouts that plainres reads."""

    @property
    def kind(self) -> str:
        """Name of the layout, for messages."""
        ...

    @property
    def available(self) -> Sequence[str]:
        """Names of the splits as they are stored; only `WHOLE` if the data set is not divided."""
        ...

    def read(self, splits: Sequence[str]) -> Labelled:
        """Return some of the available splits, without reading the others.

        Raises:
            InputError: files are missing or damaged, or do not have this layout.
        """
        ...


WHOLE = "all"  # the only split of a data set that is not divided


@dataclass(frozen=True)
class Files:
    """Image files.

    Args:
        folder: folder of the data set.
        paths: paths relative to it.
        targets: targets (N,), int64.
    """

    folder: Path
    paths: Sequence[str]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """Return the content of a file."""
        try:
            return (self.folder / self.paths[index]).read_bytes()
        except OSError as error:
            raise DamagedImageError(f"cannot be read: {error.strerror}") from error

    def name(self, index: int) -> str:
        """Return the path of a file, relative to the folder of the data set."""
        return self.paths[index]


class Rows:
    """Rows of Parquet files.

    Reading a row reads its row group, the newest of which are kept. Sequential reading is therefore fast, and random
    reading is as fast as the row groups are small (`slow_at_random`).

    Args:
        folder: folder of the data set.
        files: paths relative to it, in order.
        column: column of images, binary or a struct with the field `bytes`.
        targets: targets (N,), int64.
    """

    def __init__(self, folder: Path, files: Sequence[str], column: str, targets: Tensor) -> None:
        import pyarrow.parquet as pq

        self.folder, self.files, self.column, self.targets = folder, files, column, targets
        self.groups: list[tuple[int, int]] = []  # file and row group
        self.starts: list[int] = []  # first row of each row group in the split
        self.firsts: list[int] = []  # first row of each file in the split
        self.versions: list[int] = []  # times of modification, since row groups are kept
        self.largest = 0  # rows of the largest row group
        rows = 0
        for number, file in enumerate(files):
            self.firsts.append(rows)
            self.versions.append((folder / file).stat().st_mtime_ns)
            metadata = pq.read_metadata(folder / file)
            for group in range(metadata.num_row_groups):
                self.groups.append((number, group))
                self.starts.append(rows)
                count = metadata.row_group(group).num_rows
                self.largest = max(self.largest, count)
                rows += count

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> bytes:
        """Return the encoded file in a row."""
        position = bisect_right(self.starts, index) - 1
        file, group = self.groups[position]
        images = _images_of(str(self.folder / self.files[file]), self.versions[file], group, self.column)
        content = images[index - self.starts[position]].as_py()
        if isinstance(content, Mapping):
            content = content["bytes"]
        if content is None:
            raise DamagedImageError("is null")
        return content

    def name(self, index: int) -> str:
        """Return the file and the number of a row in it, from 0."""
        file = bisect_right(self.firsts, index) - 1
        return f"row {index - self.firsts[file]} of {self.files[file]}"


_READING = threading.Lock()  # so that threads do not read the same row group several times


@lru_cache(maxsize=2)
def _row_group(file: str, version: int, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    if Path(file).stat().st_mtime_ns != version:
        raise ValueError("it has changed since its rows were listed")
    with pq.ParquetFile(file) as opened:
        return opened.read_row_group(group, [column], use_threads=False).column(column)


def _images_of(file: str, version: int, group: int, column: str) -> Any:
    try:
        with _READING:
            return _row_group(file, version, group, column)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise DamagedImageError(f"cannot be read: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Arrays:
    """Images that are stored as an array of pixels.

    Args:
        file: path relative to the folder of the data set, for messages.
        pixels: images (N, H, W) or (N, H, W, C), uint8.
        targets: targets (N,), int64.
    """

    file: str
    pixels: np.ndarray
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> np.ndarray:
        """Return the pixels of an image."""
        return self.pixels[index]

    def name(self, index: int) -> str:
        """Return the file and the number of an image in it, from 0."""
        return f"image {index} of {self.file}"


@dataclass(frozen=True)
class Subset:
    """Some of the images of a split, at `index` (n,)."""

    images: Encoded
    index: Tensor

    @property
    def targets(self) -> Tensor:
        """Targets (n,), int64."""
        return self.images.targets[self.index]

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> bytes | np.ndarray:
        """Return an image as the split returns it."""
        return self.images.read(int(self.index[index]))

    def name(self, index: int) -> str:
        """Return the file or row of an image."""
        return self.images.name(int(self.index[index]))


def slow_at_random(images: Encoded) -> str | None:
    """Return a note for the user if images are rows of large row groups, which make reading at random slow."""
    rows = images.images if isinstance(images, Subset) else images
    if not isinstance(rows, Rows) or rows.largest <= SMALL_GROUP:
        return None
    return (
        f"{rows.files[0]} has row groups of up to {rows.largest:,} images, and each image takes the reading and the "
        "memory of its whole row group; write the files with row_group_size=10, or use a folder of images"
    )
