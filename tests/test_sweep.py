import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from plainres import sweep as sweep_module
from plainres.config import Config
from plainres.errors import InputError
from plainres.runs import Run
from plainres.sweep import _costs, _duration, sweep

Make = Callable[..., Config]


def test_only_what_is_missing_is_trained(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    runs = [Run.of(make_config(seed=seed)) for seed in range(3)]
    assert sweep(runs[:2]) == 0
    times = [(run.folder / "result.json").stat().st_mtime_ns for run in runs[:2]]
    assert "2 runs, 0 finished, 2 to train" in capfd.readouterr().err
    assert sweep([*runs, runs[0]]) == 0
    said = capfd.readouterr().err
    assert "3 runs, 2 finished, 1 to train" in said
    assert "[1/1] identity-8-w4-s2" in said
    assert "all done in" in said
    assert [(run.folder / "result.json").stat().st_mtime_ns for run in runs[:2]] == times
    assert sweep(runs) == 0
    assert "3 finished, 0 to train" in capfd.readouterr().err
    assert "6/6" in runs[2].log.read_text()


def test_a_mistake_in_one_run_stops_the_sweep_before_it_begins(make_config: Make, tmp_path: Path) -> None:
    runs = [Run.of(make_config()), Run.of(make_config(depth=21))]
    with pytest.raises(InputError, match=r"model.depth is 21"):
        sweep(runs)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(InputError, match="only 100 training images"):
        sweep([Run.of(make_config(optim={"batch_size": 101}))])


def test_a_run_that_fails_is_reported_and_the_others_go_on(
    make_config: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    broken, sound = Run.of(make_config(seed=0)), Run.of(make_config(seed=1))
    broken.prepare()
    (broken.folder / "metrics.csv").mkdir()  # cannot be written
    assert sweep([broken, sound]) == 1
    said = capfd.readouterr().err
    assert sound.finished
    assert not broken.finished
    assert "FAILED: IsADirectoryError" in said
    assert said.rstrip().splitlines()[-1].startswith(f"failed: {broken.name}: IsADirectoryError")
    assert str(broken.log) in said
    assert "Traceback" in broken.log.read_text()


def _killed(_: Path) -> str | None:
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def test_a_process_that_dies_costs_its_own_run_only(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep_module, "_train_quietly", _killed)
    assert sweep([Run.of(make_config(seed=seed)) for seed in range(3)]) == 3
    assert capfd.readouterr().err.count("FAILED: its process died") == 3


def test_cost_follows_multiply_adds_and_images(make_config: Make) -> None:
    shallow, deep, longer = _costs(
        [Run.of(make_config()), Run.of(make_config(depth=20)), Run.of(make_config(optim={"epochs": 4}))]
    )
    assert shallow == 48544 * 32 * 6
    assert longer == 2 * shallow
    assert deep > 2 * shallow


def test_durations() -> None:
    assert [_duration(seconds) for seconds in (4, 89, 120, 5399, 7200)] == ["4 s", "89 s", "2 min", "90 min", "2.0 h"]
