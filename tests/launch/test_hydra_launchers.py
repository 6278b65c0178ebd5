"""Sweeps by Hydra launchers, runs on several machines, and a real SLURM cluster."""

import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from plainres.cli.main import main
from plainres.config.compose import Jobs
from plainres.config.schema import Config
from plainres.launch.hydra_launchers import _Monitor, train_job
from plainres.runs.record import Run
from support import forking
from support.places import PLAINRES, TESTS

SLURM = TESTS / "support" / "slurm.sh"
SMALL = ["model.depth=8", "model.width=4", "data=synthetic", "data.train=640", "optim.batch_size=64"]
SMALL += ["data.shape=[1,8,8]"]


def plainres(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return forking.run([PLAINRES, *arguments], env=os.environ | environment, timeout=200)


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Start a real SLURM cluster of two nodes on this machine; return the environment of its clients."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("SLURM daemons need Linux and root")
    if any(shutil.which(daemon) is None for daemon in ("slurmctld", "slurmd", "munged")):
        pytest.skip("SLURM is not installed (Debian: apt-get install slurm-wlm munge)")
    # one folder for all tests of this machine, since the ports of the cluster are fixed, too
    folder = Path(tempfile.gettempdir()) / "plainres-slurm"
    lock = FileLock(folder.with_suffix(".lock"))
    lock.acquire()
    try:
        subprocess.run([SLURM, "start", folder], check=True, capture_output=True, timeout=60)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        yield {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    finally:
        subprocess.run([SLURM, "stop", folder], check=False, capture_output=True, timeout=60)
        lock.release()


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.mark.parametrize("launcher", ["basic", "joblib", "slurm"])
def test_a_sweep_of_runs_on_several_devices(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Every worker gets the configuration of its run, and a failure in rank 1 fails only its own run."""
    environment = request.getfixturevalue("cluster") if launcher == "slurm" else {}
    monkeypatch.chdir(tmp_path)
    widths = [4, 5, 6]
    healthy = [width for width in widths if width != 5]
    environment |= {"PYTHONPATH": str(TESTS), "RECORD": str(tmp_path / "record"), "RECORD_FAIL": "5"}
    options = [
        "train",
        "-m",
        *SMALL,
        "model._target_=support.recording.Recording",
        f"model.width={','.join(map(str, widths))}",
        "trainer.devices=2",
    ]
    done = plainres(*options, "optim.epochs=2", f"hydra/launcher={launcher}", **environment)
    runs = {run.config.model["width"]: run for run in map(Run.read, sorted(tmp_path.glob("runs/default/iden*")))}
    assert done.returncode == 1, done.stderr
    assert [width for width, run in runs.items() if run.finished] == healthy, done.stderr
    *_, failed, _, counts, _ = done.stderr.splitlines()
    log = runs[5].log.relative_to(tmp_path)
    assert failed == f"failed: {runs[5].name}: ValueError: on purpose, in the second process (see {log})"
    assert re.fullmatch(r"done in \d+ s: 2 finished, 1 failed", counts)
    assert (
        len(re.findall(r"^\[\d/3\] identity\S+ +(?:\d+ s)?  (train \(eval\)|FAILED)", done.stderr, re.MULTILINE)) == 3
    )
    assert "Traceback" in runs[5].log.read_text()
    assert runs[5].failure == "ValueError: on purpose, in the second process"
    for rank in range(2):
        lines = [line.split()[:2] for line in (tmp_path / f"record-{rank}").read_text().splitlines()]
        assert all(size == "2" for _, size in lines)
        steps = [[width for width, _ in lines].count(str(width)) for width in widths]
        assert steps == [20 if width in healthy else 1 for width in widths]
    repeated = plainres(*options, "optim.epochs=2", f"hydra/launcher={launcher}", **environment)
    assert repeated.returncode == 1
    assert f"      {len(healthy)} finished\n      1 failed\n" in repeated.stderr
    assert "add sweep.retry_failed=true to train failed runs again" in repeated.stderr
    environment["RECORD_FAIL"] = ""
    again = plainres(*options, "optim.epochs=2", f"hydra/launcher={launcher}", "sweep.retry_failed=true", **environment)
    assert again.returncode == 0, again.stderr
    assert runs[5].finished
    assert not runs[5].failure


def test_a_sweep_on_slurm_starts_although_killed_tests_have_left_daemons(cluster: dict[str, str]) -> None:
    def daemons() -> set[int]:
        return {int(file.read_text()) for file in Path(cluster["SLURM_CONF"]).parent.glob("run/*.pid")}

    left = daemons()
    subprocess.run([SLURM, "start", Path(cluster["SLURM_CONF"]).parent], check=True, capture_output=True, timeout=60)
    assert len(daemons()) == len(left) == 4
    assert left.isdisjoint(daemons())


def test_a_sweep_on_slurm(cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requeue one job, signal the time limit to one, cancel one, and leave one alone."""
    monkeypatch.chdir(tmp_path)
    environment = cluster | {"PYTHONPATH": str(TESTS), "RECORD": str(tmp_path / "record"), "RECORD_PAUSE": "0.04"}
    sweep = ["train", "-m", *SMALL, "data.train=3200", "optim.epochs=8", "seed=0,1,2,3", "checkpoint.every_n_steps=50"]
    sweep += ["model._target_=support.recording.Recording"]
    process = subprocess.Popen(
        [PLAINRES, *sweep, "hydra/launcher=slurm"], env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )

    def job_of(seed: int) -> str:
        """Return the SLURM job that trains the run of a seed."""
        names = list(Path("runs/default/.jobs/.submitit").glob("*_*/*_submitted.pkl"))
        jobs = sorted({path.parent.name for path in names}, key=lambda job: int(job.split("_")[1]))
        return jobs[seed]

    def slurm(*command: str) -> None:
        subprocess.run(command, env=os.environ | cluster, check=True, capture_output=True)

    def runs() -> list[Run]:
        """Return the runs whose jobs have started."""
        configs = sorted(Path("runs/default").glob("identity-8-w4-s?-*/config.yaml"))
        return [Run.read(config.parent) for config in configs]

    wait_for(lambda: len(started := runs()) == 4 and all(run.step >= 50 for run in started), 100)
    slurm("scontrol", "requeue", job_of(0))
    slurm("scancel", "--signal=USR1", job_of(1))
    slurm("scancel", job_of(2))
    _, output = process.communicate(timeout=200)
    assert process.returncode == 1, output
    finished = {run.config.seed: run.finished for run in runs()}
    assert finished == {0: True, 1: True, 2: False, 3: True}, output
    assert f"failed: {runs()[2].name}: job " in output
    attempts = [run.result["attempts"] for run in runs() if run.finished]
    assert [len(parts) for parts in attempts] == [2, 2, 1]
    assert all(parts[1]["from_step"] >= 50 for parts in attempts[:2])
    assert "back in the queue" in "".join(
        path.read_text() for path in Path("runs/default/.jobs/.submitit").rglob("*_log.err")
    )
    environment["RECORD_PAUSE"] = "0"
    again = plainres(*sweep, "hydra/launcher=slurm", **environment)
    assert again.returncode == 0, again.stderr
    assert f"      3 finished\n      1 interrupted\n          {runs()[2].name} at step " in again.stderr
    here = plainres(*sweep, "runs=local", **environment)
    assert here.returncode == 0, here.stderr
    for run in runs():
        (local,) = Path("local/default").glob(run.name)
        other = Run.read(local)
        assert run.result["weights_sha256"] == other.result["weights_sha256"]
        assert run.curve() == other.curve()


def test_srun_starts_a_run_on_two_nodes(
    cluster: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["train", *SMALL, "optim.epochs=2", "trainer.devices=1", "trainer.num_nodes=2"]
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks-per-node=1", PLAINRES, *options],
        env=os.environ | cluster | {"MASTER_ADDR": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = Path("runs/default").iterdir()
    assert Run.read(folder).result["devices"] == 2
    assert done.stdout.count(str(folder)) == 1
    assert "Traceback" not in done.stderr


def test_torchrun_on_two_machines_survives_a_killed_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
    torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
    options = ["train", *SMALL, "optim.epochs=10", "trainer.num_nodes=2", "checkpoint.every_n_steps=5"]
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # without it torch 2.13 confuses the restarts
    agents = [
        subprocess.Popen([*torchrun, "-m", "plainres", *options], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        wait_for(lambda: list(tmp_path.glob("runs/default/*/checkpoints/*.ckpt")), 100)
        children = subprocess.run(
            ["pgrep", "--parent", str(agents[1].pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        (worker,) = [int(child) for child in children if b"plainres" in Path(f"/proc/{child}/cmdline").read_bytes()]
        os.kill(worker, 9)
        output = [agent.communicate(timeout=150)[1] for agent in agents]
        assert [agent.returncode for agent in agents] == [0, 0], output
    finally:
        for agent in agents:
            agent.kill()
    (folder,) = Path("runs/default").iterdir()
    attempts = Run.read(folder).result["attempts"]
    assert len(attempts) == 2
    assert attempts[1]["from_step"] >= 5
    for rank in range(2):  # a finished run is reported by the first rank alone
        ranks = {"TORCHELASTIC_RUN_ID": "x", "RANK": str(rank), "WORLD_SIZE": "2"}
        repeated = plainres(*options, **ranks)
        assert repeated.stderr.count("is finished already") == (rank == 0), repeated.stderr
    whole = plainres("train", *options[1:-2], "trainer.devices=2", "runs=whole")
    assert whole.returncode == 0, whole.stderr
    assert (
        Run.read(Path("whole/default") / folder.name).result["weights_sha256"]
        == (Run.read(folder).result["weights_sha256"])
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["trainer.num_nodes=2"], "trainer.num_nodes=2 need 2; start a run on several machines with torchrun or srun"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib starts the runs of a sweep: add -m"),
        (["-m", "hydra/launcher=nowhere"], "hydra/launcher=nowhere: there is no such launcher; there are basic"),
        (["-m", "hydra/launcher=joblib", "model.depth=8,21"], "model.depth is 21"),
        (["trainer.devices=3"], "it must be a multiple of 3"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, *options]) == 2
    output = capfd.readouterr().err
    assert message in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not list(tmp_path.rglob("result.json"))


def test_a_job_trains_the_run_that_was_composed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the launcher would compose another one: with the time or the job in its name, or in another folder."""
    monkeypatch.chdir(tmp_path)
    options = [*SMALL, "optim.epochs=1", "seed=0,1", "study='${now:%f}-${hydra:job.num}'", "hydra.job.chdir=true"]
    done = plainres("train", "-m", *options, "hydra/launcher=joblib", "runs=runs")
    assert done.returncode == 0, done.stderr
    runs = [Run.read(path.parent) for path in tmp_path.rglob("config.yaml")]
    jobs = {run.folder.parent.name.rpartition("-")[2]: run.config.seed for run in runs if run.finished}
    assert jobs == {"0": 0, "1": 1}
    assert all(run.folder == tmp_path / "runs" / run.config.study / run.name for run in runs)


def test_a_machine_without_the_devices_is_no_failure_of_the_run(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    run = Run.of(replace(config, trainer=replace(config.trainer, accelerator="gpu")))
    run.prepare()
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"job": {"num": 0}}))
    reason = train_job(zlib.compress(pickle.dumps([run])), DictConfig({}))
    assert reason is not None
    assert "GPU" in reason
    assert run.failure is None


def test_a_failure_is_reported_when_no_process_trains_the_run(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.of(make_config())
    run.prepare()
    run.fail("of another command")
    monitor = _Monitor([run])
    with run.lock():
        monitor.poll()
        assert not monitor.failed
    monitor.poll()
    assert monitor.failed == [(run, "of another command")]


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_within_a_group_of_processes_is_refused_once(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert main(["train", "-m", *SMALL, "seed=0,1", f"hydra/launcher={launcher}"]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line == (
        "plainres: a sweep starts in one process, but this process is one of 4 that srun has started, according to "
        "SLURM_STEP_NUM_TASKS; if it is not, prefix the command with `env -u SLURM_STEP_NUM_TASKS`"
    )
    assert not list(tmp_path.rglob("failed.json"))
    assert main(["train", *SMALL]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("plainres: trainer.devices=1 and trainer.num_nodes=1 need 1 processes, but this process is ")


def test_a_launcher_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plugins: Any = Plugins.instance()
    name = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    monkeypatch.delitem(plugins.class_name_to_class, name)
    assert main(["train", "-m", *SMALL, "seed=0,1", "hydra/launcher=slurm"]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line == "plainres: hydra/launcher=slurm is not installed: pip install 'plainres[slurm]'"


def test_a_launcher_that_starts_nothing_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("sbatch: error: invalid partition")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Jobs, "launch", fail)
    assert main(["train", "-m", *SMALL, "seed=0,1,2", "hydra/launcher=joblib"]) == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        "plainres: hydra/launcher=joblib failed: OSError: sbatch: error: invalid partition; no run has been trained"
    )
    assert not list(tmp_path.rglob("failed.json"))
