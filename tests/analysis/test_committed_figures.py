"""A check that the committed figures of measurements are drawn from the committed CSV files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from plainres.analysis import landscape, lesion, linearise, sharpness
from plainres.analysis.measurements import Row
from plainres.files import read_rows
from plainres.reporting.figures import save
from support.places import ROOT

EXPERIMENTS = ROOT / "experiments"
FOLDER = EXPERIMENTS / "lesion_landscape"
NAMES = ["plain, 20 layers", "identity, 20 layers"]


def committed(file: str, folder: Path = FOLDER) -> list[list[Row]]:
    """Return the rows of a CSV file by run."""
    by_run: dict[str, list[Row]] = {}
    for row in read_rows(folder / file):
        by_run.setdefault(row.pop("run"), []).append(row)
    return list(by_run.values())


def with_images(images: str) -> list[list[Row]]:
    return [[row for row in rows if row["images"] == images] for rows in committed("landscape.csv")]


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("lesion", lambda: lesion.draw(NAMES, committed("lesion.csv"))),
        ("landscape-1d", lambda: landscape.curves(NAMES, with_images("1500"))),
        ("landscape-2d", lambda: landscape.surfaces(NAMES, with_images("500 of 1500"))),
        (
            "sharpness",
            lambda: sharpness.draw(
                NAMES, [[float(row["eigenvalue"]) for row in rows] for rows in committed("sharpness.csv")]
            ),
        ),
    ],
)
def test_committed_figures_are_drawn_from_the_committed_measurements(
    name: str, draw: Callable[[], Figure], tmp_path: Path
) -> None:
    save(draw, tmp_path / name)
    assert (tmp_path / f"{name}.svg").read_bytes() == (FOLDER / f"{name}.svg").read_bytes()


def test_the_committed_figure_of_linear_channels_is_drawn_from_the_committed_measurements(tmp_path: Path) -> None:
    folder = EXPERIMENTS / "linearise"
    names = ["plain, 8 layers", "plain, 56 layers", "identity, 8 layers", "identity, 56 layers"]
    save(lambda: linearise.draw(names, committed("linearise.csv", folder)[:4]), tmp_path / "linearise")
    assert (tmp_path / "linearise.svg").read_bytes() == (folder / "linearise.svg").read_bytes()
