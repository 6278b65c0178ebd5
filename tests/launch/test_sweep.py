import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pytest

from plainres.cli.main import main
from plainres.config.schema import Config, SweepOptions
from plainres.console import duration
from plainres.errors import InputError
from plainres.launch import sweep as sweep_module
from plainres.launch.preflight import preflight, slots
from plainres.launch.sweep import sweep, train_quietly
from plainres.runs.record import Run
from support import forking
from support.places import PLAINRES, TESTS

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
    monkeypatch.setattr(sweep_module, "launch", _terminated)
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
    start = subprocess.Popen if how is signal.SIGTERM else forking.Popen
    sweep = start(
        [PLAINRES, *command],
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        curves = tmp_path.glob
        _wait_until(lambda: any(file.read_text().count("\n") > 1 for file in curves("runs/long/*/metrics.csv")), 120)
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
    (shallow, deep, longer), _ = preflight(
        [Run.of(make_config()), Run.of(make_config(depth=20)), Run.of(make_config(optim={"epochs": 4}))]
    )
    assert shallow == 48544 * 32 * 6
    assert longer == 2 * shallow
    assert deep > 2 * shallow


def test_urgent_runs_go_first_and_the_most_expensive_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["model.depth=8,14", "model.width=4", "seed=0,1", "data=synthetic", "data.train=64", "optim.epochs=1"]
    urgent = "sweep.priority=[{seed:1},{model/shortcut:plain}]"
    shortcuts = "model/shortcut=identity,plain"
    assert main(["train", "-m", *options, shortcuts, urgent, "sweep.runs_per_device=1"]) == 0
    lines = [line.split("] ")[1].split() for line in capfd.readouterr().err.splitlines() if line.startswith("[")]
    order = ["-".join(name.split("-")[:2] + name.split("-")[3:4]) for name, *_ in lines]
    assert sorted(order[:4]) == ["identity-14-s1", "identity-8-s1", "plain-14-s1", "plain-8-s1"]
    assert all("-14-" in name for name in order[:2])
    assert order[4:] == ["plain-14-s0", "plain-8-s0", "identity-14-s0", "identity-8-s0"]


def test_durations() -> None:
    assert [duration(seconds) for seconds in (4, 89, 120, 5399, 7200)] == ["4 s", "89 s", "2 min", "90 min", "2.0 h"]


RECORDED = ["data=synthetic", "data.train=640", "data.shape=[1,8,8]", "optim.batch_size=64", "model.width=4"]
RECORDED += ["model._target_=support.recording.Recording", "checkpoint.every_n_steps=5"]


def _plainres(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": str(TESTS), "RECORD": str(folder / "record")}
    return forking.Popen(
        [PLAINRES, *arguments],
        cwd=folder,
        env=os.environ | environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_sweep_killed_five_times_trains_nothing_twice(tmp_path: Path) -> None:
    seeds = ",".join(map(str, range(6)))
    sweep = ["train", "-m", *RECORDED, "model.depth=8,14", f"seed={seeds}", "optim.epochs=6"]
    choose = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    kills = 0
    while kills < 5:
        before = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/*/metrics.csv")}
        process = _plainres(killed, *sweep)
        try:
            _wait_until(
                lambda before=before: any(
                    path.stat().st_mtime_ns != before.get(path) for path in killed.glob("runs/*/*/metrics.csv")
                ),
                120,
            )
            time.sleep(choose.uniform(0, 0.5))
            assert process.poll() is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        kills += 1
    for folder in (killed, whole):
        process = _plainres(folder, *sweep)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    runs = [Run.read(path) for path in sorted(whole.glob("runs/default/*"))]
    assert len(runs) == 12
    for run in runs:
        other = Run.read(killed / run.folder.relative_to(whole))
        assert other.result["weights_sha256"] == run.result["weights_sha256"]
        assert other.curve() == run.curve()
    steps = [len((folder / "record-0").read_text().splitlines()) for folder in (whole, killed)]
    assert steps[0] == 12 * 60
    # of each of the runs that were killed, at most those after its last checkpoint, the one under way included
    assert steps[0] < steps[1] <= steps[0] + kills * (os.cpu_count() or 1) * 6


def test_a_failure_is_told_when_it_happens(tmp_path: Path) -> None:
    """While another run, which takes its time, is still being trained."""
    process = _plainres(tmp_path, "train", "-m", *RECORDED, "model.depth=8", "optim.epochs=20000", "optim.lr=1e30,1e-3")
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "FAILED" in line)
        (mark,) = tmp_path.glob("runs/default/*/failed.json")
        assert time.time() - mark.stat().st_mtime < 5  # seconds; a stop at the sweep's end would take minutes
        assert "the run has diverged" in line
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_run_that_another_process_trains_is_waited_for(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    runs = [Run.of(make_config(seed=seed)) for seed in range(2)]
    runs[0].prepare()
    held = threading.Event()

    def hold() -> None:
        with runs[0].lock():
            held.set()
            _wait_until(lambda: runs[1].finished, 60)
            time.sleep(1.5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert sweep(runs) == 0
    thread.join()
    said = capfd.readouterr().err
    assert f"1 running elsewhere\n          {runs[0].name}\n" in said
    assert f"{runs[0].name} is being trained by another process; it is waited for" in said
    assert "[2/2]" in said


@pytest.mark.parametrize(
    ("devices", "visible", "per_device", "expected"),
    [
        (1, "", "auto", ["0", "1", "2", "3"]),
        (1, "", 2, ["0", "0", "1", "1", "2", "2", "3", "3"]),
        (2, "", 1, ["0,1", "2,3"]),
        (1, "5,7", 1, ["5", "7"]),
    ],
)
def test_each_run_sees_its_own_gpus(
    make_config: Make, *, devices: int, visible: str, per_device: Any, expected: list[str]
) -> None:
    run = Run.of(
        make_config(trainer={"accelerator": "gpu", "devices": devices}, sweep=SweepOptions(runs_per_device=per_device))
    )
    assert slots([run], len(visible.split(",")) if visible else 4, visible) == expected


@pytest.mark.parametrize(
    ("threads", "at_a_time", "expected"), [(1, "auto", 8), (3, "auto", 2), (9, "auto", 1), (1, 3, 3), (4, 12, 12)]
)
def test_on_the_cpu_there_are_as_many_runs_as_threads_allow_or_as_was_asked_for(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, *, threads: int, at_a_time: Any, expected: int
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    run = Run.of(make_config(trainer={"threads": threads}, sweep=SweepOptions(runs_per_device=at_a_time)))
    assert slots([run], 0, "") == [None] * expected


@pytest.mark.parametrize("value", [0, 1.5, True, "many", None])
def test_other_numbers_of_runs_are_refused(make_config: Make, value: Any) -> None:
    with pytest.raises(InputError, match=r"sweep.runs_per_device is .*; it must be an integer >= 1, or auto"):
        SweepOptions(runs_per_device=value)
