"""Reports on small synthetic studies; no network is trained."""

import csv
import itertools
import json
import re
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from plainres.cli.main import main
from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.files import csv_text, read_rows
from plainres.launch.status import status
from plainres.reporting import figures, report, table
from plainres.reporting.families import SHORTCUT
from plainres.reporting.observations import observations
from plainres.reporting.probe_figures import probe_figure
from plainres.reporting.published import Published
from plainres.runs.record import Run
from support.study import END, a_run, data_of, finish, observe, train
from support.users import run_as_nobody, shared_folder

EXPECTED = {  # training error by depth, about as in the digits study: mean, s.d.
    "plain": {8: (0.0, 0.0), 20: (0.96, 0.1), 32: (11.6, 1.5), 44: (43.0, 12.0), 56: (59.0, 6.0)},
    "identity": {8: (0.0, 0.0), 20: (0.0, 0.0), 32: (0.02, 0.03), 44: (0.02, 0.03), 56: (0.07, 0.07)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "digits"


@pytest.fixture
def study(folder: Path) -> Path:
    """Plain and identity at 5 depths over 3 seeds, all finished."""
    for shortcut, depths in EXPECTED.items():
        for depth, (mean, sd) in depths.items():
            for seed, aside in enumerate((-1, 0, 1)):
                finish(a_run(folder, shortcut, depth, seed), mean + aside * sd)
    return folder


@pytest.fixture
def few(folder: Path) -> Path:
    """Plain and identity at depth 8 over 3 seeds, all finished."""
    for shortcut in EXPECTED:
        for seed in range(3):
            finish(a_run(folder, shortcut, 8, seed), seed)
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def report_text(folder: Path) -> str:
    """Return the text for a terminal, without writing a report."""
    return report.text(report.read_study(folder))


def line(text: str, *words: str) -> str:
    """Return the first line that contains all words, joined with its continuation lines."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if all(word in line for word in words))
    continuation = itertools.takewhile(lambda line: line.startswith("      "), lines[first + 1 :])
    return " ".join([lines[first], *map(str.strip, continuation)])


def test_the_text_contains_table_and_verdicts(study: Path):
    text = report.write_report(study, columns=110)
    assert line(text, "44", "44,000").split()[:4] == ["44", "3", "43.00", "(12.00)"]
    assert "All runs have the same training budget: 230 steps of 64 images." in text
    degrades = line(text, "plain: 56 minus 8", "+59.00", "[+44.10, +73.90]")
    assert "degrades: deeper is worse by 59.00 points" in degrades
    assert "  0.003  0.007 " in degrades  # t = 59 / (6 / sqrt(3)); twice that for two comparisons
    assert "By seed: +53.00 (s0), +59.00 (s1), +65.00 (s2)." in degrades
    assert "inconclusive: 3 seeds leave room for -0.10 to +0.24" in " ".join(text.split())
    assert "equal in every seed" in line(text, "depth 8 ")
    assert "plain is worse by 0.96 points" in line(text, "depth 20", "+0.96")
    assert "one normal distribution" in text
    assert "in 42 % of studies of 3 seeds if 10 % fail" in " ".join(text.split())
    trend = line(text, "L = 165, p <0.001, Holm <0.001")
    assert "grows with depth, from 0.00 to 59.00 %" in trend
    assert "selected on the test set" in text
    assert text.endswith(f"Report: {study / 'report' / 'index.html'}")
    assert "Unfinished" not in text
    assert "not used" not in text
    assert text.isascii()
    assert max(map(len, text.splitlines()[:-1])) <= 110


def test_tables_and_figures_are_written(study: Path):
    report.write_report(study)
    table = rows(study / "report" / "table.csv")
    assert [(row["family"], row["depth"]) for row in table] == [(f, str(d)) for f in EXPECTED for d in EXPECTED[f]]
    assert float(table[3]["train_error_eval_mean"]) == pytest.approx(43)
    assert float(table[3]["train_error_eval_sd"]) == pytest.approx(12)
    results = rows(study / "report" / "results.csv")
    assert len(results) == 30
    assert len({row["folder"] for row in results}) == 30
    assert results[0]["versions"] == "python 3.12.1; torch 2.13.0"
    for name in ("curves", "depth"):
        assert (study / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (study / "report" / f"{name}.svg").read_text()
    assert not list((study / "report").glob("*.tmp*"))


def test_the_page_is_self_contained(study: Path):
    report.write_report(study)
    page = (study / "report" / "index.html").read_text()
    assert "degrades: deeper is worse" in page
    assert "Student&#39;s 95 % interval" in page
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "http" not in page
    assert "url(" not in page.replace("url(#", "")
    assert re.findall(r'<(?:script|link|iframe)[^>]* (?:src|href)="([^"]*)"', page) == ["data:,"]
    for link in re.findall(r'href="([^"#]+)"', page):
        assert link == "data:," or (study / "report" / link).exists()
    anchors = set(re.findall(r'href="#([^"]+)"', page))
    assert anchors == {"depth", "others", "curves", "trained", "columns"} <= set(re.findall(r'id="([^"]+)"', page))


def test_every_number_is_linked_to_its_runs(study: Path):
    report.write_report(study)
    page = (study / "report" / "index.html").read_text()
    row = page[page.index(">43.00 (12.00)<") :].partition("</tr>")[0]
    linked = re.findall(r'href="\.\./([^"]+)/"', row)
    assert [name[: name.rindex("-")] for name in linked] == [f"plain-44-w8-s{seed}" for seed in range(3)]
    row = page[page.index(">plain: 56 minus 8<") :].partition("</tr>")[0]
    assert "[+44.10, +73.90]" in row
    assert re.findall(r">(seed \d|[\d.]+)(?:: <a|</a>)", row) == [
        *("seed 0", "53.00", "0.00", "seed 1", "59.00", "0.00", "seed 2", "65.00", "0.00")
    ]
    for folder in study.iterdir():
        assert folder.name == "report" or page.count(f'href="../{folder.name}/"') >= 2


def test_the_page_contains_the_curves_of_the_runs(study: Path):
    report.write_report(study)
    data = data_of((study / "report" / "index.html").read_text())
    assert data["families"] == ["plain", "identity"]
    assert data["depths"] == [8, 20, 32, 44, 56]
    assert len(data["runs"]) == 30
    for drawn in data["runs"]:
        name = f"{data['families'][drawn['family']]}-{drawn['depth']}-w8-s{drawn['seed']}-*"
        (folder,) = study.glob(name)
        written = rows(folder / "metrics.csv")
        assert drawn["step"] == [int(row["step"]) for row in written]
        for key in ("train", "test"):
            assert drawn[key] == pytest.approx([float(row[f"{key}/error"]) for row in written], abs=6e-4)
        result = Run.read(folder).result
        assert drawn["train_final"] == pytest.approx(result["train_error_eval"], abs=6e-4)
        assert drawn["test_final"] == pytest.approx(result["test_error"], abs=6e-4)


def test_long_curves_are_thinned_and_keep_their_ends(folder: Path):
    finish(a_run(folder, "plain", 8, 0, epochs=2500), 5)
    report.write_report(folder)
    (drawn,) = data_of((folder / "report" / "index.html").read_text())["runs"]
    assert len(drawn["step"]) == len(drawn["train"]) == report.POINTS
    assert (drawn["step"][0], drawn["step"][-1]) == (23, 2500 * 23)
    assert drawn["step"] == sorted(set(drawn["step"]))


def test_figures_of_runs_have_a_section(few: Path):
    run = Run.read(next(few.glob("identity-8-w8-s1-*")))
    for file in (run.folder / "lesion.svg", run.folder / "lesion.png", run.folder / "mine.svg", few / "lesion.svg"):
        file.write_text("<svg/>")
    report.write_report(few)
    page = (few / "report" / "index.html").read_text()
    section = page[page.index('<section id="inside">') :].partition("</section>")[0]
    assert re.findall(r"<h3>(.*)</h3>", section) == ["lesion", "mine"]
    own = f"../{run.folder.name}"
    assert re.findall(r'src="([^"]+)"', section) == ["../lesion.svg", f"{own}/lesion.svg", f"{own}/mine.svg"]
    assert re.findall(r'href="([^"]+)" download>(SVG|PNG)', section) == [
        *(("../lesion.svg", "SVG"), (f"{own}/lesion.svg", "SVG"), (f"{own}/lesion.png", "PNG")),
        (f"{own}/mine.svg", "SVG"),
    ]
    assert section.count("identity, 8 layers") == 2
    assert section.count("Several runs on one scale") == 1


def drawn_lines(figure: Figure) -> list[list[list[float]]]:
    """Return the heights of the lines in each panel of a figure."""
    return [[list(line.get_ydata()) for line in axes.get_lines()] for axes in figure.axes]  # pyright: ignore


def test_the_panels_of_a_probe_show_step_0_and_the_last_step(few: Path):
    runs = [Run.read(path) for path in sorted(few.glob("plain-*"))]
    columns = "gradient,update_to_weight"
    observe(runs[0], steps=(0, 100, END), probe="gradients", columns=columns)
    observe(runs[1], steps=(100, END), probe="gradients", columns=columns)  # added the probe on resuming
    observe(runs[2], steps=(0, 100), probe="gradients", columns=columns)
    families = {"plain": {8: dict(enumerate(runs))}}
    observed, unusable = observations("gradients", families)
    reason = "probes/gradients.csv has no measurement {} training, where the figure shows only the other seeds"
    assert unusable == [
        (runs[1].folder.name, reason.format("before")),
        (runs[2].folder.name, reason.format("after")),
    ]
    assert drawn_lines(probe_figure("gradients", observed)) == [[[1, 2, 3]], [[231, 232, 233]]] * 2
    observe(runs[0], steps=(100,), probe="gradients", columns=columns)
    observed, _ = observations("gradients", families)
    assert drawn_lines(probe_figure("gradients", observed)) == [[[1, 2, 3]], [[231, 232, 233]]] * 2
    observe(runs[2], steps=(100,), probe="gradients", columns=columns)
    observed, _ = observations("gradients", families)
    assert drawn_lines(probe_figure("gradients", observed)) == [[], [[231, 232, 233]]] * 2


def test_figures_have_the_spread_over_seeds(few: Path):
    runs = [Run.read(path) for path in sorted(few.glob("plain-*"))]
    for run, scale in zip(runs, ("1", "2", "30"), strict=True):
        file = observe(run, probe="signals", columns="mean,variance,gradient_variance")
        file.write_text(file.read_text().replace(",layer0,1,1,1", f",layer0,{scale},{scale},{scale}"))
    families = {"plain": {8: dict(enumerate(runs))}}
    observed, _ = observations("signals", families)
    figure = probe_figure("signals", observed)
    assert [axes.get_ylabel() or axes.get_title() for axes in figure.axes[::2]] == [
        "mean of each block's output, at the beginning",
        "variance of each block's output, at the beginning",
        "variance of the gradient there, at the beginning",
    ]
    sd = statistics.stdev([1, 2, 30])
    for axes in figure.axes:
        (band,) = axes.collections
        low, high = band.get_datalim(axes.transData).intervaly
        assert axes in figure.axes[1::2] or (low, high) == pytest.approx((11 - sd, 11 + sd))
    mean, _, variance, _, _, _ = figure.axes
    assert mean.get_ylim()[0] < 11 - sd < 0
    assert 0.4 < variance.get_ylim()[0] < 2  # logarithmic: the means are visible, and the band leaves the panel
    for axes in figures.curves(families).axes:
        assert len(axes.collections) == 2
    one_seed = probe_figure("signals", {"plain": {8: observed["plain"][8][:1]}})
    assert not [band for axes in one_seed.axes for band in axes.collections]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text.replace("std", "st"), "rows have different columns"),
        (lambda text: text.replace("layer1,2", "layer1,two"), "ValueError"),
        (lambda text: f'{text}230,3,"{150_000 * "x"}",1\n', "field larger than field limit"),
        (lambda text: text.replace("layer1,2", ""), "TypeError|ValueError"),
        (lambda text: text + text.partition("\n")[2], "duplicate"),
        (lambda text: text.rpartition("230,2")[0], "different layers"),
        (lambda text: "\n".join(line for line in text.splitlines() if ",2," not in line) + "\n", "other layers"),
    ],
)
def test_a_damaged_probe_file_is_reported_and_not_drawn(few: Path, damage: Callable[[str], str], reason: str):
    runs = [Run.read(path) for path in sorted(few.glob("plain-*"))]
    files = [observe(run) for run in runs]
    report.write_report(few)
    whole = (few / "report" / "responses.svg").read_text()
    files[1].write_text(damage(files[1].read_text()))
    text = " ".join(report.write_report(few).split())
    assert re.search(rf"Not used \(1\) {runs[1].folder.name} probes/responses.csv is damaged \(.*({reason})", text)
    page = (few / "report" / "index.html").read_text()
    assert "probes/responses.csv is damaged" in page
    assert "Measurements of the probe responses" in page
    files[1].unlink()
    report.write_report(few)
    assert (few / "report" / "responses.svg").read_text() == whole  # all seeds have equal measurements


@pytest.mark.parametrize(("probe", "columns"), [("responses", "std"), ("sharpness", "sharpness,to_stable")])
def test_seeds_that_a_figure_of_a_probe_leaves_out_are_named(few: Path, probe: str, columns: str):
    finish(a_run(few, "plain", 8, 7), 5)
    runs = [Run.read(path) for path in sorted(few.glob("plain-8-*"))]
    for run, images in zip(runs[:2], ("256 of 1500", "16 of 1500"), strict=True):
        file = observe(run, probe=probe, columns=columns)
        head, *rows = file.read_text().splitlines()
        file.write_text("\n".join([f"{head},images", *(f"{row},{images}" for row in rows), ""]))
    text = " ".join(report.write_report(few).split())
    other = f"probes/{probe}.csv is of 16 of 1500 images and not drawn; that of another seed is of 256 of 1500"
    assert f"{runs[1].folder.name} {other}" in text
    assert f"{runs[-1].folder.name} it has no measurements of {probe} and is not drawn, unlike other seeds" in text


def test_sections_depend_on_the_comparisons(few: Path):
    report.write_report(few)
    page = (few / "report" / "index.html").read_text()
    headings = ["Does depth hurt?", "Does the shortcut help?", "Curves", "What was trained"]
    assert re.findall(r"<h2>(.*)</h2>", page) == headings


def test_the_same_runs_give_the_same_bytes(few: Path):
    files = []
    for _ in range(2):
        report.write_report(few)
        files.append({file.name: file.read_bytes() for file in (few / "report").iterdir()})
    assert files[0] == files[1]
    assert len(files[0]) == 9


def test_missing_runs_of_an_unfinished_sweep_are_listed(folder: Path):
    for shortcut in ("plain", "identity"):
        for depth, seed in ((8, 0), (8, 1), (20, 0)):
            finish(a_run(folder, shortcut, depth, seed), depth + seed)
    interrupted, waiting = a_run(folder, "plain", 20, 1), a_run(folder, "plain", 20, 2)
    train(interrupted, 4, 20)
    (interrupted.checkpoints / "step-000000092.ckpt").touch()
    failed = a_run(folder, "identity", 20, 2)
    failed.fail("the run has diverged")
    text = report.write_report(folder)
    assert line(text, failed.name, "failed: the run has diverged")
    page = (folder / "report" / "index.html").read_text()
    assert "interrupted at step 92" in line(text, interrupted.name)
    assert line(text, waiting.name).split()[1:] == ["missing"]
    assert "missing: depth 20" in line(text, "identity, seed 1")
    table = status(folder).split("\n\n")[0].splitlines()[1:]
    in_status = {name: state for name, state, *_ in map(str.split, table)}
    assert [in_status[run.name] for run in (interrupted, waiting, failed)] == ["interrupted", "missing", "failed"]
    assert interrupted.name in page
    assert waiting.name in page
    verdict = "1 seed: too few for a claim; add seeds, e.g. seed=0,1,2. By seed: +12.00 (s0)."
    assert f"{verdict} Unpaired seeds, not used: 1." in line(text, "plain: 20 minus 8")
    assert "<summary>1 seed (unpaired: 1)</summary>" in page


@pytest.mark.parametrize("state", ["missing", "failed", "damaged"])
def test_a_run_that_contributes_nothing_does_not_rename_the_families_of_finished_runs(folder: Path, state: str):
    for depth, seed in ((8, 0), (8, 1), (20, 0)):
        finish(a_run(folder, "plain", depth, seed), 5)
    other = a_run(folder, "plain", 8, 0, width=16)
    if state == "failed":
        other.fail("the run has diverged")
    elif state == "damaged":
        (other.folder / "result.json").write_text("{}")
    study = report.read_study(folder)
    assert [family.label for family in study.families] == ["plain"]
    assert [name for name, _ in study.absent] == [
        "plain, seed 1",
        "plain (width 16), seed 0",
        "plain (width 16), seed 1",
    ]
    finish(other, 5)
    assert [family.label for family in report.read_study(folder).families] == ["plain (width 16)", "plain (width 8)"]


def test_a_damaged_curve_of_an_unfinished_run_is_reported(few: Path):
    run = a_run(few, "plain", 8, 3)
    (run.folder / "metrics.csv").write_text("epoch,step,lr,train/loss\n1,23\n")
    assert "metrics.csv is damaged" in line(report_text(few), run.name)


@pytest.mark.parametrize(
    ("attempt", "unlike"), [({}, "result"), ({"classes": {"mine.Sum": "2"}}, "source of mine.Sum")]
)
def test_a_copy_with_another_result_is_reported(few: Path, attempt: dict[str, Any], unlike: str):
    run = Run.read(next(few.glob("plain-8-w8-s0-*")))
    shutil.copytree(run.folder, few / "a-copy")
    for folder, changes in (
        (run.folder, {"classes": {"mine.Sum": "1"}}),
        (few / "a-copy", {"weights_sha256": "1", "classes": {"mine.Sum": "1"}, **attempt}),
    ):
        file = folder / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    ((_, reason),) = report.read_study(few).unused
    assert reason == f"the same run as {run.name}, with another {unlike}"


def test_seeds_that_diverged_are_named_beside_the_comparisons(few: Path):
    lost = a_run(few, "plain", 8, 7)
    lost.fail("the run has diverged at step 5")
    sentence = f"1 run diverged ({lost.name}): means and comparisons are of the other seeds."
    assert sentence in report.read_study(few).fairness
    assert sentence in " ".join(report_text(few).split())


def test_runs_whose_warm_up_did_not_end_are_named(folder: Path):
    runs = [a_run(folder, shortcut, 20, 0) for shortcut in ("plain", "identity")]
    warming = [Run.of(replace(run.config, optim=replace(run.config.optim, warmup_lr=0.005))) for run in runs]
    for run in warming:
        run.prepare()
        finish(run, 5)
    file = warming[0].folder / "metrics.csv"
    rows = read_rows(file)
    assert {row["lr"] for row in rows} != {"0.005"}
    assert "warm-up" not in report.read_study(folder).fairness
    file.write_text(csv_text([{**row, "lr": "0.005"} for row in rows]))
    sentence = f"In 1 run the warm-up did not end ({warming[0].name}): the learning rate was optim.warmup_lr up to the"
    assert sentence in report.read_study(folder).fairness


def test_unusable_folders_are_reported(few: Path):
    run = Run.read(next(few.glob("plain-8-w8-s0-*")))
    shutil.copytree(run.folder, few / "a-copy")
    (few / "notes").mkdir()
    (few / "odd & <b>").mkdir()
    (few / "loose.txt").write_text("")
    text = report.write_report(few)
    page = (few / "report" / "index.html").read_text()
    assert line(text, "a-copy").endswith(f"the same run as {run.name}")
    assert "not the folder of a run: it has no config.yaml" in line(text, "notes")
    assert "odd &amp; &lt;b&gt;" in page
    assert "<b>" not in page
    assert "loose.txt" not in text
    assert len(rows(few / "report" / "results.csv")) == 6


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", '{"name": "pl', "result.json is damaged"),
        ("result.json", "[]", "result.json is damaged"),
        ("result.json", "{}", "result.json is damaged (it lacks"),
        ("metrics.csv", "", "metrics.csv ends at step 0"),
        ("metrics.csv", "epoch,step\n1,23\n", "metrics.csv is damaged"),
        ("metrics.csv", "epoch,step,train/error,test/error\n1,23,x,5\n", "metrics.csv is damaged"),
        ("metrics.csv", "epoch,step,train/error,test/error\n23,4", "metrics.csv ends at step 0"),
        ("config.yaml", "seed: [", "config.yaml is damaged, or of another version of plainres (line 1: "),
    ],
)
def test_a_damaged_run_is_reported_and_not_used(few: Path, file: str, content: str, message: str):
    run = Run.read(next(few.glob("plain-8-w8-s0-*")))
    (run.folder / file).write_text(content)
    text = report_text(few)
    assert message in line(text, run.name)
    assert "By seed: +0.00 (s1), +0.00 (s2). Unpaired seeds, not used: 0." in line(text, "  depth 8 ")


def test_a_nan_error_is_reported_as_damage(few: Path):
    run = finish(a_run(few, "plain", 8, 3), 1, test_error=-123.0)
    record = run.folder / "result.json"
    record.write_text(record.read_text().replace("-123.0", "NaN"))
    assert "damaged (test_error not finite)" in line(report_text(few), run.name)


def test_a_copied_result_does_not_count_as_another_seed(few: Path):
    run = a_run(few, "plain", 8, 3)
    for file in ("result.json", "metrics.csv"):
        shutil.copy(next(few.glob("plain-8-w8-s0-*")) / file, run.folder)
    assert "result.json is of the run plain-8-w8-s0-" in line(report_text(few), run.name)


def test_other_settings_define_other_families(folder: Path):
    for shortcut in ("plain", "identity"):
        for width in (8, 16):
            for seed in (0, 1):
                finish(a_run(folder, shortcut, 20, seed, width=width), width + seed)
    study = report.read_study(folder)
    assert [family.label for family in study.families] == [
        *("plain (width 16)", "plain (width 8)"),
        *("identity (width 16)", "identity (width 8)"),
    ]
    assert list(study.comparisons) == [
        "Training error, plain (width 16) minus identity (width 16)",
        "Training error, plain (width 8) minus identity (width 8)",
    ]


def test_runs_with_and_without_a_validation_split(folder: Path):
    finish(a_run(folder, "plain", 20, 0), 5)
    finish(a_run(folder, "plain", 20, 0, validation_per_class=20), 6)
    report.write_report(folder)
    page = (folder / "report" / "index.html").read_text()
    data = data_of(page)
    assert data["families"] == ["plain (no validation split)", "plain (validation_per_class 20)"]
    without, validated = data["runs"]
    assert "validation" not in without
    (run,) = (run for run in folder.glob("plain-*") if Run.read(run).config.data["validation_per_class"] == 20)
    written = [float(row["validation/error"]) for row in rows(run / "metrics.csv")]
    assert validated["validation"] == pytest.approx(written, abs=6e-4)
    assert "(dashed), validation error (dotted) and test error" in page


def test_a_shortcuts_parameter_does_not_distinguish_it_from_plain(folder: Path):
    for seed in (0, 1, 2):
        finish(a_run(folder, "plain", 20, seed), 40 + seed)
        for rate in (0.1, 0.5):
            finish(a_run(folder, "dropout", 20, seed, rate=rate), 5)
    study = report.read_study(folder)
    assert [family.label for family in study.families] == ["plain", "dropout (rate 0.1)", "dropout (rate 0.5)"]
    verdicts = [comparison.verdict for (comparison,) in study.comparisons.values()]
    assert len(verdicts) == 2
    assert all(verdict.startswith("plain is worse by 36.00 points") for verdict in verdicts)


def test_a_label_names_an_option_and_adds_its_values_only_if_they_vary(folder: Path):
    for seed in (0, 1):
        for norm in ({"norm": "batch"}, {"norm": "group"}, {"norm": "group", "groups": 4}):
            for shortcut in ("plain", "identity"):
                finish(a_run(folder, shortcut, 20, seed, **norm), 5 + seed)
    study = report.read_study(folder)
    settings = ["norm batch", "norm group, groups 4", "norm group, groups 8"]
    assert [family.label for family in study.families] == [
        f"{shortcut} ({setting})" for shortcut in ("plain", "identity") for setting in settings
    ]
    assert list(study.comparisons) == [
        f"Training error, plain ({setting}) minus identity ({setting})" for setting in settings
    ]


def test_a_study_may_set_its_reference(folder: Path):
    reference = {"reference": {"model/norm": "batch"}}
    for seed in range(3):
        finish(a_run(folder, "identity", 20, seed, **reference), 40 + seed)
        finish(a_run(folder, "identity", 20, seed, norm="group", **reference), 2 * seed)
    study = report.read_study(folder)
    assert [family.label for family in study.families] == ["identity (norm batch)", "identity (norm group)"]
    assert list(study.comparisons) == ["Training error, identity (norm batch) minus identity (norm group)"]
    assert "identity (norm batch) is worse" in line(report_text(folder), "  depth 20 ")


def test_runs_that_name_different_references_are_compared_with_the_first_and_the_report_says_so(folder: Path):
    finish(a_run(folder, "dropout", 20, 0, rate=0.5, reference={"model/shortcut": "identity"}), 5)
    finish(a_run(folder, "identity", 20, 0), 5)
    finish(a_run(folder, "plain", 20, 0), 5)
    study = report.read_study(folder)
    assert study.reference == {"model/shortcut": "identity"}
    assert list(study.comparisons) == [
        "Training error, identity minus dropout",
        "Training error, identity minus plain",
    ]
    assert "Runs name different baselines (model/shortcut=identity; model/shortcut=plain). The first" in study.fairness


def test_a_report_on_evidence_has_the_baseline_of_the_report_on_the_runs(folder: Path):
    finish(a_run(folder, "identity", 20, 0), 5)
    finish(a_run(folder, "plain", 20, 0, reference={"model/shortcut": "identity"}), 5)
    study = report.write_files(folder)
    kept = report.read_study(folder / "report")
    assert study.reference == kept.reference == {"model/shortcut": "plain"}
    assert list(kept.comparisons) == list(study.comparisons) == ["Training error, plain minus identity"]


def test_parameters_of_one_shortcut_are_not_compared_across_another_setting(folder: Path):
    reference = {"model/norm": "batch"}
    for seed in range(3):
        for norm in ("batch", "group"):
            for rate in (0.2, 0.8):
                finish(a_run(folder, "dropout", 20, seed, norm=norm, rate=rate, reference=reference), 10 * rate + seed)
    study = report.read_study(folder)
    assert list(study.comparisons) == [
        f"Training error, dropout (norm batch, rate {rate}) minus dropout (norm group, rate {rate})"
        for rate in (0.2, 0.8)
    ]


def test_the_interval_of_a_comparison_without_a_claim_is_not_drawn_as_one(folder: Path):
    for seed in range(3):
        finish(a_run(folder, "plain", 20, seed), 40 + seed)
        finish(a_run(folder, "identity", 20, seed), 2 * seed)
    report.write_report(folder)
    assert '<path class="clear"' in (folder / "report" / "index.html").read_text()
    for seed in range(3):
        finish(a_run(folder, "identity", 20, seed), 2 * seed, device="cpu B")
    report.write_report(folder)
    page = (folder / "report" / "index.html").read_text()
    assert "unequal conditions (device): no claim" in page
    assert '<path class="clear"' not in page


def test_a_report_on_evidence_of_runs_without_a_number_of_devices(folder: Path):
    for shortcut in ("plain", "identity"):
        finish(run := a_run(folder, shortcut, 20, 0), 5)
        file = run.folder / "result.json"
        result = json.loads(file.read_text())
        del result["devices"]
        file.write_text(json.dumps(result))
    report.write_files(folder)
    assert "5.00" in report_text(folder / "report")


def test_networks_with_several_sources_of_a_class_are_not_compared(folder: Path):
    for seed in range(6):
        attempts = [{"device": "cpu", "threads": 1, "classes": {"mine.Halved": "ab" if seed < 3 else "cd"}}]
        for depth in (8, 20, 56):
            finish(a_run(folder, "plain", depth, seed), depth + seed)
            finish(a_run(folder, "halved", depth, seed), seed / 2, attempts=attempts)
    refusal = "several sources of mine.Halved: no claim"
    assert refusal in line(report_text(folder), "  depth 20 ")
    study = report.read_study(folder)
    (trend,) = [trend for trend in study.trends if trend.label == "halved"]
    assert trend.verdict == refusal
    assert trend.p_holm is None
    (deeper,) = [
        each for each in study.comparisons["Training error, deepest minus shallowest"] if "halved" in each.what
    ]
    assert deeper.verdict == refusal


def test_a_mean_that_falls_is_no_claim_that_the_error_grows(folder: Path):
    for depth, errors in ((8, (90, 1, 1, 1, 1)), (14, (91, 2, 2, 2, 2)), (20, (5, 3, 3, 3, 3))):
        for seed, error in enumerate(errors):
            finish(a_run(folder, "plain", depth, seed), error)
    (trend,) = report.read_study(folder).trends
    assert trend.verdict == (
        "training error grows with depth in its ranks, but not in its mean (18.80 and 3.40 %): no claim"
    )


def test_the_result_of_another_run_is_not_used(few: Path):
    first, other = a_run(few, "plain", 8, 7), a_run(few, "plain", 8, 7, width=16)
    finish(first, 5)
    shutil.copy(first.folder / "result.json", other.folder)
    shutil.copy(first.folder / "metrics.csv", other.folder)
    reasons = dict(report.read_study(few).unused)
    assert f"result.json is of the run {first.name}, but config.yaml of {other.name}" in reasons[other.name]


def test_published_errors_are_shown_next_to_ours(folder: Path, monkeypatch: pytest.MonkeyPatch):
    errors = {("identity", 20): ("8.75", "Somebody 2015, Table 6"), ("dropout", 20): ("> 20", "Another 2016")}

    def published(config: Config) -> Published | None:
        result = errors.get((config.shortcut, config.model["depth"]))
        return Published(*result, "he2015", {}, "64,000 steps") if result else None

    monkeypatch.setattr("plainres.reporting.table.published", published)
    finish(a_run(folder, "identity", 20, 0), 5)
    finish(a_run(folder, "identity", 32, 0), 5)
    finish(a_run(folder, "dropout", 20, 0, rate=0.5), 5)
    text = report_text(folder)
    assert "test, published" in line(text, "depth", "seeds", "train")
    assert "> 20 (64,000 steps)" in line(text, "20", "> 20")
    assert "test, published: by other authors" in text
    assert "(...): settings of their runs that differ" in " ".join(text.split())
    assert "(Another 2016; Somebody 2015, Table 6)" in " ".join(text.split())
    report.write_report(folder)
    with (folder / "report" / "table.csv").open() as file:
        rows = {(row["family"], row["depth"]): row for row in csv.DictReader(file)}
    assert rows["identity", "20"]["test_error_published"] == "8.75"
    assert rows["identity", "20"]["published_with"] == "64,000 steps"
    assert rows["identity", "20"]["source"] == "Somebody 2015, Table 6"
    assert rows["identity", "32"]["test_error_published"] == ""
    assert "&gt; 20" in (folder / "report" / "index.html").read_text()


def test_no_claim_across_training_budgets(folder: Path):
    for seed in range(3):
        finish(a_run(folder, "plain", 20, seed), 40 + seed)
        finish(a_run(folder, "identity", 20, seed, epochs=20), 2 * seed)
    text = report_text(folder)
    assert "Training budgets differ (230 steps of 64 images, or 460 steps of 64 images)" in text
    assert "All runs have the same" not in text
    assert "unequal training budgets" in line(text, "  depth 20 ")
    assert "is worse" not in text


def test_no_claim_across_settings(folder: Path):
    for seed in range(3):
        finish(a_run(folder, "plain", 20, seed, width=8), 40 + seed)
        finish(a_run(folder, "identity", 20, seed, width=16), 2 * seed)
    text = report_text(folder)
    assert "settings differ (width 16, width 8): no claim" in line(text, "  depth 20 ")
    assert "is worse" not in text


def test_no_claim_on_different_data(folder: Path):
    for seed in range(3):
        finish(a_run(folder, "plain", 20, seed), 40 + seed)
        finish(a_run(folder, "identity", 20, seed), 2 * seed, data_sha256="ef")
    text = report_text(folder)
    assert "saw different data" in " ".join(text.split())
    assert "different training data: no claim" in line(text, "  depth 20 ")


def test_a_mean_over_different_data_is_marked(folder: Path) -> None:
    for seed, digest in enumerate(("cd", "ef", "cd")):
        run = finish(a_run(folder, "identity", 20, seed), 2 * seed, data_sha256=digest)
        if digest == "ef":  # fewer images, so that an epoch has fewer steps
            file = run.folder / "metrics.csv"
            lines = file.read_text().splitlines()
            moved = [re.sub(r"^(\d+),(\d+)", lambda row: f"{row[1]},{int(row[2]) - 5}", text) for text in lines[1:-1]]
            file.write_text("\n".join([lines[0], *moved, lines[-1]]) + "\n")
    assert line(report_text(folder), "   20 ", "3 mixed").split()[3] == "2.00"
    report.write_report(folder)
    (row,) = rows(folder / "report" / "table.csv")
    assert row["conditions_differ"] == "images"
    runs = [Run.read(each) for each in sorted(folder.glob("identity*"))]
    steps, _ = figures.mean_curve(runs, "test/error")
    assert steps == [END]  # at the others it would be the mean over other seeds


def test_different_data_of_one_configuration_are_reported_in_spite_of_another(folder: Path):
    for seed in range(2):
        finish(a_run(folder, "plain", 20, seed), 40 + seed)
    other = a_run(folder, "plain", 20, 2)
    other.config.data["pad"] = 4
    other = Run.of(other.config)
    other.prepare()
    finish(other, 40)
    assert "saw different data" not in " ".join(report_text(folder).split())
    finish(a_run(folder, "identity", 20, 0), 2, data_sha256="ef")
    assert "saw different data" in " ".join(report_text(folder).split())


@pytest.mark.parametrize(
    ("changes", "name", "values"),
    [
        ({"device": "cpu B"}, "device", "cpu or cpu B"),
        ({"threads": 2}, "threads", "1 or 2"),
        ({"compile": True}, "compile", "False or True"),
        ({"cuda_graph": True}, "cuda_graph", "False or True"),
        ({"deterministic": True}, "deterministic", "False or True"),
        ({"devices": 2}, "number of devices", "1 or 2"),
        (
            {"devices": 2, "sync_batch_norm": True},
            "number of devices",
            "1 or 2 with synchronised batch normalisation",
        ),
        ({"versions": {"torch": "2.14.0"}}, "versions", "torch 2.13.0 or torch 2.14.0"),
        ({"source_sha256": "0123456789"}, "code", "plainres unknown or source 01234567"),
        ({"git_commit": "fedcba9876"}, "code", "commit fedcba98 or plainres unknown"),
        (
            {"attempts": [{"from_step": 0, "devices": 1}, {"from_step": 40, "devices": 2}]},
            "number of devices",
            "1 or 2",
        ),
    ],
)
def test_no_claim_under_different_conditions(folder: Path, changes: dict[str, Any], name: str, values: str) -> None:
    for seed in range(3):
        finish(a_run(folder, "plain", 20, seed), 40 + seed)
        finish(a_run(folder, "identity", 20, seed), 2 * seed, **(changes if seed == 2 else {}))
    text = report_text(folder)
    depth_20 = line(text, "  depth 20 ")
    assert "2 seeds: too few for a claim; add seeds, each with equal conditions for all its runs." in depth_20
    assert f"Seeds of unequal conditions, not used: 2 ({name})." in depth_20
    assert f"Conditions of training differ ({name}: {values})" in " ".join(text.split())
    assert line(text, "   20 ", "3 mixed").split()[3] == "2.00"
    report.write_report(folder)
    (row,) = [row for row in rows(folder / "report" / "table.csv") if row["family"] == "identity"]
    assert row["conditions_differ"] == name


def test_conditions_may_differ_between_seeds(folder: Path) -> None:
    for seed in range(3):
        for depth, error in {20: 40, 32: 50, 56: 60}.items():
            finish(a_run(folder, "plain", depth, seed), error + seed * (depth // 20), device=f"cpu {seed}")
            finish(a_run(folder, "identity", depth, seed), 2 * seed, device=f"cpu {seed}")
    text = report_text(folder)
    assert "plain is worse by 39.00 points" in line(text, "  depth 20 ")
    assert "degrades: deeper is worse by 21.00 points" in line(text, "  plain: 56 minus 20 ")
    assert "training error grows with depth, from 41.00 to 62.00 %" in text
    said = " ".join(text.split())
    assert "differ (device: cpu 0 or cpu 1 or cpu 2). Comparisons leave out the seeds within which they" in said
    assert line(text, "   20 ", "3 mixed")

    shutil.rmtree(folder)
    for seed in range(4):
        for depth, error in {20: 40, 32: 50, 56: 60}.items():
            device = "cpu B" if (depth, seed) == (32, 0) else "cpu"
            finish(a_run(folder, "plain", depth, seed), error + seed * (depth // 20), device=device)
            finish(a_run(folder, "identity", depth, seed), 2 * seed)
    text = report_text(folder)
    depth_32 = line(text, "  depth 32 ")
    assert "plain is worse by 48.00 points. By seed: +49.00 (s1), +48.00 (s2), +47.00 (s3)." in depth_32
    assert depth_32.endswith("Seeds of unequal conditions, not used: 0 (device).")
    assert "plain is worse by 38.50 points" in line(text, "  depth 20 ")
    assert "grows with depth, from 42.00 to 64.00 %; seeds of unequal conditions, not used: 0" in " ".join(text.split())


def test_seeds_of_unequal_conditions_are_left_out(folder: Path) -> None:
    for seed in range(4):
        for depth, error in {20: 40, 32: 50, 56: 60}.items():
            device = "cpu B" if (depth, seed) == (56, 3) else "cpu"
            finish(a_run(folder, "plain", depth, seed), error + seed * (depth // 20), device=device)
            finish(a_run(folder, "identity", depth, seed), 2 * seed)
    with_them = report.read_study(folder)
    for path in folder.glob("*-s3-*"):
        shutil.rmtree(path)
    without = report.read_study(folder)

    ends, by_depth = with_them.comparisons.values()
    assert [each.unequal for each in (*ends, *by_depth)] == [{3: ["device"]}, {}, {}, {}, {3: ["device"]}]
    assert ends[0].cells["seeds"] == "3 seeds (unequal conditions: 3)"
    assert "Seeds of unequal conditions, not used: 3 (device)." in ends[0].seeds
    same_ends, same_by_depth = without.comparisons.values()
    assert ends[0].verdict.startswith("degrades: deeper is worse")
    assert (ends[0].difference, ends[0].verdict) == (same_ends[0].difference, same_ends[0].verdict)
    assert (by_depth[2].difference, by_depth[2].verdict) == (same_by_depth[2].difference, same_by_depth[2].verdict)
    assert with_them.trends[0].test == without.trends[0].test
    assert with_them.trends[0].verdict.endswith("; seeds of unequal conditions, not used: 3 (device)")


def test_too_few_seeds_of_equal_conditions_for_a_trend(folder: Path) -> None:
    for seed in range(3):
        for depth, error in {20: 40, 32: 50, 56: 60}.items():
            device = "cpu B" if depth == 56 and seed else "cpu"
            finish(a_run(folder, "plain", depth, seed), error + seed, device=device)
    (trend,) = report.read_study(folder).trends
    assert trend.verdict == (
        "fewer than two seeds have every depth in equal conditions: no test; add seeds; seeds of unequal conditions, "
        "not used: 1 (device), 2 (device)"
    )


def test_no_claim_if_the_conditions_of_every_seed_are_unequal(folder: Path) -> None:
    for seed in range(3):
        for depth, error in {20: 40, 32: 50, 56: 60}.items():
            finish(a_run(folder, "plain", depth, seed), error + seed * (depth // 20), device=f"cpu {depth}")
    text = report_text(folder)
    ends = line(text, "  plain: 56 minus 20 ")
    assert "unequal conditions (device): no claim. By seed: +20.00 (s0), +21.00 (s1), +22.00 (s2)." in ends
    assert "+21.00" in ends
    assert "training error grows with depth" not in text


def test_conditions_that_change_no_result_are_ignored(folder: Path) -> None:
    for seed in range(3):
        versions = {"python": f"3.1{seed}", "torch": "2.13.0", "hydra-core": str(seed), "plainres": str(seed)}
        source = {"source_sha256": "01", "git_commit": f"{seed}-dirty", "versions": versions}
        finish(a_run(folder, "plain", 20, seed), 40 + seed, **source)
        finish(a_run(folder, "identity", 20, seed), 2 * seed, **source)
    text = report_text(folder)
    assert "plain is worse by 39.00 points" in line(text, "  depth 20 ")
    assert "Conditions" not in text


def test_two_modified_checkouts_never_count_as_the_same_code(folder: Path) -> None:
    for seed in range(3):
        finish(a_run(folder, "plain", 20, seed), 40 + seed, git_commit="01-dirty")
        finish(a_run(folder, "identity", 20, seed), 2 * seed, git_commit="01-dirty")
    assert "unequal conditions (code): no claim" in line(report_text(folder), "  depth 20 ")


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        ({"norm": "batch"}, {"norm": "batch", "shortcut_norm": None}, "model.shortcut.norm None"),
        ({"norm": "batch"}, {"norm": "batch", "shortcut_norm": {"_target_": "somewhere.Group"}}, "somewhere.Group"),
        ({"norm": "group"}, {"norm": "group", "shortcut_norm": {"_target_": "somewhere.Batch"}}, "somewhere.Batch"),
        (
            {"norm": "group"},
            {"norm": "group", "shortcut_norm": {"_target_": "somewhere.Group", "groups": 2}},
            "model.shortcut.norm.groups 2",
        ),
    ],
)
def test_a_shortcuts_normalisation_defines_a_family_unless_it_repeats_the_networks(
    folder: Path, one: dict[str, Any], other: dict[str, Any], differs: str
) -> None:
    repeated = {"batch": {"_target_": "somewhere.Batch"}, "group": {"_target_": "somewhere.Group", "groups": 8}}
    for seed in range(2):
        finish(a_run(folder, "projection_all", 20, seed, **{"shortcut_norm": repeated[one["norm"]], **one}), 10)
        finish(a_run(folder, "projection_all", 20, seed, **other), 20)
    study = report.read_study(folder)
    assert len(study.families) == 2
    assert any(differs in family.label for family in study.families)
    assert [len(row.runs) for family in study.families for row in table.rows(family)] == [2, 2]


def test_a_repeated_normalisation_is_ignored(folder: Path) -> None:
    for norm, own in (
        ("batch", {"_target_": "somewhere.Batch"}),
        ("group", {"_target_": "somewhere.Group", "groups": 8}),
    ):
        finish(a_run(folder, "projection_all", 20, 0, norm=norm, shortcut_norm=own), 10)
        finish(a_run(folder, "identity", 20, 0, norm=norm), 10)
    labels = {family.label for family in report.read_study(folder).families}
    assert labels == {f"{name} (norm {norm})" for name in ("projection_all", "identity") for norm in ("batch", "group")}


def test_two_runs_that_cannot_be_distinguished_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (8, 16):
        finish(a_run(folder, "plain", 20, 0, width=width), 10)
    monkeypatch.setattr(
        "plainres.reporting.study.labelled", lambda runs: {run.name: ("plain", {SHORTCUT: "plain"}) for run in runs}
    )
    with pytest.raises(
        InputError, match=r"plain-20-w16-s0-.* and .*plain-20-w8-s0-.* cannot distinguish them.* seed 0"
    ):
        report.read_study(folder)


def test_one_run_is_reported_without_a_claim(folder: Path):
    finish(a_run(folder, "identity", 20, 0, epochs=1), 5)
    text = report.write_report(folder)
    assert "1 finished run: identity; depth 20; seed 0." in text
    assert "Final errors in %: one seed per row, so no s.d." in text
    assert "\nTraining budget: 23 steps of 64 images.\n" in text
    nothing = "Nothing to compare yet: add runs with another model.depth, or with {}, to this study."
    baseline = nothing.format("model/shortcut=plain, the baseline of this report")
    assert baseline in " ".join(text.split())
    page = (folder / "report" / "index.html").read_text()
    assert baseline in page
    assert "mean and sample s.d." not in page
    for run in folder.glob("identity-*"):
        shutil.rmtree(run)
    finish(a_run(folder, "plain", 20, 0), 5)
    assert nothing.format("another model/shortcut than plain") in " ".join(report_text(folder).split())
    a_run(folder, "identity", 20, 0)
    left = "Nothing to compare yet: 1 run of this study is not finished; run its `plainres train` command again."
    assert left in " ".join(report_text(folder).split())


def test_one_seed_has_no_spread_in_figures(few: Path):
    runs = [Run.read(path) for path in sorted(few.glob("plain-*"))]
    several = figures.error_by_depth({"plain": {8: dict(enumerate(runs))}})
    one = figures.error_by_depth({"plain": {8: {0: runs[0]}}})
    assert [figure.axes[0].get_title() for figure in (several, one)] == [
        *("Mean and s.d. over seeds; small circles: the seeds", "One seed per family and depth")
    ]


@pytest.mark.parametrize("columns", [50, 80, 300])
def test_the_text_fits_into_the_terminal(study: Path, columns: int):
    for seed in range(5):
        for setting in ({"norm": "batch"}, {"norm": "group", "groups": 4}):
            finish(a_run(study, "projection_all", 8, seed, **setting), seed)
            finish(a_run(study, "projection_all", 20, seed, **setting), seed + 5 + seed * seed)
    a_run(study, "projection_all", 8, 8, norm="group").fail("the loss is NaN")
    text = report.text(report.read_study(study), columns)
    lines = text.splitlines()[1:]  # the first one is a path
    assert max(map(len, lines)) <= columns
    dropped = {
        50: "train, running; test, best epoch*; parameters; multiply-adds",
        80: "test, best epoch*; parameters; multiply-adds",
    }
    words = " ".join(text.split())
    assert re.findall(r"Left out for lack of room: (.*?) \(see table.csv", words) == [
        *filter(None, [dropped.get(columns)])
    ]
    assert ("* selected on the test set" in text) == (columns > 80)
    assert ("Left out for lack of room: p; sign-flip (see index.html)." in words) == (columns == 50)
    assert ("exact test that assumes no distribution" in words) == (columns > 50)
    assert "\n  projection_all (norm group): 20 minus 8" in text
    assert all(run.name in text for run in map(Run.read, study.glob("projection_all-8-w8-s8-*")))  # not split


def test_the_sign_flip_test_says_what_it_cannot_show(folder: Path):
    for seed in range(5):
        finish(a_run(folder, "plain", 20, seed), 40 + seed)
        finish(a_run(folder, "identity", 20, seed), seed / 3)
    text = " ".join(report.write_report(folder).split())
    limit = "With n seeds it cannot be below 2/2^n: with 5 seeds 0.062, so never below 0.05; with 6 seeds 0.031."
    assert limit in text
    page = (folder / "report" / "index.html").read_text()
    assert page.count(limit) == page.count("draws from one normal distribution") == 1


def test_no_folder(tmp_path: Path):
    with pytest.raises(InputError, match="is not a folder"):
        report.write_report(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path: Path):
    with pytest.raises(InputError, match="holds no runs; give the folder of a study, runs/<study>"):
        report.write_report(tmp_path)


def test_a_folder_without_runs(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"holds no runs \(photos: not the folder of a run: it has no config.yaml\)"):
        report.write_report(tmp_path)


def test_a_folder_of_studies(tmp_path: Path):
    a_run(tmp_path / "digits", "plain", 8, 0)
    a_run(tmp_path / "cifar10_quick", "plain", 8, 0)
    with pytest.raises(InputError, match="holds the studies cifar10_quick, digits; give one, such as "):
        report.write_report(tmp_path)


def test_a_single_runs_folder(folder: Path):
    run = a_run(folder, "plain", 8, 0)
    with pytest.raises(InputError, match=f"is a single run; give the folder of its study, {folder}"):
        report.write_report(run.folder)


def test_no_finished_run(folder: Path):
    run = a_run(folder, "plain", 8, 0)
    with pytest.raises(
        InputError,
        match=f"has no finished run; run its `plainres train` command again to resume .*{run.name}: missing",
    ):
        report.write_report(folder)
    assert not (folder / "report").exists()


def test_a_report_that_cannot_be_written(few: Path):
    (few / "report").write_text("")
    with pytest.raises(InputError, match="cannot write the report"):
        report.write_report(few)


def test_a_report_that_cannot_be_written_is_shown(few: Path, capsys: pytest.CaptureFixture[str]):
    (few / "report").write_text("")
    assert main(["report", str(few)]) == 2
    output = capsys.readouterr()
    assert output.out.splitlines() == report_text(few).splitlines()
    assert output.err == f"plainres: cannot write the report {few / 'report'}: File exists\n"


def test_the_study_of_another_user_is_reported_as_far_as_it_can_be_read():
    with shared_folder() as shared:
        study = shared / "digits"
        good, hidden, curve, state, folder = [a_run(study, "plain", 8, seed) for seed in range(5)]
        for run in (good, hidden, curve):
            finish(run, 1.0)
        (hidden.folder / "result.json").chmod(0o000)
        (curve.folder / "metrics.csv").chmod(0o000)
        (state.folder / "lock").touch(0o000)
        folder.folder.chmod(0o000)
        study.chmod(0o555)
        table = ["report", str(study), "--format", "markdown"]
        code, output, err = run_as_nobody(["report", str(study)], before=table)
    assert (code, err) == (2, f"plainres: cannot write the report {study / 'report'}: Permission denied\n")
    assert "1 finished run: plain; depth 8; seed 0." in output
    assert "result.json cannot be read: Permission denied" in line(output, hidden.name)
    assert "metrics.csv cannot be read: Permission denied" in line(output, curve.name)
    assert "lock cannot be read: Permission denied" in line(output, state.name)
    assert "config.yaml: Permission denied" in line(output, folder.name)


def test_copies_of_a_probes_file_and_hidden_figures_are_not_read(few: Path):
    run = Run.read(next(few.glob("plain-8-w8-s0-*")))
    file = observe(run)
    for name in ("responses (1).csv", "responses.sync-conflict-20260102-030405-ABCDEFG.csv", "._responses.csv"):
        shutil.copy(file, file.with_name(name))
    (run.folder / "._lesion.svg").touch()
    report.write_report(few)
    assert [path.name for path in (few / "report" / "probes").iterdir()] == ["responses.csv"]
    assert "._lesion" not in (few / "report" / "index.html").read_text()
    assert not report.read_study(few).unused
