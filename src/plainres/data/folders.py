"""Folders of images by split and class: <split>/<class>/<image>, or <class>/<image> if the data set is not divided.

The split is the folder at the top and nothing else, and the class is the folder below it. Images may lie deeper.
Symbolic links are followed. Classes are sorted by name.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from plainres.data.encoded import WHOLE, Files, Labelled
from plainres.errors import InputError

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".tga", ".avif"),
)
SPLITS = ("train", "test", "val", "valid", "validation")  # folders of these names may hold folders of classes
MEANT = {"training": "train", "testing": "test"}  # other names of splits, in which capitals do not count
EXAMPLES = 3  # files named in a message


def walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files below a folder, sorted by name in each folder. Links are followed, hidden folders are not.

    Raises:
        InputError: a link is broken, or leads to a folder that contains it.
    """
    yield from _walk(str(folder), ())


def _walk(folder: str, parents: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    real = os.path.realpath(folder)
    if real in parents:
        raise InputError(f"{folder} is a link to a folder that contains it; remove it")
    for entry in _entries(folder):
        if entry.is_dir():
            if not entry.name.startswith("."):
                yield from _walk(entry.path, (*parents, real))
        elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
            raise InputError(f"{entry.path} is a broken link; it leads to {os.readlink(entry.path)}")  # noqa: PTH115
        else:
            yield entry


def empty_folders(folder: Path) -> list[str]:
    """Return the paths of the empty folders in a folder, and in the folders there: those of splits and classes."""
    folders = [path for depth in ("*", "*/*") for path in sorted(folder.glob(depth)) if path.is_dir()]
    return [str(path) for path in folders if not path.name.startswith(".") and not _entries(str(path))]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error


def is_image(name: str) -> bool:
    """Whether a file is taken for an image, by its extension."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


@dataclass(frozen=True)
class Folders:
    """Layout of folders of images.

    Args:
        folder: folder of the data set.
        available: names of the splits.
    """

    folder: Path
    available: Sequence[str]
    kind = "folders of images"

    def read(self, splits: Sequence[str]) -> Labelled:
        """List the images of the splits.

        Raises:
            InputError: an image has no class, is found twice, or a folder's name is hidden.
        """
        found: dict[str, list[tuple[str, str]]] = {}
        seen: dict[tuple[int, int], str] = {}
        ignored: Counter[str] = Counter()
        classes: set[str] = set()
        for split in splits:
            top = self.folder if split == WHOLE else self.folder / split
            names, strays = _classes(top)
            if strays:
                raise InputError(
                    f"{top} holds {_listed(strays)} outside folders of classes; move every image to {top}/<class>/"
                )
            classes.update(names)
            found[split] = []
            for name in names:
                for entry in walk(top / name):
                    path = entry.path.removeprefix(f"{self.folder}/")
                    if not is_image(entry.name):
                        ignored["hidden" if entry.name.startswith(".") else Path(path).suffix or "no extension"] += 1
                        continue
                    status = entry.stat()
                    identity = status.st_dev, status.st_ino
                    if identity in seen:
                        raise InputError(
                            f"{self.folder}: {seen[identity]} and {path} are the same file; an image must be in one "
                            "split and one class only"
                        )
                    seen[identity] = path
                    found[split].append((path, name))
        ordered = sorted(classes)
        number = {name: target for target, name in enumerate(ordered)}
        files = {
            split: Files(
                self.folder,
                [path for path, _ in images],
                torch.tensor([number[name] for _, name in images], dtype=torch.int64),
            )
            for split, images in found.items()
        }
        notes = []
        if ignored:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))
            notes.append(f"ignored {sum(ignored.values())} files that are not images by their names: {kinds}")
        return Labelled(files, ordered, notes)


def find_folders(folder: Path) -> Folders | None:
    """Return the layout of a folder that holds folders of images, None if it does not.

    The folders at the top are splits if one that is named like a split (train, test, val, valid, validation) holds
    folders. Otherwise they are classes.

    Raises:
        InputError: splits hold images without folders of classes, or folders of classes lie in one that is named almost
            like a split.
    """
    tops = [entry.name for entry in _entries(str(folder)) if entry.is_dir() and not entry.name.startswith(".")]
    named = [name for name in tops if name in SPLITS]
    if any(entry.is_dir() for name in named for entry in _entries(str(folder / name))):
        return Folders(folder, tops) if any(_has_images(folder / name) for name in named) else None
    if not any(_has_images(folder / name) for name in tops):
        return None
    for name in tops:
        meant = MEANT.get(name.lower(), name.lower())
        if name not in SPLITS and meant in SPLITS and any(entry.is_dir() for entry in _entries(str(folder / name))):
            raise InputError(
                f"{folder}: {name} holds folders, but is not the name of a split; rename it to {meant} if it is one, "
                "or else to a name that is not like a split's"
            )
    if len(named) == len(tops):
        verb = "holds" if len(named) == 1 else "hold"
        raise InputError(
            f"{folder}: {' and '.join(f'{name}/' for name in named)} {verb} images, but no folders of classes; move "
            f"every image to {folder / named[0]}/<class>/"
        )
    return Folders(folder, [WHOLE])


def _has_images(folder: Path) -> bool:
    return any(is_image(entry.name) for entry in walk(folder))


def _classes(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders of classes in a folder, and those of the images beside them."""
    names, strays = [], []
    for entry in _entries(str(folder)):
        if entry.is_dir():
            if entry.name.startswith("."):
                if _has_images(Path(entry.path)):
                    raise InputError(
                        f"{entry.path} holds images, but its name is hidden; rename it if it is a class, or remove it"
                    )
                continue
            names.append(entry.name)
        elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
            raise InputError(f"{entry.path} is a broken link; it leads to {os.readlink(entry.path)}")  # noqa: PTH115
        elif is_image(entry.name):
            strays.append(entry.name)
    return names, strays


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - EXAMPLES} more images" if len(names) > EXAMPLES else ""
    return ", ".join(names[:EXAMPLES]) + more
