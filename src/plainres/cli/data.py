"""The command `plainres data`, which manages the decoded copies of data sets."""

import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from plainres.cli.arguments import Arguments, positive_number
from plainres.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from plainres.data.copies import Copy

DATA = """\
Manage the decoded copies of data sets.

  plainres data list                   name, data set, images, size, last use
  plainres data check                  compare every file with its digest
  plainres data remove NAME ...        remove copies by name
  plainres data remove --unfinished    remove unfinished and unusable copies
  plainres data remove --older DAYS    remove copies not used for DAYS days

A run that needs a copy which was removed decodes the images again.

Copies are in ~/.cache/plainres, PLAINRES_CACHE or --cache.
"""


def data(arguments: list[str]) -> int:
    """List, check or remove decoded copies."""
    parser = Arguments("data", DATA, example="list", usage="list|check|remove [NAME ...] [options]")
    parser.add_argument("action", choices=("list", "check", "remove"), help="what to do")
    parser.add_argument(
        "names", nargs="*", default=[], metavar="NAME", help="copies to check or remove (check: default all)"
    )
    parser.add_argument("--cache", metavar="FOLDER", help="folder of the copies")
    parser.add_argument(
        "--unfinished", action="store_true", help="remove copies that are unfinished, damaged or of an earlier version"
    )
    parser.add_argument("--older", type=positive_number, metavar="DAYS", help="remove copies not used for DAYS days")
    options = parser.parse_args(arguments)
    from plainres.data.copies import cache_folder, copies_in, select

    if options.action != "remove" and (options.unfinished or options.older):
        raise InputError("--unfinished and --older belong to plainres data remove")
    if options.names and (options.unfinished or options.older):
        raise InputError("plainres data remove takes names, or --unfinished and --older, which choose among all copies")
    cache = cache_folder(options.cache)
    copies = select(cache, options.names) if options.names else list(copies_in(cache))
    if options.action == "list":
        _list(copies, cache)
    elif options.action == "check":
        _check(copies)
    else:
        _remove(copies, named=bool(options.names), unfinished=options.unfinished, days=options.older)
    return 0


def _list(copies: Sequence["Copy"], cache: Path) -> None:
    from plainres.console import aligned
    from plainres.data.copies import readable, state_of

    rows = [("name", "images", "size", "last use", "decoded from")]
    for copy in copies:
        contents, state = copy.read(), state_of(copy)
        source = contents.source if contents else state
        images = f"{sum(contents.images.values()):,}" if contents else ""
        used = datetime.fromtimestamp(copy.last_use).astimezone().strftime("%Y-%m-%d %H:%M")
        rows.append((copy.folder.name, images, readable(copy.disk_bytes), used, source))
    if copies:
        print("\n".join(aligned(rows, right=(1, 2), width=shutil.get_terminal_size().columns)))
    total = readable(sum(copy.disk_bytes for copy in copies))
    print(f"{len(copies)} {'copy' if len(copies) == 1 else 'copies'} in {cache}, {total}")


def _check(copies: Sequence["Copy"]) -> None:
    """Compare copies with their digests.

    Raises:
        RunFailedError: a copy is damaged.
    """
    from plainres.data.copies import state_of

    damaged = []
    for copy in copies:
        state = state_of(copy)
        problems = [state] if state in ("unfinished", "older") else copy.damage()
        print(f"{copy.folder.name}: {'; '.join(problems) or 'intact'}", flush=True)
        if problems and state not in ("unfinished", "older"):
            damaged.append(copy.folder.name)
    if damaged:
        raise RunFailedError(f"damaged: {', '.join(damaged)}; remove with `plainres data remove {' '.join(damaged)}`")


def _remove(copies: Sequence["Copy"], *, named: bool, unfinished: bool, days: float | None) -> None:
    """Remove the named copies, or those that are unfinished or old.

    Raises:
        InputError: nothing is chosen.
        RunFailedError: another process is writing a named copy, which remains.
    """
    from plainres.data.copies import readable, remove, state_of, used_before

    if not named and not unfinished and days is None:
        raise InputError(
            "plainres data remove needs names, --unfinished or --older DAYS; plainres data list shows names"
        )
    chosen = [
        copy
        for copy in copies
        if named or (unfinished and state_of(copy)) or (days is not None and used_before(copy, days))
    ]
    busy = []
    for copy in chosen:
        size = readable(copy.disk_bytes)
        if remove(copy):
            print(f"removed {copy.folder.name}, {size}")
        else:
            busy.append(copy.folder.name)
    if not chosen:
        print("no copy to remove")
    if busy and named:
        raise RunFailedError(f"not removed, since another process is writing it: {', '.join(busy)}")
    for name in busy:
        print(f"{name} is being written by another process", file=sys.stderr)
