"""Signals that ask a run to stop: SIGTERM, Ctrl-C (SIGINT), and SIGUSR1, which SLURM sends when time is nearly up."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from plainres.errors import StoppedError

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignals:
    """While it is entered, a signal stops what is done: at once, or, while `deferring`, when that looks at `received`.

    A second Ctrl-C stops at once in any case. A signal that is ignored stays so, as under nohup.

    Args:
        early: take the signals from the beginning, not only when told to `listen`. For one process of several this is
            wrong: while it waits for the others inside of torch, which does not look at what Python handles, a signal
            must be able to end it.
    """

    def __init__(self, *, early: bool = True) -> None:
        self.early = early
        self.received = 0  # the number of the first one
        self.deferring = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if self.early:
            self.listen()
        return self

    def listen(self) -> None:
        """Take the signals, unless that is done already."""
        if threading.current_thread() is threading.main_thread() and not self._previous:  # no other thread can
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self.receive)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, or stop.

        Raises:
            StoppedError: nobody defers the end, or it is the second Ctrl-C.
        """
        again, self.received = self.received, self.received or number
        if not self.deferring or (again and number == signal.SIGINT):
            raise StoppedError("stopped at once; run the same command again to resume", number)
