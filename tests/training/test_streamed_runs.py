"""Runs whose images are decoded while training: they resume exactly, with any number of workers and of processes."""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kills import elsewhere, final_state, kill_in_one_process, when
from plainres.analysis.evaluation import load_network, predict
from plainres.config.instantiate import source_of
from plainres.config.schema import Config, Devices
from plainres.data.batches import EvaluationBatches
from plainres.data.streamed_batches import pixels_on
from plainres.errors import InputError, StoppedError
from plainres.launch.devices import launch
from plainres.runs.record import Run
from plainres.training.train import train
from support import forking
from support.photographs import Photographs
from support.places import TESTS

Make = Callable[..., Config]

OPTIONS: dict[str, Any] = {
    "data": {
        "_target_": "support.photographs.StreamedPhotographs",
        "train": 45,
        "test": 13,
        "shape": [3, 16, 16],
    },
    "optim": {"epochs": 3, "batch_size": 10},  # of 4 steps each
}


def workers_of(config: Config) -> list[int]:
    """Return the numbers of the running processes, other than this one, that have decoded images."""
    numbers = {int(file.name) for file in Path(config.data["readers"]).iterdir()} - {os.getpid()}
    return [number for number in numbers if Path(f"/proc/{number}").exists()]


@pytest.fixture
def config(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # processes of several devices import the source
    config = make_config(**OPTIONS)
    config.data["readers"] = str(tmp_path / "readers")
    (tmp_path / "readers").mkdir()
    return config


def on(config: Config, workers: int, devices: int = 1) -> Config:
    trainer = Devices("cpu", devices, threads=1, workers=workers, sync_batch_norm=devices > 1)
    return replace(config, trainer=trainer)


def test_a_run_resumes_in_mid_epoch_with_0_1_and_3_workers(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECORD", str(tmp_path / "recorded"))
    config.model["_target_"] = "support.recording.Recording"
    whole = Run.of(on(config, 0))
    forking.call(launch, whole)
    part = Run.of(replace(config, runs=str(tmp_path / "parts")))
    for workers, steps in ((1, 3), (3, 2), (0, 1), (3, None)):
        monkeypatch.setenv("RECORD_STOP", str(steps))
        with pytest.raises(StoppedError) if steps else nullcontext():
            forking.call(launch, Run(on(part.config, workers), part.folder))
    assert [attempt["from_step"] for attempt in part.result["attempts"]] == [0, 3, 5, 6]
    assert final_state(part) == final_state(whole)
    assert part.name == whole.name


def test_a_run_with_workers_is_killed_in_mid_epoch(config: Config, tmp_path: Path) -> None:
    config.optim.epochs, config.optim.batch_size = 40, 5
    whole = Run.of(on(config, 2))
    train(whole)
    assert not workers_of(config)
    run = elsewhere(whole, tmp_path / "killed", 1)
    assert kill_in_one_process(run, when(lambda: 20 < run.step < 300 and run.step % 9 not in (0, 8))) == 1
    assert final_state(run) == final_state(whole)
    end = time.monotonic() + 20
    while workers_of(config):
        assert time.monotonic() < end, "workers outlive their run"
        time.sleep(0.1)


def test_a_streamed_run_resumes_with_world_sizes_one_two_and_one(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are bit-identical to those of one process and, with synchronised batch statistics, weights are equal."""
    config = replace(config, precision="64-true")
    config.model["_target_"] = "support.recording.Recording"

    def recorded(name: str) -> list[str]:
        return (tmp_path / name).read_text().splitlines()

    alone = Run.of(on(config, 0))
    monkeypatch.setenv("RECORD", str(tmp_path / "alone"))
    forking.call(launch, alone)
    run = Run.of(replace(config, runs=str(tmp_path / "elastic")))
    batches: list[list[str]] = []
    for part, (devices, workers, steps) in enumerate([(1, 1, 3), (2, 2, 3), (1, 0, None)]):
        monkeypatch.setenv("RECORD", str(tmp_path / f"part{part}"))
        monkeypatch.setenv("RECORD_STOP", str(steps))
        with pytest.raises(StoppedError) if steps else nullcontext():
            forking.call(launch, Run(on(run.config, workers, devices), run.folder))
        ranks = [recorded(f"part{part}-{rank}") for rank in range(devices)]
        batches += [[pixel for line in lines for pixel in line.split()[2:]] for lines in zip(*ranks, strict=True)]
    assert batches == [line.split()[2:] for line in recorded("alone-0")]
    states = [torch.load(each.checkpoints / "step-000000012.ckpt", weights_only=True) for each in (run, alone)]
    for key, tensor in states[0]["state_dict"].items():
        torch.testing.assert_close(tensor, states[1]["state_dict"][key], atol=1e-9, rtol=0)
    assert [attempt["devices"] for attempt in run.result["attempts"]] == [1, 2, 1]


def test_ten_crops_average_the_predictions(config: Config) -> None:
    config.data["test_crops"] = 10
    config.optim.epochs = 1
    run = Run.of(on(config, 1))
    train(run)
    predictions = predict(run)
    assert 100 * predictions.wrong.double().mean().item() == pytest.approx(run.result["test_error"])
    assert predictions.losses.mean().item() == pytest.approx(run.result["test_loss"], rel=1e-5)
    images = source_of(config).load()
    network = load_network(run).eval()
    pixels = pixels_on(torch.device("cpu"), images.test, source_of(config), images.channel_statistics)
    (batch,) = list(EvaluationBatches(pixels))[:1]
    with torch.no_grad():
        shares = torch.stack([network(batch[0][:, crop]).softmax(1) for crop in range(10)]).mean(0)
    torch.testing.assert_close(predictions.logits[: len(shares)].softmax(1), shares)


def test_a_damaged_image_stops_the_run_with_one_line(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Photographs.of

    def damaged(count: int, readers: str | None = None) -> Photographs:
        photographs = create(count, readers)
        photographs.files[7] = photographs.files[7][:300]
        return photographs

    monkeypatch.setattr(Photographs, "of", damaged)
    run = Run.of(on(config, 2))
    with pytest.raises(InputError, match=r"^photograph-7.jpg .*$"):
        train(run)
    assert not run.failure
    assert not workers_of(config)
