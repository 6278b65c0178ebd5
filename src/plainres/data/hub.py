"""Image classification data sets from a folder, a file or the Hugging Face Hub, decoded once into arrays on disk."""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from plainres.console import quantity, say
from plainres.data.copies import (
    VERSION,
    Contents,
    Copy,
    cache_folder,
    is_clutter,
    remove_unfinished,
    reserved,
    unfinished_folder,
)
from plainres.data.download import NAME, find_on_hub
from plainres.data.encoded import Layout
from plainres.data.folders import walk
from plainres.data.layouts import Chosen, choose, class_name, find_layout
from plainres.data.making import make_copy
from plainres.data.sources import Images, Split, check_options
from plainres.data.streaming import StreamedSplit
from plainres.data.views import SCALE, Views
from plainres.errors import InputError

DAMAGED = ("refuse", "skip")
LARGE = 4 * 2**30  # bytes of a decoded copy that is made only if asked for
LISTED = 10  # classes that are listed by name


@dataclass(frozen=True)
class HubImages:
    """Image classification data set from a folder, an .npz file or the Hugging Face Hub.

    The decoded copy under `cache` is memory-mapped. It is written under a temporary name and renamed when it is
    complete, so that an unfinished copy is never used. If `classes` or `shape` is None, they are found in the data,
    which are then decoded when the source is created.

    Args:
        cache: folder of decoded copies.
        pad: number of zeros on each side before a random crop.
        flip: whether to flip training images horizontally with probability 1/2.
        name: name of the data set, that on the Hub if there is no `path`.
        image_column: name of the column of images (default: the only one).
        label_column: name of the column of labels (default: the only one).
        classes: number of classes (default: as found).
        shape: channels, height and width of the network's input (default: those of the images, which must have one
            size). Without `stored` all images must have this height and width.
        path: folder or .npz file of the data set, which is then not downloaded. Where `name` is not given or the same,
            this may also be a name on the Hub.
        train_per_class: number of training images per class (default: all).
        test_per_class: number of test images per class (default: all).
        validation_per_class: number of these training images of each class to hold out for validation (default: none).
        mean: channel means (C,) for normalisation, as fractions of 255 (default: those of the training images).
        std: channel standard deviations (C,) for normalisation, as fractions of 255 (default: as `mean`).
        stored: length in pixels to which the shorter side of each image is resized. Images may then have any size. If
            all resized images have one size, they are kept whole; otherwise their middle squares are. The network sees
            crops of `shape`.
        test_split: name of the test split.
        test_share: share of the images of a data set without test images that becomes its test split, drawn from a
            fixed seed and stratified by class.
        subset: subset of a data set that has several.
        damaged: `refuse` a data set with images that cannot be used, or `skip` these images.
        stream: decode the images while training, by `crop` and the other options of `plainres.data.views.Views`,
            instead of once. None decodes them once, and refuses to if that takes more than LARGE bytes.
        crop: as for `Views`.
        scales: as for `Views`.
        colour: as for `Views`.
        test_scale: as for `Views`.
        test_crops: as for `Views`.

    Raises:
        InputError: a value is out of range, only one of `mean` and `std` is set, or as `prepare` if `classes` or
            `shape` is None.
    """

    cache: str
    pad: int
    flip: bool
    name: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    classes: int | None = None  # replaced by the number that is found
    shape: Sequence[int] | None = None  # replaced by the shape that is found
    path: str | None = None
    train_per_class: int | None = None
    test_per_class: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    stored: int | None = None
    test_split: str = "test"
    test_share: float | None = None
    subset: str | None = None
    damaged: str = "refuse"
    validation_per_class: int | None = None
    stream: bool | None = None
    crop: str = SCALE
    scales: Sequence[int] | None = None
    colour: float = 0.0
    test_scale: int | None = None
    test_crops: int = 1
    _given: tuple[int | None, Sequence[int] | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name is None and self.path is None:
            raise InputError("data.path is not set; set it to a folder of images, or to a name on the Hugging Face Hub")
        if self.damaged not in DAMAGED:
            raise InputError(f"data.damaged is {self.damaged!r}; it must be {' or '.join(DAMAGED)}")
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise InputError(f"data.test_share is {self.test_share}; it must be between 0 and 1")
        if (self.mean is None) != (self.std is None):
            raise InputError("only one of data.mean and data.std is set; set both or neither")
        if self.stream:
            self._check_streaming()
        self._find_missing()
        assert self.shape is not None
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
        if self.shape[0] not in (1, 3):
            raise InputError(f"data.shape is {list(self.shape)}; images have 1 channel (grey) or 3 (RGB)")
        if self.views != Views(self.shape, self.flip) and not self.stream:
            raise InputError(
                "data.crop, scales, colour, test_scale and test_crops apply to images that are decoded while training; "
                "set data.stream=true"
            )
        if self.stored is not None and self._given[1] is not None and self.stored < max(self.shape[1:]):
            raise InputError(
                f"data.stored is {self.stored}; it must be at least {max(self.shape[1:])}, as in data.shape"
            )

    def load(self) -> Images:
        """Return both splits, and decode them first if there is no decoded copy.

        Raises:
            InputError: as `prepare`, or a class has fewer images than requested.
        """
        if self.stream:
            return self._load_streamed()
        contents = self._prepared()
        copy = Copy(self._decoded_folder)
        copy.mark_used()
        train, test = (Split(*copy.tensors(split, contents)) for split in ("train", "test"))
        train = Split(train.images, train.targets, contents.histogram_tensor)
        whole = self.train_per_class is None and self.test_per_class is None
        images = Images(
            train.first_per_class(self.train_per_class),
            test.first_per_class(self.test_per_class),
            mean=self.mean,
            std=self.std,
            classes=contents.class_names,
            digest=contents.data_sha256 if whole else None,
        )
        return images.with_validation(self.validation_per_class)

    def prepare(self) -> None:
        """Download and decode the data set unless there is an intact decoded copy.

        Raises:
            InputError: the folder at `path` does not exist, the cache is not writable or full, the data set cannot be
                read, a split or a column is missing, a label is out of range, or an image is damaged or has the wrong
                shape.
        """
        if not self.stream:
            self._prepared()

    @property
    def views(self) -> Views:
        """Views of images that are decoded while training."""
        assert self.shape is not None
        return Views(self.shape, self.flip, self.crop, self.scales, self.colour, self.test_scale, self.test_crops)

    def encoded(self) -> Chosen:
        """Return the training and the test images before decoding, and the classes.

        Raises:
            InputError: as `prepare`, except for damaged images.
        """
        print(f"reading {self._origin} ...", file=sys.stderr)
        return choose(self._layout(), self._origin, self.test_split, self.test_share, self._given[0])

    def _load_streamed(self) -> Images[StreamedSplit]:
        chosen = self.encoded()
        train, test = (StreamedSplit(chosen.splits[split], self.views) for split in ("train", "test"))
        images = Images(
            train.first_per_class(self.train_per_class),
            test.first_per_class(self.test_per_class),
            mean=self.mean,
            std=self.std,
            classes=chosen.class_names,
        ).with_validation(self.validation_per_class)
        # the whole training set is evaluated too, where ten crops would cost several epochs
        return replace(images, train=replace(images.train, views=replace(self.views, test_crops=1)))

    def _check_streaming(self) -> None:
        """Check the options that only a decoded copy has, and the shape, which images of any size do not tell."""
        for name, value, none in (
            ("stored", self.stored, None),
            ("pad", self.pad, 0),
            ("damaged", self.damaged, "refuse"),
        ):
            if value != none:
                raise InputError(
                    f"data.{name} is {value}, which needs a decoded copy; set it to "
                    f"{'null' if none is None else none}, or data.stream=false"
                )
        if self.shape is None:
            raise InputError(
                "data.shape is not set; images that are decoded while training need [channels, height, width]"
            )

    def _prepared(self) -> Contents:
        """Return the description of the decoded copy, which this makes if necessary."""
        copy = Copy(self._decoded_folder)
        if (contents := copy.read()) is not None:
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
            if (contents := copy.read()) is not None:  # another run decoded it while this one waited for the lock
                return contents
            if copy.folder.exists():
                say(f"{copy.folder} is damaged; decoding {self._origin} again")
                shutil.rmtree(copy.folder)
            remove_unfinished(copy.folder)
            temporary = unfinished_folder(copy.folder)
            temporary.mkdir()
            try:
                contents = self._decode(temporary)
                temporary.rename(copy.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return contents

    def _decode(self, folder: Path) -> Contents:
        """Write a decoded copy into `folder`."""
        chosen = self.encoded()
        contents = make_copy(
            folder,
            chosen,
            origin=self._origin,
            shape=self._given[1],
            stored=self.stored,
            skip=self.damaged == "skip",
            limit=LARGE if self.stream is None else None,
            listing=self._decoded_folder.with_name(f"{self._decoded_folder.name}.damaged.txt"),
        )
        for line in _summary(self._label, contents, chosen):
            say(line)
        return contents

    def _find_missing(self) -> None:
        """Set `classes` and `shape` to those of the data if they are not given."""
        object.__setattr__(self, "_given", (self.classes, self.shape))
        if self.classes is None or self.shape is None:
            if self.stream:
                object.__setattr__(self, "classes", self.encoded().classes)
                return
            contents = self._prepared()
            object.__setattr__(self, "classes", contents.classes)
            object.__setattr__(self, "shape", self.shape or contents.shape)

    def _layout(self) -> Layout:
        columns = self.subset, self.image_column, self.label_column
        if self._local is not None:
            return find_layout(self._local, *columns)
        try:
            return find_on_hub(self._origin, *columns)
        except InputError as error:
            if self.path is None:
                raise
            raise InputError(f"data.path={self.path}: there is no such folder; {error}") from error

    @cached_property
    def _decoded_folder(self) -> Path:
        """Folder of the decoded copy, named after a digest of the data and of the options that affect decoding."""
        classes, shape = self._given
        key: list[Any] = [VERSION, self._origin, self.image_column, self.label_column, classes]
        key += [shape and list(shape), self.stored, self.test_split, self.test_share, self.subset, self.damaged]
        if self._local is not None:
            key.append(str(self._local.resolve()))
            files = [each for each in walk(self._local) if not is_clutter(each.name)] if self._local.is_dir() else ()
            key += [[entry.path, entry.stat().st_size, entry.stat().st_mtime_ns] for entry in files]
            if not self._local.is_dir():
                key += [self._local.stat().st_size, self._local.stat().st_mtime_ns]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        return cache_folder(self.cache) / f"{self._label.replace('/', '--')}-{digest}"

    @cached_property
    def _local(self) -> Path | None:
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

    @property
    def _origin(self) -> str:
        """Path or name of the data set, for messages."""
        return str(self.name if self.path is None else self.path)

    @property
    def _label(self) -> str:
        """Name of the data set for the folder of its decoded copy."""
        return self.name if self.name and self.name != self.path else Path(self._origin).name


def _summary(label: str, contents: Contents, chosen: Chosen) -> list[str]:
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
        *(f"{label}: {note}" for note in chosen.notes),
    ]
    if contents.damaged:
        lines.append(
            f"{label}: {quantity(len(contents.damaged), 'damaged image')} left out (data.damaged=skip), the first is "
            f"{contents.damaged[0]}"
        )
    return lines
