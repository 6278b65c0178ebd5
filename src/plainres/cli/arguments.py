"""The options of a command."""

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from plainres.errors import InputError


class Arguments(argparse.ArgumentParser):
    """Parses the options of `plainres COMMAND`; a mistake is one line.

    Raises:
        InputError: an option is wrong.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            f"plainres {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise an InputError, where argparse would print its usage and exit."""
        raise InputError(f"{message}; see {self.prog} --help")


def whole(least: int) -> Callable[[str], int]:
    """Return a parser of integers, at least `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be an integer >= {least}, got {text!r}")
        return int(text)

    return parse


def above_zero(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}")
    return value
