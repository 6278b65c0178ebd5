"""Messages of a sweep on the screen."""

from collections.abc import Callable
from pathlib import Path

import pytest

from plainres.config.schema import Config, Loggers
from plainres.launch import messages
from plainres.launch.messages import print_outcome, print_summary
from plainres.runs.record import Run
from support.study import a_run, finish

Make = Callable[..., Config]

REMAINING = ["29 left, about 10 min, until 12:34", "29 left, about 10 min", "29 left"]


def printed(run: Run, reason: str | None, capsys: pytest.CaptureFixture[str]) -> str:
    print_outcome("[ 1/30]", run, reason, elapsed="  120 s", remaining=REMAINING, name_columns=len(run.name))
    (line,) = capsys.readouterr().err.splitlines()
    return line


def at(columns: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "terminal_columns", lambda: columns)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (None, "{name} train error  12.50 %  test error  14.50 %    120 s   29 left, about 10 min, until 12:34"),
        (120, "{name} train error  12.50 %  test error  14.50 %    120 s   29 left, about 10 min"),
        (100, "{name} train error  12.50 %  test error  14.50 %    120 s   29 left"),
        (80, "{short} train  12.50 %  test  14.50 %    120 s   29 left"),
        (60, "{short} train  12.50 %  test  14.50 %"),
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
    assert text == "[ 1/30] " + line.format(name=run.name, short=run.name.rpartition("-")[0])
    assert columns is None or len(text) < columns


def test_a_failure_fits_into_the_terminal(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.of(make_config())
    at(None, monkeypatch)
    assert printed(run, "x" * 100, capsys).endswith(f"FAILED: {'x' * 100}    120 s   {REMAINING[0]}")
    at(80, monkeypatch)
    line = printed(run, "x" * 100, capsys)
    assert line.startswith("[ 1/30] identity-8-w4-s0 FAILED: xxx")
    assert line.endswith("x…")
    assert len(line) == 79


def test_the_summary_names_the_results_the_next_command_and_the_failures(
    make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = [finish(a_run(tmp_path / study, "plain", 8, 0), 1.0) for study in ("a", "my study")]
    failed = Run.of(make_config(runs=str(tmp_path), study="a", logger=Loggers(wandb=True)))
    assert print_summary([*finished, failed], [failed], [(failed, "the loss is NaN")]) == 1
    first, second = tmp_path / "a", tmp_path / "my study"
    assert capsys.readouterr().err.splitlines() == [
        f"results are in {first}, {second}; compare them with `plainres report {first} '{second}'`",
        f"W&B: logged offline in the runs' folders; `plainres wandb-sync {tmp_path}` uploads them for viewing",
        f"failed: {failed.name}: the loss is NaN",
    ]
    assert print_summary([failed], [], []) == 0
    assert not capsys.readouterr().err
