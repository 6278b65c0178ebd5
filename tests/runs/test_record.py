import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plainres.config.schema import Config, ReportOptions
from plainres.errors import InputError, LockedError
from plainres.runs.record import Run, State
from plainres.runs.saved import newest

Make = Callable[..., Config]


def test_a_run_is_read_back(make_config: Make) -> None:
    config = make_config(shortcut="plain", optim={"epochs": None, "steps": 7})
    run = Run.of(config)
    assert not run.folder.exists()
    run.prepare()
    restored = Run.read(run.folder)
    assert restored.config == config
    assert restored.name == run.folder.name
    assert not restored.finished
    assert restored.curve() == []
    record = {"test_error": 1.5, "train_error": 0.5, "train_error_eval": 0.25, "weights_sha256": "ab"}
    restored.finish(record)
    assert restored.finished
    assert restored.result == record
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "config.yaml", "result.json"]


def test_an_incomplete_row_is_not_read(make_config: Make) -> None:
    run = Run.of(make_config())
    run.prepare()
    (run.folder / "metrics.csv").write_text("epoch,step,test/error\n1,4,50.0\n2,8,4")
    assert run.curve() == [{"epoch": 1, "step": 4, "test/error": 50}]


def test_a_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not the folder of a run: it has no config.yaml"):
        Run.read(tmp_path)
    with pytest.raises(InputError, match="is not the folder of a run: there is no such folder"):
        Run.read(tmp_path / "nowhere")
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(InputError, match=r"is not the folder of a run: config.yaml: Is a directory"):
        Run.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ""),
        ("seed: 1\nmodel: [", "line 2: expected the node content"),
        ("model: {depth: 8}\nsede: 1\n", "Key 'sede' not in 'Config'"),
        ("- 1\n", ""),
        ("model: 3\n", ""),
    ],
)
def test_a_damaged_configuration(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(
        InputError,
        match=rf"config.yaml is damaged, or of another version of plainres \({reason}.*\); move its folder away",
    ) as caught:
        Run.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_result(make_config: Make) -> None:
    run = Run.of(make_config())
    run.prepare()
    (run.folder / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result.json is damaged .* delete it and repeat the training command"):
        _ = run.result


def test_an_unwritable_folder(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write the run's folder .* set runs=FOLDER"):
        Run.of(make_config(runs=str(tmp_path / "file"))).prepare()


def test_a_run_in_training_keeps_its_configuration(make_config: Make) -> None:
    run, other = Run.of(make_config()), Run.of(make_config(report=ReportOptions({"model/shortcut": "identity"})))
    assert other.folder == run.folder
    run.prepare()
    with run.lock():
        other.prepare()
        assert Run.read(run.folder).config == run.config
    other.prepare()
    assert Run.read(run.folder).config == other.config


def test_the_digest_of_a_run_of_an_older_version_is_in_its_result(make_config: Make) -> None:
    run = Run.of(make_config())
    run.prepare()
    result = dict.fromkeys(("train_error", "train_error_eval", "test_error"), 0.0)
    run.finish(result | {"weights_sha256": "w", "data_sha256": "a" * 64})
    assert run.data_sha256 == "a" * 64


def refuse_with(number: int) -> Callable[..., None]:
    """Return a substitute for flock on a file system that rejects it."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_without_flock_a_run_is_still_trained_by_one_process(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse_with(errno.ENOSYS))
    run = Run.of(make_config())
    run.prepare()
    with run.lock():
        assert run.locked
        assert run.state is State.RUNNING
    assert run.state is State.MISSING
    assert not (run.folder / "lock").exists()
    (run.folder / "lock").write_text("7\nnode7\n")  # as a process of another host leaves it
    run.owner_file.write_text('{"host": "node7", "process": 7}')
    with pytest.raises(LockedError) as error, run.lock():
        pass
    assert str(error.value) == (
        f"{run.folder} is being trained by process 7 on node7; wait for it or stop it first; if it has exited, delete "
        f"{run.folder / 'lock'}"
    )


def test_a_run_that_cannot_be_locked_is_not_trained(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse_with(errno.ENOLCK))
    run = Run.of(make_config())
    run.prepare()
    with pytest.raises(InputError) as error, run.lock():
        pass
    assert str(error.value) == (
        f"cannot lock {run.folder}: No locks available; set runs=FOLDER to a folder that is writable, on a file system "
        "with locks"
    )


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_a_damaged_one(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    run = Run.of(make_config())
    run.prepare()
    file = run.checkpoints / "step-000000003.ckpt"
    file.touch()
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(InputError) as error:
        newest(run)
    assert str(error.value) == f"{file} cannot be read: Permission denied"
