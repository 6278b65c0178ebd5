"""Training loops in processes of their own, so that each has the threads and the memory that it would have alone."""

import io
import multiprocessing
import sys
from multiprocessing.connection import Connection

import torch

from plainres.arithmetic import set_arithmetic
from plainres.benchmark.dataloader import DataLoaderLoop, Style
from plainres.benchmark.loops import Loop, wait_for
from plainres.config.instantiate import source_of
from plainres.config.schema import Config
from plainres.errors import InputError, RunFailedError, first_line
from plainres.processes.forkserver import attach_to_command
from plainres.processes.memory import keep_freed_memory


class RemoteLoop(Loop):
    """DataLoader loop in another process, which ends when it is closed or when this process ends.

    It is forked from this process, which must not have used torch yet, because threads and devices do not survive that.

    Args:
        config: configuration of the run, after `resolve_compile`.
        style: the style of the loop.
        threads: torch's default number of threads, which a loop has that is not tuned.
    """

    def __init__(self, config: Config, style: Style, threads: int) -> None:
        self.connection, remote = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_serve, args=(remote, config, style, threads))
        self.process.start()
        remote.close()

    def run(self, steps: int) -> None:
        """Take the given number of steps, and wait for the last.

        Raises:
            InputError: as `DataLoaderLoop`, before the first step.
            RunFailedError: the loop failed otherwise.
        """
        try:
            self.connection.send(steps)
            error = self.connection.recv()
        except (EOFError, OSError):
            error = RunFailedError("a DataLoader loop died; it was killed or ran out of memory")
        if error is not None:
            raise error

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: "Connection[Exception | None, int]", config: Config, style: Style, threads: int) -> None:
    """Take steps whenever the connection has a number of them; answer None, or the error after which this ends."""
    attach_to_command()
    # errors are answers; workers would print others while a stopped command removes its temporary folder
    sys.stderr = io.StringIO()
    steps = connection.recv()
    try:
        set_arithmetic(config.trainer.threads if style.tuned else threads)
        if style.keeps_memory:
            keep_freed_memory()
        source, device = source_of(config), torch.device(config.trainer.device_type)
        loop = DataLoaderLoop(config, source.load(), source, device, style)
        while True:
            loop.run(steps)
            wait_for(device)
            connection.send(None)
            steps = connection.recv()
    except InputError as error:
        connection.send(error)
    except Exception as error:
        connection.send(RunFailedError(f"a DataLoader loop failed ({type(error).__name__}: {first_line(error)})"))
