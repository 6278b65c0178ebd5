"""A data set of the Hugging Face Hub, or of a folder that holds one, decoded into arrays on disk."""

import io
import logging
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from plainres.errors import InputError
from plainres.progress import bar

DECODED_AT_ONCE = 500  # images; enough to keep the threads busy, few enough for a lively bar


@dataclass(frozen=True)
class HubDataSet:
    """Where a classified image data set lies and what it must look like.

    Args:
        name: the Hub's.
        path: a folder that holds the same data set; then nothing is downloaded.
        splits: our name of a split -> that of the data set.
        image_column: of encoded images.
        label_column: of whole numbers in [0, classes).
        classes: their number.
        size: height, width, channels of a decoded image.
        squared: whether the middle square of an image of any size is brought to `size`; else it must have it.
    """

    name: str
    path: str | None
    splits: Mapping[str, str]
    image_column: str
    label_column: str
    classes: int
    size: tuple[int, int, int]
    squared: bool

    def decode(self, folder: Path) -> None:
        """Write <split>_images.npy (N, H, W, C), uint8, and <split>_targets.npy (N,), int64, into `folder`.

        Raises:
            InputError: the folder, the network, a split or a column is missing, a label is outside the classes, or an
                image has another shape.
        """
        import datasets

        there = self._read()
        data = {split: there.get(theirs) for split, theirs in self.splits.items()}
        for split, theirs in self.splits.items():
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
                    shape=(len(rows), *self.size),
                )
                for start, some in self._decode_in_parallel(rows, split):
                    images[start : start + len(some)] = some
                    decoded.update(len(some))
                images.flush()

    def _decode_in_parallel(self, rows: Any, split: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index of the first image, images (n, H, W, C)); Pillow decodes without the interpreter's lock."""
        height, width, channels = self.size

        def decode(numbered: tuple[int, dict[str, Any]]) -> np.ndarray:
            from PIL import Image

            index, encoded = numbered
            file = encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])
            try:
                with Image.open(file) as image:
                    if self.squared:
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
