"""Parquet files in the layout of the Hugging Face Hub: <subset>/<split>-00000-of-00004.parquet."""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plainres.data.encoded import NO_LABEL, Labelled, Rows
from plainres.data.folders import SPLITS, walk
from plainres.errors import InputError

SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]+)?")


class Part(NamedTuple):
    """A Parquet file of a split, the `number`th of `total` if its name says so."""

    path: str
    subset: str
    split: str
    number: int | None = None
    total: int | None = None


def part_of(path: str) -> Part:
    """Return the split of a file: the folder that is named like one, or else the name of the file.

    The folder above is the subset. A folder `data` is none.
    """
    name = PurePosixPath(path)
    shard = SHARD.fullmatch(name.stem)
    numbers = (int(shard["number"]), int(shard["count"])) if shard else (None, None)
    if name.parent.name in SPLITS:
        split, above = name.parent.name, name.parent.parent
    else:
        split, above = shard["split"] if shard else name.stem, name.parent
    subset = str(above) if str(above) not in (".", "data") else ""
    return Part(path, subset, split, *numbers)


def parts_of(paths: Sequence[str], subset: str | None, origin: str) -> dict[str, list[Part]]:
    """Return the files of each split.

    Raises:
        InputError: there is no such subset, or there are several and none is chosen.
    """
    parts = [part_of(path) for path in sorted(paths)]
    subsets = sorted({part.subset for part in parts})
    if subset is None and len(subsets) > 1:
        raise InputError(f"{origin} has the subsets {', '.join(map(repr, subsets))}; choose one with data.subset")
    if subset is not None and subset not in subsets:
        raise InputError(f"{origin} has no subset {subset!r}; it has {', '.join(map(repr, subsets))}")
    splits: dict[str, list[Part]] = {}
    for part in parts:
        if subset in (None, part.subset):
            splits.setdefault(part.split, []).append(part)
    return splits


@dataclass(frozen=True)
class Tables:
    """Layout of Parquet files.

    Args:
        folder: folder of the data set.
        splits: files of each split.
        image_column: column of images (default: the only one).
        label_column: column of labels (default: the only one).
    """

    folder: Path
    splits: Mapping[str, Sequence[Part]]
    image_column: str | None = None
    label_column: str | None = None
    kind = "Parquet files"

    @property
    def available(self) -> Sequence[str]:
        """Names of the splits."""
        return list(self.splits)

    def read(self, splits: Sequence[str]) -> Labelled:
        """Read the labels of the splits. Images are read later.

        Raises:
            InputError: a shard is missing, a file is damaged, or a column is missing, ambiguous or of the wrong type.
        """
        for split in splits:
            self._check_shards(split)
        parts = [part for split in splits for part in self.splits[split]]
        schemas = {part.path: self._schema(part.path) for part in parts}
        first = schemas[parts[0].path]
        image = self._column(first, "image", self.image_column, parts[0].path)
        label = self._column(first, "label", self.label_column, parts[0].path)
        for path, schema in schemas.items():
            for column in (image, label):
                if column not in schema.names or schema.field(column).type != first.field(column).type:
                    raise InputError(
                        f"{self.folder}: column {column!r} of {path} is not as in {parts[0].path}; all files must have "
                        "the same columns"
                    )
            if (names := _class_names(schema, label)) != (expected := _class_names(first, label)):
                raise InputError(
                    f"{self.folder}: the classes of {path} are {_listed(names)}, but those of {parts[0].path} are "
                    f"{_listed(expected)}; all files must name the same classes in the same order"
                )
        values = {split: [self._labels(part.path, label) for part in self.splits[split]] for split in splits}
        targets, classes = _numbered(values, _class_names(first, label))
        rows = {
            split: Rows(self.folder, [part.path for part in self.splits[split]], image, targets[split])
            for split in splits
        }
        return Labelled(rows, classes)

    def _check_shards(self, split: str) -> None:
        parts = self.splits[split]
        counts = {part.total for part in parts}
        if counts == {None}:
            self._check_numbers(split)
            return
        numbers = sorted(part.number for part in parts if part.number is not None)
        if len(counts) > 1 or len(numbers) != len(set(numbers)):
            raise InputError(
                f"{self.folder} has several versions of split {split!r}: {', '.join(part.path for part in parts)}; "
                "keep one"
            )
        (count,) = counts
        if missing := sorted(set(range(count or 0)) - set(numbers)):
            raise InputError(
                f"{self.folder} has {len(parts)} of the {count} files of split {split!r}; missing: "
                f"{', '.join(f'{number:05}' for number in missing[:10])}; {parts[0].path} is one of them"
            )

    def _check_numbers(self, split: str) -> None:
        """Check that none is missing between files that are numbered as in the Hub's conversions: 0000, 0001, ..."""
        stems = [PurePosixPath(part.path).stem for part in self.splits[split]]
        if not all(re.fullmatch(r"\d{4}", stem) for stem in stems) or "0000" not in stems:  # years, for example
            return
        numbers = sorted(map(int, stems))
        if missing := sorted(set(range(numbers[-1])) - set(numbers)):
            raise InputError(
                f"{self.folder} has files of split {split!r} up to {numbers[-1]:04}; missing: "
                f"{', '.join(f'{number:04}' for number in missing[:10])}; download them, or rename the files if none is"
            )

    def _schema(self, path: str) -> Any:
        import pyarrow.parquet as pq

        try:
            return pq.read_schema(self.folder / path)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder / path} is not a complete Parquet file: {_reason(error)}") from error

    def _column(self, schema: Any, kind: str, name: str | None, path: str) -> str:
        """Return the name of the image or label column.

        Raises:
            InputError: it does not exist, is of the wrong type, or the name of one of several is not given.
        """
        option = f"data.{kind}_column"
        is_kind, content = (_holds_images, "images") if kind == "image" else (_holds_labels, "integers or strings")
        columns = ", ".join(schema.names)
        if name is not None:
            if name not in schema.names:
                raise InputError(f"{self.folder} has no column {name!r}; available columns: {columns}; set {option}")
            if not is_kind(schema.field(name).type):
                raise InputError(
                    f"{self.folder}: column {name!r} of {path} does not contain {content}, but "
                    f"{schema.field(name).type}; set {option}"
                )
            return name
        candidates = [column for column in schema.names if is_kind(schema.field(column).type)]
        if kind == "label" and (named := [column for column in candidates if _class_names(schema, column)]):
            candidates = named
        if len(candidates) != 1:
            found = (
                f"has several columns with {content}: {', '.join(candidates)}"
                if candidates
                else (f"has no column with {content}; its columns are {columns}")
            )
            raise InputError(f"{self.folder} {found}; set {option}")
        return candidates[0]

    def _labels(self, path: str, column: str) -> list[Any]:
        import pyarrow.parquet as pq

        try:
            return pq.read_table(self.folder / path, columns=[column]).column(column).to_pylist()
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder / path} cannot be read: {_reason(error)}") from error


def find_tables(folder: Path, subset: str | None, image_column: str | None, label_column: str | None) -> Tables | None:
    """Return the layout of a folder that holds Parquet files, None if it does not.

    Raises:
        InputError: the subset does not exist, or it is not chosen.
    """
    files = [entry.path for entry in walk(folder) if entry.name.endswith(".parquet") and not entry.name.startswith(".")]
    paths = [Path(file).relative_to(folder).as_posix() for file in files]
    return Tables(folder, parts_of(paths, subset, str(folder)), image_column, label_column) if paths else None


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _holds_labels(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def _class_names(schema: Any, column: str) -> list[str] | None:
    """Return the names of the classes that the `datasets` library has written into the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    if isinstance(names, Mapping):  # of older versions, by number
        names = [names[str(number)] for number in range(len(names))]
    return [str(name) for name in names]


def _listed(names: Sequence[str] | None) -> str:
    return textwrap.shorten(", ".join(names), 60, placeholder=" ...") if names else "without names"


def _numbered(
    values: Mapping[str, Sequence[Sequence[Any]]], names: Sequence[str] | None
) -> tuple[dict[str, Tensor], Sequence[str] | None]:
    """Return the targets of each split and the names of the classes; strings are sorted."""
    flat = {split: [label for part in parts for label in part] for split, parts in values.items()}
    distinct = {label for labels in flat.values() for label in labels if label is not None}
    if any(isinstance(label, str) for label in distinct):
        names = sorted(distinct)
        number: Mapping[Any, int] = {name: target for target, name in enumerate(names)}
    else:
        number = {label: label for label in distinct}
    number = {**number, None: NO_LABEL}
    targets = {
        split: torch.tensor([number[label] for label in labels], dtype=torch.int64) for split, labels in flat.items()
    }
    return targets, names


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
