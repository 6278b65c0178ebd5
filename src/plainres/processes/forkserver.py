"""Child processes forked from a server that has already done the imports.

A forked process starts in milliseconds and exits with the command that owns the server.
"""

import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from typing import Any

from plainres.console import unfailing_output
from plainres.errors import InputError, RunFailedError, first_line
from plainres.processes.signals import FROM_TERMINAL

LONGEST_FOLDER = 60  # characters of a temporary folder; a socket's path may have 107, on macOS 103
Call = tuple[Callable[..., Any], *tuple[Any, ...]]  # an importable function and its arguments


def forkserver(preloaded: Sequence[str]) -> ForkServerContext:
    """Start a fork server that imports the modules `preloaded`.

    Returns:
        The multiprocessing context whose processes are forked from this server.

    Raises:
        InputError: this is not the main thread, which alone can set what signals do.
    """
    if threading.current_thread() is not threading.main_thread():
        raise InputError("runs in processes of their own are started from the main thread of a program; call it there")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    # BLAS libraries read these at import; each run sets its number of torch threads itself
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # The command alone handles the terminal's signals and forwards them; the server and its processes ignore them
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in FROM_TERMINAL}
    with _short_temporary_folder():
        ensure_running()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return context


@contextmanager
def _short_temporary_folder() -> Iterator[None]:
    """Make multiprocessing keep its sockets in /tmp if their paths would be too long elsewhere."""
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) > LONGEST_FOLDER:
        tempfile.tempdir = "/tmp"
    try:
        multiprocessing.util.get_temp_dir()  # which multiprocessing makes once and keeps
        yield
    finally:
        tempfile.tempdir = usual


def attach_to_command() -> None:
    """Ignore the terminal's signals in this forked process, and exit when the command exits or is killed.

    Call this first in every function that runs in a forked process.
    """
    for number in FROM_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_command, daemon=True).start()


def _exit_with_command() -> None:
    command = multiprocessing.parent_process()
    assert command is not None
    multiprocessing.connection.wait([command.sentinel])
    os._exit(1)


def call_in_processes(context: ForkServerContext, calls: Sequence[Call]) -> list[Any]:
    """Call functions concurrently, each in its own process, and return their results in order.

    Raises:
        InputError, OSError, RunFailedError: the first of these that a function raises, in the order of `calls`. Any
            other exception, or a process that dies, becomes a RunFailedError.
    """
    receivers, processes = [], []
    for call in calls:
        receiver, sender = multiprocessing.connection.Pipe(duplex=False)
        process = context.Process(target=_send_result, args=(sender, *call))
        process.start()
        sender.close()
        receivers.append(receiver)
        processes.append(process)
    results = []
    try:
        for (function, *_), receiver in zip(calls, receivers, strict=True):
            try:
                results.append(receiver.recv())
            except EOFError:
                message = f"the process running {function.__name__} died; it was killed or ran out of memory"
                results.append(RunFailedError(message))
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def _send_result(sender: "Connection[Any, Any]", function: Callable[..., Any], *arguments: Any) -> None:
    attach_to_command()
    # Python's default, as in a script: semaphores of other start methods outlive a process that is killed
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    try:
        with unfailing_output():
            result = function(*arguments)
    except (InputError, OSError, RunFailedError) as error:
        result = error
    except Exception as error:
        result = RunFailedError(f"{type(error).__name__}: {first_line(error)}")
    sender.send(result)
