"""Worker processes that decode images into a ring of batches in shared memory."""

import signal
import weakref
from collections import deque
from collections.abc import Iterator
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import joblib
import torch

from plainres.data.streamed_split import Decoder, Part
from plainres.errors import InputError
from plainres.processes.forkserver import attach_to_command, forkserver
from plainres.processes.signals import STOPPING

MOST_WORKERS = 16  # by default; more have not been measured
PRELOADED = ["plainres.data.workers"]


def worker_count(requested: int | None, processes: int) -> int:
    """Return the number of workers of each of `processes` training processes of this machine.

    By default they share the cores that the training processes leave: one for each at least, and 16 at most.
    """
    return min(MOST_WORKERS, max(1, joblib.cpu_count() // processes - 1)) if requested is None else requested


class Workers:
    """Processes that decode parts of batches; without any, this process decodes them.

    Workers take turns, so that their results arrive in order. They ignore stop signals, which concern the training
    process, and exit with it.

    Args:
        decoder: decoder whose ring is in shared memory.
        count: number of processes.
    """

    def __init__(self, decoder: Decoder, count: int) -> None:
        self.decoder = decoder
        self.processes: list[BaseProcess] = []
        self.connections: list[Connection[Any, Any]] = []
        self.close = weakref.finalize(self, _stop, self.processes, self.connections)  # at the latest, at exit
        context = forkserver(PRELOADED) if count else None
        for _ in range(count):
            assert context is not None
            ours, theirs = context.Pipe()
            assert isinstance(ours, Connection)
            process = context.Process(target=_work, args=(theirs, decoder), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.connections.append(ours)

    def decode(self, parts: Iterator[Part], ahead: int) -> Iterator[Part]:
        """Decode parts, and yield each one when it is in the ring.

        Args:
            parts: the parts.
            ahead: number of parts that are decoded in advance.

        Raises:
            InputError: an image cannot be decoded, or a worker died.
        """
        if not self.connections:
            for part in parts:
                self.decoder.decode(part)
                yield part
            return
        pending: deque[tuple[Part, Connection[Any, Any]]] = deque()
        sent = 0
        try:
            while True:
                for part in islice(parts, ahead - len(pending)):
                    connection = self.connections[sent % len(self.connections)]
                    connection.send(part)
                    pending.append((part, connection))
                    sent += 1
                if not pending:
                    return
                part, connection = pending.popleft()
                if problem := connection.recv():
                    raise InputError(problem)
                yield part
        except (EOFError, ConnectionError) as error:
            raise InputError(
                "a worker that decodes images died; it was killed or ran out of memory; lower trainer.workers, or run "
                "the same command again to resume"
            ) from error


def _work(connection: "Connection[Any, Any]", decoder: Decoder) -> None:
    attach_to_command()
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    while True:
        try:
            part = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            decoder.decode(part)
        except InputError as error:
            connection.send(str(error))
        else:
            connection.send(None)


def _stop(processes: "list[BaseProcess]", connections: "list[Connection[Any, Any]]") -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
