"""Passes over all images of a data set, by threads, and the damaged images that they meet."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import joblib
import numpy as np

from plainres.data.encoded import DamagedImageError, Encoded
from plainres.errors import InputError
from plainres.files import write_atomically

CHUNK = 500  # images; large enough to keep the threads busy, small enough for a smooth progress bar
EXAMPLES = 3  # damaged images that a message names

Result = TypeVar("Result")


@dataclass
class Damage:
    """Damaged images of a data set: a line with the name and the reason for each."""

    lines: list[str] = field(default_factory=list)

    def add(self, images: Encoded, index: int, reason: str) -> None:
        """Add an image."""
        self.lines.append(f"{images.name(index)} {reason}")

    def refuse(self, origin: str, total: int, listing: Path) -> None:
        """Raise an error if any image is damaged.

        Args:
            origin: name of the data set.
            total: number of its images.
            listing: file for the lines that the message has no room for.

        Raises:
            InputError: an image is damaged.
        """
        if not self.lines:
            return
        shown = "; ".join(self.lines[:EXAMPLES])
        if len(self.lines) > EXAMPLES:
            write_atomically(listing, "\n".join(self.lines) + "\n")
            shown += f"; all of them are listed in {listing}"
        raise InputError(
            f"{origin}: {len(self.lines)} of {total} images cannot be used: {shown}; mend or remove them, or set "
            "data.damaged=skip to leave them out"
        )


def in_parallel(
    images: Encoded, function: Callable[[bytes | np.ndarray], Result]
) -> Iterator[list[tuple[int, Result | DamagedImageError]]]:
    """Yield chunks of (index, result of the function), computed by threads.

    A result may be a DamagedImageError. Pillow releases the GIL while it decodes.
    """

    def apply(index: int) -> tuple[int, Result | DamagedImageError]:
        try:
            return index, function(images.read(index))
        except DamagedImageError as error:
            return index, error

    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        for start in range(0, len(images), CHUNK):
            yield list(pool.map(apply, range(start, min(start + CHUNK, len(images)))))
