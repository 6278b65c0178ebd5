"""Child processes forked from a server that has already done the imports.

A forked process starts in milliseconds and exits with the command that owns the server.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from typing import Any

from plainres.errors import InputError, RunFailedError, first_line

Call = tuple[Callable[..., Any], *tuple[Any, ...]]  # an importable function and its arguments


def forkserver(preloaded: Sequence[str]) -> ForkServerContext:
    """Start a fork server that imports the modules `preloaded`.

    Returns:
        The multiprocessing context whose processes are forked from this server.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    # BLAS libraries read these at import; each run sets its number of torch threads itself
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # The command alone handles Ctrl-C and forwards it; the server and the forked processes ignore it
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    ensure_running()
    signal.signal(signal.SIGINT, interrupt)
    return context


def attach_to_command() -> None:
    """Ignore Ctrl-C in this forked process, and exit when the command exits or is killed.

    Call this first in every function that runs in a forked process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        result = function(*arguments)
    except (InputError, OSError, RunFailedError) as error:
        result = error
    except Exception as error:
        result = RunFailedError(f"{type(error).__name__}: {first_line(error)}")
    sender.send(result)
