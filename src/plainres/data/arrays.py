"""Data sets that are stored as arrays: CIFAR's pickles, SVHN's .mat files, idx files like MNIST's, and .npz files."""

import gzip
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plainres.data.encoded import Arrays, Labelled
from plainres.errors import InputError, first_line

PICKLED = 3 * 32 * 32  # bytes of an image in a pickle
LEVELS = "fine_label", "coarse_label"  # of the classes of CIFAR-100
CIFAR10_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
IDX = re.compile(r"(?P<subset>.*?)-?(?P<split>train|t10k|test)-(?P<content>images|labels)[-.]idx\d-ubyte(\.gz)?")
NPZ = ("{}_images", "{}_labels"), ("x_{}", "y_{}")  # of MedMNIST and of Keras
NPZ_SPLITS = ("train", "test", "val")
MAT_SPLITS = ("train", "test", "extra")
SAFE = {  # all that a pickle of arrays needs
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    *((module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    ("_codecs", "encode"),
}

Loaded = tuple[str, np.ndarray, np.ndarray]  # file, images, labels


@dataclass(frozen=True)
class ArrayFiles:
    """Layout of files of arrays.

    Args:
        kind: name of the layout.
        folder: folder of the data set.
        loaders: function of each split that reads its arrays.
        names: function that reads the names of the classes.
    """

    kind: str
    folder: Path
    loaders: Mapping[str, Callable[[], Loaded]]
    names: Callable[[], Sequence[str] | None] = lambda: None

    @property
    def available(self) -> Sequence[str]:
        """Names of the splits."""
        return list(self.loaders)

    def read(self, splits: Sequence[str]) -> Labelled:
        """Read the arrays of the splits.

        Raises:
            InputError: a file is missing or damaged, or its arrays do not fit together.
        """
        return Labelled({split: self._split(*self.loaders[split]()) for split in splits}, self.names())

    def _split(self, file: str, images: np.ndarray, labels: np.ndarray) -> Arrays:
        where = f"{self.folder}: {file}"
        if images.dtype != np.uint8:
            raise InputError(f"{where} has images of type {images.dtype}; they must be uint8")
        if images.ndim != 3 and (images.ndim != 4 or images.shape[3] not in (1, 3)):
            raise InputError(
                f"{where} has images of shape {list(images.shape)}; it must be [N, H, W], [N, H, W, 1] or [N, H, W, 3]"
            )
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise InputError(
                f"{where} has labels of type {labels.dtype} and shape {list(labels.shape)}; they must be one integer "
                "for each image"
            )
        if len(images) != len(labels):
            raise InputError(f"{where} has {len(images)} images, but {len(labels)} labels; numbers must be equal")
        return Arrays(file, images, torch.from_numpy(labels.astype(np.int64)))


def find_pickles(folder: Path, label_column: str | None) -> ArrayFiles | None:
    """Return the layout of CIFAR's original Python version, None if the folder does not hold it.

    Raises:
        InputError: the folder holds both CIFAR-10 and CIFAR-100, or the latter has no such labels.
    """
    versions = ("cifar-10-batches-py", "batches.meta"), ("cifar-100-python", "meta")
    if all((folder / name / marker).is_file() for name, marker in versions):
        names = " and ".join(name for name, _ in versions)
        raise InputError(f"{folder} holds {names}; set data.path to one of them")
    for name, marker in versions:
        inside = folder / name if (folder / name).is_dir() else folder
        if not (inside / marker).is_file():
            continue
        if marker == "batches.meta":
            files, labels, meta = {"train": CIFAR10_TRAIN, "test": ("test_batch",)}, "labels", "label_names"
        else:
            level = (label_column or LEVELS[0]).removesuffix("s").removesuffix("_label")
            if f"{level}_label" not in LEVELS:
                raise InputError(f"data.label_column is {label_column}; CIFAR-100 has {' and '.join(LEVELS)}")
            files, labels, meta = {"train": ("train",), "test": ("test",)}, f"{level}_labels", f"{level}_label_names"

        def load(names: Sequence[str], inside: Path = inside, labels: str = labels) -> Loaded:
            batches = [_unpickled(inside / name) for name in names]
            for name, batch in zip(names, batches, strict=True):
                if not {"data", labels} <= batch.keys():
                    raise InputError(f"{inside / name} has the keys {', '.join(batch)}; it needs data and {labels}")
                if np.shape(batch["data"])[1:] != (PICKLED,):
                    raise InputError(
                        f"{inside / name} has data of shape {list(np.shape(batch['data']))}; it must be [N, {PICKLED}]"
                    )
            pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            return names[0], pixels, np.concatenate([batch[labels] for batch in batches])

        def classes(file: Path = inside / marker, key: str = meta) -> Sequence[str] | None:
            return [name.decode() if isinstance(name, bytes) else str(name) for name in _unpickled(file)[key]]

        loaders = {split: lambda names=names, load=load: load(names) for split, names in files.items()}
        return ArrayFiles("CIFAR's pickles", inside, loaders, classes)
    return None


class _ArraysOnly(pickle.Unpickler):
    """Unpickler that executes nothing but what arrays need."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class or function of numpy that makes arrays."""
        if (module, name) not in SAFE:
            raise pickle.UnpicklingError(f"it would execute {module}.{name}, and only arrays are accepted")
        return super().find_class(module, name)


def _unpickled(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            content = _ArraysOnly(opened, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing") from error
    except Exception as error:  # damaged pickles raise errors of many types
        raise InputError(f"{file} cannot be read: {first_line(error) or type(error).__name__}") from error


def find_mat(folder: Path) -> ArrayFiles | None:
    """Return the layout of SVHN's original files, None if the folder does not hold them."""
    files = {split: folder / f"{split}_32x32.mat" for split in MAT_SPLITS}
    loaders = {split: partial(_mat, file) for split, file in files.items() if file.is_file()}
    return ArrayFiles("SVHN's .mat files", folder, loaders) if loaders else None


def _mat(file: Path) -> Loaded:
    """Read X (H, W, C, N) and y (N, 1), in which 10 stands for the digit 0."""
    from scipy.io import loadmat

    try:
        with file.open("rb") as content:
            arrays = loadmat(content)
    except Exception as error:  # damaged files raise errors of many types
        raise InputError(f"{file} cannot be read: {first_line(error) or type(error).__name__}") from error
    if not {"X", "y"} <= arrays.keys():
        names = ", ".join(name for name in arrays if not name.startswith("__"))
        raise InputError(f"{file} has the arrays {names}; it needs X and y")
    images, labels = (np.asarray(arrays[name]) for name in ("X", "y"))
    if labels.dtype.kind in "iu" and not ((labels >= 1) & (labels <= 10)).all():
        raise InputError(
            f"{file} has labels from {labels.min()} to {labels.max()}; SVHN's are 1 to 10, where 10 is the digit 0"
        )
    return file.name, np.moveaxis(images, -1, 0), np.where(labels == 10, 0, labels)


def find_idx(folder: Path, subset: str | None) -> ArrayFiles | None:
    """Return the layout of idx files, which may be compressed, or in folders like torchvision's <name>/raw.

    Raises:
        InputError: there are files of several data sets, or one of a pair is missing.
    """
    inside = next((each for each in (folder, folder / "raw", *sorted(folder.glob("*/raw"))) if _idx_files(each)), None)
    if inside is None:
        return None
    if len(raws := [each for each in sorted(folder.glob("*/raw")) if _idx_files(each)]) > 1:
        raise InputError(f"{folder} holds several data sets: {', '.join(map(str, raws))}; set data.path to one of them")
    files: dict[tuple[str, str, str], str] = {}
    for name, match in sorted(_idx_files(inside).items(), reverse=True):  # a plain file before its compressed version
        split = "train" if match["split"] == "train" else "test"
        files[match["subset"], split, match["content"]] = name
    subsets = sorted({key[0] for key in files})
    if len(subsets) > 1 and subset not in subsets:
        raise InputError(f"{inside} has the subsets {', '.join(map(repr, subsets))}; choose one with data.subset")
    chosen = subset if subset is not None else subsets[0]
    loaders = {}
    for split in ("train", "test"):
        pair = [files.get((chosen, split, content)) for content in ("images", "labels")]
        if pair == [None, None]:
            continue
        if None in pair:
            raise InputError(f"{inside} has only {pair[0] or pair[1]} of the {split} images and labels; add the other")
        loaders[split] = lambda images=str(pair[0]), labels=str(pair[1]): (
            images,
            _idx(inside / images, 3),
            _idx(inside / labels, 1),
        )
    return ArrayFiles("idx files", inside, loaders)


def _idx_files(folder: Path) -> dict[str, re.Match[str]]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return {name: match for name in names if (match := IDX.fullmatch(name))}


def _idx(file: Path, dimensions: int) -> np.ndarray:
    """Read an idx file of bytes: its magic number, the size of each dimension, and the values."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    header = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < header:
        raise InputError(f"{file} is not an idx file of bytes with {dimensions} dimensions")
    shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
    if len(content) - header != np.prod(shape, dtype=np.int64):
        raise InputError(f"{file} has {len(content) - header} bytes of values; its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def find_npz(path: Path) -> ArrayFiles | None:
    """Return the layout of an .npz file, or of a folder that holds one."""
    found = [path] if path.suffix == ".npz" else sorted(path.glob("*.npz"))
    if not found:
        return None
    if len(found) > 1:
        raise InputError(f"{path} holds {', '.join(file.name for file in found)}; set data.path to one of them")
    (file,) = found
    try:
        with file.open("rb") as content, np.load(content) as opened:
            keys = opened.files
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} is not a complete .npz file: {error}") from error
    loaders = {}
    for split in NPZ_SPLITS:
        for images, labels in NPZ:
            if images.format(split) in keys and labels.format(split) in keys:
                if split in loaders:
                    raise InputError(f"{file} has two sets of {split} images; write a file with one")
                loaders[split] = partial(_npz, file, images.format(split), labels.format(split))
    if not loaders:
        raise InputError(
            f"{file} has the arrays {', '.join(keys)}; it needs x_train, y_train, x_test and y_test, or train_images, "
            "train_labels, test_images and test_labels"
        )
    return ArrayFiles("an .npz file", file.parent, loaders)


def _npz(file: Path, images: str, labels: str) -> Loaded:
    try:
        with file.open("rb") as content, np.load(content) as opened:
            return f"{images} in {file.name}", opened[images], opened[labels]
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
