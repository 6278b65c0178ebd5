"""Tables of a study in LaTeX and Markdown, and reports on several studies."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexMacroNode, LatexNode, LatexSpecialsNode, LatexWalker

from plainres.cli.main import main
from plainres.reporting import report, table
from plainres.reporting.study import read_study
from support.study import a_run, finish


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "digits"
    for shortcut in ("plain", "projection_all"):
        for depth in (8, 20):
            for seed in (0, 1):
                finish(a_run(folder, shortcut, depth, seed), depth + 2 * seed)
    return folder


def flattened(nodes: list[LatexNode]) -> Iterator[LatexNode]:
    for node in nodes:
        yield node
        yield from flattened([*(getattr(node, "nodelist", None) or ())])


def test_the_latex_table_is_valid(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(study), "--format", "latex"]) == 0
    printed = capsys.readouterr().out
    assert not (study / "report").exists()
    nodes, _, _ = LatexWalker(printed, tolerant_parsing=False).get_latex_nodes()
    (tabular,) = [node for node in nodes if isinstance(node, LatexEnvironmentNode)]
    assert tabular.environmentname == "tabular"
    inside = [*flattened(tabular.nodelist)]
    macros = [node.macroname for node in inside if isinstance(node, LatexMacroNode)]
    assert macros.count("\\") == 1 + 4
    assert [macro for macro in macros if macro.endswith("rule")] == ["toprule", "midrule", "bottomrule"]
    assert macros.count("_") == 2  # projection\_all
    assert macros.count("pm") == 8
    ands = [node for node in inside if isinstance(node, LatexSpecialsNode) and node.specials_chars == "&"]
    assert len(ands) == 5 * 5
    assert r"plain & 8 & 2 & 9.00 $\pm$ 1.41 & 11.00 $\pm$ 1.41 & 8,000 \\" in printed


def test_special_characters_of_labels_are_escaped_in_latex() -> None:
    assert table._escaped(r"a_b & 50 % {x} #1 $2 ~ ^ \c") == (
        r"a\_b \& 50 \% \{x\} \#1 \$2 \textasciitilde{} \textasciicircum{} \textbackslash{}c"
    )


def test_the_markdown_table_has_a_row_for_each_family_and_depth(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(study), "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "| family | depth | seeds | train | test | parameters |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| plain | 8 | 2 | 9.00 ± 1.41 | 11.00 ± 1.41 | 8,000 |",
    ]
    assert len(lines) == 2 + 4


@pytest.mark.parametrize(
    ("averaged", "note"),
    [
        (23, "of the last epoch."),
        (33, "of the last epoch or, if that is partial, of the last two (33 steps)."),
        (None, "of the last epoch or, if that is partial, of the last two."),
    ],
)
def test_the_report_names_the_steps_that_the_running_error_averages(
    tmp_path: Path, averaged: int | None, note: str
) -> None:
    folder = tmp_path / "runs" / "digits"
    finish(a_run(folder, "plain", 8, 0), 5, **({"train_error_steps": averaged} if averaged else {}))
    text = " ".join(report.text(report.read_study(folder)).split())
    assert f"running: mean over the steps {note}" in text


def test_several_studies_are_compared(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "runs" / "more"
    for seed in (0, 1):
        finish(a_run(other, "identity", 8, seed), seed)
    again = finish(a_run(other, "plain", 8, 0), 8, weights_sha256="another")
    unfinished = a_run(other, "plain", 56, 0)
    assert main(["report", str(study), str(other)]) == 0
    text = capsys.readouterr().out
    home = tmp_path / "runs" / "digits+more"
    assert f"Report: {home / 'report' / 'index.html'}" in text
    assert "Training error, plain minus identity" in text
    first = next(study.glob("plain-8-w8-s0-*"))
    assert f"the same run as ../digits/{first.name}, with another result" in " ".join(text.split())
    page = (home / "report" / "index.html").read_text()
    for folder in (first, unfinished.folder, again.folder, next(other.glob("identity-8-w8-s1-*"))):
        assert f'href="../../{folder.relative_to(tmp_path / "runs")}' in page or f"../{folder.parent.name}" in page
    for link in (part.partition('"')[0] for part in page.split('href="')[1:]):
        assert link.startswith(("#", "data:")) or (home / "report" / link).exists(), link


def test_of_a_run_in_several_studies_the_finished_one_counts(tmp_path: Path) -> None:
    halves = [tmp_path / "runs" / name for name in ("one", "other")]
    for seed in (0, 1, 2):
        for half, folder in enumerate(halves):
            run = a_run(folder, "plain", 8, seed)
            if seed % 2 == half:
                finish(run, 5 + seed)
    study = report.read_study(*halves)
    assert [*study.families[0].runs[8]] == [0, 1, 2]
    assert not study.unfinished
    assert len(study.unused) == 3
    assert all(reason.startswith("the same run as ") for _, reason in study.unused)


def test_reports_of_evidence_and_runs_are_compared(study: Path, tmp_path: Path) -> None:
    report.write_report(study)
    kept = tmp_path / "experiments" / "kept"
    (study / "report").rename(tmp_path / "kept")
    kept.parent.mkdir()
    (tmp_path / "kept").rename(kept)
    other = tmp_path / "runs" / "more"
    finish(a_run(other, "identity", 8, 0), 1)
    families = report.read_study(kept, other).families
    assert [family.label for family in families] == ["plain", "identity", "projection_all"]


def test_a_report_is_opened(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or len(opened) == 1)
    assert main(["report", str(study), "--open"]) == 0
    assert opened == [(study / "report" / "index.html").resolve().as_uri()]
    assert "no browser" not in capsys.readouterr().err
    assert main(["report", str(study), "--open"]) == 0
    assert f"there is no browser to open {study / 'report' / 'index.html'} with" in capsys.readouterr().err


def test_validation_errors_have_columns_where_images_are_held_out(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = {"validation_error": 7.25, "validation_loss": 0.2, "best_validation_error": 6.5}
    held_out |= {"best_validation_error_epoch": 9, "test_error_at_best_validation": 8.75}
    for folder in study.glob("plain-*"):
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | held_out))
        head, *rows = (folder / "metrics.csv").read_text().splitlines()
        lines = [f"{head},validation/loss,validation/error", *(f"{row},0.5,12.5" for row in rows)]
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    report.write_report(study)
    folders = [study, study / "report"]  # the runs, and the evidence of them
    for folder in folders:
        families = read_study(folder).families
        head, *rows = table.shown(families)
        columns = [head.index(name) for name in ("validation", "test, best validation epoch")]
        assert [[row[column] for column in columns] for row in rows] == [["7.25 (0.00)", "8.75 (0.00)"]] * 2 + [
            ["", ""]
        ] * 2
        plain, other = (family.runs[8][0] for family in families)
        assert plain.curve()[-1]["validation/error"] == 12.5
        assert "validation/error" not in other.curve()[-1]
    with (study / "report" / "table.csv").open() as file:
        cells = [row["validation_error_mean"] for row in csv.DictReader(file)]
    assert cells == ["7.25", "7.25", "", ""]
    assert "validation error" in (study / "report" / "curves.svg").read_text()
