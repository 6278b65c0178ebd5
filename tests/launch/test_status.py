"""`plainres status`: every state that a run can be in, as a person sees it."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

import plainres.launch.status
from plainres.cli.main import main
from plainres.config.schema import Config
from plainres.launch.status import watch
from plainres.runs.record import Run
from plainres.training.train import train
from support import forking
from support.places import PLAINRES

Make = Callable[..., Config]


def test_the_state_of_each_run(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [Run.of(make_config(seed=seed)) for seed in range(5)]
    finished, interrupted, failed, running, missing = runs
    train(finished)
    train(interrupted)
    (interrupted.folder / "result.json").unlink()
    for run in (failed, running, missing):
        run.prepare()
    failed.fail("the loss is no number")
    (running.folder / "progress.json").write_text(json.dumps({"step": 5, "steps": 105, "steps_per_s": 2.0}))
    folder = finished.folder.parent
    capsys.readouterr()
    with running.lock():
        assert main(["status", str(folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    lines = {line.split()[0]: " ".join(line.split()) for line in said if line}
    error = f"{finished.result['train_error']:.2f} % {finished.result['test_error']:.2f} %"
    assert lines[finished.name] == f"{finished.name} finished 6 {error}"
    assert lines[interrupted.name].startswith(f"{interrupted.name} interrupted 6 ")
    assert lines[failed.name] == f"{failed.name} failed the loss is no number"
    assert lines[running.name] == f"{running.name} running 5 of 105 64 50 s"
    assert lines[missing.name] == f"{missing.name} missing"
    counts = "1 finished, 1 running elsewhere, 1 interrupted, 1 failed, 1 missing"
    assert said[-1] == f"{folder}: 5 runs: {counts}"
    monkeypatch.setattr(plainres.launch.status, "QUIET_SECONDS", 0)
    assert main(["status", str(folder), "--watch"]) == 0  # nothing is running
    (finished.folder / "result.json").write_text("{}")
    assert main(["status", str(folder)]) == 0
    assert "result.json is damaged" in capsys.readouterr().out


def test_what_is_damaged_is_a_cell_of_the_table(make_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    unreadable, torn, headless, running = runs = [Run.of(make_config(seed=seed)) for seed in range(4)]
    for run in runs:
        run.prepare()
    (unreadable.folder / "config.yaml").write_text("seed: [")
    (torn.folder / "metrics.csv").write_text("epoch,step,train/error,test/error\n1,23,x,5\n")
    (headless.folder / "metrics.csv").write_text("1,23\n1,23\n")
    (running.folder / "progress.json").write_text('{"step": 3}')
    with running.lock():
        assert main(["status", str(torn.folder.parent)]) == 0
    said = capsys.readouterr().out.splitlines()
    lines = {line.split()[0]: " ".join(line.split()) for line in said if line}
    assert lines[unreadable.folder.name].startswith(
        f"{unreadable.folder.name} unreadable config.yaml is damaged, or of another version of plainres (line 1: "
    )
    assert lines[torn.name] == f"{torn.name} missing metrics.csv is damaged"
    assert lines[headless.name] == f"{headless.name} missing metrics.csv is damaged"
    assert lines[running.name] == f"{running.name} running"
    assert said[-1].endswith("4 runs: 1 running elsewhere, 2 missing, 1 unreadable")


class Clock:
    """Time that passes only while one sleeps; what happens at which second."""

    def __init__(self, happens: Mapping[int, Callable[[], object]]) -> None:
        self.now, self.happens = 0, happens

    def monotonic(self) -> int:
        return self.now

    def sleep(self, seconds: int) -> None:
        for second in range(self.now + 1, self.now + seconds + 1):
            self.happens.get(second, lambda: None)()
        self.now += seconds


def test_watching_outlasts_the_gap_between_two_runs(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (Run.of(make_config(seed=seed)) for seed in (0, 1))
    first.prepare()
    second.prepare()
    result = {"train_error": 1.0, "train_error_eval": 1.0, "test_error": 2.0, "weights_sha256": "ab", "steps": 9}
    at_work = ExitStack()
    at_work.enter_context(first.lock())

    def end(run: Run) -> None:
        at_work.close()
        run.finish(result)

    happens = {
        40: lambda: end(first),
        60: lambda: at_work.enter_context(second.lock()),
        100: lambda: end(second),
    }
    clock = Clock(happens)
    monkeypatch.setattr(plainres.launch.status, "time", clock)
    watch(first.folder.parent)
    assert clock.now == 100  # at once, for nothing is left
    tables = capsys.readouterr().out
    assert tables.count("runs: 1 running elsewhere, 1 missing\n") == 20
    assert tables.count("runs: 1 finished, 1 missing\n") == 10
    assert tables.count("runs: 1 finished, 1 running elsewhere\n") == 20
    assert tables.endswith("runs: 2 finished\n")


def test_watching_ends_where_nothing_goes_on(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.of(make_config())
    run.prepare()
    at_work = ExitStack()
    at_work.enter_context(run.lock())
    clock = Clock({20: at_work.close})
    monkeypatch.setattr(plainres.launch.status, "time", clock)
    watch(run.folder.parent)
    assert clock.now == 18 + plainres.launch.status.QUIET_SECONDS


def test_a_run_in_training_tells_how_fast_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["model.depth=8", "model.width=4", "data=synthetic", "data.shape=[1,8,8]", "optim.epochs=100000"]
    process = forking.Popen([PLAINRES, "train", *options], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 90
        while not list(tmp_path.glob("runs/default/*/progress.json")):
            assert process.poll() is None
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.2)
        said = forking.run([PLAINRES, "status", "runs/default"]).stdout
        assert re.search(r"running +\d+ of 1600000 .* % +[\d.]+ % +[\d,]+ +\d", said), said
        process.terminate()
        process.wait(timeout=40)
        assert not list(tmp_path.glob("runs/default/*/progress.json"))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("folder", "message"), [("nowhere", "nowhere is not a folder"), (".", ". holds no runs")])
def test_mistakes(
    folder: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status", folder]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
