"""Functions called in processes of their own."""

import os
import signal

import pytest

from plainres.errors import InputError, RunFailedError
from plainres.processes.forkserver import call_in_processes, forkserver


def number(of: int) -> tuple[int, int]:
    return of, os.getpid()


def fail(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "input":
        raise InputError("this is wrong")
    if how == "disk":
        raise OSError(28, "No space left on device")
    raise KeyError("x")


def test_each_call_has_a_process_and_results_come_in_order() -> None:
    results = call_in_processes(forkserver([]), [(number, i) for i in range(3)])
    assert [of for of, _ in results] == [0, 1, 2]
    assert len({process for _, process in results} | {os.getpid()}) == 4


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("input", InputError, "this is wrong"),
        ("disk", OSError, "No space left on device"),
        ("other", RunFailedError, "KeyError: 'x'"),
        ("killed", RunFailedError, "the process of fail died: killed, or out of memory"),
    ],
)
def test_what_a_call_raises_is_raised_here(how: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call_in_processes(forkserver([]), [(number, 1), (fail, how)])
