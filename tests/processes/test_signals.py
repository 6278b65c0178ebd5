"""Stop signals."""

import signal

import pytest

from plainres.errors import StoppedError
from plainres.processes.signals import StopSignals


def test_a_signal_is_deferred_or_stops_at_once() -> None:
    previous = signal.getsignal(signal.SIGUSR1)
    with StopSignals() as signals, pytest.raises(StoppedError) as stop:
        signal.raise_signal(signal.SIGUSR1)
    assert (signals.received, stop.value.code) == (signal.SIGUSR1, 128 + signal.SIGUSR1)
    with StopSignals(started=True) as signals:
        signals.deferring = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(StoppedError, match="stopped at once; run the same command again to resume"):
            signal.raise_signal(signal.SIGINT)  # the second Ctrl-C, or the first after another signal
    assert signal.getsignal(signal.SIGUSR1) is previous


def test_a_stop_before_the_first_run_does_not_promise_to_resume() -> None:
    with StopSignals(), pytest.raises(StoppedError) as stop:
        signal.raise_signal(signal.SIGINT)
    assert str(stop.value) == "stopped before any run had started; run the same command again to start"
