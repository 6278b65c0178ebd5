"""`plainres status`: every state of a run, as printed."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

import plainres.launch.status
from plainres.cli.main import main
from plainres.config.schema import Config
from plainres.launch.active import MARKER, mark_active
from plainres.launch.status import status, watch
from plainres.runs.record import Run
from plainres.training.train import train
from support import forking
from support.places import PLAINRES
from support.study import a_run, finish
from support.users import run_as_nobody, shared_folder

Make = Callable[..., Config]


def test_each_run_is_listed_with_its_state(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [Run.of(make_config(seed=seed)) for seed in range(5)]
    finished, interrupted, failed, running, missing = runs
    train(finished)
    train(interrupted)
    (interrupted.folder / "result.json").unlink()
    for run in (failed, running, missing):
        run.prepare()
    failed.fail("the loss is NaN")
    folder = finished.folder.parent
    capsys.readouterr()
    with running.lock():
        running.progress_file.write_text(json.dumps({"step": 5, "steps": 105, "steps_per_s": 2.0}))
        assert main(["status", str(folder)]) == 0
    output = capsys.readouterr().out.splitlines()
    lines = {line.split()[0]: " ".join(line.split()) for line in output if line}
    error = f"{finished.result['train_error']:.2f} % {finished.result['test_error']:.2f} %"
    assert lines[finished.name] == f"{finished.name} finished 6 {error}"
    assert lines[interrupted.name].startswith(f"{interrupted.name} interrupted 6 ")
    assert lines[failed.name] == f"{failed.name} failed"
    assert lines[f"{failed.name}:"] == f"{failed.name}: the loss is NaN"
    assert lines[running.name] == f"{running.name} running 5 of 105 64 50 s"
    assert lines[missing.name] == f"{missing.name} missing"
    assert output[-1] == f"{folder}: 5 runs (1 finished, 1 running, 1 interrupted, 1 failed, 1 missing)"
    monkeypatch.setattr(plainres.launch.status, "QUIET_SECONDS", 0)
    assert main(["status", str(folder), "--watch"]) == 0  # returns, because nothing is running
    (finished.folder / "result.json").write_text("{}")
    assert main(["status", str(folder)]) == 0
    assert "result.json is damaged" in capsys.readouterr().out


def test_damaged_files_are_reported_in_the_table(make_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    unreadable, torn, headless, running = runs = [Run.of(make_config(seed=seed)) for seed in range(4)]
    for run in runs:
        run.prepare()
    (unreadable.folder / "config.yaml").write_text("seed: [")
    (torn.folder / "metrics.csv").write_text("epoch,step,train/error,test/error\n1,23,x,5\n")
    (headless.folder / "metrics.csv").write_text("1,23\n1,23\n")
    for run in (torn, headless):
        run.checkpoints.mkdir(exist_ok=True)
        (run.checkpoints / "step-000000023.ckpt").touch()
    with running.lock():
        running.progress_file.write_text('{"step": 3}')
        assert main(["status", str(torn.folder.parent)]) == 0
    output = capsys.readouterr().out.splitlines()
    lines = {line.split()[0]: " ".join(line.split()) for line in output if line}
    assert lines[unreadable.folder.name] == f"{unreadable.folder.name} unreadable"
    assert lines[f"{unreadable.folder.name}:"].startswith(
        f"{unreadable.folder.name}: config.yaml is damaged, or of another version of plainres (line 1: "
    )
    for run in (torn, headless):
        assert lines[run.name] == f"{run.name} interrupted 23"
        assert lines[f"{run.name}:"] == f"{run.name}: metrics.csv is damaged"
    assert lines[running.name] == f"{running.name} running"
    assert output[-1].endswith("4 runs (1 running, 2 interrupted, 1 unreadable)")


def test_the_curve_of_a_run_that_starts_again_is_neither_shown_nor_checked(
    make_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, torn = (Run.of(make_config(seed=seed)) for seed in (0, 1))
    for run, error in ((whole, 4), (torn, "x")):
        run.prepare()
        (run.folder / "metrics.csv").write_text(f"epoch,step,train/error,test/error\n1,23,{error},5\n")
    assert main(["status", str(whole.folder.parent)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == [f"{whole.name} missing", f"{torn.name} missing"]
    assert lines[-1].endswith("2 runs (2 missing)")


def test_a_run_on_another_machine_is_listed_with_its_host(
    make_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = (Run.of(make_config(seed=seed)) for seed in (0, 1))
    here.prepare()
    there.prepare()
    with here.lock(), there.lock():
        (there.folder / "owner.json").write_text(json.dumps({"host": "node7", "process": 1}))
        assert main(["status", str(here.folder.parent)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == f"{here.name} running"
    assert lines[2] == f"{there.name} running on node7"
    assert lines[-1].endswith("2 runs (2 running)")


def test_missing_runs_are_waiting_while_a_sweep_is_active(
    make_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted, missing = runs = [Run.of(make_config(seed=seed)) for seed in (0, 1)]
    for run in runs:
        run.prepare()
    (interrupted.checkpoints / "step-000000003.ckpt").touch()
    folder = missing.folder.parent
    with mark_active(runs), mark_active(runs):  # two sweeps of the same study
        assert status(folder).endswith("2 runs (1 interrupted, 1 waiting)")
        assert f"{missing.name}  waiting" in status(folder)
    assert status(folder).endswith("2 runs (1 interrupted, 1 missing)")
    assert not list(folder.glob(".*"))
    (folder / MARKER).touch()  # as a killed sweep leaves it
    assert status(folder).endswith("2 runs (1 interrupted, 1 missing)")


def test_a_run_without_results_has_empty_cells(make_config: Make) -> None:
    run = Run.of(make_config())
    run.prepare()
    (run.folder / "metrics.csv").write_text("epoch,step,lr,train/loss,train/error,test/loss,test/error\n")
    with run.lock():
        run.progress_file.write_text(json.dumps({"step": 0, "steps": 105, "steps_per_s": 0.0}))
        _, line, *_ = status(run.folder.parent).splitlines()
    assert line.split() == [run.name, "running", "0", "of", "105"]


def test_what_a_killed_process_has_left_is_not_shown(make_config: Make) -> None:
    run = Run.of(make_config())
    run.prepare()
    (run.checkpoints / "step-000000023.ckpt").touch()
    rows = "1,23,14,15\n2,46,12,13\n"  # the second one after the checkpoint
    (run.folder / "metrics.csv").write_text(f"epoch,step,train/error,test/error\n{rows}")
    run.progress_file.write_text(json.dumps({"step": 50, "steps": 105, "steps_per_s": 2.0}))
    assert status(run.folder.parent).splitlines()[1].split() == [
        run.name,
        "interrupted",
        "23",
        "14.00",
        "%",
        "15.00",
        "%",
    ]
    with run.lock():
        assert status(run.folder.parent).splitlines()[1].split()[:3] == [run.name, "running", "23"]


def test_a_run_that_will_start_again_shows_no_errors(make_config: Make) -> None:
    """It was killed after its first row, but before its first checkpoint."""
    run = Run.of(make_config())
    train(run)
    (run.folder / "result.json").unlink()
    shutil.rmtree(run.checkpoints)
    assert " ".join(status(run.folder.parent).splitlines()[1].split()) == f"{run.name} missing"


@pytest.mark.parametrize(
    ("width", "head"),
    [
        (None, "run state step train (running) test images/s time left"),
        (110, "run state step train (running) test images/s time left"),
        (90, "run state step train (running) test time left"),
        (80, "run state step test time left"),
        (60, "run state test time left"),
        (40, "run state tes…"),
    ],
)
def test_the_table_drops_columns_to_fit_into_the_terminal(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, *, width: int | None, head: str
) -> None:
    run = Run.of(make_config())
    run.prepare()
    (run.folder / "metrics.csv").write_text("epoch,step,train/error,test/error\n1,100,12.5,14.5\n")
    monkeypatch.setattr(plainres.launch.status, "terminal_columns", lambda _: width)
    with run.lock():
        run.progress_file.write_text(json.dumps({"step": 32000, "steps": 64000, "steps_per_s": 2.0}))
        first, second, *_ = status(run.folder.parent).splitlines()
    assert " ".join(first.split()) == head
    assert width is None or max(len(first), len(second)) <= width


def test_a_table_of_finished_runs_has_no_columns_about_training(make_config: Make) -> None:
    run = Run.of(make_config())
    run.prepare()
    run.finish({"train_error": 1.0, "train_error_eval": 1.0, "test_error": 2.0, "weights_sha256": "ab", "steps": 9})
    head, *_ = status(run.folder.parent).splitlines()
    assert head.split() == ["run", "state", "step", "train", "(running)", "test"]


def test_a_folder_of_studies_has_one_line_per_study(make_config: Make, tmp_path: Path) -> None:
    for study, seeds in {"first": 2, "second": 1}.items():
        for seed in range(seeds):
            Run.of(make_config(seed=seed, study=study)).prepare()
    train(Run.of(make_config(study="first")))
    (tmp_path / "runs" / "empty").mkdir()
    assert [line.split(maxsplit=3) for line in status(tmp_path / "runs").splitlines()] == [
        ["first", "2", "runs", "1 finished, 1 missing"],
        ["second", "1", "run", "1 missing"],
    ]


class Clock:
    """Clock that advances only by sleeping, and calls `events` at their second."""

    def __init__(self, events: Mapping[int, Callable[[], object]]) -> None:
        self.now, self.events = 0, events

    def monotonic(self) -> int:
        return self.now

    def sleep(self, seconds: int) -> None:
        for second in range(self.now + 1, self.now + seconds + 1):
            self.events.get(second, lambda: None)()
        self.now += seconds


def test_watching_outlasts_the_gap_between_two_runs(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (Run.of(make_config(seed=seed)) for seed in (0, 1))
    first.prepare()
    second.prepare()
    result = {"train_error": 1.0, "train_error_eval": 1.0, "test_error": 2.0, "weights_sha256": "ab", "steps": 9}
    training = ExitStack()
    training.enter_context(first.lock())

    def finish(run: Run) -> None:
        training.close()
        run.finish(result)

    events = {
        40: lambda: finish(first),
        60: lambda: training.enter_context(second.lock()),
        100: lambda: finish(second),
    }
    clock = Clock(events)
    monkeypatch.setattr(plainres.launch.status, "time", clock)
    watch(first.folder.parent)
    assert clock.now == 100  # immediately after the last run
    tables = capsys.readouterr().out
    assert tables.count("runs (1 running, 1 missing)\n") == 20
    assert tables.count("runs (1 finished, 1 missing)\n") == 10
    assert tables.count("runs (1 finished, 1 running)\n") == 20
    assert tables.endswith("runs (2 finished)\n")


def test_watching_stops_when_nothing_is_running(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.of(make_config())
    run.prepare()
    training = ExitStack()
    training.enter_context(run.lock())
    clock = Clock({20: training.close})
    monkeypatch.setattr(plainres.launch.status, "time", clock)
    watch(run.folder.parent)
    assert clock.now == 18 + plainres.launch.status.QUIET_SECONDS


def test_a_training_run_reports_its_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["model.depth=8", "model.width=4", "data=synthetic", "data.shape=[1,8,8]", "optim.epochs=100000"]
    process = forking.Popen([PLAINRES, "train", *options], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 90
        while not list(tmp_path.glob("runs/default/*/progress.json")):
            assert process.poll() is None
            assert time.monotonic() < end, "timed out"
            time.sleep(0.2)
        output = forking.run([PLAINRES, "status", "runs/default"]).stdout
        assert re.search(r"running +\d+ of 1600000 .* % +[\d.]+ % +[\d,]+ +\d", output), output
        process.terminate()
        process.wait(timeout=40)
        assert not list(tmp_path.glob("runs/default/*/progress.json"))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("folder", "message"), [("nowhere", "nowhere is not a folder"), (".", ". holds no runs")])
def test_a_mistake_is_reported_in_one_line(
    folder: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status", folder]) == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1


def test_copies_of_runs_and_files_of_others_are_not_counted(make_config: Make) -> None:
    one, other = runs = [Run.of(make_config(seed=seed)) for seed in (0, 1)]
    for run in runs:
        run.prepare()
    folder = one.folder.parent
    shutil.copytree(one.folder, folder / f"{one.name} (copy)")
    other.folder.rename(folder / "renamed")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (folder / name).touch()
        (folder.parent / name).touch()
    (folder / "figures").mkdir()
    text = status(folder)
    assert text.endswith(f"{one.name} (copy): a copy of {one.name}, not counted\n\n{folder}: 2 runs (2 missing)")
    assert [line.split()[0] for line in text.splitlines()[1:3]] == [one.name, "renamed"]
    assert status(folder.parent).split() == ["test", "2", "runs", "2", "missing"]


def test_runs_of_another_user_are_shown_as_far_as_they_can_be_read() -> None:
    with shared_folder() as shared:
        study = shared / "digits"
        names = ("finished", "running", "interrupted", "unreadable", "result", "lock", "checkpoints")
        runs = dict(zip(names, (a_run(study, "identity", 8, seed) for seed in range(len(names))), strict=True))
        finish(runs["finished"], 1.0)
        finish(runs["result"], 1.0)
        (runs["interrupted"].checkpoints / "step-000000003.ckpt").touch()
        (runs["lock"].folder / "lock").touch(0o000)
        (runs["result"].folder / "result.json").chmod(0o000)
        runs["unreadable"].folder.chmod(0o000)
        runs["checkpoints"].checkpoints.chmod(0o000)
        (shared / "secret").mkdir(0o000)
        for folder in (runs["interrupted"].folder, runs["finished"].folder, study, shared):
            folder.chmod(0o555)
        with runs["running"].lock():
            code, output, err = run_as_nobody(["status", str(study)], before=["status", str(study)])
            all_studies = run_as_nobody(["status", str(shared)], before=["status", str(study)])
        alone = run_as_nobody(["status", str(shared / "secret")], before=["status", str(study)])
        (runs["lock"].folder / "lock").chmod(0o644)
        shared.chmod(0o755)
    assert (code, err) == (0, "")
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in output.splitlines() if line}
    shown = {name: lines[run.name] for name, run in runs.items()}
    assert shown["finished"].startswith("finished 230 ")
    assert (shown["running"], shown["interrupted"]) == ("running", "interrupted 3")
    assert [name for name, cells in shown.items() if cells == "unreadable"] == list(names[3:])
    notes = {name: lines.get(f"{run.name}:") for name, run in runs.items()}
    assert [notes[name] for name in names] == [
        *(None, None, None),
        "not the folder of a run: config.yaml: Permission denied",
        "result.json cannot be read: Permission denied",
        "lock cannot be read: Permission denied",
        "checkpoints cannot be read: Permission denied",
    ]
    assert output.endswith(f"{study}: 7 runs (1 finished, 1 running, 1 interrupted, 4 unreadable)\n")
    assert all_studies == (
        0,
        "digits  7 runs  1 finished, 1 running, 1 interrupted, 4 unreadable\n"
        "secret: cannot be read: Permission denied\n",
        "",
    )
    assert alone == (2, "", f"plainres: {shared / 'secret'} cannot be read: Permission denied\n")
