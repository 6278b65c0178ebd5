"""Decoded copies of data sets on disk: their files, checks and removal.

A copy is a folder <name>-<digest> with metadata.json and, for each split, <split>_images.bin (N, H, W, C), uint8, and
<split>_targets.bin (N,), int64. It is written as <name>-<digest>.tmp-<pid> under a lock and renamed when it is
complete, so that an unfinished copy is never used. Copies are mapped into memory read-only: concurrent runs share them,
and a copy may be larger than the memory.
"""

import errno
import json
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from plainres.console import say
from plainres.errors import InputError
from plainres.files import file_sha256, write_atomically
from plainres.locks import HeldError, held

VERSION = 1  # of the files of a copy
METADATA = "metadata.json"
USED = "used"  # empty file, whose time of modification is that of the last use
UNFINISHED = ".tmp-"
CLUTTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # files that file managers add


@dataclass(frozen=True)
class Contents:
    """Description of a decoded copy, as in its metadata.json.

    Args:
        source: folder or name of the data set.
        splits: name of each split in the data set.
        images: number of images of each split.
        size: height, width and channels of a decoded image.
        shape: channels, height and width of the network's input.
        classes: number of classes.
        class_names: their names in the order of the targets, None if they have numbers only.
        histograms: number of pixels with each value (C, 256) in the training images.
        files: bytes and SHA-256 of each file.
        damaged: names and reasons of damaged images that were left out.
        mean: channel means of the training images, as fractions of 255; None without training images.
        std: their standard deviations.
        data_sha256: digest of all images and targets, as in result.json.
        version: version of the files.
    """

    source: str
    splits: dict[str, str]
    images: dict[str, int]
    size: list[int]
    shape: list[int]
    classes: int
    class_names: list[str] | None
    histograms: list[list[int]]
    files: dict[str, tuple[int, str]]
    damaged: list[str]
    mean: list[float] | None = None
    std: list[float] | None = None
    data_sha256: str | None = None
    version: int = VERSION

    @property
    def bytes(self) -> int:
        """Total size of the files."""
        return sum(size for size, _ in self.files.values())

    @property
    def histogram_tensor(self) -> Tensor:
        """Number of pixels with each value (C, 256), int64."""
        return torch.tensor(self.histograms, dtype=torch.int64)


@dataclass(frozen=True)
class Copy:
    """Decoded copy in a folder."""

    folder: Path

    def read(self) -> Contents | None:
        """Return the description of a copy whose files have the recorded sizes, None if it is damaged or missing."""
        try:
            contents = Contents(**json.loads((self.folder / METADATA).read_text()))
            if contents.version != VERSION:
                return None
            for name, (size, _) in contents.files.items():
                if (self.folder / name).stat().st_size != size:
                    return None
        except (OSError, ValueError, TypeError):
            return None
        return contents

    def write(self, contents: Contents) -> None:
        """Write metadata.json."""
        write_atomically(self.folder / METADATA, json.dumps(asdict(contents), indent=1))

    def tensors(self, split: str, contents: Contents) -> tuple[Tensor, Tensor]:
        """Return the images (N, H, W, C), mapped read-only, and the targets (N,) of a split.

        Writing to the images ends the process.
        """
        count = contents.images[split]
        targets = torch.from_numpy(np.fromfile(self.folder / f"{split}_targets.bin", np.int64))
        shape = (count, *contents.size)
        if count == 0:
            return torch.empty(shape, dtype=torch.uint8), targets
        with (self.folder / f"{split}_images.bin").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # DLPack, since torch.from_numpy warns of arrays that are read-only
        return torch.from_dlpack(np.frombuffer(mapped, np.uint8).reshape(shape)), targets

    def mark_used(self) -> None:
        """Record the time of the last use, if the cache is writable."""
        try:
            (self.folder / USED).touch()
        except OSError:
            return

    def damage(self) -> list[str]:
        """Compare the whole content of each file with its digest, and describe each difference."""
        contents = self.read()
        if contents is None:
            return ["files are missing, or do not have the recorded sizes"]
        return [
            f"{name} does not match its digest"
            for name, (_, digest) in contents.files.items()
            if file_sha256(self.folder / name) != digest
        ]

    @property
    def last_use(self) -> float:
        """Time of the last use, in seconds since the epoch."""
        marker = self.folder / USED
        return (marker if marker.exists() else self.folder).stat().st_mtime

    @property
    def disk_bytes(self) -> int:
        """Space that the copy takes on disk."""
        return sum(file.stat().st_blocks * 512 for file in self.folder.iterdir())


def reserved(folder: Path, timeout: float = -1) -> AbstractContextManager[None]:
    """Hold the lock under which a copy is written or removed (see `plainres.locks.held`)."""
    return held(folder.with_name(f"{folder.name}.lock"), timeout)


def unfinished_folder(folder: Path) -> Path:
    """Return the folder in which this process writes a copy, before it is renamed to `folder`."""
    return folder.with_name(f"{folder.name}{UNFINISHED}{os.getpid()}")


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished versions of a copy. The caller holds its lock, so that their processes have exited."""
    for left in folder.parent.iterdir():
        if left.name.startswith(f"{folder.name}{UNFINISHED}"):
            shutil.rmtree(left, ignore_errors=True)


def reserve(file: BinaryIO, size: int, needed: int) -> None:
    """Reserve `size` bytes on disk for an open file, so that writing cannot fail for lack of space.

    Args:
        file: file that is open for writing.
        size: bytes to reserve.
        needed: bytes of all files of the copy, for the message.

    Raises:
        InputError: the disk has not enough space.
    """
    try:
        if hasattr(os, "posix_fallocate") and size:  # macOS lacks it; writing fails there with the same message
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise InputError(no_space(Path(file.name).parent.parent, needed, error.strerror or "error")) from error


def check_space(cache: Path, needed: int) -> None:
    """Check that a disk has space for a copy.

    Raises:
        InputError: it has not.
    """
    if shutil.disk_usage(cache).free < needed:
        raise InputError(no_space(cache, needed, "No space left on device"))


def no_space(cache: Path, needed: int, reason: str) -> str:
    """Return the message for a cache whose disk is full."""
    free = shutil.disk_usage(cache).free
    return (
        f"the decoded copy takes {readable(needed)}, but {cache} has {readable(free)} left ({reason}); free some space "
        "(plainres data list shows the copies), or set data.cache=FOLDER or PLAINRES_CACHE"
    )


def readable(count: float) -> str:
    """Format a number of bytes: '12.3 MB'."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def cache_folder(name: str | None = None) -> Path:
    """Return the folder of decoded copies.

    Args:
        name: its name, which may begin with `~`; None: PLAINRES_CACHE, or else ~/.cache/plainres.

    If the user has no home folder, or may not write there, it is a folder of the user's own among the temporary ones,
    and a line on stderr says so.

    Raises:
        InputError: there is no such folder.
    """
    name = name or os.environ.get("PLAINRES_CACHE") or "~/.cache/plainres"
    try:
        folder = Path(name).expanduser()
        usable = not name.startswith("~") or (Path.home().is_dir() and _exists_or_can_be_made(folder))
    except RuntimeError:  # the home folder is unknown
        return _temporary_cache()
    return folder if usable else _temporary_cache()


def _exists_or_can_be_made(folder: Path) -> bool:
    existing = next(each for each in (folder, *folder.parents) if os.access(each, os.F_OK))
    return existing == folder or os.access(existing, os.W_OK | os.X_OK)


@cache
def _temporary_cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"plainres-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid != os.getuid():
            raise PermissionError(errno.EACCES, "it belongs to another user")
    except OSError as error:
        raise InputError(
            f"cannot use the cache {folder}: {error.strerror}; set data.cache=FOLDER or PLAINRES_CACHE"
        ) from error
    say(f"the home folder cannot be used: decoded copies are in {folder}; PLAINRES_CACHE names another folder")
    return folder


def copies_in(cache: Path) -> Iterator[Copy]:
    """Yield the copies in a cache, complete or not, by name."""
    if not cache.is_dir():
        return
    for folder in sorted(cache.iterdir()):
        if folder.is_dir() and _is_copy(folder):
            yield Copy(folder)


def _is_copy(folder: Path) -> bool:
    """Whether a folder holds files of a decoded copy, of this or an earlier version, and none of the user's."""
    names = [file.name for file in folder.iterdir() if not is_clutter(file.name)]
    known = (METADATA, USED)
    return all(name in known or name.endswith((".npy", ".bin")) for name in names) and (
        bool(names) or UNFINISHED in folder.name
    )


def is_clutter(name: str) -> bool:
    """Whether a file was added by a file manager, not by the user."""
    return name in CLUTTER or name.startswith("._")


def state_of(copy: Copy) -> str:
    """Return 'unfinished', 'older' for the files of an earlier version, 'damaged', or '' for a usable copy."""
    if UNFINISHED in copy.folder.name:
        return "unfinished"
    if copy.read() is not None:
        return ""
    try:
        version = json.loads((copy.folder / METADATA).read_text())["version"]
    except FileNotFoundError:
        return "older" if list(copy.folder.glob("*.npy")) else "damaged"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged"
    return "older" if version != VERSION else "damaged"


def remove(copy: Copy) -> bool:
    """Remove a copy; return whether it was removed. One that another process is writing stays."""
    folder = copy.folder.with_name(copy.folder.name.partition(UNFINISHED)[0])
    try:
        with reserved(folder, timeout=0):
            shutil.rmtree(copy.folder)
    except HeldError:
        return False
    return True


def select(cache: Path, names: Sequence[str]) -> list[Copy]:
    """Return the copies with the given names.

    Raises:
        InputError: there is no copy of a name.
    """
    copies = {copy.folder.name: copy for copy in copies_in(cache)}
    for name in names:
        if name not in copies:
            raise InputError(f"there is no decoded copy {name!r} in {cache}; plainres data list shows their names")
    return [copies[name] for name in names]


def used_before(copy: Copy, days: float) -> bool:
    """Whether a copy has not been used for a number of days."""
    return time.time() - copy.last_use > days * 86400
