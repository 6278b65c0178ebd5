import io
import time
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plainres.data import streamed_batches
from plainres.data.batches import EvaluationBatches, StreamedBatch, TrainingBatches
from plainres.data.streamed_batches import StreamedImages
from plainres.data.streamed_split import StreamedSplit
from plainres.data.views import RANDOM_NUMBERS, Views
from plainres.data.workers import Workers
from plainres.randomness import augmentation_key, order, uniforms
from support.photographs import Photographs

CPU = torch.device("cpu")
VIEWS = Views((3, 16, 16), flip=True, colour=0.1)
STATISTICS = torch.tensor([120.0, 110.0, 100.0]), torch.tensor([60.0, 50.0, 40.0])
PHOTOGRAPHS = Photographs.of(100)


def images(workers: int = 0, encoded: Photographs = PHOTOGRAPHS, **changes: Any) -> StreamedImages:
    return StreamedImages(StreamedSplit(encoded, replace(VIEWS, **changes)), STATISTICS, CPU, workers)


def stream(workers: int, steps: int, start: int = 0, batch_size: int = 40, **world: int) -> list[StreamedBatch]:
    """Return the batches of steps `start` to `steps`, over several epochs."""
    step, batches = start, []
    pixels = images(workers)
    training = TrainingBatches(pixels, batch_size, 3, lambda: step, **world)
    while step < steps:
        for batch in training:
            assert isinstance(batch, StreamedBatch)
            batches.append(StreamedBatch(*(tensor.clone() for tensor in batch)))
            step += 1
            if step == steps:
                pixels.close()
                break
    return batches


def test_memory_is_pinned_until_the_copies_from_it_have_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if an epoch is left in the middle, as at the end of a run or at a signal."""
    calls: list[str] = []
    driver: Any = type("Driver", (), {})
    driver.cudaHostRegister = lambda *_: calls.append("register")
    driver.cudaHostUnregister = lambda *_: calls.append("unregister")
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch.cuda, "check_error", lambda _: calls.append("check"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: calls.append("wait"))

    def leave() -> None:
        with streamed_batches._pinned(torch.zeros(3), torch.device("cuda")):
            calls.append("use")
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert calls == ["register", "check", "use", "wait", "unregister"]


def equal(a: list[StreamedBatch], b: list[StreamedBatch]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, chain(*a), chain(*b)))


def processes() -> set[int]:
    """Return the workers that are alive."""
    return {process.pid for workers in LIVE for process in workers.processes if process.is_alive()}  # pyright: ignore[reportReturnType]


LIVE: list[Workers] = []


@pytest.fixture(autouse=True)
def no_worker_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Any:
    LIVE.clear()
    create = Workers.__init__

    def record(self: Workers, *arguments: Any) -> None:
        create(self, *arguments)
        LIVE.append(self)

    monkeypatch.setattr(Workers, "__init__", record)
    yield
    assert not processes()


def test_batches_are_the_views_of_the_images() -> None:
    (first, *_), step = stream(0, 1), 0
    index = order(3, 0, 100)[:40]
    random = uniforms(augmentation_key(3, step), index, RANDOM_NUMBERS).tolist()
    for number, i in enumerate(index.tolist()):
        with Image.open(io.BytesIO(PHOTOGRAPHS.files[i])) as image:
            view = VIEWS.training(image.height, image.width, random[number])
            scale = 16 / (view.right - view.left)
            # the slow way: resize the whole image, then crop and mirror
            whole = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = round(view.left * scale), round(view.top * scale)
        expected = np.asarray(whole)[top : top + 16, left : left + 16].astype(int)
        expected = expected[:, ::-1] if view.mirror else expected
        difference = np.abs(first.pixels[number].numpy() - expected)
        assert difference.mean() < 1.5
        assert difference.max() <= 8
    assert first.targets.tolist() == [i % 3 for i in index.tolist()]
    assert first.colours.unique(dim=0).shape == (40, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalisation_adds_the_colours_to_all_pixels(dtype: torch.dtype) -> None:
    (batch,) = stream(0, 1)
    normalised, targets = images().materialize(batch._replace(colours=batch.colours.to(dtype)))
    assert normalised.dtype == torch.float32
    mean, std = (tensor.view(3, 1, 1) for tensor in STATISTICS)
    expected = (batch.pixels.permute(0, 3, 1, 2) + batch.colours[:, :, None, None] - mean) / std
    torch.testing.assert_close(normalised, expected)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(targets, batch.targets)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    assert equal(stream(workers, 5), stream(0, 5))


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (1, 3), (2, 1), (3, 2)])
def test_resumed_batches_match_an_uninterrupted_run(start: int, workers: int) -> None:
    assert equal(stream(workers, 5, start), stream(0, 5)[start:])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_batch_does_not_depend_on_the_world_size(workers: int) -> None:
    ranks = [stream(workers, 3, rank=rank, world_size=2) for rank in range(2)]
    joined = [StreamedBatch(*map(torch.cat, zip(*parts, strict=True))) for parts in zip(*ranks, strict=True)]
    assert equal(joined, stream(0, 3))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_ring_is_not_overwritten_before_its_batch_is_used(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_batches, "PART", 3)  # many parts for each worker
    whole = stream(0, 10, batch_size=10)
    for batch, expected in zip(TrainingBatches(images(workers), 10, 3, lambda: 0), whole, strict=True):
        time.sleep(0.002)  # workers run ahead
        assert all(map(torch.equal, batch, expected))


def test_global_random_state_is_not_used() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # pyright: ignore
    stream(2, 2)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # pyright: ignore


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("crops", [1, 10])
def test_evaluation_visits_every_image_once(workers: int, crops: int) -> None:
    pixels = images(workers, test_crops=crops)
    batches = list(EvaluationBatches(pixels))
    assert sum(len(targets) for _, targets in batches) == 100
    assert torch.equal(torch.cat([targets for _, targets in batches]), PHOTOGRAPHS.targets)
    shown = torch.cat([shown for shown, _ in batches])
    assert shown.shape == ((100, 3, 16, 16) if crops == 1 else (100, 10, 3, 16, 16))
    middle = shown if crops == 1 else shown[:, 0]
    assert torch.equal(middle, images().batch(torch.arange(100))[0])
    if crops == 10:
        assert torch.equal(shown[:, 1::2], shown[:, ::2].flip(-1))


def test_an_evaluation_by_more_ranks_than_images() -> None:
    few = images(1, Photographs.of(2))
    for rank in range(3):
        batches = list(EvaluationBatches(few, rank, 3))
        assert [len(targets) for _, targets in batches] == [int(rank < 2)]


def test_close_stops_the_workers_of_an_unfinished_epoch() -> None:
    pixels = images(2)
    training = iter(TrainingBatches(pixels, 20, 3, lambda: 0))
    next(training)
    assert len(processes()) == 2
    pixels.close()
    assert not processes()
