"""Data sets from the Hugging Face Hub or a local folder, decoded once into arrays on disk."""

import hashlib
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from filelock import FileLock

from plainres.console import bar
from plainres.data.sources import Images, Split, check_options
from plainres.data.streaming import StreamedSplit
from plainres.data.views import SCALE, Views
from plainres.errors import InputError

DECODE_CHUNK = 500  # images; large enough to keep the threads busy, small enough for a smooth progress bar


@dataclass(frozen=True)
class HubImages:
    """Image classification data set from the Hugging Face Hub or a local folder.

    The decoded copy under `cache` is memory-mapped. It is written under a temporary name and renamed when it is
    complete, so that a partial copy is never used.

    Args:
        name: name of the data set on the Hub.
        cache: folder of decoded copies.
        image_column: name of the column of images.
        label_column: name of the column of labels, integers in [0, classes).
        classes: number of classes.
        shape: channels, height and width of the network's input. Without `stored` all images must have this shape.
        pad: number of zeros on each side before a random crop.
        flip: whether to flip training images horizontally with probability 1/2.
        path: folder with the same data set, which is then not downloaded.
        train_per_class: number of training images per class (default: all).
        test_per_class: number of test images per class (default: all).
        validation_per_class: number of these training images of each class to hold out for validation (default: none).
        mean: channel means (C,) for normalisation, as fractions of 255 (default: those of the training images).
        std: channel standard deviations (C,) for normalisation, as fractions of 255 (default: as `mean`).
        stored: side in pixels of the decoded images. Images may then have any size; the centre square of each is
            resized to this side, and the network sees crops of `shape`.
        test_split: name of the test split.
        stream: decode the images while training, by `crop` and the other options of `plainres.data.views.Views`,
            instead of once.
        crop: as for `Views`.
        scales: as for `Views`.
        colour: as for `Views`.
        test_scale: as for `Views`.
        test_crops: as for `Views`.

    Raises:
        InputError: a value is out of range, or only one of `mean` and `std` is set.
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
    validation_per_class: int | None = None
    stream: bool | None = None
    crop: str = SCALE
    scales: Sequence[int] | None = None
    colour: float = 0.0
    test_scale: int | None = None
    test_crops: int = 1

    def __post_init__(self) -> None:
        check_options(
            self,
            train_per_class=self.train_per_class,
            test_per_class=self.test_per_class,
            validation_per_class=self.validation_per_class,
        )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.shape[0]:
                raise InputError(
                    f"data.{name} has length {len(values)}; it must have length {self.shape[0]}, one value per channel"
                )
        if (self.mean is None) != (self.std is None):
            raise InputError("only one of data.mean and data.std is set; set both or neither")
        if self.stream:
            self._check_streaming()
        elif self.views != Views(self.shape, self.flip):
            raise InputError(
                "data.crop, scales, colour, test_scale and test_crops apply to images that are decoded while training; "
                "set data.stream=true"
            )
        if self.stored is not None and self.stored < max(self.shape[1:]):
            raise InputError(
                f"data.stored is {self.stored}; it must be at least {max(self.shape[1:])}, as in data.shape"
            )

    def _check_streaming(self) -> None:
        for name, value, none in (("stored", self.stored, None), ("pad", self.pad, 0)):
            if value != none:
                raise InputError(
                    f"data.{name} is {value}, but images that are decoded while training have their own size; set it "
                    f"to {'null' if none is None else none}, or data.stream=false"
                )
        _ = self.views

    def load(self) -> Images:
        """Return both splits, and decode them first if there is no decoded copy.

        Raises:
            InputError: as `prepare`, or a class has fewer images than requested.
        """
        if self.stream:
            return self._load_streamed()
        self.prepare()
        folder = self._decoded_folder
        splits = []
        for split in self._splits:
            # copy-on-write: other runs share the pages, and torch requires a writable array
            images = np.load(folder / f"{split}_images.npy", mmap_mode="c")
            splits.append(Split(torch.from_numpy(images), torch.from_numpy(np.load(folder / f"{split}_targets.npy"))))
        train, test = splits
        images = Images(
            train.first_per_class(self.train_per_class),
            test.first_per_class(self.test_per_class),
            mean=self.mean,
            std=self.std,
        )
        return images.with_validation(self.validation_per_class)

    def prepare(self) -> None:
        """Download and decode the data set unless there is a decoded copy.

        Raises:
            InputError: the folder at `path` does not exist, the cache is not writable, the data set cannot be read, a
                split or a column is missing, a label is out of range, or an image cannot be decoded or has the wrong
                shape.
        """
        if self.stream:
            return
        folder = self._decoded_folder
        if folder.exists():
            return
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{folder}.lock").acquire()
        except OSError as error:
            raise InputError(
                f"cannot write to the cache {folder.parent}: {error.strerror}; set data.cache=FOLDER or PLAINRES_CACHE"
            ) from error
        with lock:
            if folder.exists():  # another run decoded it while this one waited for the lock
                return
            temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                self._decode(temporary)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    @property
    def views(self) -> Views:
        """Views of streamed images."""
        return Views(self.shape, self.flip, self.crop, self.scales, self.colour, self.test_scale, self.test_crops)

    def _load_streamed(self) -> Images[StreamedSplit]:
        data = self._read()
        train, test = (_Rows(data[name], self.image_column, self.label_column) for name in self._splits.values())
        images = Images(
            StreamedSplit(train, self.views).first_per_class(self.train_per_class),
            StreamedSplit(test, self.views).first_per_class(self.test_per_class),
            mean=self.mean,
            std=self.std,
        ).with_validation(self.validation_per_class)
        # the whole training set is evaluated too, where ten crops would cost several epochs
        return replace(images, train=replace(images.train, views=replace(self.views, test_crops=1)))

    @property
    def _decoded_folder(self) -> Path:
        """Folder of the decoded copy, named after a digest of the data and of the options that affect decoding."""
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
        """Mapping from plainres's name of each split to that of the data set."""
        return {"train": "train", "test": self.test_split}

    @property
    def _decoded_shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels of a decoded image."""
        channels, height, width = self.shape
        return self.stored or height, self.stored or width, channels

    def _decode(self, folder: Path) -> None:
        """Write <split>_images.npy (N, H, W, C), uint8, and <split>_targets.npy (N,), int64, into `folder`.

        Raises:
            InputError: the data set cannot be read, a split or a column is missing, a column has the wrong type, a
                label is out of range, or an image cannot be decoded or has the wrong shape.
        """
        import datasets

        available = self._read()
        data = {split: available.get(name) for split, name in self._splits.items()}
        for split, name in self._splits.items():
            if data[split] is None:
                splits = ", ".join(available) or "none"
                raise InputError(f"{self._origin} has no split {name!r}; available splits: {splits}")
            for column in (self.image_column, self.label_column):
                if column not in data[split].column_names:
                    columns = ", ".join(data[split].column_names)
                    raise InputError(f"{self._origin} has no column {column!r}; available columns: {columns}")
        total = sum(map(len, data.values()))
        with bar(f"decoding {self.name}", "image", total, leave=False) as progress:
            for split, rows in data.items():
                if not isinstance(rows.features[self.image_column], datasets.Image):
                    raise InputError(
                        f"{self._origin}: column {self.image_column!r} of {split} does not contain images; "
                        "set data.image_column"
                    )
                targets = np.asarray(rows[self.label_column])
                if targets.dtype.kind not in "iu":
                    raise InputError(
                        f"{self._origin}: column {self.label_column!r} of {split} does not contain integers; "
                        "set data.label_column"
                    )
                invalid = np.flatnonzero((targets < 0) | (targets >= self.classes))
                if invalid.size:
                    raise InputError(
                        f"{self._origin}: image {invalid[0]} of {split} has label {targets[invalid[0]]}; "
                        f"with data.classes={self.classes} it must be between 0 and {self.classes - 1}"
                    )
                np.save(folder / f"{split}_targets.npy", targets.astype(np.int64))
                images = np.lib.format.open_memmap(
                    folder / f"{split}_images.npy",
                    mode="w+",
                    dtype=np.uint8,
                    shape=(len(rows), *self._decoded_shape),
                )
                for start, chunk in self._decode_in_parallel(rows, split):
                    images[start : start + len(chunk)] = chunk
                    progress.update(len(chunk))
                images.flush()

    def _decode_in_parallel(self, rows: Any, split: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield chunks as (index of the first image, images (n, H, W, C)), decoded by threads.

        Pillow releases the GIL while it decodes.
        """
        height, width, channels = self._decoded_shape

        def decode(item: tuple[int, dict[str, Any]]) -> np.ndarray:
            from PIL import Image

            index, encoded = item
            file = encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])
            try:
                with Image.open(file) as image:
                    if self.stored is not None:
                        pixels = np.asarray(_centre_square(image.convert("RGB" if channels == 3 else "L"), height))
                    else:
                        pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
            except OSError as error:
                raise InputError(f"{self._origin}: cannot decode image {index} of {split}: {error}") from error
            pixels = pixels.reshape(*pixels.shape[:2], -1)
            if pixels.dtype != np.uint8:
                raise InputError(
                    f"{self._origin}: image {index} of {split} has {pixels.dtype} pixels; the type must be uint8"
                )
            if pixels.shape != (height, width, channels):
                actual = f"{pixels.shape[2]}x{pixels.shape[0]}x{pixels.shape[1]}"
                raise InputError(
                    f"{self._origin}: image {index} of {split} is {actual} (channels x height x width), "
                    f"but data.shape is {channels}x{height}x{width}"
                )
            return pixels

        with ThreadPoolExecutor(joblib.cpu_count()) as pool:
            for start in range(0, len(rows), DECODE_CHUNK):
                encoded = rows[start : start + DECODE_CHUNK][self.image_column]
                yield start, np.stack(list(pool.map(decode, enumerate(encoded, start))))

    def _read(self) -> Any:
        """Load the splits of the data set, with encoded images."""
        import datasets
        from datasets.exceptions import DatasetNotFoundError, DatasetsError

        origin = f"{self.name} from the Hugging Face Hub" if self.path is None else self.path
        print(f"reading {origin} ...", file=sys.stderr)
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hides a warning per retry
        try:
            data = datasets.load_dataset(self.name if self.path is None else str(Path(self.path).expanduser()))
        except DatasetNotFoundError as error:
            raise InputError(f"{self._origin}: {str(error).splitlines()[0]}") from error
        except (ConnectionError, DatasetsError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            hint = "; set data.path=FOLDER to read a local copy" if self.path is None else ""
            raise InputError(f"cannot read {self._origin}: {reason}{hint}") from error
        image = datasets.Image(decode=False)
        return {
            split: rows.cast_column(self.image_column, image)
            if isinstance(rows.features.get(self.image_column), datasets.Image)
            else rows
            for split, rows in data.items()
        }

    @property
    def _origin(self) -> str:
        """Name or path of the data set, for messages."""
        return self.name if self.path is None else self.path


class _Rows:
    """Rows of a data set that the `datasets` library reads."""

    def __init__(self, rows: Any, image_column: str, label_column: str) -> None:
        self.rows, self.column = rows.select_columns(image_column), image_column
        self.targets = torch.from_numpy(np.asarray(rows[label_column], np.int64))

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> bytes:
        """Return the encoded file of an image."""
        row = self.rows[index][self.column]
        return Path(row["path"]).read_bytes() if row["bytes"] is None else row["bytes"]

    def name(self, index: int) -> str:
        """Return the path of an image, or the number of its row."""
        return self.rows[index][self.column]["path"] or f"row {index}"


def _centre_square(image: Any, side: int) -> Any:
    """Crop a Pillow image to its centre square and resize that to `side` x `side` pixels."""
    shorter = min(image.size)
    left, top = ((length - shorter) / 2 for length in image.size)
    return image.resize((side, side), resample=2, box=(left, top, left + shorter, top + shorter), reducing_gap=3)
