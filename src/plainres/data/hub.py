"""Image classification data sets from a folder, a file or the Hugging Face Hub, decoded once into arrays on disk."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from plainres.console import say
from plainres.data.cached import CachedCopy
from plainres.data.copies import Copy
from plainres.data.dataset import Dataset
from plainres.data.encoded import NO_LABEL, slow_at_random
from plainres.data.layouts import Chosen
from plainres.data.sources import AnySplitT, Images, Split, check_options
from plainres.data.streamed_split import StreamedSplit
from plainres.data.views import SCALE, Views
from plainres.errors import InputError

DAMAGED = ("refuse", "skip")
LARGE = 4 * 2**30  # bytes of a decoded copy that is made only if asked for


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
    _copy: CachedCopy = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.name is None and self.path is None:
            raise InputError("data.path is not set; set it to a folder of images, or to a name on the Hugging Face Hub")
        if self.stored is not None and self.stored < 1:
            raise InputError(f"data.stored is {self.stored}; it must be at least 1")
        if self.damaged not in DAMAGED:
            raise InputError(f"data.damaged is {self.damaged!r}; it must be {' or '.join(DAMAGED)}")
        if self.test_share is not None and not 0 < self.test_share < 1:
            raise InputError(f"data.test_share is {self.test_share}; it must be between 0 and 1")
        self._check_statistics()
        if self.stream:
            self._check_streaming()
        dataset = Dataset(
            self.name,
            self.path,
            self.subset,
            self.image_column,
            self.label_column,
            self.classes,
            self.test_split,
            self.test_share,
        )
        limit = LARGE if self.stream is None else None
        copy = CachedCopy(self.cache, dataset, self.shape, self.stored, self.damaged, limit)
        object.__setattr__(self, "_copy", copy)
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
        if self.stored is not None and self._copy.shape is not None and self.stored < max(self.shape[1:]):
            raise InputError(
                f"data.stored is {self.stored}; it must be at least {max(self.shape[1:])}, as in data.shape"
            )

    def load(self) -> Images:
        """Return both splits, and decode them first if there is no decoded copy.

        Raises:
            InputError: as `prepare`, or a class has fewer images than requested.
        """
        return self._streamed() if self.stream else self._decoded()

    def prepare(self) -> None:
        """Download and decode the data set unless there is an intact decoded copy.

        Raises:
            InputError: the folder at `path` does not exist, the cache is not writable or full, the data set cannot be
                read, a split or a column is missing, a label is out of range, or an image is damaged or has the wrong
                shape.
        """
        if not self.stream:
            self._copy.contents()

    @property
    def at_hand(self) -> bool:
        """Whether `load` neither downloads nor decodes the data set."""
        return self.stream or Copy(self._copy.folder).read() is not None

    @property
    def views(self) -> Views:
        """Views of images that are decoded while training."""
        assert self.shape is not None
        return Views(self.shape, self.flip, self.crop, self.scales, self.colour, self.test_scale, self.test_crops)

    def _decoded(self) -> Images[Split]:
        contents = self._copy.contents()
        copy = Copy(self._copy.folder)
        copy.mark_used()
        train, test = (Split(*copy.tensors(split, contents)) for split in ("train", "test"))
        whole = self.train_per_class is None and self.test_per_class is None
        images = self._images(
            replace(train, histograms=contents.histogram_tensor),
            test,
            contents.class_names,
            contents.data_sha256 if whole else None,
        )
        return replace(images, left_out=len(contents.damaged))

    def _streamed(self) -> Images[StreamedSplit]:
        for split in self._chosen.splits.values():
            unlabelled = torch.nonzero(split.targets == NO_LABEL).flatten()
            if len(unlabelled):
                raise InputError(
                    f"{self._copy.dataset}: {split.name(int(unlabelled[0]))} has no label; data.stream=false and "
                    "data.damaged=skip leave such images out"
                )
        train, test = (StreamedSplit(self._chosen.splits[split], self.views) for split in ("train", "test"))
        images = self._images(train, test, self._chosen.class_names)
        # the whole training set is evaluated too, where ten crops would cost several epochs
        return replace(images, train=replace(images.train, views=replace(self.views, test_crops=1)))

    def _images(
        self, train: AnySplitT, test: AnySplitT, classes: Sequence[str] | None, digest: str | None = None
    ) -> Images[AnySplitT]:
        number = int(torch.cat([train.targets, test.targets]).max()) + 1
        return Images(
            train.first_per_class(self.train_per_class, number, "data.train_per_class"),
            test.first_per_class(self.test_per_class, number, "data.test_per_class"),
            mean=self.mean,
            std=self.std,
            classes=classes,
            digest=digest,
        ).with_validation(self.validation_per_class)

    @cached_property
    def _chosen(self) -> Chosen:
        """Images before decoding, which are listed once. Prints what the user should know about them."""
        dataset = self._copy.dataset
        chosen = dataset.read()
        for note in filter(None, [*chosen.notes, *map(slow_at_random, chosen.splits.values())]):
            say(f"{dataset.label}: {note}")
        return chosen

    def _check_statistics(self) -> None:
        """Check that both or neither of `mean` and `std` are set, and that their values are fractions of 255."""
        if (self.mean is None) != (self.std is None):
            raise InputError("only one of data.mean and data.std is set; set both or neither")
        for name, values, low in (("mean", self.mean, "at least"), ("std", self.std, "above")):
            for value in values or ():
                number = value if isinstance(value, int | float) else math.nan
                if not 0 <= number <= 1 or (name == "std" and number == 0):
                    raise InputError(
                        f"data.{name} has the value {value}; as a share of 255 it must be {low} 0 and at most 1"
                    )

    def _check_streaming(self) -> None:
        """Check the options that only a decoded copy has, and the shape, which images of any size do not tell."""
        for name, value, none in (
            ("stored", self.stored, None),
            ("pad", self.pad, 0),
            ("damaged", self.damaged, "refuse"),
        ):
            if value != none:
                hint = ""
                if name == "damaged":
                    command = f"plainres describe data=images data.path={self.path or 'FOLDER'} data.stored=32"
                    hint = f"; {command} lists all damaged images"
                raise InputError(
                    f"data.{name} is {value}, which needs a decoded copy; set it to "
                    f"{'null' if none is None else none}, or data.stream=false{hint}"
                )
        if self.shape is None:
            raise InputError(
                "data.shape is not set; images that are decoded while training need [channels, height, width]"
            )

    def _find_missing(self) -> None:
        """Set `classes` and `shape` to those of the data if they are not given."""
        if self.classes is None or self.shape is None:
            if self.stream:
                object.__setattr__(self, "classes", self._chosen.classes)
                return
            contents = self._copy.contents()
            object.__setattr__(self, "classes", contents.classes)
            object.__setattr__(self, "shape", self.shape or contents.shape)
