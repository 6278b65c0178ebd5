"""Selection of loggers, and TensorBoard events. For W&B see test_wandb.py."""

import errno
import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from plainres.config.compose import compose
from plainres.config.schema import Config, Loggers
from plainres.errors import InputError
from plainres.runs.identity import run_name
from plainres.runs.record import Run
from plainres.training.train import train

Make = Callable[..., Config]


def test_one_or_several_loggers_can_be_selected_without_changing_the_name_of_a_run() -> None:
    expected = {
        "logger=csv": Loggers(),
        "logger=wandb": Loggers(wandb=True),
        "logger=tensorboard": Loggers(tensorboard=True),
        "logger=[wandb,tensorboard]": Loggers(wandb=True, tensorboard=True),
        "logger=[wandb,csv]": Loggers(wandb=True),
    }
    configs = {option: compose([option])[0] for option in expected}
    assert {option: config.logger for option, config in configs.items()} == expected
    assert len({run_name(config) for config in configs.values()}) == 1
    (config,) = compose(["logger=wandb", "logger.mode=online", "logger.tags=[a,b]", "logger.entity=me"])
    assert config.logger == Loggers(wandb=True, mode="online", tags=["a", "b"], entity="me")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["logger.mode=online"], "logger.mode is online, but W&B is not chosen: add logger=wandb"),
        (["logger=wandb", "logger.mode=live"], "logger.mode is 'live'; it must be offline or online"),
        (["logger=mlflow"], "logger=mlflow: there is no such option; there are csv, tensorboard, wandb"),
        (["logger=wandb", "logger.projekt=a"], "there is no option logger.projekt; did you mean logger.project=a?"),
    ],
)
def test_an_invalid_selection_is_rejected(options: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        compose(options)
    assert str(error.value).startswith(message)


def test_a_configuration_without_loggers_can_be_read(make_config: Make) -> None:
    run = Run.of(make_config())
    run.prepare()
    file = run.folder / "config.yaml"
    text = file.read_text()
    start, end = text.index("logger:"), text.index("study:")
    file.write_text(text[:start] + text[end:])
    assert Run.read(run.folder).config == run.config


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the only event file of a folder: records of length, CRC, event and CRC; return (step, value) by tag."""
    (file,) = folder.glob("events.*")
    data, position = file.read_bytes(), 0
    values: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        event = Event.FromString(data[position + 12 : position + 12 + length])
        position += length + 16
        for value in event.summary.value:
            values[value.tag].append((event.step, value.simple_value))
    return values


def test_tensorboard_has_every_point_of_a_resumed_run_once(make_config: Make) -> None:
    whole = Run.of(make_config(optim={"epochs": 4}))
    train(whole)
    config = replace(whole.config, study="shown", logger=Loggers(tensorboard=True))
    config.checkpoint.every_n_steps = 2
    run = Run.of(config)
    train(run)
    (run.folder / "result.json").unlink()
    last = max(run.checkpoints.iterdir())
    last.unlink()  # the run resumes from the checkpoint before
    train(run)
    assert run.result["weights_sha256"] == whole.result["weights_sha256"]
    points = scalars(run.folder / "tensorboard")
    assert set(points) == set(whole.curve()[0]) - {"step"}
    for name, series in points.items():
        assert series == [(row["step"], pytest.approx(row[name])) for row in whole.curve()]


class Full:
    """A file on a disk with room for a limited number of bytes."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


@pytest.mark.parametrize("room", [0, 500])
def test_a_full_disk_turns_tensorboard_off_with_one_warning(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], room: int
) -> None:
    from tensorboardX import record_writer

    files: list[IO[bytes]] = []
    open_file = record_writer.open_file

    def full(path: str) -> Full:
        files.append(open_file(path))
        return Full(files[-1], room)

    monkeypatch.setattr(record_writer, "open_file", full)
    run = Run.of(make_config(optim={"epochs": 4}, logger=Loggers(tensorboard=True)))
    train(run)
    files[0].close()
    assert len(files) == 1
    assert run.finished
    assert len(run.curve()) == 4
    lines = [line.rpartition("\r")[2] for line in capfd.readouterr().err.splitlines() if "TensorBoard" in line]
    reason = "[Errno 28] No space left on device"
    assert lines == [f"cannot write TensorBoard events ({reason}); the run continues without them"]


def test_a_folder_that_cannot_be_created_turns_tensorboard_off_with_one_warning(
    make_config: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run.of(make_config(logger=Loggers(tensorboard=True)))
    run.prepare()
    (run.folder / "tensorboard").write_text("")
    train(run)
    assert run.finished
    assert capfd.readouterr().err.count("cannot write TensorBoard events (") == 1
