"""How the options of a command are read."""

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from plainres.errors import InputError


class Arguments(argparse.ArgumentParser):
    """The options of a command, whose mistakes are told in one line.

    Raises:
        InputError: one is wrong.
    """

    def error(self, message: str) -> NoReturn:
        """Instead of argparse's usage and exit."""
        raise InputError(f"{message}; see {self.prog} --help")


def whole(least: int) -> Callable[[str], int]:
    """Read a whole number, at least `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} on")
        return int(text)

    return read


def above_zero(text: str) -> float:
    """Read a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value
