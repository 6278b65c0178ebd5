"""The report's page in headless Chromium: rendering and interaction."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plainres.reporting import report
from support.chromium import FOUND, Page
from support.study import a_run, data_of, finish, observe

pytestmark = pytest.mark.skipif(FOUND is None, reason="there is no Chromium or Chrome on the PATH")
LINES = "document.querySelectorAll('[data-figure=curves] .line').length"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Page of a study of three families, two depths and two seeds; one run has a lesion figure."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    for family in ({"shortcut": "plain"}, {"shortcut": "identity"}, {"shortcut": "dropout"}):
        for depth in (8, 56):
            for seed in (0, 1):
                error = depth / 2 + seed if family["shortcut"] == "plain" else seed * depth / 100
                run = finish(a_run(folder, depth=depth, seed=seed, **family), error)
    wide = '<svg xmlns="http://www.w3.org/2000/svg" width="2000" height="100"><rect width="9" height="9"/></svg>'
    for target in (run.folder, folder):  # the figure of one run, and that of several
        (target / "lesion.svg").write_text(wide)
    observe(run)
    report.write_report(folder)
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture
def page(browser: Page, file: Path) -> Iterator[Page]:
    """Page in a wide window; the console must remain without errors."""
    browser.open(file)
    yield browser
    assert browser.complaints == []


def page_of(file: Path, name: str, **changes: Any) -> Path:
    """Write a copy of the page with other data, and return its file."""
    page = file.read_text()
    start = page.index("{", page.index('id="data">'))
    other = file.with_name(f"{name}.html")
    other.write_text(page[:start] + json.dumps(data_of(page) | changes) + page[page.index("</script>", start) :])
    return other


def choose(page: Page, name: str, value: object, figure: str = "curves") -> None:
    page.click(f"[data-figure={figure}] [name={name}][value='{value}']")


def hover(page: Page, figure: str, across: float, down: float = 0.6) -> str:
    """Return the readout, or "", for the mouse at a fraction of the drawing's width and height."""
    svg = f"document.querySelector('[data-figure={figure}] .drawing svg')"
    page.run(f"{svg}.scrollIntoView({{block: 'center'}})")
    box = page.run(f"{svg}.getBoundingClientRect().toJSON()")
    page.mouse("mouseMoved", box["x"] + across * box["width"], box["y"] + down * box["height"])
    return readout(page, figure)


def readout(page: Page, figure: str) -> str:
    return page.run(f"(r => r.hidden ? '' : r.innerText)(document.querySelector('[data-figure={figure}] .readout'))")


def heights(page: Page, figure: str) -> list[float]:
    """Return the distances of a figure's markers from its upper edge."""
    markers = f"document.querySelectorAll('[data-figure={figure}] .drawing g > .marker')"
    return page.run(f"[...{markers}].map(m => m.transform.baseVal[0].matrix.f)")


def colours(page: Page, selector: str) -> list[list[int]]:
    """Return the colours, [red, green, blue], of an element's text and of the page."""
    script = f"[document.querySelector({selector!r}), document.body].map((e, i) => getComputedStyle(e)"
    script += "[i ? 'backgroundColor' : e.tagName === 'path' ? 'stroke' : e.tagName === 'text' ? 'fill' : 'color'])"
    return page.run(f"{script}.map(c => c.match(/\\d+/g).map(Number).slice(0, 3))")


def contrast(a: list[int], b: list[int]) -> float:
    """Return the contrast ratio of WCAG 2, from 1 to 21; text requires 4.5, graphics 3."""

    def luminance(colour: list[int]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def test_every_curve_is_drawn(page: Page):
    assert page.run(LINES) == 3 * 2 * 2
    assert page.run("document.querySelectorAll('[data-figure=depth] .line').length") == 3
    paths = page.run("[...document.querySelectorAll('.line')].map(line => line.getAttribute('d'))")
    assert all(path.startswith("M") and "NaN" not in path for path in paths)
    assert page.run("[...document.querySelectorAll('.static')].every(e => getComputedStyle(e).display === 'none')")


def test_families_differ_in_colour_and_marker_and_training_from_test_in_dashes(page: Page):
    swatches = "[...document.querySelectorAll('[data-figure=depth] [name=family] + .key .marker')]"
    assert len(set(page.run(f"{swatches}.map(m => m.getAttribute('d'))"))) == 3
    assert len(set(page.run(f"{swatches}.map(m => m.getAttribute('fill'))"))) == 3
    lines = "[...document.querySelectorAll('[data-figure=curves] .line')]"
    assert page.run(f"{lines}.filter(line => line.getAttribute('stroke-dasharray')).length") == 6
    assert len(set(page.run(f"{lines}.map(line => line.getAttribute('stroke'))"))) == 6  # by family and depth


def test_validation_errors_are_dotted_where_there_are_any(browser: Page, page: Page, file: Path):
    assert page.run("document.querySelectorAll('[name=error][value=validation]').length") == 0
    data = data_of(file.read_text())
    identity = data["families"].index("identity")
    runs = [
        run | ({"validation": [error - 0.5 for error in run["test"]]} if run["family"] == identity else {})
        for run in data["runs"]
    ]
    browser.open(page_of(file, "validated", runs=runs))
    assert page.run(LINES) == 3 * 2 * 2 + 2
    dashes = page.run("[...document.querySelectorAll('.line')].map(line => line.getAttribute('stroke-dasharray'))")
    assert dashes.count("1.5 2.5") == 2
    hover(page, "curves", 0.96)
    choose(page, "error", "train")
    choose(page, "error", "test")
    assert page.run(LINES) == 2
    hover(page, "curves", 0.96)
    assert "identity 56, validation" in readout(page, "curves")
    page.run("document.querySelector('[data-figure=curves] [data-save=svg]').click()")


def test_hovering_shows_the_values(page: Page):
    assert readout(page, "depth") == ""
    shown = hover(page, "depth", 0.97)
    assert shown.startswith("56 layers")
    assert "plain\t28.50\t(0.71)" in shown
    assert "identity\t0.28\t(0.40)" in shown
    assert hover(page, "curves", 0.96).startswith("iteration 230")
    assert "plain 56, training" in readout(page, "curves")
    hover(page, "curves", 0.5, -0.2)
    assert readout(page, "curves") == ""


def test_controls_hide_and_show(page: Page):
    choose(page, "family", 0)
    assert page.run(LINES) == 2 * 2 * 2
    choose(page, "depth", 8)
    assert page.run(LINES) == 2 * 1 * 2
    choose(page, "error", "train")
    assert page.run(LINES) == 2
    choose(page, "seeds", "each")
    assert page.run(LINES) == 4
    assert "dropout 56, seed 1, test" in hover(page, "curves", 0.9)
    choose(page, "error", "test")
    assert "Nothing is selected" in page.run("document.querySelector('[data-figure=curves] .drawing').innerText")
    choose(page, "error", "test")
    choose(page, "family", 0)
    choose(page, "panels", "apart")
    assert page.run("document.querySelectorAll('[data-figure=curves] clipPath').length") == 3
    assert page.run(LINES) == 6
    assert hover(page, "curves", 0.2, 0.5).startswith("plain, iteration ")
    assert page.run("document.querySelectorAll('[data-figure=depth] .line').length") == 3  # has its own controls


def test_the_axis_may_be_logarithmic(page: Page):
    linear = heights(page, "depth")
    choose(page, "axis", "log", "depth")
    logarithmic = heights(page, "depth")
    ticks = page.run(
        "[...document.querySelectorAll('[data-figure=depth] .drawing text')].map(text => text.textContent)"
    )
    assert {"0", "0.1", "1", "10"} <= set(ticks)
    order = sorted(range(6), key=linear.__getitem__)
    assert [logarithmic[i] for i in order] == sorted(logarithmic)
    spread = max(linear) - min(linear)
    small = 3  # identity, 56 layers, 0.28 %
    assert max(linear) - linear[small] < 0.03 * spread
    assert max(logarithmic) - logarithmic[small] > 0.1 * spread


def test_values_of_zero_on_a_logarithmic_axis_are_counted(browser: Page, file: Path):
    data = data_of(file.read_text())
    zeros_text = "document.querySelector('[data-figure={}] .zeros')?.textContent"
    zeros = [run["train_final"] for run in data["runs"]].count(0)
    assert zeros > 1
    for figure in ("depth", "curves"):
        browser.open(file)
        assert browser.run(zeros_text.format(figure)) is None
    choose(browser, "axis", "log", "depth")
    assert browser.run(zeros_text.format("depth")) == f"{zeros} values of 0 are drawn at the lower edge"
    choose(browser, "final", "test_final", "depth")
    assert browser.run(zeros_text.format("depth")) is None
    ended = [run | {"train": [*run["train"][:-1], 0], "train_final": 0} for run in data["runs"][:1]]
    browser.open(page_of(file, "zero", runs=ended))
    for figure in ("depth", "curves"):
        choose(browser, "axis", "log", figure)
        assert browser.run(zeros_text.format(figure)) == "1 value of 0 is drawn at the lower edge"
    assert browser.complaints == []


@pytest.mark.parametrize(("width", "panels"), [(1200, "apart"), (1200, "one"), (390, "apart")])
def test_runs_of_different_lengths_fill_their_panels(browser: Page, file: Path, width: int, panels: str):
    runs = data_of(file.read_text())["runs"]
    for run in runs:  # the shortest have the largest errors
        run["step"] = [step * (1 + 9 * run["family"]) for step in run["step"]]
    browser.open(page_of(file, "mixed", runs=runs), width)
    choose(browser, "panels", panels)
    svg = "document.querySelector('[data-figure=curves] .drawing svg')"
    shown = "(e => ((b) => [b.left, b.top, b.right, b.bottom])(e.getBoundingClientRect()))"
    whole = browser.run(f"{shown}({svg})")
    groups = f"[...{svg}.querySelectorAll('g[clip-path]')]"
    frames = browser.run(f"[...{svg}.querySelectorAll('clipPath rect')].map(r => r.width.baseVal.value - 8)")
    lines = browser.run(f"{groups}.map(g => [...g.querySelectorAll('.line')].map({shown}))")
    assert len(lines) == (3 if panels == "apart" else 1)
    for wide, panel in zip(frames, lines, strict=True):
        for left, _, right, _ in panel if panels == "apart" else panel[-1:]:
            assert right - left > 0.85 * wide
    labels = browser.run(f"[...{svg}.querySelectorAll('.end')].map({shown})")
    assert len(labels) == 6
    ends = [(right, bottom) for panel in lines for _, _, right, bottom in panel]
    for left, top, right, bottom in labels:
        assert whole[0] <= left
        assert whole[1] <= top
        assert right <= whole[2]
        assert bottom <= whole[3]
        assert min(abs(left - x) for x, _ in ends) < 12
        assert min(abs((top + bottom) / 2 - y) for x, y in ends if abs(left - x) < 12) < 25
    assert browser.complaints == []


def test_fourteen_families_are_drawn_differently(browser: Page, file: Path):
    data = data_of(file.read_text())
    runs = [data["runs"][0] | {"family": i, "depth": depth} for i in range(14) for depth in data["depths"]]
    browser.open(page_of(file, "fourteen", families=[f"family {i}" for i in range(14)], runs=runs))
    for figure in ("depth", "curves"):
        swatches = f"[...document.querySelectorAll('[data-figure={figure}] [name=family] + .key .marker')]"
        looks = browser.run(f"{swatches}.map(m => m.getAttribute('d') + m.getAttribute('fill'))")
        assert len(looks) == len(set(looks)) == 14
        assert len(set(browser.run(f"{swatches}.map(m => m.getAttribute('fill'))"))) == 14
    assert browser.complaints == []


def test_the_keyboard_moves_the_readout_and_the_controls(page: Page):
    page.run("document.querySelector('[data-figure=depth] .canvas').focus()")
    page.press("ArrowRight")
    assert readout(page, "depth").startswith("8 layers")
    page.press("ArrowRight")
    assert readout(page, "depth").startswith("56 layers")
    page.press("Escape")
    assert readout(page, "depth") == ""
    for control in page.run("[...document.querySelectorAll('input')].map(i => i.labels[0]?.innerText)"):
        assert control.strip()


def test_a_narrow_screen_does_not_scroll_sideways(browser: Page, file: Path):
    for panels in ("one", "apart"):
        browser.open(file, 390, 844)
        choose(browser, "panels", panels)
        assert browser.run(OVERFLOW) == 0
        width = browser.run("document.querySelector('[data-figure=curves] .drawing svg').getBoundingClientRect().width")
        assert 300 < width <= 390
        shown = hover(browser, "curves", 0.8, 0.2)
        assert "iteration" in shown
        assert browser.run(OVERFLOW) == 0
    assert browser.complaints == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_curves_are_visible_on_the_page(browser: Page, file: Path, dark: bool):
    browser.open(file, dark=dark)
    _, page = colours(browser, "body")
    assert (max(page) < 60) == dark
    for selector in ("h1", "a", ".note", "legend", "figcaption", "[data-figure=curves] .drawing text"):
        assert contrast(*colours(browser, selector)) > 4.5, selector
    for family in range(3):
        marker = f"[data-figure=depth] [value='{family}'] + .key path"
        assert contrast(*colours(browser, marker)) > 3, marker
    for depth in (8, 56):
        shade = f"[data-figure=curves] [name=depth][value='{depth}'] + .key path"
        assert contrast(*colours(browser, shade)) > 3, shade
    assert browser.complaints == []


@pytest.mark.parametrize("dark", [False, True])
def test_every_shade_of_every_colour_is_visible(browser: Page, file: Path, dark: bool):
    data = data_of(file.read_text())
    depths, families = [8, 20, 56], len(data["colours"])
    assert families >= 14
    runs = [data["runs"][0] | {"family": i, "depth": depth} for i in range(families) for depth in depths]
    names = [f"family {i}" for i in range(families)]
    browser.open(page_of(file, "every", families=names, depths=depths, runs=runs), dark=dark)
    choose(browser, "panels", "one")
    choose(browser, "error", "train")
    strokes = browser.run(
        "[...document.querySelectorAll('[data-figure=curves] .line')].map(l => getComputedStyle(l).stroke)"
    )
    assert len(set(strokes)) == families * len(depths)
    _, background = colours(browser, "body")
    for stroke in strokes:
        assert contrast([int(part) for part in re.findall(r"\d+", stroke)], background) > 3, stroke
    assert browser.complaints == []


def test_print_has_the_static_figures(browser: Page, file: Path):
    browser.open(file, dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print")
    visible = "[...document.querySelectorAll('{}')].filter(e => e.offsetHeight).length"
    assert browser.run(visible.format(".static")) == 2
    assert browser.run(visible.format(".canvas, .controls, nav")) == 0
    assert colours(browser, "h1") == [[0, 0, 0], [255, 255, 255]]
    browser.call("Emulation.setEmulatedMedia", media="")
    assert browser.run(visible.format(".canvas")) == 2


def test_without_javascript_the_static_figures_are_shown(browser: Page, file: Path):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(file)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    visible = "[...document.querySelectorAll('{}')].filter(e => e.offsetHeight).length"
    assert browser.run(visible.format(".static")) == 2
    assert browser.run(visible.format("noscript p")) == 1
    assert browser.run(visible.format(".canvas, .controls, button")) == 0


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_saving_the_current_view(page: Page, kind: str, tmp_path: Path):
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    choose(page, "family", 0)
    page.click(f"[data-figure=curves] [data-save={kind}]")
    saved = tmp_path / f"digits-curves.{kind}"
    end = time.monotonic() + 20
    while not saved.exists() and time.monotonic() < end:
        time.sleep(0.05)
    content = saved.read_bytes()
    if kind == "svg":
        assert b'xmlns="http://www.w3.org/2000/svg"' in content
        assert content.count(b'class="line"') == 2 * 2 * 2
        assert b"dropout" in content
        assert "digits · Digits (scikit-learn)".encode() in content
        assert b"plain" not in content
    else:
        assert content.startswith(b"\x89PNG")


def test_a_page_with_the_maximum_number_of_points(browser: Page, file: Path):
    data = data_of(file.read_text())
    seeds, points = 60, report.ALL_POINTS // 60
    curve = {"step": list(range(1, points + 1)), "train": [2.5] * points, "test": [5.0] * points}
    runs = [data["runs"][0] | curve | {"seed": seed} for seed in range(seeds)]
    browser.open(page_of(file, "full", runs=runs))
    choose(browser, "seeds", "each")
    choose(browser, "axis", "log")
    assert browser.run(LINES) == 2 * seeds
    assert "and 110 more" in hover(browser, "curves", 0.5)
    assert browser.complaints == []


def test_figures_of_runs_are_loaded(page: Page):
    page.run("document.querySelector('.pictures').scrollIntoView()")
    page.run("document.querySelector('.pictures img').decode()")
    assert page.run("document.querySelector('.pictures img').naturalWidth") == 2000
    assert "dropout, 56 layers, seed 1" in page.run(
        "document.querySelector('.pictures figure:last-child figcaption').innerText"
    )
