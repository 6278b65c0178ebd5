"""Locks that reserve a folder for one process.

The operating system releases a lock when its process exits, even if the process is killed. A file system without such
locks answers ENOSYS. There, filelock writes the process and its host into the file instead. It releases the lock of a
process of this host that was killed, but it cannot know about other hosts.
"""

import errno
import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

HELD = (errno.EAGAIN, errno.EACCES)  # answers of flock about a lock that another process holds


class HeldError(Exception):
    """Another process holds a lock. The message says what to do."""


@contextmanager
def held(file: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock of a file, which need not exist.

    Args:
        file: the file of the lock.
        timeout: the longest wait in seconds; -1 waits as long as necessary.

    Raises:
        HeldError: another process holds the lock.
        OSError: the file cannot be written, or its file system rejects locks.
    """
    lock = FileLock(file)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flock not supported")
            lock.acquire(timeout=timeout)
    except Timeout as error:
        exited = f"; if it has exited, delete {file}" if isinstance(lock, SoftFileLock) else ""
        raise HeldError(f"wait for it or stop it first{exited}") from error
    try:
        yield
    finally:
        lock.release()


def is_held(file: Path) -> bool:
    """Whether a process holds the lock of a file. Only read access is necessary.

    Raises:
        OSError: the file cannot be read, or its file system rejects locks.
    """
    try:
        opened = file.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return False
    with opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                return True
            if error.errno != errno.ENOSYS:
                raise
        else:
            return False
    try:
        with SoftFileLock(file, timeout=0):
            return False
    except (Timeout, PermissionError):  # without write access, filelock cannot release the lock of a killed process
        return True
