"""Locks, on file systems with flock and without it (ENOSYS), among processes that are killed."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from plainres.locks import HeldError, held, is_held

# holds the lock of the file in its argument until it is killed; with a second argument, as on Lustre without flock
HOLDER = """
import errno, fcntl, os, sys, time
from pathlib import Path
from plainres.locks import held

def refuse(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

if sys.argv[2:]:
    fcntl.flock = refuse
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def without_flock(*_: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.fixture(params=["flock", "ENOSYS"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "ENOSYS":
        monkeypatch.setattr(fcntl, "flock", without_flock)
    return request.param


def holder(file: Path, file_system: str) -> "subprocess.Popen[str]":
    """Start a process that holds a lock."""
    marker = ["without flock"] if file_system == "ENOSYS" else []
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(file), *marker], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_held_by_one_process_until_it_is_killed(tmp_path: Path, file_system: str) -> None:
    file = tmp_path / "lock"
    assert not is_held(file)
    with holder(file, file_system) as process:
        assert is_held(file)
        with pytest.raises(HeldError, match="wait for it or stop it first") as error, held(file, timeout=0):
            pass
        assert str(file) in str(error.value) or file_system == "flock"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_held(file)
        with held(file, timeout=0):
            assert is_held(file)
        assert not is_held(file)


def test_without_flock_the_lock_of_another_host_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", without_flock)
    file = tmp_path / "lock"
    file.write_text("1\nnode7\n")
    assert is_held(file)
    with pytest.raises(HeldError) as error, held(file, timeout=0):
        pass
    assert str(error.value) == f"wait for it or stop it first; if it has exited, delete {file}"
    file.unlink()
    with held(file, timeout=0):
        assert platform.node() in file.read_text()


def test_a_fallback_is_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", without_flock)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with held(tmp_path / "lock", timeout=0):
            assert is_held(tmp_path / "lock")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_that_rejects_locks_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / "lock").touch()
    with pytest.raises(OSError, match=os.strerror(number)):
        is_held(tmp_path / "lock")
    with pytest.raises(OSError, match=os.strerror(number)), held(tmp_path / "lock", timeout=0):
        pass


def test_looking_at_a_lock_changes_nothing(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "lock")
    assert not is_held(tmp_path / "no folder" / "lock")
    assert not list(tmp_path.iterdir())
