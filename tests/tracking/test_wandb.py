"""Runs logged by the real W&B client, read back from its transaction logs and from a fake W&B server."""

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from kills import digits, elsewhere, final_state, kill_in_one_process, started
from plainres.cli.main import main
from plainres.config.schema import Config, Loggers
from plainres.data.sources import Images
from plainres.errors import InputError, RunFailedError
from plainres.launch import sweep as sweep_module
from plainres.launch.devices import launch
from plainres.launch.sweep import sweep
from plainres.reporting.study import read_study
from plainres.runs.identity import complete
from plainres.runs.record import Run
from plainres.tracking import wandb_client, wandb_logger
from plainres.tracking.wandb_files import STEP, Attempt, attempts, read
from plainres.tracking.wandb_sync import sync
from plainres.training.train import train
from support import forking
from support.places import TESTS
from support.study import a_run, finish
from support.wandb_server import ServerRun, WandbServer

Make = Callable[..., Config]

METRICS = ("train/loss", "train/error", "test/loss", "test/error")


@pytest.fixture(autouse=True)
def isolated_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Hide the user's account, server and files, and stop the client of the previous test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(sys, "argv", ["plainres"])
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as fake:
        for name, value in fake.environment.items():
            monkeypatch.setenv(name, value)
        yield fake
        wandb.teardown()
        assert not fake.unknown
        assert not fake.again


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = digits(tmp_path_factory.mktemp("whole"), 10**6)
    train(run)
    return run


def logged(whole: Run, folder: Path, every_n_steps: int = 7, mode: str = "offline") -> Run:
    """Return the same run in another folder, with the W&B logger."""
    run = elsewhere(whole, folder, every_n_steps)
    return Run(replace(run.config, logger=Loggers(wandb=True, mode=mode)), run.folder)


def curve(run: Run) -> list[dict[str, float]]:
    """Return the rows of a run as W&B must have them."""
    return [{STEP if key == "step" else key: value for key, value in row.items()} for row in run.curve()]


def points(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the rows that W&B has without its own times and row numbers; the numbers must ascend."""
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def summary(run: Run) -> dict[str, Any]:
    rows = run.curve()
    return {name: {"min": min(row[name] for row in rows), "last": rows[-1][name]} for name in METRICS}


def attempts_of(run: Run) -> list[Attempt]:
    """Stop the client, whose service may still be writing after it reported the end, and return a run's attempts."""
    wandb.teardown()
    return attempts(run.folder)


def moments(*conditions: Callable[[], bool]) -> Iterator[float]:
    """Wait for each condition in turn and yield 0.0, the time to wait after it."""
    for condition in conditions:
        end = time.monotonic() + 100
        while not condition():
            assert time.monotonic() < end, "timed out"
            time.sleep(0.005)
        yield 0.0


def test_a_run_has_name_group_tags_config_and_curves(whole: Run, tmp_path: Path) -> None:
    run = logged(whole, tmp_path)
    run.config.logger.tags = ["first"]
    train(run)
    assert final_state(run) == final_state(whole)
    (attempt,) = attempts_of(run)
    assert (attempt.name, attempt.group, attempt.job_type) == (run.name, "default", "train")
    assert sorted(attempt.tags) == ["depth-8", "digits", "first", "identity"]
    assert attempt.project == "plainres"
    assert attempt.id == (run.folder / "wandb" / "id").read_text().strip()
    assert {key: attempt.config[key] for key in complete(run.config)} == complete(run.config)
    assert (attempt.config["shortcut"], attempt.config["study"]) == ("identity", "default")
    assert attempt.config["model"]["depth"] == 8
    assert points(attempt.rows) == curve(run)
    assert {name: attempt.summary[name] for name in METRICS} == summary(run)
    assert attempt.summary["train_error_eval"] == run.result["train_error_eval"]
    assert attempt.axes == dict.fromkeys((*METRICS, "epoch", "lr"), STEP)
    assert (attempt.exit_code, attempt.online, attempt.sent) == (0, False, False)


@pytest.mark.parametrize(
    "values",
    [{"tags": ["x" * 65]}, {"tags": [""]}, {"project": "mine/net"}, {"project": ""}, {"project": "x" * 129}],
    ids=lambda values: next(iter(values)),
)
def test_what_w_and_b_would_reject_is_refused_before_the_first_step(values: dict[str, Any]) -> None:
    (key,) = values
    with pytest.raises(InputError, match=f"logger.{key} (has|is) .*; W&B allows 1 to "):
        Loggers(wandb=True, **values)


def test_variables_of_the_client_change_nothing(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    variables = {"MODE": "bogus", "DISABLED": "true", "PROJECT": "another", "RUN_ID": "taken", "TAGS": "a,,b"}
    for name, value in {**variables, "RESUME": "must", "NAME": "another", "DIR": "/nonexistent"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run = logged(whole, tmp_path)
    train(run)
    (attempt,) = attempts_of(run)
    assert (attempt.name, attempt.project, attempt.id) == (run.name, "plainres", wandb_client.place_of(run.folder).id)
    assert sorted(attempt.tags) == ["depth-8", "digits", "identity"]
    assert points(attempt.rows) == curve(run)
    assert "cannot be used" not in capfd.readouterr().err


def test_a_finished_run_without_a_record_is_uploaded_from_its_own_files(
    whole: Run, tmp_path: Path, server: WandbServer
) -> None:
    """Be it that the record was lost, or that the run was trained without W&B and is named explicitly."""
    lost, without = elsewhere(whole, tmp_path / "lost", 7), elsewhere(whole, tmp_path / "without", 7)
    for run in (lost, without):
        shutil.copytree(whole.folder, run.folder)
    lost = Run(replace(lost.config, logger=Loggers(wandb=True)), lost.folder)
    lost.prepare()
    assert [line.partition(":")[0] for line, sent in sync(tmp_path, 60) if sent] == [str(lost.folder)]
    check_server(server, lost)
    assert [sent for _, sent in sync(without.folder, 60)] == [True]


def test_without_the_logger_the_client_is_not_imported(tmp_path: Path) -> None:
    code = "import sys; from plainres.cli.main import main; code = main(sys.argv[1:]); print('wandb' in sys.modules); "
    code += "sys.exit(code)"
    small = ["train", "data=synthetic", "data.train=64", "model.depth=8", "model.width=4", "optim.epochs=1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *small], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def after(run: Run, rows: int) -> Callable[[], bool]:
    return lambda: len(run.curve()) >= rows and run.step > 0


def started_logging(run: Run) -> Callable[[], bool]:
    """Return a condition that holds once a new attempt has a transaction log, which is still empty."""
    before = len(list(run.folder.glob("wandb/*run-*/*.wandb")))
    return lambda: len(list(run.folder.glob("wandb/*run-*/*.wandb"))) > before


CASES = {  # steps between checkpoints, and when to kill: after this number of rows, or at the start of an attempt
    "at the start": (7, ["start"]),
    "in the first epoch": (2, [0]),
    "after one row": (7, [1]),
    "after two rows": (7, [2]),
    "after one row that is in no checkpoint": (26, [1]),
    "after two rows that are in no checkpoint": (24, [2]),
    "at each step": (1, [1]),
    "twice": (7, [1, 2]),
    "three times": (3, [0, 1, 2]),
    "after one row and at the start": (7, [1, "start"]),
}


@pytest.mark.parametrize("case", CASES)
def test_offline_a_killed_run_has_every_point_once(whole: Run, tmp_path: Path, case: str) -> None:
    every, when = CASES[case]
    run = logged(whole, tmp_path, every)
    conditions = (started_logging(run) if rows == "start" else after(run, int(rows)) for rows in when)
    assert kill_in_one_process(run, moments(*conditions)) == len(when)
    assert final_state(run) == final_state(whole)
    logs = attempts(run.folder)
    assert len(logs) in (len(when), len(when) + 1)  # attempts that start within the same second share a folder
    rows = [row for attempt in logs for row in attempt.rows]
    assert [row[STEP] for row in rows] == [25, 50, 75]
    assert [{key: value for key, value in row.items() if key[0] != "_"} for row in rows] == curve(run)
    assert {attempt.id for attempt in logs if not attempt.sent} == {logs[-1].id}
    assert {name: logs[-1].summary[name] for name in METRICS} == summary(run)
    assert [attempt.exit_code for attempt in logs] == [None] * (len(logs) - 1) + [0]


def check_server(server: WandbServer, run: Run, exit_code: int = 0) -> ServerRun:
    """Check that the server has the run and each of its rows once; return it."""
    (server_run,) = server.runs.values()
    assert points(server_run.rows) == curve(run)
    assert (server_run.name, server_run.group, server_run.job_type) == (run.name, "default", "train")
    assert server_run.config["model"]["depth"] == 8
    assert {name: server_run.summary[name] for name in METRICS} == summary(run)
    assert server_run.exit_code == exit_code
    return server_run


@pytest.mark.parametrize("modes", ["online online", "online online online", "offline online", "online offline online"])
def test_the_server_has_every_point_of_a_killed_run_once(
    whole: Run, tmp_path: Path, server: WandbServer, modes: str
) -> None:
    *killed, last = modes.split()
    for number, mode in enumerate(killed, 1):
        run = logged(whole, tmp_path, 7, mode)
        kill_once(run, server, lambda run=run, rows=number: len(run.curve()) >= rows and run.step > 0)
        assert mode == "offline" or server.runs
    run = logged(whole, tmp_path, 7, last)
    kill_in_one_process(run, iter(()), server.environment)
    assert final_state(run) == final_state(whole)
    check_server(server, run)
    assert all(attempt.sent for attempt in attempts(run.folder))
    ((line, sent),) = sync(run.folder, 60)  # where an attempt was killed, it says where its rows are
    assert (line.partition(",")[0], sent) == (f"{run.folder}: already uploaded", True)


def kill_once(run: Run, server: WandbServer, condition: Callable[[], bool]) -> None:
    """Kill a run when a condition holds, without resuming it."""
    process = started(run, server.environment)
    for _ in moments(condition):
        assert process.is_alive()
        process.kill()
    process.join()


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_run_that_begins_anew_on_other_images_is_another_w_and_b_run(
    whole: Run, tmp_path: Path, server: WandbServer, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B would keep the first rows that it gets, which are of the other images."""
    run = logged(whole, tmp_path, 10**6, mode)
    train(run)
    (run.folder / "result.json").unlink()
    for checkpoint in run.checkpoints.iterdir():
        checkpoint.unlink()
    monkeypatch.setattr(Images, "sha256", lambda images: "f" * 64)
    train(run)
    wandb.teardown()
    earlier = run.folder / ".earlier-1"
    assert [len(attempt.rows) for attempt in attempts(run.folder)] == [len(curve(run))]
    assert {sent for _, sent in sync(tmp_path, 60)} == {True}
    ids = [(folder / "wandb" / "id").read_text().strip().split("/")[-1] for folder in (run.folder, earlier)]
    assert len({*ids}) == 2
    assert points(server.runs[ids[0]].rows) == curve(run)
    assert points(server.runs[ids[1]].rows) == curve(Run(run.config, earlier))


@pytest.mark.parametrize("first", ["offline", "online"])
def test_the_sync_command_uploads_what_is_missing(
    whole: Run, tmp_path: Path, server: WandbServer, first: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = logged(whole, tmp_path, 7, first)
    kill_once(run, server, after(run, 1))
    run = logged(whole, tmp_path, 7)
    train(run)
    assert main(["wandb-sync", str(tmp_path)]) == 0
    output = capfd.readouterr()
    assert f"{run.folder}: " in output.out
    assert f" rows to {server.url}/tester/plainres/runs/" in output.out
    check_server(server, run)
    assert main(["wandb-sync", str(tmp_path)]) == 0
    assert capfd.readouterr().out == f"{run.folder}: already uploaded\n"
    check_server(server, run)


def test_an_older_copy_of_a_run_does_not_change_its_summary(
    whole: Run, tmp_path: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    run = logged(whole, tmp_path, 7)
    kill_once(run, server, after(run, 1))
    older = tmp_path / "older"
    shutil.copytree(run.folder, older)
    run = logged(whole, tmp_path, 7)
    train(run)
    assert [sent for _, sent in sync(run.folder, 60)] == [True]
    check_server(server, run)
    ((line, sent),) = sync(older, 60)
    assert sent
    assert re.search(r"nothing to upload: http\S+ has \d rows? more, from another copy of the run", line)
    check_server(server, run)


def test_failed_and_stopped_runs_are_marked_as_such(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Run.of(make_config(optim={"lr": 1e30, "epochs": 3}, logger=Loggers(wandb=True)))
    with pytest.raises(RunFailedError):
        train(failed)
    assert [attempt.exit_code for attempt in attempts_of(failed)] == [1]
    stopped = Run.of(make_config(optim={"epochs": 50}, logger=Loggers(wandb=True)))
    rows = []

    def stop(self: wandb_logger.WandbLogger, row: Any, step: int) -> None:
        rows.append(row)
        if len(rows) == 2:
            signal.raise_signal(signal.SIGTERM)

    log = wandb_logger.WandbLogger.log
    monkeypatch.setattr(wandb_logger.WandbLogger, "log", lambda *each: (log(*each), stop(*each)))
    with pytest.raises(SystemExit) as stop_error:
        train(stopped)
    assert stop_error.value.code == 128 + signal.SIGTERM
    (attempt,) = attempts_of(stopped)
    assert (attempt.exit_code, points(attempt.rows)) == (128 + signal.SIGTERM, curve(stopped))
    assert len(attempt.rows) == 2


OPTIONS = ["data=synthetic", "data.train=64", "data.test=20", "model.depth=8", "model.width=4", "optim.epochs=3"]


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("problem", ["no key", "a bad key", "refused", "silent", "no such host", "forbidden"])
def test_without_a_server_a_run_continues_and_is_logged_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb_client, "INIT_TIMEOUT", 2)
    with WandbServer() as server, socket.create_server(("127.0.0.1", 0)) as silent:
        environment = dict(server.environment)
        environment |= {
            "no key": {"WANDB_API_KEY": ""},
            "a bad key": {"WANDB_API_KEY": "not a key"},
            "refused": {"WANDB_BASE_URL": closed_port()},
            "silent": {"WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"},
            "no such host": {"WANDB_BASE_URL": "http://wandb.invalid"},
            "forbidden": {},
        }[problem]
        server.refuses = 403 if problem == "forbidden" else 0
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert main(["train", *OPTIONS, "logger=wandb", "logger.mode=online"]) == 0
        output = capfd.readouterr()
        assert [line for line in output.err.splitlines() if "W&B" in line or "wandb" in line] == [
            line for line in output.err.splitlines() if line.startswith("W&B is not online (")
        ]
        assert output.err.count("W&B is not online (") == 1
        run = Run.read(tmp_path / output.out.splitlines()[-1])
        logs = [attempt for attempt in attempts_of(run) if attempt.rows]
        assert [(points(attempt.rows), attempt.exit_code, attempt.online) for attempt in logs] == [
            (curve(run), 0, False)
        ]
        wandb.teardown()


# (what fails, its status, after how many rows); after the last two the client gives up (it uploads every 15 s)
@pytest.mark.parametrize("outage", [("refuses", 503, 1), ("refuses_rows", 403, 0), ("refuses_rows", 404, 0)])
def test_an_outage_during_training_prints_one_warning_and_the_rest_is_uploaded_later(
    whole: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    server: WandbServer,
    *,
    outage: tuple[str, int, int],
) -> None:
    failing, status, received = outage
    monkeypatch.setattr(wandb_client, "FINISH_TIMEOUT", 2)
    monkeypatch.setattr(wandb_client, "COUNT_TIMEOUT", 1)
    run = logged(whole, tmp_path, mode="online")
    log = wandb_logger.WandbLogger.log

    def log_and_fail(self: wandb_logger.WandbLogger, row: Any, step: int) -> None:
        log(self, row, step)
        if step == 25:
            server.wait_for_rows(received)
            setattr(server, failing, status)

    monkeypatch.setattr(wandb_logger.WandbLogger, "log", log_and_fail)
    train(run)
    assert final_state(run) == final_state(whole)
    output = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line or "wandb" in line]
    assert len(output) == 1
    assert output[0].startswith("W&B has not received everything (")
    assert [attempt.sent for attempt in attempts(run.folder)] == [False]
    assert points(attempts(run.folder)[0].rows) == curve(run)
    monkeypatch.setattr(wandb_logger.WandbLogger, "log", log)
    wandb.teardown()
    lines = list(sync(tmp_path, 2))  # the outage persists
    assert [(line.startswith(f"{run.folder}: not uploaded: "), sent) for line, sent in lines] == [(True, False)]
    server.refuses = server.refuses_rows = 0
    ((line, sent),) = sync(tmp_path, 60)
    assert (line.startswith(f"{run.folder}: uploaded {3 - received} rows to "), sent) == (True, True)
    check_server(server, run)
    assert list(sync(tmp_path, 60)) == [(f"{run.folder}: already uploaded", True)]


def test_a_client_that_dies_prints_one_warning(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], server: WandbServer
) -> None:
    run = logged(whole, tmp_path)
    log = wandb_logger.WandbLogger.log

    def log_and_kill(self: wandb_logger.WandbLogger, row: Any, step: int) -> None:
        log(self, row, step)
        if step == 25:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            core = [int(child) for child in children if "wandb-core" in Path(f"/proc/{child}/comm").read_text()]
            assert len(core) == 1
            os.kill(core[0], signal.SIGKILL)

    processes: list[subprocess.Popen[bytes]] = []
    initialise = subprocess.Popen.__init__

    def note(self: Any, *arguments: Any, **options: Any) -> None:
        initialise(self, *arguments, **options)
        processes.append(self)

    monkeypatch.setattr(subprocess.Popen, "__init__", note)
    monkeypatch.setattr(wandb_logger.WandbLogger, "log", log_and_kill)
    train(run)
    assert final_state(run) == final_state(whole)
    output = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line]
    assert len(output) == 1
    for process in processes:
        process.wait()  # the client does not wait for a service that died
    monkeypatch.setattr(wandb_logger.WandbLogger, "log", log)
    ((line, sent),) = sync(tmp_path, 60)
    assert (line.startswith(f"{run.folder}: uploaded 3 rows to "), sent) == (True, True)
    check_server(server, run)
    assert list(sync(tmp_path, 60)) == [(f"{run.folder}: already uploaded", True)]


def chunk(record: bytes, kind: int = 1) -> bytes:
    """Return a chunk of a transaction log with a correct CRC."""
    return struct.pack("<IHB", zlib.crc32(bytes([kind]) + record), len(record), kind) + record


def a_log(*rows: str) -> bytes:
    """Return a transaction log of rows with one value each, given as JSON."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    records = [Record()]
    records[0].run.run_id = "abc"
    for number, value in enumerate(rows):
        records.append(Record())
        records[-1].history.step.num = number
        item = records[-1].history.item.add()
        item.key, item.value_json = STEP, value
    return b":W&B\xe1\xbe\x00" + b"".join(chunk(record.SerializeToString()) for record in records)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (a_log("25", "50"), 2),
        (a_log("25", "50")[:-1], 1),
        (a_log("25")[:-1] + b"6" + a_log("50")[7:], 0),  # a byte that contradicts the CRC
        (a_log("25") + b"\xff" * 100, 1),
        (a_log("25") + bytes(100), 1),
        (a_log("25") + chunk(b"\xff" * 100) + a_log("50")[7:], 1),  # not a record
        (a_log("25") + chunk(b"\x12", 4) + a_log("50")[7:], 1),  # a last chunk without a first one
        (a_log("25", "", "50"), 1),
        (bytes(range(256)) * 300, 0),
        (b"", 0),
    ],
)
def test_a_transaction_log_is_read_up_to_the_first_damage(tmp_path: Path, content: bytes, rows: int) -> None:
    file = tmp_path / "run-abc.wandb"
    file.write_bytes(content)
    assert [row["_step"] for row in read(file).rows] == list(range(rows))


def damage(folder: Path, left: str) -> None:
    """Damage the only attempt as a power cut, or a kill right after its start, may do."""
    (attempt,) = attempts(folder)
    content = attempt.file.read_bytes()
    if left == "nothing":
        shutil.rmtree(attempt.folder)
    elif left == "no rows":
        attempt.file.write_bytes(content[: content.index(b"train/loss", content.index(b"trainer/global_step")) // 2])
    elif left == "no end":
        attempt.file.write_bytes(content[: content.rindex(b"weights_sha256")])
    else:
        attempt.file.write_bytes(b"" if left == "an empty file" else b":W&B\xe1\xbe\x00" + b"\xa5" * len(content))


@pytest.mark.parametrize("left", ["nothing", "an empty file", "garbage", "no rows", "no end"])
def test_rows_lost_from_a_log_are_uploaded_or_logged_again(
    whole: Run, tmp_path: Path, server: WandbServer, left: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = logged(whole, tmp_path)
    train(run)
    wandb.teardown()
    damage(run.folder, left)
    shutil.copytree(run.folder, tmp_path / "copy", symlinks=True)
    ((line, sent),) = sync(run.folder, 60)
    assert (line.startswith(f"{run.folder}: uploaded 3 rows to "), sent) == (True, True)
    check_server(server, run)
    again = Run(run.config, tmp_path / "copy")  # a run that resumes
    (again.folder / "result.json").unlink()
    max(again.checkpoints.iterdir()).unlink()
    before = {attempt.folder.name for attempt in attempts(again.folder)}
    train(again)
    lines = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line]
    assert len(lines) == 2
    assert all(line.startswith("W&B: logged offline in ") for line in lines)
    rows = [row for attempt in attempts_of(again) for row in attempt.rows]
    assert [row[STEP] for row in rows] == [25, 50, 75]
    assert len(attempts(again.folder)) == len(before) + 1


def test_a_run_that_w_and_b_could_not_start_is_uploaded_later(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], server: WandbServer
) -> None:
    run = logged(whole, tmp_path)

    def fail(**options: Any) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(wandb, "init", fail)
        train(run)
    output = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line]
    assert len(output) == 1
    assert output[0].startswith("W&B cannot be used (no room)")
    assert [sent for _, sent in sync(tmp_path, 60)] == [True]
    check_server(server, run)


def test_a_run_cannot_be_trained_and_uploaded_at_the_same_time(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: WandbServer
) -> None:
    run = logged(whole, tmp_path)
    train(run)
    with run.lock():
        assert list(sync(tmp_path, 60)) == [(f"{run.folder}: not uploaded: it is still training", False)]
    locked = []
    finish = wandb_logger.WandbLogger.finish

    def finish_and_check_lock(self: wandb_logger.WandbLogger, exit_code: int) -> None:
        finish(self, exit_code)
        locked.append(run.locked)

    monkeypatch.setattr(wandb_logger.WandbLogger, "finish", finish_and_check_lock)
    assert [sent for _, sent in sync(tmp_path, 60)] == [True]
    assert locked == [True]
    check_server(server, run)


def test_a_sweep_logs_to_w_and_b_and_reports_a_problem_once(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = [Run.of(replace(logged(whole, tmp_path).config, seed=seed)) for seed in range(2)]
    assert sweep(runs) == 0
    command = f"`plainres wandb-sync {tmp_path / 'default'}`"
    assert [line for line in capfd.readouterr().err.splitlines() if "W&B" in line] == [
        f"W&B: logged offline in the runs' folders; {command} uploads them for viewing"
    ]
    assert [run.log.read_text().count("W&B: logged offline in ") for run in runs] == [1, 1]
    assert len({attempt.id for run in runs for attempt in attempts(run.folder)}) == 2
    for run in runs:
        (attempt,) = attempts(run.folder)
        assert (points(attempt.rows), attempt.exit_code) == (curve(run), 0)
    for name, value in {"WANDB_API_KEY": "f" * 40, "WANDB_BASE_URL": closed_port()}.items():
        monkeypatch.setenv(name, value)
    online = [Run.of(replace(logged(whole, tmp_path, mode="online").config, seed=seed)) for seed in (2, 3)]
    monkeypatch.setattr(sweep_module, "_work", work_without_a_key)
    assert sweep(online) == 0
    output = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line]
    assert len(output) == 1
    assert "W&B is not online (" in output[0]
    assert f"`plainres wandb-sync {tmp_path / 'default'}` uploads them later" in output[0]
    assert [run.log.read_text().count("W&B is not online (") for run in online] == [1, 1]


def work_without_a_key(*arguments: Any) -> None:
    """Train a run of a sweep without a key, so that the client does not try to connect."""
    os.environ["WANDB_API_KEY"] = ""
    work(*arguments)


work = sweep_module._work


def test_a_run_on_two_devices_is_one_w_and_b_run_even_if_rank_1_fails(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = logged(whole, tmp_path).config
    model = {**config.model, "_target_": "support.recording.Recording"}
    trainer = replace(config.trainer, devices=2)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("RECORD_FAIL", "5")
    failed = Run.of(replace(config, model={**model, "width": 5}, trainer=trainer))
    with pytest.raises(RunFailedError, match="on purpose"):
        forking.call(launch, failed)
    (attempt,) = attempts(failed.folder)
    assert attempt.exit_code not in (0, None)


def test_a_damaged_run_is_reported_and_the_others_are_uploaded(
    whole: Run, tmp_path: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    run = logged(whole, tmp_path)
    train(run)
    for name in ("a", "b"):
        shutil.copytree(run.folder, tmp_path / name, symlinks=True)
    (tmp_path / "a" / "metrics.csv").write_text("step,train/loss\n25,much\n")
    (tmp_path / "b" / "config.yaml").write_text("model: [")
    capfd.readouterr()
    assert main(["wandb-sync", str(tmp_path)]) == 1
    output = capfd.readouterr()
    first, second, last = output.err.splitlines()
    assert first.startswith(f"{tmp_path / 'a'}: not uploaded: could not convert string to float")
    assert second.startswith(f"{tmp_path / 'b'}: not uploaded: ")
    assert last.startswith("plainres: not everything in ")
    assert output.out.startswith(f"{run.folder}: uploaded 3 rows to ")
    check_server(server, run)


def test_a_failed_upload_is_reported(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = logged(whole, tmp_path)
    train(run)
    capfd.readouterr()
    assert main(["wandb-sync", str(tmp_path)]) == 2
    message = capfd.readouterr().err
    assert "API key" in message
    assert "; the data are safe in the runs' folders, and the same command uploads them after `wandb login`" in message
    for name, value in {"WANDB_API_KEY": "f" * 40, "WANDB_BASE_URL": closed_port()}.items():
        monkeypatch.setenv(name, value)
    assert main(["wandb-sync", str(tmp_path), "--timeout", "4"]) == 1
    first, last = capfd.readouterr().err.splitlines()
    assert first == f"{run.folder}: not uploaded: no answer within 4 s"
    assert last == f"plainres: not everything in {tmp_path} was uploaded; run the same command again to retry"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="contains no W&B data"):
        list(sync(tmp_path / "empty", 1))
    with pytest.raises(InputError, match="missing is not a folder"):
        list(sync(tmp_path / "missing", 1))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Return the folder of a study of finished runs without the W&B logger."""
    folder = tmp_path / "runs" / "digits"
    for shortcut, error in (("plain", 20.0), ("identity", 1.0)):
        for depth in (8, 20):
            for seed in (0, 1):
                finish(a_run(folder, shortcut, depth, seed), error + seed)
    return folder


PANELS = ["curves/train/error", "curves/test/error", "depth", "figures/curves", "figures/depth", "report"]


def test_a_study_is_logged_offline_and_uploaded_with_its_tables(
    study: Path, server: WandbServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):  # the second report replaces the first
        assert main(["report", "--wandb", str(study)]) == 0
    assert f"run `plainres wandb-sync {study}/report` to upload it" in capfd.readouterr().out
    wandb.teardown()
    (attempt,) = attempts(study / "report")
    assert (attempt.name, attempt.group, attempt.job_type, attempt.exit_code) == (
        "digits: report",
        "digits",
        "study",
        0,
    )
    assert "plain: 20 minus 8: " in str(attempt.summary["verdict"])
    wandb.teardown()
    monkeypatch.delenv("WANDB_ERROR_REPORTING")  # set by the report; the next command starts without it
    assert main(["wandb-sync", str(study)]) == 0
    (run,) = server.runs.values()
    (row,) = run.rows
    assert set(row) >= {*PANELS[3:], "table", "verdict", "depth_table"}
    assert row["table"]["nrows"] == 4
    assert all(artifact["committed"] for artifact in server.artifacts)
    files = " ".join(run.files)
    assert "media/html/report" in files
    assert "media/images/figures/depth" in files


@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # wandb-workspaces 0.4
@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")
def test_a_study_online_has_a_workspace(study: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second report adds a step to the first
        assert main(["report", str(study), "--wandb", "online"]) == 0
        assert "W&B workspace: " in capfd.readouterr().out
    assert {attempt.sent for attempt in attempts(study / "report")} == {True}
    (run,) = server.runs.values()
    assert [row["_step"] for row in run.rows] == [0, 1]
    view = next(view for view in reversed(server.views) if view["type"] == "project-view")
    for shown in ("train/error", "test/error", "train_error_eval", "shortcut", "depth", STEP):
        assert shown in view["spec"]
    first, *_ = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert first["name"] == "plain | residual: training error, test error"
    assert first["flowConfig"]["columnsPerPage"] == 2
    tables = re.findall(r"curves/\w+/\w+/error_table", json.dumps(first))
    assert tables == [
        f"curves/{part}/{column}_table" for column in ("train/error", "test/error") for part in ("plain", "residual")
    ]
    assert set(tables) <= run.rows[-1].keys()
    assert "range" not in json.dumps(first)


@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # wandb-workspaces 0.4
@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")
def test_a_study_online_has_a_report_that_is_replaced(
    study: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["report", str(study), "--wandb", "online"]) == 0
    assert f"W&B Report: {server.url}/tester/plainres/reports/digits:-plain-and-residual--W" in capfd.readouterr().out
    first, second = (view for view in server.views if view["type"] == "runs")
    assert (first["id"], second["id"]) == (None, "W")
    spec = json.loads(second["spec"])
    text = second["spec"]
    comparisons = read_study(study).comparisons
    shown = [*comparisons, *(cell for group in comparisons.values() for each in group for cell in each.cells.values())]
    assert len(shown) > 5
    for each in shown:
        assert json.dumps(each)[1:-1] in text
    assert "| plain | 8 |" in text
    grids = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    panels = [[panel["viewType"] for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]] for grid in grids]
    assert panels == [["Media Browser"] * 2, ["Vega2"] * 4, ["Run History Line Plot"] * 2]
    assert {"figures/curves", "figures/depth"} == set(re.findall(r"figures/\w+", text))


@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # wandb-workspaces 0.4
@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")
def test_the_views_keep_families_and_show_all_studies(study: Path) -> None:
    from plainres.reporting import wandb_views

    other = study.parent / "other"
    for streams in (2, 4):
        finish(a_run(other, "streams", 8, 0, streams=streams), 5)
    finish(a_run(other, "identity", 8, 0, norm="group"), 5)
    both = read_study(study, other)
    view = wandb_views.workspace(both, "me", "plainres")
    keys = ["shortcut", "model.depth", "model.shortcut.streams", "options.model/norm"]
    assert [each.name for each in view.runset_settings.groupby] == keys
    assert view.name == "digits, other: plain and residual"
    assert view.runset_settings.filters.startswith("Metric(\"Group\") in ['digits', 'other'] and ")
    page = wandb_views.written_report(both, "me", "plainres")
    own, *_, trained = [runset for block in page.blocks for runset in getattr(block, "runsets", [])]
    assert own.filters == "JobType = 'study' and Name = 'digits, other: report'"
    assert trained.groupby == [f"config.{key}" for key in keys]
    assert trained.filters == "Group in ['digits', 'other'] and JobType = 'train'"
    assert both.fairness in [getattr(block, "text", None) for block in page.blocks]
    row = ("plain", "8", "0.1", "", "5.00", "at the edge")
    tuned: Any = SimpleNamespace(caption="Chosen", rows=[row], exponents=["depth^-1"])
    blocks = wandb_views._choices(tuned)
    assert "| plain | 8 | 0.1 |  | 5.00 | at the edge |" in blocks[2].text


@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # wandb-workspaces 0.4
@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")
def test_a_workspace_that_cannot_be_saved_is_reported(
    study: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> Any:
        raise ValueError("no views today")

    monkeypatch.setattr("plainres.reporting.wandb_views.workspace", refuse)
    assert main(["report", str(study), "--wandb", "online"]) == 2
    output = capfd.readouterr().err
    assert "the report is written and logged to W&B (http" in output
    assert "saving its workspace failed: no views today" in output
    assert [attempt.sent for attempt in attempts(study / "report")] == [True]
    server.refuses_rows = 403
    monkeypatch.setattr(wandb_client, "COUNT_TIMEOUT", 1)
    assert main(["report", str(study), "--wandb", "online"]) == 2
    assert "the report is written, but logging it to W&B failed: the server has 1 of 2 rows" in capfd.readouterr().err
