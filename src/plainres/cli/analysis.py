"""The commands on finished runs. As in `commands`, each imports what it needs when it is called."""

import argparse
import sys
import textwrap
from pathlib import Path

from plainres.cli.arguments import Arguments, above_zero, whole


class _OnRuns(Arguments):
    """The options of a command on finished runs."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(command, textwrap.fill(description, 110))
        self.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a finished run")
        self.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: 0)")

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """Parse the arguments; see whether the runs are finished before the seconds that the import of torch takes.

        Raises:
            InputError: an option is wrong, or a folder holds no finished run.
        """
        given = self.parse_args(arguments)
        from plainres.runs.record import Run

        for folder in given.runs:
            Run.read_finished(folder)
        return given


def lesion(arguments: list[str]) -> int:
    """Finished runs without some of their blocks."""
    parser = _OnRuns(
        "lesion",
        "Training and test error of finished runs after deleting each block, after deleting blocks drawn at random, "
        "and after swapping blocks of one stage (Veit et al. 2016). Deleted is the residual branch; a block of a plain "
        "net is taken out whole, its input subsampled and padded with zeros where it changes the shape. Writes "
        "lesion.csv, .svg and .png into each run's folder, and a figure of all into the folder above. Stopped, the "
        "same command goes on.",
    )
    parser.add_argument("--most", type=whole(1), default=10, help="blocks deleted, or pairs swapped, at random (10)")
    parser.add_argument("--draws", type=whole(1), default=5, help="of each number of blocks or pairs (5)")
    parser.add_argument("--images", type=whole(1), help="size of a random sample of each set, by class (all)")
    given = parser.read(arguments)
    from plainres.analysis.lesion import write

    print(write(given.runs, given.most, given.draws, given.seed, given.images))
    return 0


def landscape(arguments: list[str]) -> int:
    """The loss around finished runs."""
    parser = _OnRuns(
        "landscape",
        "Training loss and error of finished runs along filter-normalised random directions (Li et al. 2018), on one "
        "scale. Writes landscape.csv and landscape-1d or -2d.svg and .png into each run's folder, and a figure of all "
        "into the folder above. Stopped, the same command goes on.",
    )
    parser.add_argument("--dimensions", type=int, choices=(1, 2), default=1, help="directions (1)")
    parser.add_argument("--points", type=whole(2), help="along each direction (51, or 21 with two)")
    parser.add_argument(
        "--range", type=above_zero, default=1.0, metavar="R", help="from -R to R, in units of the filters' norms (1)"
    )
    parser.add_argument(
        "--images", type=whole(1), default=1000, help="size of a random sample of the training set, by class (1000)"
    )
    given = parser.read(arguments)
    from plainres.analysis.landscape import write

    options = {"points": given.points, "dimensions": given.dimensions, "reach": given.range}
    print(write(given.runs, **options, images=given.images, seed=given.seed))
    return 0


def sharpness(arguments: list[str]) -> int:
    """The curvature of the loss where finished runs have come to."""
    parser = _OnRuns(
        "sharpness",
        "The top eigenvalue of the Hessian of the training loss of finished runs, by the Lanczos method. Writes "
        "sharpness.csv, .svg and .png into each run's folder, and a figure of all into the folder above.",
    )
    parser.add_argument(
        "--images", type=whole(1), default=1000, help="size of a random sample of the training set, by class (1000)"
    )
    parser.add_argument(
        "--tolerance",
        type=above_zero,
        default=1e-3,
        help="residual at which it ends, as a share of the eigenvalue (0.001)",
    )
    parser.add_argument("--iterations", type=whole(1), default=100, help="at most (100)")
    given = parser.read(arguments)
    from plainres.analysis.sharpness import write

    try:
        print(write(given.runs, given.images, given.tolerance, given.iterations, given.seed))
    except KeyboardInterrupt:
        print("plainres: stopped; the same command begins again", file=sys.stderr)
        return 130
    return 0
