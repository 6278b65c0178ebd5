"""Static figures: titles, layout, distinct styles, and notes on values that cannot be drawn."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from plainres.reporting import figures, report
from plainres.reporting.observations import Observed, observations
from plainres.reporting.probe_figures import probe_figure
from plainres.reporting.study_figures import save_figures
from plainres.runs.record import Run
from support.study import a_run, data_of, finish, observe

Families = dict[str, dict[int, dict[int, Run]]]
WIDTHS = [None, 3.25, 7.0]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "widths"


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with mpl.rc_context(figures.STYLE):
        yield


def families(study: Path, n: int = 2, **changes: Any) -> Families:
    """Make families of two depths and two seeds, the first with the largest errors."""
    return {
        f"family {i} (norm group, width {8 + i})": {
            depth: {
                seed: finish(a_run(study, "plain", depth, seed, width=8 + i, **changes), depth / (1 + i) + seed)
                for seed in (0, 1)
            }
            for depth in (8, 20)
        }
        for i in range(n)
    }


def gradients(study: Path, change: Callable[[str], str] = str) -> dict[str, dict[int, list[Observed]]]:
    """Return the measurements of a probe in two families, after changing its files."""
    made = families(study)
    for by_depth in made.values():
        for by_seed in by_depth.values():
            for run in by_seed.values():
                file = observe(run, probe="gradients", columns="gradient,update_to_weight")
                file.write_text(change(file.read_text()))
    return observations("gradients", made)[0]


def laid_out(figure: Figure) -> Figure:
    figure.draw_without_rendering()
    return figure


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.axison]


def legends(figure: Figure) -> list[Bbox]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [legend.get_window_extent() for legend in legends if legend]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["curves", "depth", "gradients"])
def test_legends_do_not_cover_the_data_and_nothing_is_cut_off(study: Path, kind: str, width: float | None):
    draw = {
        "curves": lambda: figures.curves(families(study, 4), "A title", width),
        "depth": lambda: figures.error_by_depth(families(study, 4), "A title", width),
        "gradients": lambda: probe_figure("gradients", gradients(study), "A title", width),
    }
    with mpl.rc_context(figures.FIXED if width else {}):
        figure = laid_out(draw[kind]())
    if width:
        assert figure.get_figwidth() == width
    legend_boxes = legends(figure)
    assert legend_boxes
    for axes in panels(figure):
        inside = axes.get_window_extent()
        assert inside.height > 0.35 * inside.width
        for legend in legend_boxes:
            assert not legend.overlaps(inside.shrunk(0.99, 0.99))
    whole, drawn = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert drawn.x0 >= -1
    assert drawn.x1 <= whole.x1 + 1
    assert drawn.y0 >= -1
    assert drawn.y1 <= whole.y1 + 1


def test_fourteen_families_are_drawn_differently(study: Path):
    figure = figures.error_by_depth(families(study, 14))
    (axes,) = figure.axes
    lines = [bars.lines[0] for bars in axes.containers]  # pyright: ignore
    assert len(lines) == 14
    assert len({line.get_color() for line in lines}) == 14
    assert len({tuple(figures.family_style(i).values()) for i in range(98)}) == 98


def test_a_panel_extends_to_its_longest_run(study: Path):
    made = {**families(study, 1, epochs=10), "long": families(study, 1, epochs=100).popitem()[1]}
    short, long = panels(laid_out(figures.curves(made)))
    assert 230 <= short.get_xlim()[1] < 300
    assert 2300 <= long.get_xlim()[1] < 3000
    top = short.get_ylim()[1]
    assert all(line.get_ydata()[-1] < top for axes in (short, long) for line in axes.get_lines())  # pyright: ignore


@pytest.mark.parametrize(
    ("value", "note"),
    [("2", ""), ("0", "4 values of 0: hollow, at the lower edge"), ("-1", "4 values of 0 or less: hollow")],
)
def test_values_without_a_logarithm_are_marked(study: Path, value: str, note: str):
    observed = gradients(study, lambda text: text.replace("0,1,layer1,2,2", f"0,1,layer1,{value},{value}"))
    figure = laid_out(probe_figure("gradients", observed))
    begun, ended, *_ = figure.axes
    assert note in begun.get_xlabel()
    assert ("lower edge" in begun.get_xlabel()) == bool(note)
    assert ended.get_xlabel() == "layer"
    edge = [line for line in begun.get_lines() if line.get_markerfacecolor() == "white"]
    assert len(edge) == (4 if note else 0)
    low = begun.get_window_extent().y0
    for line in edge:
        ((x, y),) = line.get_xydata()  # pyright: ignore
        assert x == 2
        assert line.get_transform().transform((x, y))[1] == pytest.approx(low)  # pyright: ignore
        assert not line.get_clip_on()


def test_a_band_that_reaches_zero_is_noted(study: Path):
    made = families(study)
    for by_depth in made.values():
        for seed, run in by_depth[8].items():
            file = observe(run, probe="gradients", columns="gradient,update_to_weight")
            file.write_text(file.read_text().replace("0,1,layer1,2,2", f"0,1,layer1,{1 + 40 * seed},2"))
    observed, _ = observations("gradients", made)
    figure = probe_figure("gradients", observed)
    notes = ["band" in axes.get_xlabel() for axes in figure.axes]
    assert notes == [True, False, False, False]


def test_figures_name_the_study_and_its_data(study: Path):
    made = families(study)
    folder = study / "report"
    folder.mkdir()
    for by_seed in made[next(iter(made))].values():
        observe(by_seed[0])
    drawn, _ = save_figures(made, folder)
    for name in ("curves", "depth", *drawn):
        svg = (folder / f"{name}.svg").read_text()
        assert ">widths · Digits (scikit-learn)</text>" in svg
        assert not re.search(r"matplotlib v", svg, re.IGNORECASE)
    save_figures(made, folder, title="Depth hurts at $5")
    assert ">Depth hurts at $5</text>" in (folder / "depth.svg").read_text()
    assert "scikit-learn" not in (folder / "depth.svg").read_text()
    save_figures(made, folder, title="")
    assert "widths" not in (folder / "depth.svg").read_text()


def test_data_sets_are_named(study: Path):
    config = a_run(study, "plain", 8, 0).config
    hub = a_run(study, "plain", 8, 1).config
    hub.data |= {"_target_": "plainres.data.HubImages", "name": "uoft-cs/cifar10"}
    own = a_run(study, "plain", 8, 2).config
    own.data |= {"_target_": "mine.Images"}
    assert figures.study_title("s", [config, config]) == "s · Digits (scikit-learn)"
    assert figures.study_title("s", [config, hub, own]) == "s · Digits (scikit-learn), CIFAR-10, Images"


def test_a_given_width_is_respected_with_readable_text(study: Path):
    folder = study / "report"
    made = families(study)
    folder.mkdir()
    save_figures(made, folder, title="A long title that has to be broken into more than one line", width=3.25)
    for name in ("curves", "depth"):
        svg = (folder / f"{name}.svg").read_text()
        assert 'width="234pt"' in svg  # 3.25 inches
        sizes = [float(size) for size in re.findall(r"font(?:-size)?:[^;\"]*?([\d.]+)px", svg)]
        assert sizes
        assert min(sizes) >= 6.5
        assert "A long title" in svg


def test_a_report_takes_a_title_and_a_width(study: Path):
    families(study, 1)
    report.write_report(study, title="Mine <3", width=3.25)
    folder = study / "report"
    assert 'width="234pt"' in (folder / "curves.svg").read_text()
    assert ">Mine &lt;3</text>" in (folder / "depth.svg").read_text()
    assert data_of((folder / "index.html").read_text())["title"] == "Mine <3"
