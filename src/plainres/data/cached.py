"""The decoded copy of a data set in the cache, which is made when it is first needed."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from plainres.console import quantity, say
from plainres.data.copies import VERSION, Contents, Copy, cache_folder, remove_unfinished, reserved, unfinished_folder
from plainres.data.dataset import Dataset
from plainres.data.layouts import class_name
from plainres.data.making import make_copy
from plainres.errors import InputError

LISTED = 10  # classes that are listed by name
VERIFIED = 2**30  # bytes up to which a copy's digests are compared whenever it is used, which takes half a second


@dataclass(frozen=True)
class CachedCopy:
    """Decoded copy of a data set in a cache, which several processes may use and make.

    It is made under a temporary name and renamed when it is complete, so that an unfinished copy is never used.

    Args:
        cache: folder of decoded copies.
        dataset: the data set.
        shape: channels, height and width of the network's input (default: those of the images).
        stored: length to which the shorter side of each image is resized (default: no resizing).
        damaged: `refuse` a data set with images that cannot be used, or `skip` these images.
        limit: largest size in bytes (default: any).
    """

    cache: str
    dataset: Dataset
    shape: Sequence[int] | None
    stored: int | None
    damaged: str
    limit: int | None

    @cached_property
    def folder(self) -> Path:
        """Folder of the copy, named after a digest of the data and of the options that affect decoding."""
        data = self.dataset
        key: list[Any] = [VERSION, str(data), data.image_column, data.label_column, data.classes]
        key += [self.shape and list(self.shape), self.stored, data.test_split, data.test_share, data.subset]
        key += [self.damaged, *data.fingerprint()]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        return cache_folder(self.cache) / f"{data.label.replace('/', '--')}-{digest}"

    def contents(self) -> Contents:
        """Return the description of the copy, which this makes unless there is an intact one.

        A copy is intact if its files have the recorded sizes and, up to VERIFIED bytes, the recorded digests.

        Raises:
            InputError: as `Dataset.read`; the cache is not writable or full; or an image is damaged or has the wrong
                shape.
        """
        copy = Copy(self.folder)
        if (contents := _intact(copy)) is not None:
            return contents
        with ExitStack() as stack:
            try:
                copy.folder.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(reserved(copy.folder))
            except OSError as error:
                raise InputError(
                    f"cannot write to the cache {copy.folder.parent}: {error.strerror}; set data.cache=FOLDER or "
                    "PLAINRES_CACHE"
                ) from error
            if (contents := _intact(copy)) is not None:  # another run decoded it while this one waited for the lock
                return contents
            if copy.folder.exists():
                say(f"{copy.folder} is damaged; decoding {self.dataset} again")
                shutil.rmtree(copy.folder)
            remove_unfinished(copy.folder)
            temporary = unfinished_folder(copy.folder)
            temporary.mkdir()
            try:
                contents = self._make(temporary)
                temporary.rename(copy.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return contents

    def _make(self, folder: Path) -> Contents:
        chosen = self.dataset.read()
        contents, notes = make_copy(
            folder,
            chosen,
            origin=str(self.dataset),
            shape=self.shape,
            stored=self.stored,
            skip=self.damaged == "skip",
            limit=self.limit,
            listing=self.folder.with_name(f"{self.folder.name}.damaged.txt"),
        )
        for line in _summary(self.dataset.label, contents, [*chosen.notes, *notes]):
            say(line)
        return contents


def _summary(label: str, contents: Contents, notes: Sequence[str]) -> list[str]:
    """Describe a data set: its size, its classes in their order, and everything that was left out."""
    names = [class_name(number, contents.class_names) for number in range(contents.classes)]
    if contents.class_names is None:
        classes = f"0 to {contents.classes - 1}"
    elif len(names) > LISTED:
        classes = ", ".join([*names[:5], "...", names[-1]])
    else:
        classes = ", ".join(names)
    channels, height, width = contents.size[2], *contents.size[:2]
    lines = [
        f"{label}: {contents.images['train']} training and {contents.images['test']} test images, "
        f"{channels}x{height}x{width}, {contents.classes} classes: {classes}",
        *(f"{label}: {note}" for note in notes),
    ]
    if contents.damaged:
        lines.append(
            f"{label}: {quantity(len(contents.damaged), 'damaged image')} left out (data.damaged=skip); the first: "
            f"{contents.damaged[0]}"
        )
    return lines


def _intact(copy: Copy) -> Contents | None:
    """Return the description of a copy, None if it is missing or damaged."""
    contents = copy.read()
    if contents is None or (contents.bytes <= VERIFIED and copy.damage()):
        return None
    return contents
