"""Sweeps on this machine."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from PIL import Image

from plainres.cli.main import main
from plainres.config.compose import Jobs, compose_jobs
from plainres.config.schema import Config, ReportOptions, SweepOptions
from plainres.console import duration
from plainres.errors import InputError
from plainres.launch import devices
from plainres.launch import sweep as sweep_module
from plainres.launch.hydra_launchers import sweep_with
from plainres.launch.plan import plan
from plainres.launch.preflight import preflight, slots
from plainres.launch.sweep import sweep, train_quietly
from plainres.processes.signals import StopSignals
from plainres.runs.record import Run, State
from support import forking
from support.places import PLAINRES, TESTS

Make = Callable[..., Config]


def test_other_images_under_the_same_name_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A finished run, an interrupted one and the networks of both answer only for the images of their training."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        for split, count in (("train", 4), ("test", 2)):
            for label in ("0", "1"):
                folder = tmp_path / name / split / label
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
    options = ["data=cifar10", "data.shape=[3,8,8]", "data.classes=2", "data.image_column=image", "optim.batch_size=4"]
    options += [f"data.cache={tmp_path / 'cache'}", f"runs={tmp_path / 'runs'}", "model.depth=8", "model.width=4"]
    command = ["train", *options, "optim.epochs=1"]
    assert main([*command, f"data.path={tmp_path / 'a'}"]) == 0
    (folder,) = (tmp_path / "runs" / "default").glob("*-s0-*")
    result = (folder / "result.json").read_bytes()
    for arguments in (command, ["train", "-m", "seed=0,1", *command[1:]], ["train", "-m", "seed=0", *command[1:]]):
        capfd.readouterr()
        assert main([*arguments, f"data.path={tmp_path / 'b'}"]) == 2
        error = capfd.readouterr().err.splitlines()[-1]
        assert f"{folder} was trained on other images (data=cifar10 data.path={tmp_path / 'a'}, digest " in error
        assert f") than these (data=cifar10 data.path={tmp_path / 'b'}, digest " in error
    assert len(list(folder.parent.iterdir())) == 1
    assert (folder / "result.json").read_bytes() == result
    assert main([*command, f"data.path={tmp_path / 'b'}", "study=b"]) == 0
    # the same images in another place are no others
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert main([*command, f"data.path={tmp_path / 'moved'}"]) == 0
    # an interrupted run
    (folder / "result.json").unlink()
    assert main([*command, f"data.path={tmp_path / 'b'}"]) == 2
    assert main([*command, f"data.path={tmp_path / 'a'}"]) == 0
    # what looks at a finished run
    assert main(["eval", str(folder)]) == 0
    shutil.copytree(tmp_path / "b", tmp_path / "a", dirs_exist_ok=True)
    for command in ("eval", "sharpness", "landscape", "lesion", "linearise"):
        capfd.readouterr()
        assert main([command, str(folder)]) == 2
        assert f"{folder} was trained on other images" in capfd.readouterr().err.splitlines()[-1]


def test_only_missing_runs_are_trained(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    runs = [Run.of(make_config(seed=seed)) for seed in range(3)]
    assert sweep(runs[:2]) == 0
    times = [(run.folder / "result.json").stat().st_mtime_ns for run in runs[:2]]
    output = capfd.readouterr().err
    folder = runs[0].folder.parent
    assert "2 runs\n      2 missing" in output
    assert output.endswith(f"results are in {folder}; compare them with `plainres report {folder}`\n")
    assert sweep([*runs, runs[0]]) == 0
    output = capfd.readouterr().err
    assert "3 runs\n      2 finished\n      1 missing" in output
    assert "[1/1] identity-8-w4-s2" in output
    assert re.search(r"^done in \d+ s: 1 finished\nresults are in ", output, re.MULTILINE)
    assert [(run.folder / "result.json").stat().st_mtime_ns for run in runs[:2]] == times
    assert sweep(runs) == 0
    assert capfd.readouterr().err.endswith(
        f"3 runs\n      3 finished\nresults are in {folder}; compare them with `plainres report {folder}`\n"
    )
    assert "6/6" in runs[2].log.read_text()


def test_finished_runs_adopt_the_options_of_the_report(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    reference = {"model/shortcut": "identity"}
    trained = make_config()
    assert sweep([trained]) == 0
    folder = Run.of(trained).folder
    before, result = Run.read(folder).config, (folder / "result.json").read_bytes()
    again = replace(trained, report=ReportOptions(reference), checkpoint=replace(trained.checkpoint, every_n_steps=3))
    assert sweep([again]) == 0
    assert Run.read(folder).config == replace(before, report=ReportOptions(reference))
    assert (folder / "result.json").read_bytes() == result
    (folder / "config.yaml").write_text("another: version\n")
    capfd.readouterr()
    assert sweep([trained, make_config(seed=1)]) == 0
    assert f"report.reference of 1 finished run is unchanged: {folder}/config.yaml is damaged" in capfd.readouterr().err


def test_a_mistake_in_one_run_prevents_the_sweep(make_config: Make, tmp_path: Path) -> None:
    runs = [Run.of(make_config()), Run.of(make_config(depth=21))]
    with pytest.raises(InputError, match=r"model.depth is 21"):
        sweep(runs)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(InputError, match="only 100 training images; set it to at most 100"):
        sweep([Run.of(make_config(optim={"batch_size": 101}))])


def test_a_mistake_is_reported_without_hints(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """No run of a sweep has started then, and the plan and a single run report it alike."""
    configs = [make_config(depth=110, seed=seed, trainer={"num_nodes": 2}) for seed in range(2)]
    for refuse in (lambda: sweep(configs), lambda: plan(Jobs(configs), []), lambda: devices.train(configs[0])):
        with pytest.raises(InputError, match="start a run on several machines with torchrun or srun"):
            refuse()
        assert "hint" not in capfd.readouterr().err
    assert not Run.of(configs[0]).folder.exists()


def test_the_warning_of_a_run_is_on_the_screen_once(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    runs = [
        Run.of(make_config(seed=seed, optim={"epochs": 60}, sweep=SweepOptions(runs_per_device=2))) for seed in (0, 1)
    ]

    def warn_while_training(run: Run) -> None:
        _wait_until(run.owner_file.exists, 60)
        run.warning_file.write_text("slow\n")

    for run in runs:
        run.prepare()
        run.warning_file.write_text("of an attempt that was killed\n")
    threads = [threading.Thread(target=warn_while_training, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    assert sweep(runs) == 0
    for thread in threads:
        thread.join()
    warnings = [line for line in capfd.readouterr().err.splitlines() if line.endswith(("slow", "killed"))]
    assert warnings in ([f"{run.name}: slow"] for run in runs)


def test_a_failed_run_is_reported_and_the_others_continue(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    broken, healthy = Run.of(make_config(seed=0)), Run.of(make_config(seed=1))
    broken.prepare()
    (broken.folder / "metrics.csv").mkdir()  # cannot be opened as a file
    assert sweep([broken, healthy]) == 1
    output = capfd.readouterr().err
    assert healthy.finished
    assert not broken.finished
    assert "FAILED: IsADirectoryError" in output
    failed, counts, results = output.splitlines()[-3:]
    assert failed.startswith(f"failed: {broken.name}: IsADirectoryError")
    assert re.fullmatch(r"done in \d+ s: 1 finished, 1 failed", counts)
    assert results.startswith("results are in ")
    assert str(broken.log) in output
    assert "Traceback" in broken.log.read_text()


def _exit(_: Run) -> None:
    raise SystemExit(3)


def test_a_run_that_exits_its_process_fails(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.of(make_config())
    monkeypatch.setattr(sweep_module, "launch", _exit)
    assert train_quietly(run) == "SystemExit: 3"
    assert "SystemExit" in run.log.read_text()


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_fails_only_its_own_run(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep_module, "_work", _die)
    assert sweep([Run.of(make_config(seed=seed)) for seed in range(3)]) == 3
    assert capfd.readouterr().err.count("FAILED: its process died (SIGKILL)") == 3


WORK = sweep_module._work


def _work_stopped(run: Run, sender: Any, gpus: str | None) -> None:
    """Train a run, and send a signal to its process if the seed is 1."""

    def stop_in_training() -> None:
        _wait_until(lambda: run.step or len(run.curve()) > 1, 60)
        os.kill(os.getpid(), signal.SIGTERM)

    if run.config.seed == 1:
        threading.Thread(target=stop_in_training, daemon=True).start()
    WORK(run, sender, gpus)


def test_a_run_whose_process_alone_is_stopped_has_failed(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is saved, the sweep trains the others, and does not end as if all were finished."""
    monkeypatch.setattr(sweep_module, "_work", _work_stopped)
    short, long = (make_config(seed=seed) for seed in range(2))
    runs = [Run.of(short), Run.of(replace(long, optim=replace(long.optim, epochs=1000)))]
    assert sweep(runs) == 1
    assert "FAILED: its process was stopped by a signal; run the same command again" in capfd.readouterr().err
    assert [Run.of(run.config).state for run in runs] == [State.FINISHED, State.INTERRUPTED]


def test_two_runs_of_one_name_and_other_settings_are_refused(make_config: Make) -> None:
    run = Run.of(make_config())
    other = Run.of(replace(run.config, trainer=replace(run.config.trainer, deterministic=True), probes={"a": {"b": 1}}))
    with pytest.raises(InputError, match=rf"the name {run.name} and differ in probes.a.b, trainer.deterministic"):
        sweep([run, other])
    assert not run.folder.exists()


def _processes_of(session: int) -> set[int]:
    processes = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getsid(int(process.name)) == session and "Z" not in (process / "stat").read_text().split(") ")[1][:1]:
                processes.add(int(process.name))
    return processes


def _wait_until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    command = ["train", "-m", "data=synthetic", "data.train=1000", "optim.epochs=1000", "seed=0,1,2", "study=long"]
    start = subprocess.Popen if number is signal.SIGTERM else forking.Popen
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
        if number is signal.SIGINT:
            os.killpg(sweep.pid, number)  # as a terminal does
        else:
            sweep.send_signal(number)
        _, output = sweep.communicate(timeout=30)
        _wait_until(lambda: not _processes_of(sweep.pid), 20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(sweep.pid, signal.SIGKILL)
    if number is signal.SIGKILL:
        return
    assert sweep.returncode == 128 + number
    assert output.splitlines()[-1] == "plainres: stopped: 3 of 3 runs left; run the same command again to resume"
    assert re.search(r"^stopping: saving (1 run|[2-9] runs|\d\d+ runs); press Ctrl-C again", output, re.MULTILINE)
    assert "Traceback" not in output
    assert any(tmp_path.glob("runs/long/*/checkpoints/step-*.ckpt"))


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (None, "4 left, about 1 min, ends around 12:34; running: {0} 50 %, {1}, {2}"),
        (91, "4 left, about 1 min; running: identity-8-w4-s0 50 %, identity-8-w4-s1, identity-8-w4-s2"),
        (80, "4 left, about 1 min, ends around 12:34; 3 running"),
        (40, "4 left, about 1 min; 3 running"),
        (20, "4 left; 3 running"),
    ],
)
def test_the_status_line_fits_into_the_terminal(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, *, columns: int | None, line: str
) -> None:
    nobody: Any = None
    runs = [Run.of(make_config(seed=seed)) for seed in range(4)]
    pool = sweep_module._Pool(nobody, runs, [1.0] * 4, [None], StopSignals())
    pool.running = [sweep_module._Training(run, 1.0, None, nobody, None, 0.0, 0.0) for run in runs[:3]]
    monkeypatch.setattr(sweep_module, "terminal_columns", lambda: columns)
    monkeypatch.setattr(sweep_module, "_progress", lambda run: 0.5 if run is runs[0] else 0.0)
    monkeypatch.setattr(
        pool, "_remaining", lambda: ["4 left, about 1 min, ends around 12:34", "4 left, about 1 min", "4 left"]
    )
    assert pool._status() == line.format(*(run.name for run in runs))


def pool_of(*runs: Run) -> Any:
    """Return a pool without processes, of runs of equal cost."""
    nobody: Any = None
    return sweep_module._Pool(nobody, runs, [1.0] * len(runs), [None], StopSignals())


def curve_of(run: Run, epochs: int, saved: int) -> None:
    """Write rows of 10 steps each, and a checkpoint after `saved` epochs."""
    run.prepare()
    rows = "".join(f"{epoch},{10 * epoch},50,50\n" for epoch in range(1, epochs + 1))
    (run.folder / "metrics.csv").write_text(f"epoch,step,train/error,test/error\n{rows}")
    if saved:
        (run.checkpoints / f"step-{10 * saved:09}.ckpt").touch()


def test_the_time_left_follows_from_the_speed_of_this_command(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed, fresh, elsewhere = runs = [Run.of(make_config(seed=seed, optim={"epochs": 100})) for seed in range(3)]
    curve_of(resumed, 92, saved=90)  # two rows will be written again
    pool = pool_of(*runs)
    assert pool.total == pytest.approx(0.1 + 1 + 1)
    pool.running = [
        sweep_module._Training(run, 1.0, None, pool.context, None, 0.0, progress)
        for run, progress in ((resumed, 0.92), (fresh, 0.0))
    ]
    pool.started = time.monotonic() - 60
    assert pool._remaining() == ["3 left"]  # the rows of the killed process are no work of this command
    curve_of(resumed, 91, saved=90)
    curve_of(fresh, 1, saved=0)  # two epochs in these 60 seconds
    assert pool._remaining()[-1] == "3 left"
    assert pool._remaining()[1] == "3 left, about 1.7 h"  # for 208 epochs
    monkeypatch.setattr(sweep_module, "print_outcome", lambda *_, **__: None)
    pool._report(elsewhere, None, None)  # another command has trained it
    assert pool._remaining()[1] == "2 left, about 54 min"


def test_a_failure_that_another_command_meets_is_not_repeated(
    make_config: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    retried = SweepOptions(retry_failed=True)
    before, since, early = runs = [
        Run.of(make_config(seed=0, sweep=retried)),
        Run.of(make_config(seed=1, sweep=retried)),
        Run.of(make_config(seed=2)),
    ]
    for run in runs:
        run.prepare()
    before.fail("the run has diverged")
    early.fail("the run has diverged at step 5")  # in another command, while this one prepared itself
    pool = pool_of(*runs)
    since.fail("the run has diverged at step 7")
    pool.context = _NoProcesses()
    pool.free = [None] * 3
    pool._start(3)
    assert [training.run for training in pool.running] == [before]
    assert sorted(reason for _, reason in pool.failed) == [f"the run has diverged at step {step}" for step in (5, 7)]


class _NoProcesses:
    """Context whose processes do nothing."""

    class Process:
        def __init__(self, **_: Any) -> None:
            pass

        def start(self) -> None:
            pass


def test_a_command_trains_its_runs_as_it_describes_them(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although a later command of the same sweep has described them anew, with another number of threads."""
    ours, theirs = (Run.of(make_config(trainer={"threads": threads})) for threads in (1, 2))
    assert ours.folder == theirs.folder
    ours.prepare()
    theirs.prepare()
    sent: list[Any] = []
    monkeypatch.setattr(sweep_module, "attach_to_command", lambda: None)
    sender: Any = type("Sender", (), {"send": sent.append})
    sweep_module._work(ours, sender, None)
    assert sent == [("finished", None)]
    assert [attempt["threads"] for attempt in ours.result["attempts"]] == [1]
    assert Run.read(ours.folder).config.trainer.threads == 1


def test_cost_follows_multiply_adds_and_images(make_config: Make) -> None:
    (shallow, deep, longer), _ = preflight(
        [Run.of(make_config()), Run.of(make_config(depth=20)), Run.of(make_config(optim={"epochs": 4}))]
    )
    assert shallow == 48544 * 32 * 6
    assert longer == 2 * shallow
    assert deep > 2 * shallow


def test_runs_are_ordered_by_priority_then_by_cost(
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


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_wrong_key_of_the_priority_is_an_error_even_if_all_runs_are_finished(
    launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["plainres"])
    jobs = compose_jobs(["-m", "seed=0,1", "sweep.priority=[{sed:0}]", f"hydra/launcher={launcher}"])
    monkeypatch.setattr(Run, "state", State.FINISHED)
    with pytest.raises(InputError, match=r"^sweep\.priority names sed, which no run has"):
        sweep(jobs.configs) if launcher == "basic" else sweep_with(jobs)


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
    rng = random.Random(0)
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
            time.sleep(rng.uniform(0, 0.5))
            assert process.poll() is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        kills += 1
    for folder in (killed, whole):
        process = _plainres(folder, *sweep)
        _, output = process.communicate(timeout=120)
        assert process.returncode == 0, output
    runs = [Run.read(path) for path in sorted(whole.glob("runs/default/*"))]
    assert len(runs) == 12
    for run in runs:
        other = Run.read(killed / run.folder.relative_to(whole))
        assert other.result["weights_sha256"] == run.result["weights_sha256"]
        assert other.curve() == run.curve()
    steps = [len((folder / "record-0").read_text().splitlines()) for folder in (whole, killed)]
    assert steps[0] == 12 * 60
    # a kill repeats at most the steps after a run's last checkpoint, including the step in progress
    assert steps[0] < steps[1] <= steps[0] + kills * (os.cpu_count() or 1) * 6


def test_a_failure_is_reported_immediately(tmp_path: Path) -> None:
    """The failure appears while another, long run is still training."""
    process = _plainres(tmp_path, "train", "-m", *RECORDED, "model.depth=8", "optim.epochs=20000", "optim.lr=1e30,1e-3")
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "FAILED" in line)
        (mark,) = tmp_path.glob("runs/default/*/failed.json")
        assert time.time() - mark.stat().st_mtime < 5  # seconds; the sweep itself would take minutes
        assert "FAILED: the run has diverged" in line
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_sweep_waits_for_a_run_that_another_process_trains(
    make_config: Make, capfd: pytest.CaptureFixture[str]
) -> None:
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
    output = capfd.readouterr().err
    assert f"1 running\n          {runs[0].name}\n" in output
    assert f"waiting for {runs[0].name}, which another process is training" in output
    assert "[2/2]" in output


@pytest.mark.parametrize(
    ("devices", "visible", "per_device", "expected"),
    [
        (1, "", "auto", ["0", "1", "2", "3"]),
        (1, "", 2, ["0", "0", "1", "1", "2", "2", "3", "3"]),
        (2, "", 1, ["0,1", "2,3"]),
        (1, "5,7", 1, ["5", "7"]),
    ],
)
def test_each_slot_has_its_own_gpus(
    make_config: Make, *, devices: int, visible: str, per_device: Any, expected: list[str]
) -> None:
    run = Run.of(
        make_config(trainer={"accelerator": "gpu", "devices": devices}, sweep=SweepOptions(runs_per_device=per_device))
    )
    assert slots([run], len(visible.split(",")) if visible else 4, visible) == expected


@pytest.mark.parametrize(
    ("threads", "per_device", "expected"), [(1, "auto", 8), (3, "auto", 2), (9, "auto", 1), (1, 3, 3), (4, 12, 12)]
)
def test_slots_on_the_cpu_follow_the_cores_or_the_requested_number(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, *, threads: int, per_device: Any, expected: int
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    run = Run.of(make_config(trainer={"threads": threads}, sweep=SweepOptions(runs_per_device=per_device)))
    assert slots([run], 0, "") == [None] * expected


@pytest.mark.parametrize("value", [0, 1.5, True, "many", None])
def test_an_invalid_number_of_runs_per_device_is_rejected(make_config: Make, value: Any) -> None:
    with pytest.raises(InputError, match=r"sweep.runs_per_device is .*; it must be an integer >= 1, or auto"):
        SweepOptions(runs_per_device=value)
