"""Evidence of studies, and a check that the committed evidence and figures are current."""

import shutil
from pathlib import Path

import pytest

from plainres.errors import InputError
from plainres.reporting import evidence, report
from plainres.reporting.study import read_study
from plainres.runs.record import Run
from support.places import ROOT
from support.study import END, a_run, data_of, finish, observe

COMMITTED = sorted(file.parent for file in (ROOT / "experiments").glob(f"*/{evidence.CONFIGS}"))
KEPT = (evidence.CONFIGS, evidence.RESULTS, evidence.CURVES)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "digits"
    for shortcut, error in (("plain", 20.0), ("identity", 1.0)):
        for depth in (8, 20):
            for seed in (0, 1):
                run = finish(a_run(folder, shortcut, depth, seed), error * depth / 8 + seed)
                observe(run, steps=(0, END))
    return folder


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_figures_are_drawn_from_the_committed_evidence(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("report"))
    report.write_report(copy)
    for name in [*KEPT, *(path.name for path in folder.glob("*.svg"))]:
        assert (copy / "report" / name).read_bytes() == (folder / name).read_bytes(), name
    for file in folder.glob("probes/*.csv"):
        assert (copy / "report" / "probes" / file.name).read_bytes() == file.read_bytes()


def test_studies_are_committed() -> None:
    assert {"digits", "cifar10_quick"} <= {folder.name for folder in COMMITTED}


def test_a_report_on_evidence_equals_the_report_on_the_runs(study: Path, tmp_path: Path) -> None:
    text = report.write_report(study)
    kept = tmp_path / "experiments" / "digits"
    shutil.copytree(study / "report", kept)
    assert report.write_report(kept).replace(str(kept), "FOLDER") == text.replace(str(study), "FOLDER")
    for file in (study / "report").glob("*.svg"):
        assert (kept / "report" / file.name).read_bytes() == file.read_bytes()
    assert (kept / "report" / "responses.svg").exists()
    pages = [(folder / "report" / "index.html").read_text() for folder in (study, kept)]
    assert data_of(pages[0]) == data_of(pages[1])
    assert 'href="../plain-8' in pages[0]
    assert 'href="../plain-8' not in pages[1]  # there is no such folder
    assert "plain-8-w8-s0-" in pages[1]
    assert "Several runs on one scale" not in pages[1]


def test_curves_are_thinned_to_their_last_row(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "ROWS", 4)
    report.write_report(study)
    for run in evidence.read(study / "report"):
        steps = [row["step"] for row in run.curve()]
        assert len(steps) == 4
        assert steps[-1] == run.result["steps"]
    (family, *_) = read_study(study / "report").families
    assert family.label == "plain"


def test_measurements_of_an_earlier_report_are_removed(study: Path) -> None:
    report.write_report(study)
    folder = study / "report"
    assert (folder / "responses.svg").exists()
    for run in map(Run.read, study.glob("*-w8-*")):
        run.config.probes.clear()
        run.prepare()
        (run.folder / "probes" / "responses.csv").unlink()
    report.write_report(study)
    assert not [*folder.glob("responses.*"), *folder.glob("probes/*")]


def test_evidence_contains_no_local_paths(study: Path) -> None:
    report.write_report(study)
    text = (study / "report" / evidence.CONFIGS).read_text()
    assert str(study.parent) not in text
    assert len({run.name for run in evidence.read(study / "report")}) == 8


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (evidence.CONFIGS, lambda text: text.replace("depth: 20", "depth: 32")),
        (evidence.CONFIGS, lambda text: text + "\n:"),
        (evidence.RESULTS, lambda text: "\n".join(text.splitlines()[:-1]) + "\n"),
        (evidence.CURVES, lambda text: text.replace("epoch", "epcoh", 1).replace(",1,", ",x,", 1)),
        (evidence.CURVES, lambda text: None),
    ],
)
def test_damaged_evidence_is_reported(study: Path, file: str, change) -> None:
    report.write_report(study)
    folder = study / "report"
    text = change((folder / file).read_text())
    (folder / file).write_text(text) if text is not None else (folder / file).unlink()
    with pytest.raises(InputError, match="is damaged evidence: ") as caught:
        evidence.read(folder)
    assert "\n" not in str(caught.value)
