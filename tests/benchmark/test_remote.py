"""Loops in processes of their own."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from plainres.benchmark.dataloader import Style
from plainres.benchmark.remote import RemoteLoop
from plainres.config.schema import Config
from plainres.errors import InputError, RunFailedError
from plainres.processes.forkserver import call_in_processes, forkserver

Make = Callable[..., Config]


def run_and_close(config: Config, died: bool) -> list[bool]:
    loop = RemoteLoop(config, Style(), threads=1)
    alive = [loop.process.is_alive()]
    try:
        loop.run(2)
        if died:
            loop.process.kill()
            loop.process.join()
        loop.run(1)
    finally:
        loop.close()
    return [*alive, loop.process.is_alive()]


def test_a_remote_loop_takes_steps_until_it_is_closed(make_config: Make) -> None:
    assert call_in_processes(forkserver([]), [(run_and_close, make_config(), False)]) == [[True, False]]


@pytest.mark.parametrize(
    ("channels", "died", "error", "message"),
    [
        (2, False, InputError, "the images have 2 channels"),
        (1, True, RunFailedError, "a DataLoader loop died; it was killed or ran out of memory"),
    ],
)
def test_an_error_in_a_remote_loop_is_raised_here(
    make_config: Make, channels: int, died: bool, error: type[Exception], message: str
) -> None:
    config = make_config()
    config = replace(config, data=config.data | {"shape": [channels, 8, 8]})
    with pytest.raises(error, match=message):
        call_in_processes(forkserver([]), [(run_and_close, config, died)])
