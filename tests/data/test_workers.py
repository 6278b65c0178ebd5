"""Processes that decode images: in order, deaf to stop signals, and never left behind."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import torch

from plainres.data.streamed_split import Decoder, Part
from plainres.data.views import Views
from plainres.data.workers import Workers, worker_count
from plainres.errors import InputError
from support.photographs import Photographs

PHOTOGRAPHS = Photographs.of(100)


def decoder(encoded: Photographs = PHOTOGRAPHS) -> Decoder:
    """Return a decoder into a ring of one batch in shared memory."""
    made = Decoder.of(encoded, Views((3, 16, 16), flip=True, colour=0.1), slots=1, images=100, crops=1)
    made.pixels.share_memory_()
    made.colours.share_memory_()
    return made


def parts() -> Iterator[Part]:
    """Divide a training batch of all images."""
    return (Part(0, first, list(range(first, first + 10)), key=7) for first in range(0, 100, 10))


@pytest.mark.parametrize("count", [1, 3])
def test_parts_arrive_in_order_and_as_one_process_decodes_them(count: int) -> None:
    alone, shared = decoder(), decoder()
    with closing(Workers(alone, 0)) as one, closing(Workers(shared, count)) as several:
        assert list(one.decode(parts(), 0)) == list(several.decode(parts(), 5)) == list(parts())
        assert len(several.processes) == count
    assert not any(process.is_alive() for process in several.processes)
    assert torch.equal(alone.pixels, shared.pixels)
    assert torch.equal(alone.colours, shared.colours)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("damage", [lambda file: b"", lambda file: file[: len(file) // 2], lambda file: b"GIF" + file])
def test_a_damaged_image_is_named(count: int, damage: Callable[[bytes], bytes]) -> None:
    files = list(PHOTOGRAPHS.files)
    files[77] = damage(files[77])
    with (
        closing(Workers(decoder(Photographs(files)), count)) as workers,
        pytest.raises(InputError, match=r"^photograph-77.jpg .+$"),
    ):
        list(workers.decode(parts(), 4))


def test_workers_ignore_stop_signals_and_a_killed_one_is_reported() -> None:
    with closing(Workers(decoder(), 2)) as workers:
        decoded = workers.decode(parts(), 4)
        for _ in workers.processes:  # each has begun
            next(decoded)
        for process in workers.processes:
            assert process.pid is not None
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                os.kill(process.pid, number)
        next(decoded)
        workers.processes[0].kill()
        with pytest.raises(InputError, match=r"a worker that decodes images died; .* lower trainer.workers, or run"):
            list(decoded)


def test_default_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, processes, expected in ((1, 1, 1), (2, 1, 1), (8, 1, 7), (8, 2, 3), (96, 8, 11), (96, 1, 16)):
        monkeypatch.setattr("joblib.cpu_count", lambda cores=cores: cores)
        assert worker_count(None, processes) == expected
    assert worker_count(0, 1) == 0
