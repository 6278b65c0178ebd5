"""Commands that analyse finished runs. Like those in `commands`, each imports its dependencies when it is called."""

import argparse
import sys
from pathlib import Path

from plainres.cli.arguments import Arguments, integer, positive_number, split_overrides


class _AnalysisArguments(Arguments):
    """Parser of the options of a command on finished runs, and of overrides that locate their images."""

    def __init__(self, command: str, description: str, *, seeded: bool = True) -> None:
        super().__init__(command, description, example="runs/digits/identity-8-w8-s0-d36f80ca", location=True)
        self.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a finished run")
        if seeded:
            self.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: 0)")

    def read(self, arguments: list[str]) -> argparse.Namespace:
        """Parse the arguments and check that the runs are finished, before torch is imported.

        Raises:
            InputError: an option is invalid, or a folder holds no finished run.
        """
        words, overrides = split_overrides(arguments)
        options = self.parse_args(words)
        from plainres.runs.location import location_of
        from plainres.runs.record import Run

        options.location = location_of(overrides)

        for folder in options.runs:
            Run.read_finished(folder)
        return options


def lesion(arguments: list[str]) -> int:
    """Measure the errors of finished runs without some of their blocks."""
    parser = _AnalysisArguments(
        "lesion",
        "Measure the training and test error of finished runs after deleting each block, after deleting several "
        "blocks at random, and after swapping blocks of one stage (Veit et al. 2016). Deleting a block of a residual "
        "net removes its residual branch. A block of a plain net is removed whole; if it changes the shape, its input "
        "is subsampled and padded with zeros. Writes lesion.csv, .svg and .png into each run's folder, and a figure of "
        "all runs into the parent folder. After an interruption, run the same command again to resume.",
    )
    parser.add_argument(
        "--most", type=integer(1), default=10, help="maximum number of deleted blocks or swapped pairs (default: 10)"
    )
    parser.add_argument(
        "--draws", type=integer(1), default=5, help="random draws for each number of blocks or pairs (default: 5)"
    )
    parser.add_argument(
        "--images", type=integer(1), help="size of a random sample of each set, by class (default: all)"
    )
    options = parser.read(arguments)
    from plainres.analysis.lesion import write

    print(write(options.runs, options.most, options.draws, options.seed, options.images, location=options.location))
    return 0


def linearise(arguments: list[str]) -> int:
    """Measure the errors of finished runs with linear activations in some of their channels."""
    parser = _AnalysisArguments(
        "linearise",
        "Measure the training and test error of finished runs whose activations are linear in a growing number of "
        "channels, those first on which the training loss depends least (after Mehmeti-Göpel & Wand 2025; without "
        "further training). Also gives the effective depth, the mean number of non-linear channels on a path through "
        "the network. Writes linearise.csv, .svg and .png into each run's folder, and a figure of all runs into the "
        "parent folder. After an interruption, run the same command again to resume.",
        seeded=False,
    )
    parser.add_argument(
        "--steps", type=integer(1), default=20, help="steps from no linear channel to all (default: 20)"
    )
    parser.add_argument(
        "--images", type=integer(1), help="size of a random sample of each set, by class (default: all)"
    )
    options = parser.read(arguments)
    from plainres.analysis.linearise import write

    print(write(options.runs, options.steps, options.images, location=options.location))
    return 0


def landscape(arguments: list[str]) -> int:
    """Measure the loss around the weights of finished runs."""
    parser = _AnalysisArguments(
        "landscape",
        "Measure the training loss and error of finished runs along filter-normalised random directions (Li et al. "
        "2018), on one scale. Writes landscape.csv and landscape-1d or -2d.svg and .png into each run's folder, and a "
        "figure of all runs into the parent folder. After an interruption, run the same command again to resume.",
    )
    parser.add_argument(
        "--dimensions", type=int, choices=(1, 2), default=1, help="number of random directions (default: 1)"
    )
    parser.add_argument(
        "--points", type=integer(2), help="points along each direction (default: 51 in one dimension, 21 in two)"
    )
    parser.add_argument(
        "--range",
        type=positive_number,
        default=1.0,
        metavar="R",
        help="range of the coefficients, -R to R, in units of the filters' norms (default: 1)",
    )
    parser.add_argument(
        "--images",
        type=integer(1),
        default=1000,
        help="size of the random sample of training images, by class (default: 1000)",
    )
    options = parser.read(arguments)
    from plainres.analysis.landscape import write

    grid = {"points": options.points, "dimensions": options.dimensions, "reach": options.range}
    print(write(options.runs, **grid, images=options.images, seed=options.seed, location=options.location))
    return 0


def sharpness(arguments: list[str]) -> int:
    """Measure the curvature of the loss at the weights of finished runs."""
    parser = _AnalysisArguments(
        "sharpness",
        "Measure the top eigenvalue of the Hessian of the training loss of finished runs, by the Lanczos method. "
        "Writes sharpness.csv, .svg and .png into each run's folder, and a figure of all runs into the parent folder.",
    )
    parser.add_argument(
        "--images",
        type=integer(1),
        default=1000,
        help="size of the random sample of training images, by class (default: 1000)",
    )
    parser.add_argument(
        "--tolerance",
        type=positive_number,
        default=1e-3,
        help="residual at which the iteration stops, relative to the eigenvalue (default: 0.001)",
    )
    parser.add_argument("--iterations", type=integer(1), default=100, help="maximum number of steps (default: 100)")
    options = parser.read(arguments)
    from plainres.analysis.sharpness import write

    try:
        settings = options.images, options.tolerance, options.iterations, options.seed
        print(write(options.runs, *settings, location=options.location))
    except KeyboardInterrupt:
        print("plainres: stopped; run the same command again to start over", file=sys.stderr)
        return 130
    return 0
