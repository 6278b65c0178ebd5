"""Reports on studies in which the value of an option was chosen."""

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from plainres.config.schema import SweepOptions, Tuning
from plainres.errors import InputError
from plainres.reporting import report
from plainres.reporting.choices import exponent, interval
from plainres.reporting.study import read_study
from plainres.reporting.values import values
from plainres.runs.record import DIVERGED, Run
from plainres.runs.tuning import Choice
from support.study import a_run, finish

GRID = [0.025, 0.05, 0.1]
# validation error of each depth by value; None: the run diverged
ERRORS: dict[int, dict[float, float | None]] = {
    8: {0.025: 30.0, 0.05: 20.0, 0.1: 25.0},
    20: {0.025: 30.0, 0.05: 20.0, 0.1: None},
    56: {0.025: 10.0, 0.05: 20.0, 0.1: 25.0},
}


def a_tuned_run(folder: Path, shortcut: str, depth: int, value: float, seed: int) -> Run:
    run = a_run(folder.parent / "untuned" / folder.name, shortcut, depth, seed, validation_per_class=20)
    tune = Tuning("optim.lr", GRID, [0, 1, 2], 0.1, extensions=0)
    config = replace(
        run.config, optim=replace(run.config.optim, lr=value), sweep=SweepOptions(tune=tune), runs=str(folder.parent)
    )
    tuned = Run.of(config)
    tuned.prepare()
    return tuned


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Plain and identity networks of three depths, each with the choices of ERRORS, compared at 0.1 and at the best."""
    folder = tmp_path / "runs" / "rates"
    for shortcut, factor in (("plain", 1.0), ("identity", 0.5)):
        for depth, errors in ERRORS.items():
            for value, error in errors.items():
                for seed in (0, 1, 2):
                    run = a_tuned_run(folder, shortcut, depth, value, seed)
                    if error is None:
                        run.fail(f"{DIVERGED}: the loss is NaN")
                    else:
                        finish(run, 5.0, validation_error=factor * error + seed)
            best = min((value for value in errors if errors[value]), key=lambda each: errors[each] or math.inf)
            for value in (0.1, best):
                for seed in (3, 4, 5):
                    finish(a_tuned_run(folder, shortcut, depth, value, seed), factor * depth * (1 + value) + seed)
    return folder


def test_networks_are_compared_at_an_equal_value_and_each_at_its_best(study: Path) -> None:
    read = read_study(study)
    labels = ["plain (best lr)", "plain (lr 0.1)", "identity (best lr)", "identity (lr 0.1)"]
    assert [family.label for family in read.families] == labels
    for family in read.families:
        assert {depth: list(by_seed) for depth, by_seed in family.runs.items()} == {
            8: [3, 4, 5],
            20: [3, 4, 5],
            56: [3, 4, 5],
        }
    best = {depth: by_seed[3].config.optim.lr for depth, by_seed in read.families[0].runs.items()}
    assert best == {8: 0.05, 20: 0.05, 56: 0.025}
    headings = [heading for heading in read.comparisons if "minus" in heading]
    assert "Training error, plain (best lr) minus identity (best lr)" in headings
    assert "Training error, plain (lr 0.1) minus identity (lr 0.1)" in headings
    assert len(headings) == 3  # and deepest minus shallowest
    verdicts = [each.verdict for group in read.comparisons.values() for each in group]
    assert not any("settings differ" in verdict or "unequal" in verdict for verdict in verdicts)


def test_the_text_has_each_choice_and_says_which_is_unfinished(study: Path) -> None:
    text = report.write_report(study, columns=120)
    rows = {tuple(line.split()[:2]): line for line in text.splitlines() if line.split()[1:2] in (["8"], ["20"], ["56"])}
    assert re.search(r"plain +8 +0.05 +0.05 to 0.05 +21.00$", rows["plain", "8"])
    assert rows["plain", "56"].endswith("unfinished: the best value is at the edge of the grid")
    assert "plain: no exponent, which needs 3 depths with a finished choice." in text
    assert "Expected by arXiv:2602.07494: depth^(-1.50)." in text
    assert (study / "report" / "tuned.svg").exists()
    assert 'id="tuned"' in (study / "report" / "index.html").read_text()


def test_the_report_on_evidence_has_the_same_choices_though_runs_diverged(study: Path, tmp_path: Path) -> None:
    text = report.write_report(study)
    kept = tmp_path / "experiments" / "rates"
    shutil.copytree(study / "report", kept)
    again = report.write_report(kept).replace(str(kept), "FOLDER")
    assert again == text.replace(str(study), "FOLDER")
    assert (kept / "report" / "tuned.svg").read_bytes() == (study / "report" / "tuned.svg").read_bytes()
    assert "diverged" in (kept / "configs.yaml").read_text()
    assert "Unfinished runs" not in text


def test_every_run_is_recorded_once(study: Path) -> None:
    read = read_study(study)
    names = list(read.results["folder"])
    assert len(names) == len(set(names))
    assert len(names) == sum(1 for _ in study.glob("*/result.json"))


def test_a_run_at_both_values_belongs_to_both_families(study: Path) -> None:
    """If 0.1 is the best value of a network, its runs are compared in both ways."""
    for folder in study.glob("*-8-w8-s*"):
        run = Run.read(folder)
        if run.config.seed < 3 and run.config.optim.lr == 0.1:
            finish(run, 5.0, validation_error=1.0)
    at_best, at_equal, *_ = read_study(study).families
    assert at_best.runs[8] == at_equal.runs[8]


def test_a_compared_run_that_diverged_is_listed_once(study: Path) -> None:
    (run,) = [run for _, run in read_study(study).runs if run.name == a_tuned_run(study, "plain", 8, 0.1, 3).name]
    (run.folder / "result.json").unlink()
    run.fail(f"{DIVERGED}: the loss is NaN")
    read = read_study(study)
    assert [name for name, _ in read.unfinished] == [run.name]
    assert read.absent == []
    shutil.rmtree(run.folder)
    read = read_study(study)
    assert read.unfinished == []
    assert read.absent == [("plain (lr 0.1), seed 3", "missing: depth 8")]


def test_without_compared_runs_the_report_says_what_is_left(study: Path) -> None:
    for folder in study.glob("*-s[345]-*"):
        shutil.rmtree(folder)
    with pytest.raises(InputError, match="only runs among which values are chosen"):
        read_study(study)


def test_a_missing_candidate_leaves_the_choice_open(study: Path) -> None:
    (folder,) = (each for each in study.glob("plain-8-w8-s0-*") if Run.read(each).config.optim.lr == 0.05)
    shutil.rmtree(folder)
    tuned = read_study(study).tuned
    assert tuned is not None
    assert tuned.choices["plain"][8].best is None
    assert ("plain", "8", "", "", "", "unfinished: runs are missing") in tuned.rows


def test_the_range_ends_where_the_error_is_shown_to_be_higher() -> None:
    by_value = {0.1: (9, 9.5, 10), 0.2: (5, 6, 9), 0.4: (5, 6, 7), 0.8: (8.1, 9, 9.9), 1.6: (5, 6, 8)}
    chosen = Choice({value: dict(enumerate(errors)) for value, errors in by_value.items()}, (0, 1, 2))
    assert chosen.best == 0.4
    assert interval(chosen) == (0.2, 0.4)
    assert interval(Choice({1.0: {0: 1.0, 1: 2.0}, 2.0: {0: 1.0, 1: 2.0}}, (0, 1))) is None


def test_a_value_with_the_same_larger_error_in_every_seed_is_higher() -> None:
    chosen = Choice(
        {0.1: {0: 2.0, 1: 3.0, 2: 4.0}, 0.2: {0: 1.0, 1: 2.0, 2: 3.0}, 0.4: dict.fromkeys(range(3), math.inf)},
        (0, 1, 2),
    )
    assert interval(chosen) == (0.2, 0.2)


def choice_of(best: float) -> Choice:
    errors = {best / 2: 2.0, best: 1.0, best * 2: 2.0}
    return Choice({value: dict.fromkeys(range(3), error) for value, error in errors.items()}, (0, 1, 2))


def test_the_exponent_of_an_exact_power_is_found_without_an_interval() -> None:
    fitted = exponent({depth: choice_of(3 * depth**-1.5) for depth in (8, 20, 56)})
    assert fitted is not None
    assert fitted.slope == pytest.approx(-1.5)
    assert math.exp(fitted.intercept) == pytest.approx(3)
    assert fitted.interval is None


def test_choices_in_unequal_conditions_have_no_part_in_the_exponent(study: Path) -> None:
    tuned = read_study(study).tuned
    assert tuned is not None
    choices = {"plain": {depth: choice_of(3 * depth**-1.5) for depth in (8, 20, 56)} | {110: choice_of(7.0)}}
    unequal = {"plain": {8: [], 20: [], 56: [], 110: ["device"]}}
    fitted = replace(tuned, choices=choices, unequal=unequal).fitted("plain")
    assert fitted is not None
    assert fitted.slope == pytest.approx(-1.5)
    two = {"plain": {depth: ["device"] for depth in (8, 20)}}
    assert replace(tuned, choices=choices, unequal=two).fitted("plain") is None


def test_the_exponents_interval_is_students() -> None:
    """Against the formula of a textbook: slope -+ t(0.975, n - 2) s / sqrt(sum (x - mean)^2)."""
    values = {8: 0.4, 20: 0.1, 32: 0.1, 56: 0.05}
    fitted = exponent({depth: choice_of(value) for depth, value in values.items()})
    assert fitted is not None
    assert fitted.interval is not None
    x, y = [math.log(d) for d in values], [math.log(v) for v in values.values()]
    mx, my = sum(x) / 4, sum(y) / 4
    sxx = sum((a - mx) ** 2 for a in x)
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sxx
    s = math.sqrt(sum((b - my - slope * (a - mx)) ** 2 for a, b in zip(x, y, strict=True)) / 2)
    half = 4.302652729911275 * s / math.sqrt(sxx)  # t(0.975, 2)
    assert fitted.slope == pytest.approx(slope)
    assert fitted.interval == pytest.approx((slope - half, slope + half))


def test_other_runs_of_the_same_networks_change_no_choice(study: Path) -> None:
    """A seed of the choice at a value that is not in the grid, and another seed at one that is not compared."""
    before = read_study(study)
    for value, seed in ((0.07, 0), (0.07, 4)):
        finish(a_tuned_run(study, "plain", 8, value, seed), 5.0, validation_error=0.1)
    after = read_study(study)
    assert before.tuned is not None
    assert after.tuned is not None
    assert after.tuned.choices == before.tuned.choices
    assert sorted(reason for _, reason in after.unused) == ["not at a compared optim.lr"] * 2
    assert [family.label for family in after.families] == [family.label for family in before.families]


def test_an_extension_that_is_not_finished_leaves_the_choice_open(study: Path) -> None:
    """At 56 layers the best value is at the edge, and a lower one, of which one seed has begun, may be better."""
    for folder in study.glob("*/config.yaml"):
        folder.write_text(folder.read_text().replace("extensions: 0", "extensions: 1"))
    begun = a_tuned_run(study, "plain", 56, 0.0125, 0)
    assert not begun.finished
    tuned = read_study(study).tuned
    assert tuned is not None
    assert tuned.choices["plain"][56].best is None
    assert tuned.choices["plain"][8].best == 0.05


def test_every_row_of_the_results_names_value_or_role(study: Path) -> None:
    families = set(read_study(study).results["family"])
    assert {"plain (lr 0.025): choice", "plain (best lr)", "identity (lr 0.1)"} <= families


def test_two_ways_of_choosing_are_refused(study: Path) -> None:
    run = a_tuned_run(study, "plain", 8, 0.05, 7)
    tune = Tuning("optim.weight_decay", [1e-5, 1e-4, 1e-3], [0, 1, 2])
    other = replace(run.config, sweep=SweepOptions(tune=tune), seed=8)
    again = Run.of(other)
    again.prepare()
    finish(again, 5.0)
    with pytest.raises(InputError, match=r"the runs have different sweep\.tune"):
        read_study(study)


def test_the_grids_of_two_commands_are_merged(study: Path) -> None:
    """One command without an equal value and extensions, and another one with them, each with a part of the values."""
    before = read_study(study).tuned
    for file in study.glob("plain*/config.yaml"):
        text = file.read_text()
        file.write_text(text.replace("equal: 0.1", "equal: null").replace("extensions: 0", "extensions: 1"))
    for value, error in ((0.0125, 40.0), (0.00625, 0.0)):  # at 56 layers the grid is extended to the first one only
        for depth in (8, 56):
            for seed in (0, 1, 2):
                finish(a_tuned_run(study, "plain", depth, value, seed), 5.0, validation_error=error + seed)
        for depth, seed in ((56, 0), (56, 1), (56, 2)):
            finish(a_tuned_run(study, "identity", depth, value, seed), 5.0, validation_error=error + seed)
    after = read_study(study).tuned
    assert before is not None
    assert after is not None
    assert list(after.choices["plain"][56].errors) == [0.0125, *GRID]
    assert list(after.choices["plain"][8].errors) == GRID
    assert [{d: c.best for d, c in by.items()} for by in after.choices.values()] == [
        {d: c.best for d, c in by.items()} for by in before.choices.values()
    ]
    assert [family.label for family in after.families] == [family.label for family in before.families]


def test_the_choice_is_part_of_the_values_for_programs(study: Path) -> None:
    read = read_study(study)
    assert read.tuned is not None
    tuned = values(read)["tuned"]
    assert (tuned["option"], list(tuned["seeds"])) == ("optim.lr", [0, 1, 2])
    choices = {(each["network"], each["depth"]): each for each in tuned["choices"]}
    assert choices["plain", "20"]["best"] == "0.05"
    assert choices["plain", "20"]["note"] == "diverged: 0.1"
    assert choices["plain", "56"]["note"] == "unfinished: the best value is at the edge of the grid"
    assert tuned["exponents"] == read.tuned.exponents


def test_a_report_does_not_ask_whether_a_network_may_have_a_further_value(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may take the images, which evidence lacks. The choice at the edge of the grid is marked instead."""
    for file in study.glob("*/config.yaml"):
        file.write_text(file.read_text().replace("extensions: 0", "extensions: 1"))
    monkeypatch.setattr("plainres.runs.tuning.check", lambda *_, **__: pytest.fail("the images are read"))
    tuned = read_study(study).tuned
    assert tuned is not None
    (row,) = [row for row in tuned.rows if row[:2] == ("plain", "56")]
    assert (row[2], row[-1]) == ("0.025", "unfinished: the best value is at the edge of the grid")


def test_two_equal_values_are_refused(study: Path) -> None:
    for file in study.glob("plain*/config.yaml"):
        file.write_text(file.read_text().replace("equal: 0.1", "equal: 0.05"))
    with pytest.raises(InputError, match=r"different sweep\.tune\.equal \(0\.05 and 0\.1\)"):
        read_study(study)


def test_values_that_diverged_and_unequal_conditions_are_named(study: Path) -> None:
    tuned = read_study(study).tuned
    assert tuned is not None
    notes = {(label, depth): note for label, depth, *_, note in tuned.rows}
    assert notes["plain", "20"] == "diverged: 0.1"
    assert "diverged" in report.write_report(study)
    assert "diverged" in (study / "report" / "tuned.svg").read_text()
    finish(a_tuned_run(study, "plain", 8, 0.025, 0), 5.0, validation_error=30.0, threads=2)
    tuned = read_study(study).tuned
    assert tuned is not None
    (row,) = [row for row in tuned.rows if row[:2] == ("plain", "8")]
    assert (row[3], row[-1]) == ("", "unequal conditions (threads): no range")
    finish(a_tuned_run(study, "plain", 8, 0.025, 0), 5.0, validation_error=30.0, data_sha256="other")
    changed = read_study(study)
    assert changed.tuned is not None
    (row,) = [row for row in changed.tuned.rows if row[:2] == ("plain", "8")]
    assert (row[3], row[-1]) == ("", "unequal conditions (images): no range")
    assert "Runs with the same data configuration saw different data" in changed.fairness
