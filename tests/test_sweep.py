import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plainres import sweep as sweep_module
from plainres.config import Config
from plainres.errors import InputError
from plainres.runs import Run
from plainres.sweep import _duration, _survey, sweep, train_quietly

Make = Callable[..., Config]


def test_only_what_is_missing_is_trained(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    runs = [Run.of(make_config(seed=seed)) for seed in range(3)]
    assert sweep(runs[:2]) == 0
    times = [(run.folder / "result.json").stat().st_mtime_ns for run in runs[:2]]
    assert "2 runs\n      2 missing" in capfd.readouterr().err
    assert sweep([*runs, runs[0]]) == 0
    said = capfd.readouterr().err
    assert "3 runs\n      2 finished\n      1 missing" in said
    assert "[1/1] identity-8-w4-s2" in said
    assert "all done in" in said
    assert [(run.folder / "result.json").stat().st_mtime_ns for run in runs[:2]] == times
    assert sweep(runs) == 0
    assert capfd.readouterr().err.endswith("3 runs\n      3 finished\n")
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


def _terminated(_: Run) -> None:
    raise SystemExit(3)


def test_a_run_that_ends_its_process_is_a_failed_one(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.of(make_config())
    monkeypatch.setattr("plainres.train.launch", _terminated)
    assert train_quietly(run) == "SystemExit: 3"
    assert "SystemExit" in run.log.read_text()


def _killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_costs_its_own_run_only(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep_module, "_work", _killed)
    assert sweep([Run.of(make_config(seed=seed)) for seed in range(3)]) == 3
    assert capfd.readouterr().err.count("FAILED: its process died (SIGKILL)") == 3


def _processes_of(session: int) -> set[int]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(process.name)) == session and "Z" not in (process / "stat").read_text().split(") ")[1][:1]:
                found.add(int(process.name))
    return found


def _wait_until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_leaves_no_process_behind(tmp_path: Path, how: signal.Signals) -> None:
    command = ["train", "-m", "data=synthetic", "data.train=1000", "optim.epochs=1000", "seed=0,1,2", "study=long"]
    sweep = subprocess.Popen(
        [Path(sys.executable).with_name("plainres"), *command],
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_until(lambda: list(tmp_path.glob("runs/long/*/metrics.csv")), 120)
        assert len(_processes_of(sweep.pid)) > 2
        if how is signal.SIGINT:
            os.killpg(sweep.pid, how)  # as a terminal does
        else:
            sweep.send_signal(how)
        _, said = sweep.communicate(timeout=30)
        _wait_until(lambda: not _processes_of(sweep.pid), 20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(sweep.pid, signal.SIGKILL)
    if how is signal.SIGKILL:
        return
    assert sweep.returncode == 128 + how
    assert said.splitlines()[-1] == "plainres: stopped: 3 of 3 runs are left; the same command goes on"
    assert "Traceback" not in said
    assert any(tmp_path.glob("runs/long/*/checkpoints/step-*.ckpt"))


def test_cost_follows_multiply_adds_and_images(make_config: Make) -> None:
    (shallow, deep, longer), _ = _survey(
        [Run.of(make_config()), Run.of(make_config(depth=20)), Run.of(make_config(optim={"epochs": 4}))]
    )
    assert shallow == 48544 * 32 * 6
    assert longer == 2 * shallow
    assert deep > 2 * shallow


def test_durations() -> None:
    assert [_duration(seconds) for seconds in (4, 89, 120, 5399, 7200)] == ["4 s", "89 s", "2 min", "90 min", "2.0 h"]
