"""Messages of a sweep on the screen."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from plainres.config.schema import Config, Loggers, SweepOptions, Tuning
from plainres.launch import messages
from plainres.launch.messages import print_outcome, print_summary, remaining_time
from plainres.runs.record import Run
from support.study import a_run, finish

Make = Callable[..., Config]

REMAINING = ["29 left, about 10 min, ends around 12:34", "29 left, about 10 min", "29 left"]


def printed(run: Run, reason: str | None, capsys: pytest.CaptureFixture[str]) -> str:
    print_outcome(1, 30, run, reason, seconds=120, remaining=REMAINING, name_columns=len(run.name))
    (line,) = capsys.readouterr().err.splitlines()
    return line


def at(columns: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "terminal_columns", lambda: columns)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (
            None,
            "[ 1/30] {name}   2 min  train (eval)  12.50 %  test  14.50 %  29 left, about 10 min, ends around 12:34",
        ),
        (120, "[ 1/30] {name}   2 min  train (eval)  12.50 %  test  14.50 %  29 left, about 10 min"),
        (100, "[ 1/30] {name}   2 min  train (eval)  12.50 %  test  14.50 %  29 left"),
        (90, "[ 1/30] {name}   2 min  train (eval)  12.50 %  test  14.50 %"),
        (80, "[ 1/30] {short}   2 min  train (eval)  12.50 %  test  14.50 %"),
        (60, "{short}  train (eval)  12.50 %  test  14.50 %"),
    ],
)
def test_an_outcome_fits_into_the_terminal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    columns: int | None,
    line: str,
) -> None:
    run = finish(a_run(tmp_path / "digits", "identity", 110, 0), 12.5)
    at(columns, monkeypatch)
    text = printed(run, None, capsys)
    assert text == line.format(name=run.name, short=run.name.rpartition("-")[0])
    assert columns is None or len(text) < columns


def test_an_outcome_of_a_tuned_sweep_has_the_value_and_the_validation_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "digits", "identity", 8, 0, validation_per_class=20)
    tune = Tuning("optim.lr", [0.025, 0.05, 0.1], [0, 1, 2])
    tuned = Run.of(replace(run.config, sweep=SweepOptions(tune=tune)))
    at(None, monkeypatch)
    text = printed(finish(tuned, 12.5, validation_error=13.0), None, capsys)
    lr = f"lr={tuned.config.optim.lr:<8g}"
    assert f"  {lr}  train (eval)  12.50 %  validation  13.00 %  test  14.50 %  29 left" in text
    assert print_summary([tuned], [tuned], [], 1) == 0  # the other seeds, which are compared, come later
    assert "plainres report" not in capsys.readouterr().err


def test_a_failure_fits_into_the_terminal(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.of(make_config())
    at(None, monkeypatch)
    line = printed(run, "x" * 100, capsys)
    assert line.startswith(f"[ 1/30] {run.name}   2 min  FAILED: xxx")
    assert line.endswith("x…")
    assert len(line) == 120
    at(80, monkeypatch)
    line = printed(run, "x" * 100, capsys)
    assert line.startswith("[ 1/30] identity-8-w4-s0   2 min  FAILED: xxx")
    assert line.endswith("x…")
    assert len(line) == 79


def test_the_duration_is_empty_if_it_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finish(a_run(tmp_path / "digits", "identity", 8, 0), 12.5)
    print_outcome(1, 1, run, None, seconds=None, remaining=["done"], name_columns=len(run.name))
    assert capsys.readouterr().err == f"[1/1] {run.name}          train (eval)  12.50 %  test  14.50 %  done\n"


@pytest.mark.parametrize(
    ("seconds", "longest"),
    [
        (600, "3 left, about 10 min, ends around 22:40"),
        (7200, "3 left, about 2.0 h, ends around Wed 00:30"),
    ],
)
def test_the_remaining_time_names_the_day_if_it_is_another(seconds: float, longest: str) -> None:
    versions = remaining_time(3, seconds, datetime(2030, 1, 1, 22, 30))
    assert versions == [longest, longest.partition(", ends")[0], "3 left"]


def test_the_summary_names_the_failures_then_the_results_and_the_next_commands(
    make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = [finish(a_run(tmp_path / study, "plain", 8, 0), 1.0) for study in ("a", "my study")]
    failed = Run.of(make_config(runs=str(tmp_path), study="a", logger=Loggers(wandb=True)))
    failed.prepare()
    failed.fail("the loss is NaN")
    assert print_summary([*finished, failed], [finished[0], failed], [(failed, "the loss is NaN")], 100) == 1
    first, second = tmp_path / "a", tmp_path / "my study"
    assert capsys.readouterr().err.splitlines() == [
        f"failed: {failed.name}: the loss is NaN",
        "add sweep.retry_failed=true to train failed runs again",
        "done in 2 min: 1 finished, 1 failed",
        f"results are in {first}, {second}; compare them with `plainres report {first} '{second}'`",
        f"W&B: logged offline in the runs' folders; `plainres wandb-sync {tmp_path}` uploads them for viewing",
    ]
    assert print_summary([failed], [], [], 1) == 0
    assert not capsys.readouterr().err
