"""Parsing of a command's options."""

import argparse
import math
import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import NoReturn

from plainres.errors import InputError

COLUMNS = 80  # of help texts; narrower in a narrower terminal
OVERRIDES = """\
OVERRIDES are group=option (model/shortcut=plain) or path.to.key=value (model.depth=56), as for plainres train.
plainres list shows the groups and their options; plainres train --cfg job shows every key.
"""
LOCATION = """\
data.path=FOLDER and data.cache=FOLDER locate images that have moved since the training, as for plainres train and eval.
The environment variable PLAINRES_CACHE replaces the cache of the training.
"""
MISSING = "the following arguments are required: "  # how argparse begins its message


class Arguments(argparse.ArgumentParser):
    """Parser of the options of `plainres COMMAND`. An error is one line, without the usage text.

    Args:
        command: name of the command.
        description: first part of its help. Paragraphs are filled; indented lines are left as they are.
        example: its arguments in an example, for the message about missing ones.
        usage: its arguments, if argparse cannot derive them.
        overrides: explain overrides of the configuration below the options.
        location: explain overrides that locate the images of runs below the options.

    Raises:
        InputError: an option is invalid.
    """

    def __init__(
        self,
        command: str,
        description: str,
        *,
        example: str = "",
        usage: str | None = None,
        overrides: bool = False,
        location: bool = False,
    ) -> None:
        super().__init__(
            f"plainres {command}",
            usage=usage and f"plainres {command} {usage}",
            description=_filled(description),
            epilog=_filled(OVERRIDES * overrides + LOCATION * location) or None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.example = example

    def error(self, message: str) -> NoReturn:
        """Raise an InputError instead of printing the usage and exiting."""
        if message.startswith(MISSING):
            names = message.removeprefix(MISSING).upper().replace(", ", " and ")
            raise InputError(f"{self.prog} needs {names}, as in `{self.prog} {self.example}`")
        raise InputError(f"{message}; see {self.prog} --help")


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate options and folders from overrides, which have a = before the first slash."""
    overrides = [word for word in arguments if "=" in word.partition("/")[0] and not word.startswith("-")]
    return [word for word in arguments if word not in overrides], overrides


def _filled(text: str) -> str:
    """Fill the paragraphs of a text; leave those that begin with a space as they are."""
    columns = min(COLUMNS, shutil.get_terminal_size().columns)
    paragraphs = text.strip("\n").split("\n\n")
    return "\n\n".join(each if each.startswith(" ") else textwrap.fill(each, columns) for each in paragraphs) + "\n"


def integer(minimum: int) -> Callable[[str], int]:
    """Return a parser of integers that are at least `minimum`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be an integer >= {minimum}, got {text!r}")
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}")
    return value
