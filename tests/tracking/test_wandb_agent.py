"""Runs that an agent of W&B starts: the real `wandb sweep` and `wandb agent`, with a fake W&B server."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from plainres.cli.main import main
from plainres.launch.status import status
from plainres.runs.record import Run
from plainres.tracking.wandb_files import STEP
from support import forking
from support.places import PLAINRES, TESTS
from support.wandb_server import ServerRun, WandbServer

DOCS = TESTS.parent / "docs"
SHORT = ["model.width=4", "data=synthetic", "data.train=64", "data.test=20", "optim.batch_size=32", "optim.epochs=8"]
SHORT += ["checkpoint.every_n_steps=1", "model._target_=support.recording.Recording"]
# the agent asks the server every 5 seconds
AGENT = "import sys, wandb.wandb_agent as w; w.Agent.POLL_INTERVAL = 0.2; w.agent(sys.argv[1])"


def test_a_sweep_with_agents_logs_each_folder_to_one_run(tmp_path: Path) -> None:
    """A killed run continues in its W&B run: resumed by the agent, or by hand; a finished run is not logged twice."""
    with WandbServer() as server:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        places = {
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CACHE_DIR": str(tmp_path / "cache"),
            "NETRC": str(tmp_path / "netrc"),
        }
        python = {"PATH": f"{Path(PLAINRES).parent}:{environment['PATH']}", "PYTHONPATH": str(TESTS)}
        environment |= server.environment | places | python
        del environment["WANDB_ENTITY"]  # part of the sweep's path
        slow = environment | {"RECORD": str(tmp_path / "record"), "RECORD_PAUSE": "0.5"}
        command = write_sweep(tmp_path)
        make_sweep(environment, tmp_path)
        with agent("tester/depths/sweep0", slow, tmp_path):
            wait_for(lambda: has_rows(tmp_path, "plain", 2))
            server.sweeps["sweep0"].resumed.append("sweep0run0")
            kill(tmp_path, "plain")
            wait_for(lambda: has_rows(tmp_path, "identity", 2))
            assert server.runs["sweep0run0"].exit_code == 0
        kill(tmp_path, "identity")
        wait_for(lambda: "1 finished, 1 interrupted" in status(tmp_path / "runs" / "agent"))
        quick = environment | {"RECORD": str(tmp_path / "record")}
        by_hand = forking.run([PLAINRES, *command, "model/shortcut=identity", "seed=0"], cwd=tmp_path, env=quick)
        assert by_hand.returncode == 0, by_hand.stderr
        check_runs(server, tmp_path)
        make_sweep(environment, tmp_path)
        with agent("tester/depths/sweep1", quick, tmp_path) as process:
            _, messages = process.communicate(timeout=300)
        assert f"{runs(tmp_path)['plain'].name} is finished already" in messages
        stays = "(tester/depths/sweep0run0); sweep1run0, which the agent has created, stays empty"
        assert f"W&B: already uploaded {stays}" in messages
        assert len(server.runs) == 4
        check_runs(server, tmp_path)
        assert not server.unknown
        assert not server.again


def test_a_finished_run_without_a_w_and_b_run_gets_that_of_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", *SHORT[:-1], "model.depth=8", f"runs={tmp_path}"]
    assert forking.run([PLAINRES, *command], cwd=tmp_path).returncode == 0
    with WandbServer() as server:
        server.runs["assigned"] = ServerRun("assigned", "depths", sweep="sweep0")
        assigned = {"WANDB_SWEEP_ID": "sweep0", "WANDB_RUN_ID": "assigned", "WANDB_PROJECT": "depths"}
        online = [PLAINRES, *command, "logger=wandb", "logger.mode=online"]
        for message in ("W&B: uploaded 8 rows to http://", "W&B: already uploaded (tester/depths/assigned)"):
            done = forking.run(online, cwd=tmp_path, env=os.environ | server.environment | assigned)
            assert done.returncode == 0
            assert message in done.stderr
        (run,) = server.runs.values()
        assert [row["epoch"] for row in run.rows] == list(range(1, 9))
        assert (run.sweep, run.project, run.exit_code) == ("sweep0", "depths", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.depth=8"], "which needs its curves: add logger=wandb logger.mode=online to the command in sweep.yaml"),
        (["model.depth=8", "logger=wandb"], "add logger=wandb logger.mode=online to the command in sweep.yaml"),
        (["-m", "model.depth=8,14", "logger=wandb", "logger.mode=online"], "it starts one run at a time, so list the "),
        (["-m", "model.depth=8,14", "hydra/launcher=joblib"], "it starts one run at a time, so list the values under "),
    ],
)
def test_what_an_agent_cannot_do_is_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments, "data=synthetic"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "unset WANDB_SWEEP_ID" in line
    assert not list(tmp_path.iterdir())


def write_sweep(folder: Path) -> list[str]:
    """Write the sweep.yaml of the manual, with two short runs; return its command without the parameters."""
    ((text),) = re.findall(r"```yaml\n(program: plainres.*?)```", (DOCS / "wandb.md").read_text(), re.DOTALL)
    sweep = yaml.safe_load(text)
    sweep["project"] = "depths"
    sweep["parameters"]["model.depth"]["values"] = [8]
    sweep["parameters"]["seed"]["values"] = [0]
    *command, parameters = sweep["command"]
    command += [*SHORT, "model.depth=8"]
    del sweep["parameters"]["model.depth"]
    sweep["command"] = [*command, parameters]
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return command[1:]


def make_sweep(environment: dict[str, str], folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "wandb", "sweep", "sweep.yaml"], cwd=folder, env=environment, check=True, timeout=300
    )


@contextmanager
def agent(sweep: str, environment: dict[str, str], folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run an agent in another process; kill it at the end."""
    command = [sys.executable, "-c", AGENT, sweep]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def runs(folder: Path) -> dict[str, Run]:
    """Return the runs by shortcut."""
    found = [Run.read(file.parent) for file in folder.glob("runs/agent/*/config.yaml")]
    return {run.config.shortcut: run for run in found}


def kill(folder: Path, shortcut: str) -> None:
    os.kill(json.loads(runs(folder)[shortcut].owner_file.read_text())["process"], signal.SIGKILL)


def has_rows(folder: Path, shortcut: str, count: int) -> bool:
    run = runs(folder).get(shortcut)
    return run is not None and len(run.curve()) >= count


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def check_runs(server: WandbServer, folder: Path) -> None:
    """Check that the first sweep's runs on the server have the rows of the runs in the folders, once."""
    for number, (shortcut, run) in enumerate(sorted(runs(folder).items(), reverse=True)):
        on_server = server.runs[f"sweep0run{number}"]
        assert on_server.name == run.name
        assert on_server.config["model/shortcut"] == on_server.config["shortcut"] == shortcut
        assert (on_server.project, on_server.sweep, on_server.exit_code) == ("depths", "sweep0", 0)
        assert [row[STEP] for row in on_server.rows] == [row["step"] for row in run.curve()] == list(range(2, 17, 2))
        assert on_server.summary["test_error"] == run.result["test_error"]
