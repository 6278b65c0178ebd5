"""Functions called in child processes."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plainres.errors import InputError, RunFailedError
from plainres.processes.forkserver import call_in_processes, forkserver


def identify(index: int) -> tuple[int, int]:
    return index, os.getpid()


def fail(kind: str) -> None:
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "input":
        raise InputError("this is wrong")
    if kind == "disk":
        raise OSError(28, "No space left on device")
    raise KeyError("x")


def test_each_call_runs_in_its_own_process_and_results_keep_their_order() -> None:
    results = call_in_processes(forkserver([]), [(identify, i) for i in range(3)])
    assert [index for index, _ in results] == [0, 1, 2]
    assert len({process for _, process in results} | {os.getpid()}) == 4


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("input", InputError, "this is wrong"),
        ("disk", OSError, "No space left on device"),
        ("other", RunFailedError, "KeyError: 'x'"),
        ("killed", RunFailedError, "the process running fail died; it was killed or ran out of memory"),
    ],
)
def test_an_exception_in_a_call_is_raised_in_the_caller(kind: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call_in_processes(forkserver([]), [(identify, 1), (fail, kind)])


def test_it_is_started_from_the_main_thread() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(InputError, match="from the main thread"):
        pool.submit(forkserver, []).result()


def test_a_long_temporary_folder_is_not_used_for_sockets(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 28)
    folder.mkdir()
    program = "from plainres.processes.forkserver import *; import tempfile;"
    program += "print(call_in_processes(forkserver([]), [(len, 'abc')]), tempfile.gettempdir())"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"[3] {folder}\n", shown.stderr
