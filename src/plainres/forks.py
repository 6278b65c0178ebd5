"""Processes forked from one that has done the imports: each starts in milliseconds and ends when the command does."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running


def forkserver(preloaded: Sequence[str]) -> ForkServerContext:
    """Start the process that imports the modules `preloaded`; from its context come those forked from it."""
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
    """What a forked process does first: leave Ctrl-C to the command, and end when that does, in whatever way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_command, daemon=True).start()


def _end_with_the_command() -> None:
    command = multiprocessing.parent_process()
    assert command is not None
    multiprocessing.connection.wait([command.sentinel])
    os._exit(1)
