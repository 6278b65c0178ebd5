"""A sweep on a real local Ray."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from plainres.runs.record import Run
from support import forking
from support.places import PLAINRES, TESTS

SWEEP = ["train", "-m", "model.depth=8", "model.width=4", "data=synthetic", "data.train=640", "data.shape=[1,8,8]"]
SWEEP += ["optim.batch_size=64", "optim.epochs=6", "seed=0,1", "checkpoint.every_n_steps=5"]
SWEEP += ["model._target_=support.recording.Recording"]


def test_choosing_ray_warns_of_nothing(tmp_path: Path) -> None:
    command = [PLAINRES, *SWEEP, "hydra/launcher=ray", "--dry-run"]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_worker_and_the_command_are_killed(tmp_path: Path) -> None:
    """Ray starts a killed worker's run again; the repeated command resumes the rest; the bits are equal."""
    environment = {"PYTHONPATH": str(TESTS), "RECORD": str(tmp_path / "record"), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [PLAINRES, *SWEEP, "hydra/launcher=ray"]

    def runs() -> list[Run]:
        return [Run.read(path.parent) for path in sorted(tmp_path.glob("runs/default/*/config.yaml"))]

    slow = os.environ | environment | {"RECORD_PAUSE": "0.1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=slow, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: [run for run in runs() if run.step >= 5 and run.owner_file.exists()], 300)
        first = next(run for run in runs() if run.step >= 5)
        owner = int(first.owner_file.read_text().partition('"process": ')[2].rstrip("}\n"))
        os.kill(owner, 9)
        wait_for(lambda: len(steps(tmp_path)) > 30 and first.owner_file.exists(), 300)
        process.kill()
        process.wait()
        wait_for(lambda: not any(run.locked for run in runs()), 200)  # the workers exit with the command
        repeated = forking.run(command, cwd=tmp_path, env=os.environ | environment, timeout=500)
    finally:
        process.kill()
        process.wait()
    assert repeated.returncode == 0, repeated.stderr
    assert "Traceback" not in repeated.stderr
    trained = {run.config.seed: run for run in runs()}
    assert all(run.finished for run in trained.values())
    assert 120 <= len(steps(tmp_path)) <= 120 + 3 * 6  # each end repeats at most the steps after a checkpoint
    whole = forking.run([PLAINRES, *SWEEP, "runs=whole"], cwd=tmp_path, env=os.environ | environment, timeout=500)
    assert whole.returncode == 0, whole.stderr
    for run in trained.values():
        other = Run.read(tmp_path / "whole" / "default" / run.name)
        assert run.result["weights_sha256"] == other.result["weights_sha256"]
        assert run.curve() == other.curve()


def steps(folder: Path) -> list[str]:
    file = folder / "record-0"
    return file.read_text().splitlines() if file.exists() else []


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)
