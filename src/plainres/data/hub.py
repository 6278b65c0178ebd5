"""Data sets of the Hugging Face Hub, or of a folder that holds one, decoded once into arrays on disk."""

import hashlib
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from filelock import FileLock

from plainres.console import bar
from plainres.data.sources import Images, Split, check_options
from plainres.errors import InputError

DECODED_AT_ONCE = 500  # images; enough to keep the threads busy, few enough for a lively bar


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
    cache: str
    image_column: str
    label_column: str
    classes: int
    shape: Sequence[int]
    pad: int
    flip: bool
    path: str | None = None
    train_per_class: int | None = None
    test_per_class: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    stored: int | None = None
    test_split: str = "test"

    def __post_init__(self) -> None:
        check_options(self, train_per_class=self.train_per_class, test_per_class=self.test_per_class)
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
        for split in self._splits:
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

    @property
    def _splits(self) -> dict[str, str]:
        """Our name of each split -> the data set's."""
        return {"train": "train", "test": self.test_split}

    @property
    def _decoded_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a decoded image."""
        channels, height, width = self.shape
        return self.stored or height, self.stored or width, channels

    def _decode(self, folder: Path) -> None:
        """Write <split>_images.npy (N, H, W, C), uint8, and <split>_targets.npy (N,), int64, into `folder`.

        Raises:
            InputError: the folder, the network, a split or a column is missing, a label is outside the classes, or an
                image has another shape.
        """
        import datasets

        there = self._read()
        data = {split: there.get(theirs) for split, theirs in self._splits.items()}
        for split, theirs in self._splits.items():
            if data[split] is None:
                raise InputError(f"{self._where} has no split {theirs!r}; it has {', '.join(there) or 'none'}")
            for column in (self.image_column, self.label_column):
                if column not in data[split].column_names:
                    columns = ", ".join(data[split].column_names)
                    raise InputError(f"{self._where} has no column {column!r}; it has {columns}")
        total = sum(map(len, data.values()))
        with bar(f"decoding {self.name}", "image", total, leave=False) as decoded:
            for split, rows in data.items():
                if not isinstance(rows.features[self.image_column], datasets.Image):
                    raise InputError(f"{self._where}: column {self.image_column!r} of {split} holds no images")
                targets = np.asarray(rows[self.label_column])
                if targets.dtype.kind not in "iu":
                    raise InputError(f"{self._where}: column {self.label_column!r} of {split} holds no whole numbers")
                wrong = np.flatnonzero((targets < 0) | (targets >= self.classes))
                if wrong.size:
                    raise InputError(
                        f"{self._where}: image {wrong[0]} of {split} has the label {targets[wrong[0]]}; "
                        f"with data.classes={self.classes} labels are 0 to {self.classes - 1}"
                    )
                np.save(folder / f"{split}_targets.npy", targets.astype(np.int64))
                images = np.lib.format.open_memmap(
                    folder / f"{split}_images.npy",
                    mode="w+",
                    dtype=np.uint8,
                    shape=(len(rows), *self._decoded_shape),
                )
                for start, some in self._decode_in_parallel(rows, split):
                    images[start : start + len(some)] = some
                    decoded.update(len(some))
                images.flush()

    def _decode_in_parallel(self, rows: Any, split: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index of the first image, images (n, H, W, C)); Pillow decodes without the interpreter's lock."""
        height, width, channels = self._decoded_shape

        def decode(numbered: tuple[int, dict[str, Any]]) -> np.ndarray:
            from PIL import Image

            index, encoded = numbered
            file = encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])
            try:
                with Image.open(file) as image:
                    if self.stored is not None:
                        pixels = np.asarray(_middle(image.convert("RGB" if channels == 3 else "L"), height))
                    else:
                        pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
            except OSError as error:
                raise InputError(f"{self._where}: image {index} of {split} cannot be decoded: {error}") from error
            pixels = pixels.reshape(*pixels.shape[:2], -1)
            if pixels.dtype != np.uint8:
                raise InputError(f"{self._where}: image {index} of {split} has pixels of {pixels.dtype}, not of 8 bits")
            if pixels.shape != (height, width, channels):
                raise InputError(
                    f"{self._where}: image {index} of {split} is {pixels.shape[2]}x{pixels.shape[0]}x{pixels.shape[1]} "
                    f"(channels x height x width); data.shape is {channels}x{height}x{width}"
                )
            return pixels

        with ThreadPoolExecutor(joblib.cpu_count()) as pool:
            for start in range(0, len(rows), DECODED_AT_ONCE):
                encoded = rows[start : start + DECODED_AT_ONCE][self.image_column]
                yield start, np.stack(list(pool.map(decode, enumerate(encoded, start))))

    def _read(self) -> Any:
        """The data set as `datasets` gives it, images still encoded."""
        import datasets
        from datasets.exceptions import DatasetNotFoundError, DatasetsError

        where = f"{self.name} from the Hugging Face Hub" if self.path is None else self.path
        print(f"reading {where} ...", file=sys.stderr)
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it narrates each of its retries
        try:
            data = datasets.load_dataset(self.name if self.path is None else str(Path(self.path).expanduser()))
        except DatasetNotFoundError as error:
            raise InputError(f"{self._where}: {str(error).splitlines()[0]}") from error
        except (ConnectionError, DatasetsError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = "; a copy in a folder is read with data.path=FOLDER" if self.path is None else ""
            raise InputError(f"{self._where} cannot be read: {reason}{hint}") from error
        image = datasets.Image(decode=False)
        return {
            split: rows.cast_column(self.image_column, image)
            if isinstance(rows.features.get(self.image_column), datasets.Image)
            else rows
            for split, rows in data.items()
        }

    @property
    def _where(self) -> str:
        return self.name if self.path is None else self.path


def _middle(image: Any, side: int) -> Any:
    """The middle square of a Pillow image, its sides scaled to `side` pixels."""
    shorter = min(image.size)
    left, top = ((length - shorter) / 2 for length in image.size)
    return image.resize((side, side), resample=2, box=(left, top, left + shorter, top + shorter), reducing_gap=3)
