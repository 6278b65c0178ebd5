"""Layout of a data set, recognised by content, and its images for training and for testing.

The training split is `train`. The test split is `data.test_split`, by default
`test`; without it, the only one of `val`, `valid` and `validation`; without these, a seeded share of a data set that is
not divided.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from plainres.data.arrays import find_idx, find_mat, find_npz, find_pickles
from plainres.data.encoded import NO_LABEL, WHOLE, Encoded, Labelled, Layout, Subset
from plainres.data.folders import find_folders
from plainres.data.sources import stratified
from plainres.data.tables import find_tables
from plainres.errors import InputError
from plainres.randomness import mix

ACCEPTED = (
    "folders of images (train/<class>/ and test/<class>/, or <class>/), Parquet files (train-*.parquet), CIFAR's "
    "pickles (cifar-10-batches-py), SVHN's .mat files (train_32x32.mat), idx files (train-images-idx3-ubyte, also .gz) "
    "and .npz files (x_train, y_train, x_test, y_test)"
)
VALIDATION = ("val", "valid", "validation")


@dataclass(frozen=True)
class Chosen:
    """Images of a data set before decoding.

    Args:
        splits: `train` and `test`. Without `train`, the data set can only be used for evaluation.
        names: names of these splits in the data set.
        classes: number of classes.
        class_names: their names, if they have any.
        notes: sentences for the user.
    """

    splits: dict[str, Encoded]
    names: dict[str, str]
    classes: int
    class_names: Sequence[str] | None
    notes: Sequence[str]


def find_layout(path: Path, subset: str | None, image_column: str | None, label_column: str | None) -> Layout:
    """Return the layout of a folder or an .npz file.

    Raises:
        InputError: it has none of the accepted layouts, or several.
    """
    if path.is_file():
        found = [find_npz(path)] if path.suffix == ".npz" else []
    else:
        found = [
            find_tables(path, subset, image_column, label_column),
            find_pickles(path, label_column),
            find_mat(path),
            find_idx(path, subset),
            find_npz(path),
        ]
        folders = find_folders(path)
        # a repository of Parquet files may hold pictures for its description
        if folders is not None and (not any(found) or folders.available != [WHOLE]):
            found.append(folders)
    layouts: list[Layout] = [layout for layout in found if layout is not None]
    if not layouts:
        raise InputError(f"{path} does not hold a data set of images in a layout that is accepted: {ACCEPTED}")
    if len(layouts) > 1:
        kinds = " and ".join(layout.kind for layout in layouts)
        raise InputError(f"{path} holds {kinds}; set data.path to a folder with only one of them")
    return layouts[0]


def choose(layout: Layout, origin: str, test_split: str, test_share: float | None, classes: int | None) -> Chosen:
    """Choose the training and the test images, and check that their labels add up.

    Args:
        layout: the data set.
        origin: its path or name, for messages.
        test_split: name of the test split.
        test_share: share of the images of an undivided data set that becomes the test split.
        classes: expected number of classes (default: any).

    Raises:
        InputError: a split is missing or has no images, the number of classes is 1 or not the expected one, a label is
            out of range, or a class has no training images.
    """
    available = list(layout.available)
    train, test, notes = _names(available, origin, test_split, test_share)
    labelled = layout.read([name for name in (train, test) if name is not None])
    count, names = _classes(labelled, origin, classes)
    for name, images in labelled.splits.items():
        _check_range(images.targets, name, origin, count, "data.classes" if classes else "the number of classes")
    if count == 1:
        raise InputError(
            f"{origin} has 1 class ({class_name(0, names)}), but a network tells two or more apart; set data.path to "
            "the folder that holds a folder for each class, or mend the labels"
        )
    if test is not None:
        chosen = {"test": labelled.splits[test]} | ({"train": labelled.splits[train]} if train else {})
    else:
        assert train is not None
        assert test_share is not None
        chosen = _divided(labelled.splits[train], test_share)
        if empty := [split for split, images in chosen.items() if not len(images)]:
            raise InputError(
                f"data.test_share is {test_share}, which leaves no {'training' if 'train' in empty else 'test'} images "
                f"of the {len(labelled.splits[train])} of {origin}; choose another share"
            )
        notes.append(f"test images are {100 * test_share:g} % of each class, drawn from a fixed seed (data.test_share)")
    splits = {split: chosen[split] for split in ("train", "test") if split in chosen}
    unused = [name for name in available if name not in (train, test)]
    if unused:
        notes.append(f"unused splits: {', '.join(unused)}")
    if "train" not in splits:
        notes.append("there are no training images, so this data set can only be used by plainres eval")
    notes += check_classes({split: images.targets for split, images in splits.items()}, origin, count, names)
    return Chosen(
        splits,
        {"train": train or "", "test": test or train or ""},
        count,
        names,
        [*labelled.notes, *notes],
    )


def check_classes(targets: dict[str, Tensor], origin: str, count: int, names: Sequence[str] | None) -> list[str]:
    """Check that each class has training images, and return a note about classes without test images.

    Raises:
        InputError: a class has no training images.
    """
    notes = []
    for split, each in targets.items():
        sizes = torch.bincount(each[each != NO_LABEL], minlength=count)
        missing = [class_name(number, names) for number in torch.nonzero(sizes == 0).flatten().tolist()]
        if not missing:
            continue
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} others" if len(missing) > 5 else "")
        plural = "class" if len(missing) == 1 else "classes"
        if split == "train":
            raise InputError(
                f"{origin}: {plural} {listed} of {count} {'has' if len(missing) == 1 else 'have'} no training images; "
                "add images, remove the class everywhere, or number the labels from 0 without gaps"
            )
        notes.append(f"there are no test images of {plural} {listed}")
    return notes


def class_name(number: int, names: Sequence[str] | None) -> str:
    """Return a class for messages: its number, and its name if it has one."""
    return str(number) if names is None else f"{number} ({names[number]})"


def _names(
    available: list[str], origin: str, test_split: str, test_share: float | None
) -> tuple[str | None, str | None, list[str]]:
    """Return the names of the training and the test split, None for one that is missing, and notes.

    Raises:
        InputError: there is no test split, and none can be made.
    """
    notes = []
    known = {"train", test_split, "test", *VALIDATION}
    train = "train" if "train" in available else None
    if len(available) == 1 and available[0] not in known:  # not divided
        train = available[0]
    test = test_split if test_split in available and test_split != train else None
    substitutes = [name for name in VALIDATION if name in available]
    if test is None and test_split == "test" and len(substitutes) == 1:
        test = substitutes[0]
        notes.append(f"there is no split 'test'; {test!r} is used as the test images")
    if test is not None and test_share is not None:
        raise InputError(
            f"data.test_share is {test_share}, but {origin} has test images in split {test!r}; remove data.test_share"
        )
    if train is not None and test is None and test_share is None:
        splits = f"has no split {test_split!r}; available splits: {', '.join(available)}"
        undivided = "is not divided into train and test"
        raise InputError(
            f"{origin} {undivided if train == WHOLE else splits}; set data.test_share=0.2 to take 20 % of its images "
            "as test images, or data.test_split to the name of a split"
        )
    if train is None and test is None:
        raise InputError(
            f"{origin} has no split 'train'; available splits: {', '.join(available) or 'none'}; rename one to train "
            "and one to test"
        )
    return train, test, notes


def _classes(labelled: Labelled, origin: str, expected: int | None) -> tuple[int, Sequence[str] | None]:
    """Return the number of classes and their names.

    Raises:
        InputError: a split is empty, or the number is not the expected one.
    """
    for name, images in labelled.splits.items():
        if not len(images):
            raise InputError(f"{origin}: split {name!r} has no images")
    names = labelled.classes
    if names is None:
        largest = max(int(images.targets.max()) for images in labelled.splits.values())
        return expected or max(largest, 0) + 1, None
    if expected is not None and len(names) != expected:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise InputError(f"{origin} has {len(names)} classes ({listed}), but data.classes is {expected}")
    return len(names), names


def _check_range(targets: Tensor, split: str, origin: str, count: int, option: str) -> None:
    invalid = torch.nonzero(((targets < 0) | (targets >= count)) & (targets != NO_LABEL)).flatten()
    if len(invalid):
        index = int(invalid[0])
        raise InputError(
            f"{origin}: image {index} of {split} has label {int(targets[index])}; with {option}={count} it must be "
            f"between 0 and {count - 1}"
        )


def _divided(images: Encoded, share: float) -> dict[str, Encoded]:
    """Divide images into `train` and `test`, stratified by class, from a seed of its own."""
    total = len(images)
    order = torch.randperm(total, generator=Generator().manual_seed(mix("test_share")))
    index = order[stratified(images.targets[order].clamp(min=0), round(share * total))]
    held_out = torch.zeros(total, dtype=torch.bool)
    held_out[index] = True
    return {
        "train": Subset(images, torch.nonzero(~held_out).flatten()),
        "test": Subset(images, torch.nonzero(held_out).flatten()),
    }
