"""`plainres status`: every state that a run can be in, as a person sees it."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plainres.cli import main
from plainres.config import Config
from plainres.runs import Run
from plainres.train import train

Make = Callable[..., Config]
PLAINRES = Path(sys.executable).with_name("plainres")


def test_the_state_of_each_run(make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert main(["status", str(folder), "--watch"]) == 0  # nothing is running
    (finished.folder / "result.json").write_text("{}")
    assert main(["status", str(folder)]) == 0
    assert "result.json is damaged" in capsys.readouterr().out


def test_a_run_in_training_tells_how_fast_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["model.depth=8", "model.width=4", "data=synthetic", "data.shape=[1,8,8]", "optim.epochs=100000"]
    process = subprocess.Popen([PLAINRES, "train", *options], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 90
        while not list(tmp_path.glob("runs/default/*/progress.json")):
            assert process.poll() is None
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.2)
        said = subprocess.run(
            [PLAINRES, "status", "runs/default"], capture_output=True, text=True, check=True, env=os.environ
        ).stdout
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
