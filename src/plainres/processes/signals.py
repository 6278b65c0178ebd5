"""Signals that stop a run.

These are SIGTERM, SIGINT (Ctrl-C), SIGHUP from a closed terminal or a lost connection, and SIGUSR1, which SLURM sends
shortly before the time limit.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

from plainres.errors import StoppedError

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
FROM_TERMINAL = (signal.SIGINT, signal.SIGHUP)  # reach every process that a command has started in its terminal
BEFORE_START = "stopped before any run had started; run the same command again to start"


class StopSignals:
    """Context manager that turns stop signals into StoppedError.

    The first signal raises StoppedError immediately. While `deferring` is set, it is only recorded in `received`, and
    the training loop stops at the next step boundary. A second Ctrl-C always raises immediately. A signal that the
    process already ignores, as under nohup, remains ignored.

    Args:
        early: install the handlers on entry; otherwise the caller installs them with `listen`. Pass False for a rank
            of a distributed run: while torch waits for the other ranks, Python handlers do not run, and the signal's
            default action must be able to kill the process.
        started: whether a run is training already, for the message of StoppedError.

    Attributes:
        received: the number of the first signal received, 0 before that.
        deferring: whether a signal is recorded instead of raised.
        started: whether a run has started to train. Before that, there is nothing to resume.
    """

    def __init__(self, *, early: bool = True, started: bool = False) -> None:
        self.early, self.started = early, started
        self.received = 0
        self.deferring = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if self.early:
            self.listen()
        return self

    def listen(self) -> None:
        """Install the signal handlers unless they are installed already."""
        # Python installs handlers from the main thread only
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for number in STOPPING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self.receive)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: record it, or stop.

        Raises:
            StoppedError: stopping is not deferred, or this is the second Ctrl-C.
        """
        again, self.received = self.received, self.received or number
        if not self.deferring or (again and number == signal.SIGINT):
            self.stop(number)

    def stop(self, number: int) -> NoReturn:
        """Stop without saving, for the signal `number`.

        Raises:
            StoppedError: always.
        """
        raise StoppedError(
            "stopped at once; run the same command again to resume" if self.started else BEFORE_START, number
        )
