"""Processes forked from one that has done the imports: each starts in milliseconds and exits with the command."""

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

Call = tuple[Callable[..., Any], *tuple[Any, ...]]  # a function that other processes can import, and its arguments


def forkserver(preloaded: Sequence[str]) -> ForkServerContext:
    """Start the process that imports the modules `preloaded`; processes of its context are forked from it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    # BLAS libraries read these when they are imported; torch's threads are set for each run
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # Ctrl-C is this process's to hand on, not its server's or the forked ones'
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    ensure_running()
    signal.signal(signal.SIGINT, interrupt)
    return context


def begin() -> None:
    """Leave Ctrl-C to the command, and exit when that does, for whatever reason: the first act of a forked process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_the_command, daemon=True).start()


def _exit_with_the_command() -> None:
    command = multiprocessing.parent_process()
    assert command is not None
    multiprocessing.connection.wait([command.sentinel])
    os._exit(1)


def call_in_processes(context: ForkServerContext, calls: Sequence[Call]) -> list[Any]:
    """Call functions at the same time, each in a process with memory of its own; return what they return.

    Raises:
        InputError, OSError, RunFailedError: what a function raises; any other exception, and the death of a process,
            as a RunFailedError.
    """
    answers, processes = [], []
    for call in calls:
        answer, theirs = multiprocessing.connection.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(theirs, *call))
        process.start()
        theirs.close()
        answers.append(answer)
        processes.append(process)
    results = []
    try:
        for (function, *_), answer in zip(calls, answers, strict=True):
            try:
                results.append(answer.recv())
            except EOFError:
                reason = f"the process of {function.__name__} died: killed, or out of memory"
                results.append(RunFailedError(reason))
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


def _answer(answer: "Connection[Any, Any]", function: Callable[..., Any], *arguments: Any) -> None:
    begin()
    try:
        result = function(*arguments)
    except (InputError, OSError, RunFailedError) as error:
        result = error
    except Exception as error:
        result = RunFailedError(f"{type(error).__name__}: {first_line(error)}")
    answer.send(result)
