"""Runs shown in W&B by its real client, read back from its files, and from a server that stands in for W&B's."""

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
from typing import Any

import pytest
import wandb

from kills import digits, elsewhere, ending, kill_in_one_process, started
from plainres.cli.main import main
from plainres.config.schema import Config, Loggers
from plainres.errors import InputError, RunFailedError
from plainres.launch import sweep as sweep_module
from plainres.launch.devices import launch
from plainres.launch.sweep import sweep
from plainres.runs.identity import complete
from plainres.runs.record import Run
from plainres.tracking import wandb_logger
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
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No account, no server, nothing kept at home, and no client from the test before."""
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
    with WandbServer() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made
        wandb.teardown()
        assert not made.unknown
        assert not made.again


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = digits(tmp_path_factory.mktemp("whole"), 10**6)
    train(run)
    return run


def shown(whole: Run, folder: Path, every_n_steps: int = 7, mode: str = "offline") -> Run:
    """The same run, shown in W&B."""
    run = elsewhere(whole, folder, every_n_steps)
    return Run(replace(run.config, logger=Loggers(wandb=True, mode=mode)), run.folder)


def curve(run: Run) -> list[dict[str, float]]:
    """The rows of a run as W&B is to have them."""
    return [{STEP if key == "step" else key: value for key, value in row.items()} for row in run.curve()]


def points(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The rows that W&B has, without its own times and numbers; the numbers must ascend."""
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def summary(run: Run) -> dict[str, Any]:
    rows = run.curve()
    return {name: {"min": min(row[name] for row in rows), "last": rows[-1][name]} for name in METRICS}


def kept(run: Run) -> list[Attempt]:
    """The sessions of a run of this process; the client's service may still write when it says that it has finished."""
    wandb.teardown()
    return attempts(run.folder)


def moments(*conditions: Callable[[], bool]) -> Iterator[float]:
    """The moments at which each of some conditions holds: no time after it has been waited for."""
    for condition in conditions:
        end = time.monotonic() + 100
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)
        yield 0.0


def test_a_run_is_shown_by_name_group_tags_config_and_curves(whole: Run, tmp_path: Path) -> None:
    run = shown(whole, tmp_path)
    run.config.logger.tags = ["first"]
    train(run)
    assert ending(run) == ending(whole)
    (session,) = kept(run)
    assert (session.name, session.group, session.job_type) == (run.name, "default", "train")
    assert sorted(session.tags) == ["depth-8", "digits", "first", "identity"]
    assert session.project == "plainres"
    assert session.id == (run.folder / "wandb" / "id").read_text().strip()
    assert {key: session.config[key] for key in complete(run.config)} == complete(run.config)
    assert (session.config["shortcut"], session.config["study"]) == ("identity", "default")
    assert session.config["model"]["depth"] == 8
    assert points(session.rows) == curve(run)
    assert {name: session.summary[name] for name in METRICS} == summary(run)
    assert session.summary["train_error_eval"] == run.result["train_error_eval"]
    assert session.axes == dict.fromkeys((*METRICS, "epoch", "lr"), STEP)
    assert (session.exit_code, session.online, session.sent) == (0, False, False)


def test_without_it_the_client_is_not_even_imported(tmp_path: Path) -> None:
    code = "import sys; from plainres.cli.main import main; code = main(sys.argv[1:]); print('wandb' in sys.modules); "
    code += "sys.exit(code)"
    small = ["train", "data=synthetic", "data.train=64", "model.depth=8", "model.width=4", "optim.epochs=1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *small], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def after(run: Run, rows: int) -> Callable[[], bool]:
    return lambda: len(run.curve()) >= rows and run.step > 0


def begun(run: Run) -> Callable[[], bool]:
    """A new session has a file, in which there is nothing yet."""
    before = len(list(run.folder.glob("wandb/*run-*/*.wandb")))
    return lambda: len(list(run.folder.glob("wandb/*run-*/*.wandb"))) > before


CASES = {  # how often it is saved, and when it is killed: after so many rows, or at the beginning of a session
    "at the beginning": (7, ["begun"]),
    "in the first epoch": (2, [0]),
    "after one row": (7, [1]),
    "after two rows": (7, [2]),
    "after one row that no checkpoint has": (26, [1]),
    "after two rows that no checkpoint has": (24, [2]),
    "at each step": (1, [1]),
    "twice": (7, [1, 2]),
    "three times": (3, [0, 1, 2]),
    "twice at the beginning": (7, [1, "begun"]),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_offline_every_point_is_there_once(whole: Run, tmp_path: Path, case: str) -> None:
    every, when = CASES[case]
    run = shown(whole, tmp_path, every)
    conditions = (begun(run) if rows == "begun" else after(run, int(rows)) for rows in when)
    assert kill_in_one_process(run, moments(*conditions)) == len(when)
    assert ending(run) == ending(whole)
    found = attempts(run.folder)
    assert len(found) in (len(when), len(when) + 1)  # those that begin in the same second share a folder
    rows = [row for session in found for row in session.rows]
    assert [row[STEP] for row in rows] == [25, 50, 75]
    assert [{key: value for key, value in row.items() if key[0] != "_"} for row in rows] == curve(run)
    assert {session.id for session in found if not session.sent} == {found[-1].id}
    assert {name: found[-1].summary[name] for name in METRICS} == summary(run)
    assert [session.exit_code for session in found] == [None] * (len(found) - 1) + [0]


def check_server(server: WandbServer, run: Run, exit_code: int = 0) -> ServerRun:
    """The server has the run, each row once."""
    (found,) = server.runs.values()
    assert points(found.rows) == curve(run)
    assert (found.name, found.group, found.job_type) == (run.name, "default", "train")
    assert found.config["model"]["depth"] == 8
    assert {name: found.summary[name] for name in METRICS} == summary(run)
    assert found.exit_code == exit_code
    return found


@pytest.mark.parametrize("modes", ["online online", "online online online", "offline online", "online offline online"])
def test_killed_and_resumed_the_server_has_every_point_once(
    whole: Run, tmp_path: Path, server: WandbServer, modes: str
) -> None:
    *killed, last = modes.split()
    for number, mode in enumerate(killed, 1):
        run = shown(whole, tmp_path, 7, mode)
        kill_once(run, server, lambda run=run, rows=number: len(run.curve()) >= rows and run.step > 0)
        assert mode == "offline" or server.runs
    run = shown(whole, tmp_path, 7, last)
    kill_in_one_process(run, iter(()), server.environment)
    assert ending(run) == ending(whole)
    check_server(server, run)
    assert all(session.sent for session in attempts(run.folder))
    assert list(sync(run.folder, 60)) == [(f"{run.folder}: sent already", True)]


def kill_once(run: Run, server: WandbServer, condition: Callable[[], bool]) -> None:
    """Kill a run when a condition holds; do not let it go on."""
    process = started(run, server.environment)
    for _ in moments(condition):
        assert process.is_alive()
        process.kill()
    process.join()


@pytest.mark.parametrize("first", ["offline", "online"])
def test_what_was_not_sent_is_sent_by_command(
    whole: Run, tmp_path: Path, server: WandbServer, first: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shown(whole, tmp_path, 7, first)
    kill_once(run, server, after(run, 1))
    run = shown(whole, tmp_path, 7)
    train(run)
    assert main(["wandb-sync", str(tmp_path)]) == 0
    said = capfd.readouterr()
    assert f"{run.folder}: " in said.out
    assert f" rows sent to {server.url}/tester/plainres/runs/" in said.out
    check_server(server, run)
    assert main(["wandb-sync", str(tmp_path)]) == 0
    assert capfd.readouterr().out == f"{run.folder}: sent already\n"
    check_server(server, run)


def test_a_failed_run_and_a_stopped_one_are_finished_as_such(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Run.of(make_config(optim={"lr": 1e30, "epochs": 3}, logger=Loggers(wandb=True)))
    with pytest.raises(RunFailedError):
        train(failed)
    assert [session.exit_code for session in kept(failed)] == [1]
    stopped = Run.of(make_config(optim={"epochs": 50}, logger=Loggers(wandb=True)))
    rows = []

    def stop(self: wandb_logger.WandbLogger, row: Any, step: int) -> None:
        rows.append(row)
        if len(rows) == 2:
            signal.raise_signal(signal.SIGTERM)

    log = wandb_logger.WandbLogger.log
    monkeypatch.setattr(wandb_logger.WandbLogger, "log", lambda *each: (log(*each), stop(*each)))
    with pytest.raises(SystemExit) as ended:
        train(stopped)
    assert ended.value.code == 128 + signal.SIGTERM
    (session,) = kept(stopped)
    assert (session.exit_code, points(session.rows)) == (128 + signal.SIGTERM, curve(stopped))
    assert len(session.rows) == 2


OPTIONS = ["data=synthetic", "data.train=64", "data.test=20", "model.depth=8", "model.width=4", "optim.epochs=3"]


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("trouble", ["no key", "a bad key", "refused", "silent", "no such host", "forbidden"])
def test_without_a_server_a_run_goes_on_and_all_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], trouble: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb_logger, "INIT_TIMEOUT", 2)
    with WandbServer() as server, socket.create_server(("127.0.0.1", 0)) as silent:
        environment = dict(server.environment)
        environment |= {
            "no key": {"WANDB_API_KEY": ""},
            "a bad key": {"WANDB_API_KEY": "not a key"},
            "refused": {"WANDB_BASE_URL": closed_port()},
            "silent": {"WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"},
            "no such host": {"WANDB_BASE_URL": "http://wandb.invalid"},
            "forbidden": {},
        }[trouble]
        server.refuses = 403 if trouble == "forbidden" else 0
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert main(["train", *OPTIONS, "logger=wandb", "logger.mode=online"]) == 0
        said = capfd.readouterr()
        assert [line for line in said.err.splitlines() if "W&B" in line or "wandb" in line] == [
            line for line in said.err.splitlines() if line.startswith("W&B is not online (")
        ]
        assert said.err.count("W&B is not online (") == 1
        run = Run.read(tmp_path / said.out.splitlines()[-1])
        found = [session for session in kept(run) if session.rows]
        assert [(points(session.rows), session.exit_code, session.online) for session in found] == [
            (curve(run), 0, False)
        ]
        wandb.teardown()


# what the stand-in does after so many rows; after the last two the client tries no more (it sends every 15 s)
@pytest.mark.parametrize("outage", [("refuses", 503, 1), ("refuses_rows", 403, 0), ("refuses_rows", 404, 0)])
def test_an_outage_in_mid_training_costs_one_line_and_what_is_missing_is_sent_later(
    whole: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    server: WandbServer,
    *,
    outage: tuple[str, int, int],
) -> None:
    what, status, arrived = outage
    monkeypatch.setattr(wandb_logger, "FINISH_TIMEOUT", 2)
    monkeypatch.setattr(wandb_logger, "COUNT_TIMEOUT", 1)
    run = shown(whole, tmp_path, mode="online")
    log = wandb_logger.WandbLogger.log

    def log_and_fail(self: wandb_logger.WandbLogger, row: Any, step: int) -> None:
        log(self, row, step)
        if step == 25:
            server.wait_for_rows(arrived)
            setattr(server, what, status)

    monkeypatch.setattr(wandb_logger.WandbLogger, "log", log_and_fail)
    train(run)
    assert ending(run) == ending(whole)
    said = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line or "wandb" in line]
    assert len(said) == 1
    assert said[0].startswith("W&B has not taken everything (")
    assert [session.sent for session in attempts(run.folder)] == [False]
    assert points(attempts(run.folder)[0].rows) == curve(run)
    monkeypatch.setattr(wandb_logger.WandbLogger, "log", log)
    wandb.teardown()
    lines = list(sync(tmp_path, 2))  # nothing has changed
    assert [(line.startswith(f"{run.folder}: NOT SENT: "), sent) for line, sent in lines] == [(True, False)]
    server.refuses = server.refuses_rows = 0
    ((line, sent),) = sync(tmp_path, 60)
    assert (line.startswith(f"{run.folder}: {3 - arrived} rows sent to "), sent) == (True, True)
    check_server(server, run)
    assert list(sync(tmp_path, 60)) == [(f"{run.folder}: sent already", True)]


def test_a_client_that_dies_costs_one_line(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], server: WandbServer
) -> None:
    run = shown(whole, tmp_path)
    log = wandb_logger.WandbLogger.log

    def log_and_kill(self: wandb_logger.WandbLogger, row: Any, step: int) -> None:
        log(self, row, step)
        if step == 25:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            core = [int(child) for child in children if "wandb-core" in Path(f"/proc/{child}/comm").read_text()]
            assert len(core) == 1
            os.kill(core[0], signal.SIGKILL)

    made: list[subprocess.Popen[bytes]] = []
    begin = subprocess.Popen.__init__

    def note(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(subprocess.Popen, "__init__", note)
    monkeypatch.setattr(wandb_logger.WandbLogger, "log", log_and_kill)
    train(run)
    assert ending(run) == ending(whole)
    said = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line]
    assert len(said) == 1
    for process in made:
        process.wait()  # the client does not, of a service that it has lost
    monkeypatch.setattr(wandb_logger.WandbLogger, "log", log)
    ((line, sent),) = sync(tmp_path, 60)
    assert (line.startswith(f"{run.folder}: 3 rows sent to "), sent) == (True, True)
    check_server(server, run)
    assert list(sync(tmp_path, 60)) == [(f"{run.folder}: sent already", True)]


def chunk(record: bytes, kind: int = 1) -> bytes:
    """A chunk of a transaction log, whose CRC is right."""
    return struct.pack("<IHB", zlib.crc32(bytes([kind]) + record), len(record), kind) + record


def a_log(*rows: str) -> bytes:
    """A transaction log of rows whose one value is given as JSON."""
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
        (a_log("25")[:-1] + b"6" + a_log("50")[7:], 0),  # a byte that the CRC does not know
        (a_log("25") + b"\xff" * 100, 1),
        (a_log("25") + bytes(100), 1),
        (a_log("25") + chunk(b"\xff" * 100) + a_log("50")[7:], 1),  # no record
        (a_log("25") + chunk(b"\x12", 4) + a_log("50")[7:], 1),  # an end without a beginning
        (a_log("25", "", "50"), 1),
        (bytes(range(256)) * 300, 0),
        (b"", 0),
    ],
)
def test_a_transaction_log_is_read_up_to_the_first_damage(tmp_path: Path, content: bytes, rows: int) -> None:
    file = tmp_path / "run-abc.wandb"
    file.write_bytes(content)
    assert [row["_step"] for row in read(file).rows] == list(range(rows))


def damage(folder: Path, how: str) -> None:
    """Leave of a session what a power cut, or a kill right after it has begun, may leave."""
    (session,) = attempts(folder)
    content = session.file.read_bytes()
    if how == "nothing":
        shutil.rmtree(session.folder)
    elif how == "no rows":
        session.file.write_bytes(content[: content.index(b"train/loss", content.index(b"trainer/global_step")) // 2])
    elif how == "no end":
        session.file.write_bytes(content[: content.rindex(b"weights_sha256")])
    else:
        session.file.write_bytes(b"" if how == "an empty file" else b":W&B\xe1\xbe\x00" + b"\xa5" * len(content))


@pytest.mark.parametrize("left", ["nothing", "an empty file", "garbage", "no rows", "no end"])
def test_what_a_session_has_lost_is_sent_all_the_same_or_logged_again(
    whole: Run, tmp_path: Path, server: WandbServer, left: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shown(whole, tmp_path)
    train(run)
    wandb.teardown()
    damage(run.folder, left)
    shutil.copytree(run.folder, tmp_path / "copy", symlinks=True)
    ((line, sent),) = sync(run.folder, 60)
    assert (line.startswith(f"{run.folder}: 3 rows sent to "), sent) == (True, True)
    check_server(server, run)
    again = Run(run.config, tmp_path / "copy")  # a run that goes on
    (again.folder / "result.json").unlink()
    max(again.checkpoints.iterdir()).unlink()
    before = {session.folder.name for session in attempts(again.folder)}
    train(again)
    assert "W&B" not in capfd.readouterr().err
    rows = [row for session in kept(again) for row in session.rows]
    assert [row[STEP] for row in rows] == [25, 50, 75]
    assert len(attempts(again.folder)) == len(before) + 1


def test_a_run_that_w_and_b_could_not_begin_is_sent_later(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], server: WandbServer
) -> None:
    run = shown(whole, tmp_path)

    def fail(**options: Any) -> None:
        raise OSError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(wandb, "init", fail)
        train(run)
    said = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line]
    assert len(said) == 1
    assert said[0].startswith("W&B cannot be used (no room)")
    assert [sent for _, sent in sync(tmp_path, 60)] == [True]
    check_server(server, run)


def test_a_run_that_is_trained_is_not_sent_and_one_that_is_sent_is_not_trained(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: WandbServer
) -> None:
    run = shown(whole, tmp_path)
    train(run)
    with run.lock():
        assert list(sync(tmp_path, 60)) == [(f"{run.folder}: NOT SENT, for it is being trained", False)]
    locked = []
    finish = wandb_logger.WandbLogger.finish

    def look(self: wandb_logger.WandbLogger, exit_code: int) -> None:
        finish(self, exit_code)
        locked.append(run.locked)

    monkeypatch.setattr(wandb_logger.WandbLogger, "finish", look)
    assert [sent for _, sent in sync(tmp_path, 60)] == [True]
    assert locked == [True]
    check_server(server, run)


def test_a_sweep_shows_w_and_b_runs_and_says_once_what_is_wrong(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = [Run.of(replace(shown(whole, tmp_path).config, seed=seed)) for seed in range(2)]
    assert sweep(runs) == 0
    assert "W&B" not in capfd.readouterr().err
    assert len({session.id for run in runs for session in attempts(run.folder)}) == 2
    for run in runs:
        (session,) = attempts(run.folder)
        assert (points(session.rows), session.exit_code) == (curve(run), 0)
    for name, value in {"WANDB_API_KEY": "f" * 40, "WANDB_BASE_URL": closed_port()}.items():
        monkeypatch.setenv(name, value)
    online = [Run.of(replace(shown(whole, tmp_path, mode="online").config, seed=seed)) for seed in (2, 3)]
    monkeypatch.setattr(sweep_module, "_work", work_without_a_key)
    assert sweep(online) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line]
    assert len(said) == 1
    assert "W&B is not online (" in said[0]
    assert f"`plainres wandb-sync {tmp_path / 'default'}` sends them later" in said[0]
    assert [run.log.read_text().count("W&B is not online (") for run in online] == [1, 1]


def work_without_a_key(*arguments: Any) -> None:
    """What a process of a sweep does; without a key the client does not even try."""
    os.environ["WANDB_API_KEY"] = ""
    work(*arguments)


work = sweep_module._work


def test_a_run_on_two_devices_is_one_of_w_and_bs_also_when_the_second_fails(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shown(whole, tmp_path).config
    model = {**config.model, "_target_": "support.recording.Recording"}
    trainer = replace(config.trainer, devices=2)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("RECORD_FAIL", "5")
    failed = Run.of(replace(config, model={**model, "width": 5}, trainer=trainer))
    with pytest.raises(RunFailedError, match="on purpose"):
        forking.call(launch, failed)
    (session,) = attempts(failed.folder)
    assert session.exit_code not in (0, None)


def test_a_bad_run_is_named_and_the_others_are_sent(
    whole: Run, tmp_path: Path, server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shown(whole, tmp_path)
    train(run)
    for name in ("a", "b"):
        shutil.copytree(run.folder, tmp_path / name, symlinks=True)
    (tmp_path / "a" / "metrics.csv").write_text("step,train/loss\n25,much\n")
    (tmp_path / "b" / "config.yaml").write_text("model: [")
    capfd.readouterr()
    assert main(["wandb-sync", str(tmp_path)]) == 1
    said = capfd.readouterr()
    first, second, last = said.err.splitlines()
    assert first.startswith(f"{tmp_path / 'a'}: NOT SENT: could not convert string to float")
    assert second.startswith(f"{tmp_path / 'b'}: NOT SENT: ")
    assert last.startswith("plainres: not everything in ")
    assert said.out.startswith(f"{run.folder}: 3 rows sent to ")
    check_server(server, run)


def test_what_cannot_be_sent_is_told(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shown(whole, tmp_path)
    train(run)
    capfd.readouterr()
    assert main(["wandb-sync", str(tmp_path)]) == 2
    assert "API key" in capfd.readouterr().err
    for name, value in {"WANDB_API_KEY": "f" * 40, "WANDB_BASE_URL": closed_port()}.items():
        monkeypatch.setenv(name, value)
    assert main(["wandb-sync", str(tmp_path), "--timeout", "4"]) == 1
    first, last = capfd.readouterr().err.splitlines()
    assert first == f"{run.folder}: NOT SENT: no answer within 4 s"
    assert last == f"plainres: not everything in {tmp_path} was uploaded; run the same command again to retry"
    with pytest.raises(InputError, match="holds nothing for W&B"):
        list(sync(tmp_path / "wandb", 1))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of finished runs that were not shown in W&B."""
    folder = tmp_path / "runs" / "digits"
    for shortcut, error in (("plain", 20.0), ("identity", 1.0)):
        for depth in (8, 20):
            for seed in (0, 1):
                finish(a_run(folder, shortcut, depth, seed), error + seed)
    return folder


PANELS = ["curves/train/error", "curves/test/error", "depth", "figures/curves", "figures/depth", "report"]


def test_a_study_is_kept_offline_and_sent_with_its_tables(
    study: Path, server: WandbServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):  # the second report replaces the first
        assert main(["report", "--wandb", str(study)]) == 0
    assert f"plainres wandb-sync {study}/report sends it" in capfd.readouterr().out
    wandb.teardown()
    (session,) = attempts(study / "report")
    assert (session.name, session.group, session.job_type, session.exit_code) == (
        "digits: report",
        "digits",
        "study",
        0,
    )
    assert "plain: 20 minus 8: " in str(session.summary["verdict"])
    wandb.teardown()
    monkeypatch.delenv("WANDB_ERROR_REPORTING")  # which the report has set; this is another command
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
    assert {session.sent for session in attempts(study / "report")} == {True}
    (run,) = server.runs.values()
    assert [row["_step"] for row in run.rows] == [0, 1]
    view = server.views[-1]
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
def test_a_workspace_that_is_not_saved_is_told(
    study: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> Any:
        raise ValueError("no views today")

    monkeypatch.setattr("plainres.reporting.wandb_report.workspace", refuse)
    assert main(["report", str(study), "--wandb", "online"]) == 2
    said = capfd.readouterr().err
    assert "the report is written, and in W&B (http" in said
    assert "its workspace is not saved: no views today" in said
    assert [session.sent for session in attempts(study / "report")] == [True]
    server.refuses_rows = 403
    monkeypatch.setattr(wandb_logger, "COUNT_TIMEOUT", 1)
    assert main(["report", str(study), "--wandb", "online"]) == 2
    assert "the report is written, but W&B is not told: the server has 1 of 2 rows" in capfd.readouterr().err
