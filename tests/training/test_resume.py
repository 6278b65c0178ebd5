"""Runs that are killed, stopped or damaged, run out of disk space, or resume with another world size."""

import copy
import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kills import digits, elsewhere, final_state, kill_in_one_process, kill_processes, when
from plainres.cli.main import main
from plainres.config.instantiate import source_of
from plainres.config.schema import Config, Devices
from plainres.errors import InputError, LockedError, RunFailedError, StoppedError
from plainres.launch.devices import launch
from plainres.models.weights import weights_file
from plainres.randomness import order
from plainres.runs.record import Run, State
from plainres.runs.saved import newest
from plainres.training.train import train
from support import forking
from support.places import CIFAR10, PLAINRES, TESTS
from support.shipped import CONNECTIONS
from support.training import StopAfter

Make = Callable[..., Config]

LONG = ["train", "data=synthetic", "data.train=640", "model.depth=8", "model.width=4", "optim.epochs=10000"]


@pytest.mark.parametrize("every_n_steps", [1, 2, 30])
def test_a_run_killed_at_random_moments_has_the_same_result(tmp_path: Path, every_n_steps: int) -> None:
    whole = digits(tmp_path / "whole", 10**6, seed=every_n_steps)
    train(whole)
    generator = random.Random(every_n_steps)
    kills, trials = 0, 0
    while kills < 4:
        trials += 1
        run = elsewhere(whole, tmp_path / str(trials), every_n_steps)
        kills += kill_in_one_process(run, iter([generator.uniform(0, 1.2) for _ in range(3)]))
        assert final_state(run) == final_state(whole)
        assert [row["epoch"] for row in run.curve()] == [1, 2, 3]


def test_a_killed_run_leaks_no_semaphore(tmp_path: Path) -> None:
    run = digits(tmp_path, 1)
    run.prepare()
    program = "import sys; from pathlib import Path; from kills import Run, kill_in_one_process, when\n"
    program += "run = Run.read(Path(sys.argv[1])); print(kill_in_one_process(run, when(lambda: 2 < run.step < 60)))"
    command = [sys.executable, "-c", program, str(run.folder)]
    killer = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=True)
    assert killer.stdout == "1\n"
    assert "semaphore" not in killer.stderr


@pytest.mark.parametrize("shortcut", ["dropout", "stochastic_depth"])
def test_a_shortcuts_random_numbers_are_the_same_after_resuming(tmp_path: Path, shortcut: str) -> None:
    whole = digits(tmp_path / "whole", 10**6, f"model/shortcut={shortcut}")
    train(whole)
    run = elsewhere(whole, tmp_path / "killed", 7)
    assert kill_in_one_process(run, when(lambda: 7 < run.step < 60)) == 1
    assert final_state(run) == final_state(whole)


@pytest.mark.parametrize("name", CONNECTIONS)
def test_a_connection_with_a_state_is_the_same_after_resuming(tmp_path: Path, name: str) -> None:
    whole = digits(tmp_path / "whole", 10**6, "model=preactivation", "model.depth=14", f"model/shortcut={name}")
    train(whole)
    run = elsewhere(whole, tmp_path / "killed", 7)
    assert kill_in_one_process(run, when(lambda: 7 < run.step < 60)) == 1
    assert final_state(run) == final_state(whole)


@pytest.mark.parametrize("devices", [1, 2])
def test_one_stream_trains_like_the_identity_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    identity = digits(tmp_path / "identity", 10**6, "model=preactivation", devices=devices)
    config = copy.deepcopy(elsewhere(identity, tmp_path / "stream", 7).config)
    config.model["shortcut"] = {"_target_": "support.one_stream.OneStream", "_partial_": True}
    stream = Run.of(config)
    forking.call(launch, identity)
    if devices == 1:
        assert kill_in_one_process(stream, when(lambda: 7 < stream.step < 60)) == 1
    else:
        assert kill_processes(stream, random.Random(0), 0.1, forking.Popen, ends=("one",)) == "one"
        forking.call(launch, stream)
    curves, _, weights, momenta, _ = final_state(stream)
    expected_curves, _, expected_weights, expected_momenta, _ = final_state(identity)
    assert curves == expected_curves
    assert weights == expected_weights
    assert momenta == expected_momenta


@pytest.mark.parametrize("shortcut", ["dropout", "stochastic_depth"])
def test_a_shortcuts_random_numbers_are_the_same_on_two_ranks(make_config: Make, tmp_path: Path, shortcut: str) -> None:
    alone = Run.of(make_config(shortcut=shortcut, precision="64-true", optim={"batch_size": 20}))
    train(alone)
    trainer = Devices(accelerator="cpu", devices=2, threads=1, sync_batch_norm=True)
    ddp = Run.of(replace(alone.config, runs=str(tmp_path / "ddp"), trainer=trainer))
    forking.call(launch, ddp)
    states = [torch.load(run.checkpoints / "step-000000010.ckpt", weights_only=True) for run in (alone, ddp)]
    for key, tensor in states[0]["state_dict"].items():
        torch.testing.assert_close(tensor, states[1]["state_dict"][key], atol=1e-9, rtol=0)


def test_one_of_two_ranks_is_killed_then_both(tmp_path: Path) -> None:
    whole = digits(tmp_path / "whole", 10**6, devices=2)
    forking.call(launch, whole)
    run = elsewhere(whole, tmp_path / "killed", 1)
    killed = [
        kill_processes(run, random.Random(seed), 0.3, start)
        for seed, start in ((1, subprocess.Popen), (0, forking.Popen))
    ]
    assert killed == ["one", "all"]
    assert not run.failure
    forking.call(launch, run)
    assert final_state(run) == final_state(whole)


@pytest.mark.skipif(not CIFAR10.exists(), reason=f"no CIFAR-10 at {CIFAR10}; PLAINRES_CIFAR10 names a folder")
def test_a_run_on_real_images_with_augmentation_is_killed_within_an_epoch(tmp_path: Path) -> None:
    from plainres.config.compose import compose

    options = ["data=cifar10", f"data.path={CIFAR10}", "data.train_per_class=200", "data.test_per_class=10"]
    options += ["model.depth=8", "model.width=4", "optim=cifar10_quick", "optim.epochs=2", "optim.batch_size=50"]
    whole = Run.of(compose([*options, f"runs={tmp_path / 'whole'}"])[0])
    assert source_of(whole.config).pad == 4
    train(whole)
    run = elsewhere(whole, tmp_path / "killed", 7)
    assert kill_in_one_process(run, when(lambda: 40 < run.step < 80)) == 1
    assert run.result["attempts"][-1]["from_step"] % 40
    assert final_state(run) == final_state(whole)


@contextmanager
def _started(
    tmp_path: Path, *options: str, start: Callable[..., subprocess.Popen[str]] = forking.Popen
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], Run]]]:
    """Yield a process that has trained two epochs of a run, and a function that reads the run."""
    process = start(
        [PLAINRES, *LONG, f"runs={tmp_path / 'runs'}", *options],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (files := list(tmp_path.glob("runs/*/*/metrics.csv"))) or len(files[0].read_text().splitlines()) < 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no second epoch within 60 s"
            time.sleep(0.05)
        folder = files[0].parent
        yield process, lambda: Run.read(folder)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "devices"),
    [
        *((number, 1) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)),
        *((number, 2) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_a_signal_saves_the_run_and_explains_how_to_resume(
    tmp_path: Path, number: signal.Signals, devices: int
) -> None:
    start = subprocess.Popen if number == signal.SIGTERM else forking.Popen
    with _started(tmp_path, f"trainer.devices={devices}", start=start) as (process, run):
        process.send_signal(number)
        _, err = process.communicate(timeout=40)
        assert process.returncode == 128 + number, err
        assert "; run the same command again to resume" in err.splitlines()[-1]
        assert "Traceback" not in err
        step = run().step
        assert step > 0
        assert run().curve()[-1]["step"] <= step
        assert not run().locked
        assert not run().failure


@pytest.mark.parametrize("options", [[], ["trainer.devices=2"], ["-m", "seed=0,1"]], ids=["alone", "two", "sweep"])
def test_a_closed_terminal_saves_the_runs(tmp_path: Path, options: list[str]) -> None:
    process, terminal = pty.fork()
    if process == 0:  # in the child
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which the tests ignore under nohup
        os.chdir(tmp_path)
        os.execv(PLAINRES, [PLAINRES, *LONG, "runs=runs", *options])
    closed = threading.Event()
    reader = threading.Thread(target=_read_until, args=(closed, terminal), daemon=True)
    reader.start()
    curves = 1 + (options[:1] == ["-m"] and len(os.sched_getaffinity(0)) > 1)
    deadline = time.monotonic() + 120
    while len(files := [file for file in tmp_path.glob("runs/*/*/metrics.csv") if _epochs(file) > 1]) < curves:
        assert time.monotonic() < deadline, "no second epoch within 120 s"
        time.sleep(0.05)
    closed.set()
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    for file in files:
        run = Run.read(file.parent)
        assert run.step > 0
        assert run.curve()[-1]["step"] <= run.step
        assert not run.locked
        assert not run.failure


def _epochs(curve: Path) -> int:
    return len(curve.read_text().splitlines()) - 1


def _read_until(closed: threading.Event, terminal: int) -> None:
    """Read what a terminal shows, then close it, at which the kernel sends SIGHUP to its processes."""
    while not closed.is_set():
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)


def test_a_reader_that_leaves_stops_nothing(tmp_path: Path) -> None:
    with _started(tmp_path) as (process, run):
        assert process.stderr is not None
        process.stderr.close()
        before = run().curve()[-1]["epoch"]
        deadline = time.monotonic() + 60
        while run().curve()[-1]["epoch"] < before + 2:
            assert process.poll() is None
            assert time.monotonic() < deadline, "no further epochs within 60 s"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 128 + signal.SIGTERM
        assert run().step > 0


def test_a_signal_to_one_of_two_ranks_stops_both(tmp_path: Path) -> None:
    from kills import processes_of

    with _started(tmp_path, "trainer.devices=2") as (process, run):
        signalled_at = time.time()
        ranks = [number for number, module in processes_of(run()).items() if module == "plainres.launch.worker"]
        os.kill(max(ranks), signal.SIGTERM)
        _, err = process.communicate(timeout=40)
        assert process.returncode == 128 + signal.SIGTERM, err
        assert next(run().checkpoints.iterdir()).stat().st_mtime > signalled_at


def test_a_run_is_never_trained_twice_at_once(tmp_path: Path) -> None:
    with _started(tmp_path) as (process, run):
        other = forking.run([PLAINRES, *LONG, "runs=runs"], cwd=tmp_path)
        assert other.returncode == 2
        assert f"is being trained by process {process.pid} on " in other.stderr
        assert other.stderr.count("\n") == 1
        process.kill()
        process.wait()
        assert not run().locked
        with run().lock(), pytest.raises(LockedError), run().lock():
            pass


def test_a_diverged_run_is_reported_and_not_trained_again(
    make_config: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # the warm-up keeps the first epoch harmless; then the weights overflow
    run = Run.of(make_config(optim={"lr": 1e18, "warmup_lr": 1e-9, "warmup_until": 100.0, "epochs": 100}))
    run.config.checkpoint.every_n_steps = 50
    with pytest.raises(RunFailedError) as failure:
        train(run)
    message = str(failure.value)
    step = int(message.split("after step ")[1].split(",", maxsplit=1)[0])
    assert step > 100
    assert "with a learning rate of 1e+18" in message
    assert "the last good checkpoint is step-000000100.ckpt" in message
    assert message.endswith("; lower optim.lr, or warm up with optim.warmup_lr")
    assert torch.load(run.checkpoints / "step-000000100.ckpt", weights_only=True)["global_step"] == 100
    assert run.failure == message
    options = ["train", "data=synthetic", "model.depth=8", "model.width=4", "optim.lr=1e30", f"runs={tmp_path / 'cli'}"]
    assert main(options) == 1
    first = capfd.readouterr().err.splitlines()[-1]
    assert first.startswith(
        "plainres: the run has diverged: the training loss or a weight is NaN or infinite after step "
    )
    assert main(options) == 1
    again = capfd.readouterr().err
    assert again.count("\n") == 1
    assert "set sweep.retry_failed=true to retry it" in again
    assert main([*options, "sweep.retry_failed=true"]) == 1
    assert "the run has diverged" in capfd.readouterr().err


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {os.environ['HOSTILE']}",)


def test_a_checkpoint_with_code_is_skipped_and_its_code_not_run(
    make_config: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTILE", str(tmp_path / "harm"))
    run = Run.of(make_config())
    train(run)
    expected = final_state(run)
    (run.folder / "result.json").unlink()
    state = torch.load(run.checkpoints / "step-000000006.ckpt", weights_only=True)
    torch.save(state | {"hostile": Hostile()}, run.checkpoints / "step-000000007.ckpt")
    train(run)
    assert "step-000000007.ckpt: it is damaged, or not a checkpoint of plainres" in capfd.readouterr().err
    assert not (tmp_path / "harm").exists()
    assert final_state(run) == expected


def test_a_checkpoint_of_another_run_is_rejected(make_config: Make) -> None:
    run, other = Run.of(make_config()), Run.of(make_config(seed=1))
    train(other)
    run.prepare()
    (other.checkpoints / "step-000000006.ckpt").rename(run.checkpoints / "step-000000006.ckpt")
    with pytest.raises(InputError, match=f"is a checkpoint of another run, {other.name}"):
        train(run)
    run.folder.rename(other.folder.with_name("moved"))
    other.folder.rename(run.folder)
    with pytest.raises(
        InputError, match=r"contains a run of another configuration, where seed is 1 \(requested: 0\); move it away"
    ):
        train(run)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0, reason="only root can mount a small file system"
)
def test_a_full_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode()}")
    try:
        whole = digits(tmp_path / "whole", 10**6)
        train(whole)
        run = elsewhere(whole, small, 5)
        run.prepare()
        filler = small / "filler"
        size = (whole.checkpoints / "step-000000075.ckpt").stat().st_size
        disk = os.statvfs(small)
        filler.write_bytes(bytes(disk.f_bavail * disk.f_bsize - 3 * size // 2))  # space for one checkpoint, not for two
        command = [
            *["train", "model.depth=8", "model.width=4", "optim.epochs=3", "optim.batch_size=60", f"runs={small}"],
            *["checkpoint.every_n_steps=5"],
        ]
        assert main(command) == 1
        err = capfd.readouterr().err
        assert "cannot write the checkpoint (No space left on device)" in err.splitlines()[-1]
        assert "Traceback" not in err
        kept = run.step
        assert f"step-{kept:09d}.ckpt is intact; free some space and run the same command again to resume" in err
        assert not list(run.checkpoints.glob("*.tmp-*"))
        assert torch.load(run.checkpoints / f"step-{kept:09d}.ckpt", weights_only=True)["global_step"] == kept > 0
        assert not run.failure
        filler.unlink()
        assert main(command) == 0
        assert final_state(run) == final_state(whole)
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_run_resumes_with_world_sizes_two_one_two_and_four(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are the same as with one process and, with synchronised batch statistics, so are the weights."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    config = make_config(precision="64-true", optim={"epochs": 4, "batch_size": 20, "warmup_lr": 0.01})
    config.model["_target_"] = "support.recording.Recording"
    config.data["pad"], config.data["flip"] = 0, False

    def recorded(name: str) -> list[str]:
        return (tmp_path / name).read_text().splitlines()

    alone = Run.of(config)
    monkeypatch.setenv("RECORD", str(tmp_path / "alone"))
    train(alone)
    run = Run.of(replace(config, runs=str(tmp_path / "elastic")))
    batches: list[list[str]] = []
    for part, (devices, steps) in enumerate([(2, 3), (1, 5), (2, 5), (4, None)]):
        monkeypatch.setenv("RECORD", str(tmp_path / f"part{part}"))
        monkeypatch.setenv("RECORD_STOP", str(steps))
        trainer = Devices(accelerator="cpu", devices=devices, threads=1, sync_batch_norm=True)
        with pytest.raises(StoppedError) if steps else nullcontext():
            forking.call(launch, Run(replace(run.config, trainer=trainer), run.folder))
        ranks = [recorded(f"part{part}-{rank}") for rank in range(devices)]
        batches += [[pixel for line in lines for pixel in line.split()[2:]] for lines in zip(*ranks, strict=True)]
    expected = [line.split()[2:] for line in recorded("alone-0")]
    assert batches == expected
    images = source_of(config).load().train.images[:, 0, 0, 0].float()
    pixels = torch.tensor([[float(pixel) for pixel in batch] for batch in expected])
    for step, batch in enumerate(pixels):
        raw = images[order(config.seed, step // 5, 100)[step % 5 * 20 :][:20]]
        assert torch.corrcoef(torch.stack([batch, raw]))[0, 1] > 0.999999
    states = [torch.load(each.checkpoints / "step-000000020.ckpt", weights_only=True) for each in (run, alone)]
    for key, tensor in states[0]["state_dict"].items():
        torch.testing.assert_close(tensor, states[1]["state_dict"][key], atol=1e-9, rtol=0)
    assert [attempt["devices"] for attempt in run.result["attempts"]] == [2, 1, 2, 4]
    for row, expected_row in zip(run.curve(), alone.curve(), strict=True):
        assert row == pytest.approx(expected_row, rel=1e-9)
    assert json.loads((run.folder / "result.json").read_text())["devices"] == 4


@pytest.mark.parametrize(("earlier", "of_the_run"), [({"peak_memory_mib": 9e5}, 9e5), ({}, None)])
def test_the_peak_memory_of_a_resumed_run_is_that_of_all_attempts(
    make_config: Make, earlier: dict[str, float], of_the_run: float | None
) -> None:
    """It is not known if an older version, which did not record it, began the run."""
    run = Run.of(make_config())
    with pytest.raises(StoppedError):
        train(run, [StopAfter(2)])
    (file,) = run.checkpoints.iterdir()
    state = torch.load(file, weights_only=True)
    (attempt,) = state["attempts"]
    assert 100 < attempt.pop("peak_memory_mib") < 9e5
    attempt |= earlier
    torch.save(state, file)
    train(run)
    assert run.result["peak_memory_mib"] == of_the_run
    assert len(run.result["attempts"]) == 2


def test_unreadable_checkpoints_are_removed_when_a_new_one_is_saved(
    make_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.of(make_config())
    run.prepare()
    for step in (4900, 5000):
        (run.checkpoints / f"step-{step:09d}.ckpt").write_bytes(b"torn")
    train(run)
    assert capsys.readouterr().err.count(": it is damaged, or not a checkpoint of plainres") == 2
    assert [path.name for path in run.checkpoints.iterdir()] == [f"step-{run.result['steps']:09d}.ckpt"]


def test_files_of_others_among_the_checkpoints_are_left_alone(
    make_config: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.of(make_config(optim={"epochs": None, "steps": 3}))
    train(run)
    (run.folder / "result.json").unlink()
    saved = (run.checkpoints / "step-000000003.ckpt").read_bytes()
    foreign = {
        "step-best.ckpt": saved,
        "step-000000900 (copy).ckpt": saved,
        "step-000000900.sync-conflict-20260102-030405-ABCDEFG.ckpt": b"torn",
        "notes.tmp-1": b"mine",
        ".DS_Store": b"",
    }
    for name, content in foreign.items():
        (run.checkpoints / name).write_bytes(content)
    (run.checkpoints / "step-000000900.ckpt.tmp-1").write_bytes(b"torn")  # as a killed process leaves it
    assert run.step == 3
    assert run.state is State.INTERRUPTED
    saved_at = newest(run)
    assert (saved_at.path, saved_at.step) == (run.checkpoints / "step-000000003.ckpt", 3)
    assert weights_file(run.folder) == run.checkpoints / "step-000000003.ckpt"
    train(run)
    assert run.result["steps"] == 3
    assert {path.name: path.read_bytes() for path in run.checkpoints.iterdir() if path.name in foreign} == foreign
    assert {path.name for path in run.checkpoints.iterdir()} == {*foreign, "step-000000003.ckpt"}
    assert "damaged" not in capsys.readouterr().err
