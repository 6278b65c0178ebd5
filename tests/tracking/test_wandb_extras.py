"""Optional services of W&B: artifacts, alerts and system metrics; with the real client and a fake W&B server."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from plainres.analysis.evaluation import load_network
from plainres.config.schema import Config, Loggers
from plainres.errors import InputError
from plainres.runs.record import Run
from plainres.tracking import wandb_alert
from plainres.tracking.wandb_alert import Alerts
from plainres.tracking.wandb_logger import WandbLogger
from support import forking
from support.places import PLAINRES, TESTS
from support.wandb_server import WandbServer

SMALL = ["train", "data=synthetic", "data.train=64", "data.test=20", "model.depth=8", "model.width=4"]
SMALL += ["optim.batch_size=32", "optim.epochs=2", "logger=wandb"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    with WandbServer() as fake:
        for name, value in fake.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield fake
        assert not fake.unknown
        assert not fake.again


def plainres(*arguments: str | Path) -> str:
    """Run a command in another process, since the client keeps state; return what it printed to stderr and stdout."""
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    done = forking.run([PLAINRES, *arguments], env=environment, timeout=200)
    return done.stderr + done.stdout


def names(artifacts: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {each["name"]: sorted(set(each["files"]) - {"wandb_manifest.json"}) for each in artifacts}


def test_the_model_is_uploaded_with_the_run_and_predictions_once_they_exist(server: WandbServer) -> None:
    plainres(*SMALL, "logger.mode=online", "logger.artifacts=[model,predictions]")
    (folder,) = Path("runs/default").iterdir()
    run = Run.read(folder)
    checkpoint = f"checkpoints/step-{run.step:09}.ckpt"
    assert names(server.artifacts) == {f"{run.name}-model": [checkpoint, "config.yaml", "result.json"]}
    assert plainres("wandb-sync", folder) == f"{folder}: already uploaded\n"
    plainres("eval", folder)
    assert f"{folder}: uploaded predictions to {server.url}" in plainres("wandb-sync", folder)
    assert names(server.artifacts[1:]) == {f"{run.name}-predictions": ["predictions-synthetic.parquet"]}
    assert plainres("wandb-sync", folder) == f"{folder}: already uploaded\n"
    assert {artifact["type"] for artifact in server.artifacts} == {"model", "predictions"}
    assert len(server.artifacts) == 2


def test_the_model_of_an_offline_run_is_uploaded_later_and_can_be_loaded(server: WandbServer) -> None:
    plainres(*SMALL, "logger.artifacts=[model]")
    (folder,) = Path("runs/default").iterdir()
    assert not server.artifacts
    assert f"{folder}: uploaded 2 rows and model to {server.url}" in plainres("wandb-sync", folder)
    (artifact,) = server.artifacts
    downloaded = Path("downloaded")
    for name, content in artifact["files"].items():
        (downloaded / name).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / name).write_bytes(content)
    for one, other in zip(
        load_network(downloaded).state_dict().values(), load_network(folder).state_dict().values(), strict=True
    ):
        assert one.equal(other)


def test_an_artifact_that_does_not_arrive_is_said_and_uploaded_later(server: WandbServer) -> None:
    server.refuses_storage = 403
    output = plainres(*SMALL, "logger.mode=online", "logger.artifacts=[model]")
    (folder,) = Path("runs/default").iterdir()
    assert Run.read(folder).finished
    assert "W&B has not received everything (" in output
    assert "not uploaded" in plainres("wandb-sync", folder)
    server.refuses_storage = 0
    assert f"{folder}: uploaded model to" in plainres("wandb-sync", folder)


def test_a_run_of_which_all_rows_have_arrived_is_uploaded_already(server: WandbServer) -> None:
    """A process that is killed after its last row leaves an attempt that does not count as uploaded."""
    plainres(*SMALL, "logger.mode=online")
    (folder,) = Path("runs/default").iterdir()
    (mark,) = folder.glob("wandb/run-*/*.synced")
    mark.unlink()
    assert f"{folder}: already uploaded, all rows are at {server.url}" in plainres("wandb-sync", folder)
    assert plainres("wandb-sync", folder) == f"{folder}: already uploaded\n"


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_the_failure_of_a_run_of_a_sweep_sends_an_alert(server: WandbServer, launcher: str) -> None:
    options = ["logger.mode=online", "logger.alert=true", "optim.lr=1e30", "seed=0,1", f"hydra/launcher={launcher}"]
    plainres(*SMALL, *options, "-m")
    runs = sorted((run.name, run.failure) for run in map(Run.read, Path("runs/default").glob("*-*-*")))
    assert len(runs) == 2
    assert sorted((alert["title"], alert["text"]) for alert in server.alerts) == [
        (f"{name} failed"[:63], reason) for name, reason in runs
    ]
    assert {alert["severity"] for alert in server.alerts} == {"ERROR"}
    assert sorted(run.name for run in server.runs.values()) == [name for name, _ in runs]
    assert {run.exit_code for run in server.runs.values()} == {1}


def test_an_alert_that_cannot_be_sent_does_not_stop_a_sweep(server: WandbServer, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")
    options = ["logger.mode=online", "logger.alert=true", "optim.lr=1e30", "seed=0,1"]
    output = plainres(*SMALL, *options, "-m")
    assert output.count("W&B: no alert was sent about identity-8-w4-s") == 2
    assert "done in" in output


def test_a_sweep_continues_while_alerts_are_sent(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, reasons = threading.Event(), list[str]()

    def wait_for_answer(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        reasons.append(command[-1])
        answer.wait(60)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wandb_alert, "TIMEOUT", 1)
    monkeypatch.setattr(subprocess, "run", wait_for_answer)
    run = Run.of(make_config(logger=Loggers(wandb=True, mode="online", alert=True)))
    alerts = Alerts()
    for reason in ("the loss is NaN", "killed"):
        alerts.send(run, reason)
    alerts.wait()
    assert capsys.readouterr().err == "W&B: 2 alerts not sent within 1 s\n"
    assert reasons == ["the loss is NaN"]
    answer.set()
    alerts.wait()
    assert capsys.readouterr().err == ""
    assert reasons == ["the loss is NaN", "killed"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alert": True}, "logger.alert is true, but W&B is not chosen: add logger=wandb"),
        ({"artifacts": ["model"]}, "logger.artifacts is given, but W&B is not chosen: add logger=wandb"),
        ({"wandb": True, "alert": True}, "an alert is sent while the sweep runs: add logger.mode=online"),
        (
            {"wandb": True, "artifacts": ["weights"]},
            "logger.artifacts has 'weights'; it may have model and predictions",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Loggers(**values)


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_the_use_of_the_machine_is_measured_on_gpus_only(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    config = make_config(logger=Loggers(wandb=True))
    config.trainer.accelerator = accelerator
    given: list[Any] = []

    def init(**options: Any) -> Any:
        given.append(options["settings"])
        raise ValueError("stop here")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(ValueError, match="stop here"):
        WandbLogger(Run(config, tmp_path)).connect("offline")
    assert [each.x_disable_stats for each in given] == [accelerator == "cpu"]
