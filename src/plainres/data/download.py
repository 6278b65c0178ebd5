"""Data sets of the Hugging Face Hub: their Parquet files, of which only the splits in use are downloaded."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plainres.data.encoded import Labelled
from plainres.data.tables import Part, Tables, parts_of
from plainres.errors import InputError

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
CONVERTED = "refs/convert/parquet"  # revision to which the Hub converts data sets of other formats


@dataclass(frozen=True)
class HubTables:
    """Parquet files of a data set on the Hub.

    Args:
        name: name of the data set, OWNER/NAME.
        revision: branch or commit.
        splits: files of each split.
        image_column: column of images (default: the only one).
        label_column: column of labels (default: the only one).
    """

    name: str
    revision: str
    splits: Mapping[str, Sequence[Part]]
    image_column: str | None
    label_column: str | None
    kind = "Parquet files of the Hugging Face Hub"

    @property
    def available(self) -> Sequence[str]:
        """Names of the splits."""
        return list(self.splits)

    def read(self, splits: Sequence[str]) -> Labelled:
        """Download the splits and read their labels.

        Raises:
            InputError: the Hub cannot be reached, or as `Tables.read`.
        """
        from huggingface_hub import snapshot_download

        files = [part.path for split in splits for part in self.splits[split]]
        folder = _call(
            self.name,
            snapshot_download,
            self.name,
            repo_type="dataset",
            revision=self.revision,
            allow_patterns=files,
        )
        return Tables(Path(folder), self.splits, self.image_column, self.label_column).read(splits)


def find_on_hub(name: str, subset: str | None, image_column: str | None, label_column: str | None) -> HubTables:
    """Return the Parquet files of a data set on the Hub.

    Raises:
        InputError: the Hub cannot be reached, or the data set does not exist there or has no Parquet files.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is not the name of a data set on the Hugging Face Hub, OWNER/NAME; set data.path")
    for revision in ("main", CONVERTED):
        try:
            files = _call(name, HfApi().list_repo_files, name, repo_type="dataset", revision=revision)
        except InputError as error:
            if isinstance(error.__cause__, RevisionNotFoundError):  # it has not been converted
                continue
            raise
        if paths := [file for file in files if file.endswith(".parquet")]:
            splits = parts_of(paths, subset, f"{name} on the Hugging Face Hub")
            return HubTables(name, revision, splits, image_column, label_column)
    raise InputError(f"{name} on the Hugging Face Hub has no Parquet files; download it and set data.path=FOLDER")


def _call(name: str, function: Any, *arguments: Any, **options: Any) -> Any:
    """Call a function of huggingface_hub, whose errors become one line."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hides a warning per retry
    try:
        return function(*arguments, **options)
    except Exception as error:  # those of its HTTP client have no common base with its own
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"cannot read {name} from the Hugging Face Hub: {reason}; set data.path=FOLDER to read a local copy"
        ) from error
