"""A data set as it is stored: in a folder, in an .npz file, or on the Hugging Face Hub."""

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from plainres.data.copies import is_clutter
from plainres.data.download import NAME, find_on_hub
from plainres.data.encoded import Layout
from plainres.data.folders import empty_folders, is_image, walk
from plainres.data.layouts import Chosen, choose, find_layout
from plainres.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """Data set before decoding: where it lies, and which of its images are for training and for testing.

    As text, it is its path or name, for messages.

    Args:
        name: name of the data set, that on the Hub if there is no `path`.
        path: folder or .npz file. Where `name` is not given or the same, this may also be a name on the Hub.
        subset: subset of Parquet files (default: the only one).
        image_column: column of images in Parquet files (default: the only one).
        label_column: column of labels in Parquet files (default: the only one).
        classes: expected number of classes (default: any).
        test_split: name of the test split.
        test_share: share of the images of an undivided data set that becomes its test split.
    """

    name: str | None
    path: str | None
    subset: str | None
    image_column: str | None
    label_column: str | None
    classes: int | None
    test_split: str
    test_share: float | None

    def __str__(self) -> str:
        return str(self.name if self.path is None else self.path)

    @property
    def label(self) -> str:
        """Short name of the data set."""
        return self.name if self.name and self.name != self.path else Path(str(self)).name

    @cached_property
    def local(self) -> Path | None:
        """Folder or file of the data set, None if it is on the Hub.

        Raises:
            InputError: it does not exist, and its name is not one of the Hub.
        """
        if self.path is None:
            return None
        local = Path(self.path).expanduser()
        if local.is_dir() or (local.is_file() and local.suffix == ".npz"):
            return local
        if NAME.fullmatch(self.path) and self.name in (None, self.path):
            return None
        if local.exists():
            raise InputError(f"data.path={self.path} is not a folder and not an .npz file")
        raise InputError(f"data.path={self.path}: there is no such folder")

    def read(self) -> Chosen:
        """Return the training and the test images, and the classes.

        Raises:
            InputError: the data set has none of the accepted layouts, or several; it cannot be read; a split or a
                column is missing; a label is out of range; or the Hub cannot be reached.
        """
        print(f"reading {self} ...", file=sys.stderr)
        return choose(self._layout(), str(self), self.test_split, self.test_share, self.classes)

    def fingerprint(self) -> list[Any]:
        """Return the path of a local data set, what tells whether its files have changed, and its empty folders.

        Of files with many images, the time of the last change of status (ctime) is part of it, because archives and
        tools that copy files set the time of modification to that of other content, and arrays keep their size. It is
        not of single images, whose size tells, since links and permissions change it as well.

        Raises:
            InputError: as `local`, or a link in the folder leads nowhere or to its own parent.
        """
        local = self.local
        if local is None:
            return []
        if not local.is_dir():
            return [str(local.resolve()), *_version(local.name, local.stat())]
        files = [
            [entry.path, *_version(entry.name, entry.stat())] for entry in walk(local) if not is_clutter(entry.name)
        ]
        return [str(local.resolve()), *files, *empty_folders(local)]

    def _layout(self) -> Layout:
        columns = self.subset, self.image_column, self.label_column
        if self.local is not None:
            return find_layout(self.local, *columns)
        try:
            return find_on_hub(str(self), *columns)
        except InputError as error:
            if self.path is None:
                raise
            raise InputError(f"data.path={self.path}: there is no such folder; {error}") from error


def _version(name: str, status: os.stat_result) -> list[int]:
    """Return what tells two versions of a file apart without reading it."""
    version = [status.st_size, status.st_mtime_ns]
    return version if is_image(name) else [*version, status.st_ctime_ns]
