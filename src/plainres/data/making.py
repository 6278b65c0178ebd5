"""Making a decoded copy: one pass that decodes all images of a data set, or lists all that are damaged."""

import hashlib
import os
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from plainres.console import bar
from plainres.data.copies import Contents, Copy, check_space, no_space, reserve
from plainres.data.decoding import quiet
from plainres.data.encoded import NO_LABEL, DamagedImageError, Encoded, Files
from plainres.data.geometry import Geometry, geometry_of, survey
from plainres.data.layouts import Chosen, check_classes
from plainres.data.passes import Damage, in_parallel
from plainres.data.sources import Images, Split
from plainres.errors import InputError

NOTHING = Files(Path(), [], torch.zeros(0, dtype=torch.int64))  # split without images


def make_copy(
    folder: Path,
    chosen: Chosen,
    *,
    origin: str,
    shape: Sequence[int] | None,
    stored: int | None,
    skip: bool,
    limit: int | None,
    listing: Path,
) -> tuple[Contents, list[str]]:
    """Decode a data set into a folder, and return its description and sentences for the user.

    Args:
        folder: folder for the files.
        chosen: images of each split.
        origin: name of the data set, for messages.
        shape: channels, height and width of the network's input (default: those of the images).
        stored: length to which the shorter side of each image is resized (default: no resizing).
        skip: leave out damaged images, instead of refusing them.
        limit: largest size of the copy in bytes (default: any).
        listing: file for the list of damaged images, if they are refused.

    Raises:
        InputError: an image is damaged or does not have the expected size, a class lost all its training images, the
            test split all of its images, the copy exceeds the limit, or the disk is full.
    """
    damage, total = Damage(), sum(map(len, chosen.splits.values()))
    if shape is not None and stored is None:
        geometry = Geometry((shape[1], shape[2], shape[0]))
    else:
        sizes = survey(chosen.splits, damage)
        if not sizes:
            damage.refuse(origin, total, listing)
        geometry = geometry_of(sizes, shape, stored, origin)
    damage = Damage()  # with all that the survey found
    needed = total * (int(np.prod(geometry.size)) + 8)
    if limit is not None and needed > limit:
        raise InputError(
            f"a decoded copy of {origin} takes {needed / 2**30:.1f} GiB; set data.stream=true to decode the images "
            "while training, or data.stream=false to make the copy"
        )
    check_space(folder.parent, needed)
    writers = {split: SplitWriter(folder, split, geometry, needed) for split in ("train", "test")}
    targets = {}
    with quiet(), bar(f"decoding {Path(origin).name}", "image", total, leave=False) as progress:
        for split, writer in writers.items():
            images = chosen.splits.get(split, NOTHING)
            targets[split] = writer.write(images, origin, damage, progress)
    if not skip:
        damage.refuse(origin, total, listing)
    listing.unlink(missing_ok=True)
    left = {split: targets[split] for split in chosen.splits}
    if not len(left["test"]):
        raise InputError(
            f"{origin}: none of the {len(chosen.splits['test'])} test images can be used; the last: {damage.lines[-1]}"
            "; mend them, or set data.test_split to the name of another split"
        )
    notes = check_classes(left, origin, chosen.classes, chosen.class_names)
    notes = [note for note in notes if note not in chosen.notes]
    if (shared := writers["test"].in_common_with(writers["train"])).any():
        first = chosen.splits["test"].name(int(writers["test"].kept[shared][0]))
        count = f"{int(shared.sum())} of {len(shared)} test images"
        notes.append(f"{count} equal a training image in every pixel; the first: {first}")
    height, width, channels = geometry.size
    contents = Contents(
        source=origin,
        splits=chosen.names,
        images={split: len(each) for split, each in targets.items()},
        size=list(geometry.size),
        shape=list(shape or (channels, height, width)),
        classes=chosen.classes,
        class_names=None if chosen.class_names is None else list(chosen.class_names),
        histograms=writers["train"].histograms.tolist(),
        files=writers["train"].files | writers["test"].files,
        damaged=damage.lines,
    )
    contents = _measured(Copy(folder), contents)
    Copy(folder).write(contents)
    return contents, notes


def _measured(copy: Copy, contents: Contents) -> Contents:
    """Add the channel statistics and the digest of the data."""
    train, test = (Split(*copy.tensors(split, contents)) for split in ("train", "test"))
    images = Images(replace(train, histograms=contents.histogram_tensor), test)
    mean, std = (statistic / 255 for statistic in images.channel_statistics) if len(train) else (None, None)
    return replace(
        contents,
        mean=None if mean is None else mean.tolist(),
        std=None if std is None else std.tolist(),
        data_sha256=images.sha256(),
    )


class SplitWriter:
    """Decoded images and targets of a split, written into a folder.

    Args:
        folder: folder of the unfinished copy.
        split: `train` or `test`.
        geometry: size of the decoded images.
        needed: bytes of the whole copy, for messages.
    """

    def __init__(self, folder: Path, split: str, geometry: Geometry, needed: int) -> None:
        self.folder, self.split, self.geometry, self.needed = folder, split, geometry, needed
        self.files: dict[str, tuple[int, str]] = {}
        self.histograms = torch.zeros(geometry.size[2], 256, dtype=torch.int64)
        self.kept = np.zeros(0, dtype=np.int64)  # indices of the images that were written
        self.digests = array("Q")  # of the pixels of each of them, 64 bits: enough for a million images

    def in_common_with(self, other: "SplitWriter") -> np.ndarray:
        """Return which of the written images (N,), bool, have the pixels of one in another split."""
        return np.isin(np.array(self.digests), np.array(other.digests))

    def write(self, images: Encoded, origin: str, damage: Damage, progress: Any) -> Tensor:
        """Decode and write images, and return their targets.

        Damaged images are added to `damage` and left out.

        Raises:
            InputError: the disk is full, or an image does not have the expected size.
        """
        labelled = (images.targets != NO_LABEL).numpy()
        kept = np.ones(len(labelled), dtype=bool)
        name, size = f"{self.split}_images.bin", int(np.prod(self.geometry.size))
        digest = hashlib.sha256()
        with (self.folder / name).open("wb") as file:
            reserve(file, size * len(images), self.needed)
            for results in in_parallel(images, self.geometry.decode):
                pixels = []
                for index, result in results:
                    if not labelled[index] or isinstance(result, DamagedImageError):
                        damage.add(images, index, "has no label" if not labelled[index] else str(result))
                        kept[index] = False
                    else:
                        self._check_size(images, index, result, origin)
                        pixels.append(result)
                        self.digests.frombytes(hashlib.blake2b(result.tobytes(), digest_size=8).digest())
                if pixels:
                    chunk = np.stack(pixels)
                    digest.update(chunk.data)
                    self._count(chunk)
                    _write(file, chunk, self.needed)
                progress.update(len(results))
            file.truncate(size * int(kept.sum()))
            os.fsync(file.fileno())  # the space is reserved, so that a power loss would leave zeros
        self.files[name] = size * int(kept.sum()), digest.hexdigest()
        self.kept = np.flatnonzero(kept)
        targets = images.targets[torch.from_numpy(kept)]
        self._write_targets(targets)
        return targets

    def _write_targets(self, targets: Tensor) -> None:
        name, array = f"{self.split}_targets.bin", targets.contiguous().numpy()
        with (self.folder / name).open("wb") as file:
            _write(file, array, self.needed)
            os.fsync(file.fileno())
        self.files[name] = array.nbytes, hashlib.sha256(array.data).hexdigest()

    def _count(self, chunk: np.ndarray) -> None:
        for channel in range(chunk.shape[3]):
            counts = np.bincount(chunk[..., channel].ravel(), minlength=256)
            self.histograms[channel] += torch.from_numpy(counts)

    def _check_size(self, images: Encoded, index: int, pixels: np.ndarray, origin: str) -> None:
        if pixels.shape != self.geometry.size:
            height, width, channels = self.geometry.size
            raise InputError(
                f"{origin}: image {index} of {self.split} is {channels}x{pixels.shape[0]}x{pixels.shape[1]} (channels "
                f"x height x width), but data.shape is {channels}x{height}x{width} ({images.name(index)}); set "
                "data.shape to the size of the images, or data.stored=N to resize their shorter sides to N pixels"
            )


def _write(file: BinaryIO, array: np.ndarray, needed: int) -> None:
    try:
        file.write(array.data)
        file.flush()
    except OSError as error:
        raise InputError(no_space(Path(file.name).parent.parent, needed, error.strerror or "error")) from error
