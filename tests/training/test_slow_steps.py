"""Warning about slow steps: with a fake clock, and in real runs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from plainres.config.schema import Config
from plainres.errors import StoppedError
from plainres.runs.record import Run
from plainres.training import slow_steps
from plainres.training.classifier import Classifier
from plainres.training.slow_steps import FACTOR, SlowSteps, warning
from plainres.training.train import _epoch_loop, train
from support.training import StopAfter

Make = Callable[..., Config]


class Training:
    """Steps that take a given time on a fake clock, and the warnings about them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.warnings: list[str] = []
        self.step = SlowSteps(self.wait, 1, self.warnings.append, lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def run(self, *durations: float) -> None:
        for seconds in durations:
            self.step(seconds)
            self.now += 1000  # evaluation, probes and saving

    def fill_window(self, seconds: float) -> None:
        """Train with steps of equal duration until they fill a window."""
        self.run(seconds)
        while self.step.window:
            self.run(seconds)


def test_slow_steps_are_reported_once_with_both_speeds() -> None:
    training = Training()
    for seconds in (0.1, 0.1, 0.2, 0.1):
        training.fill_window(seconds)
        assert training.warnings == []
    for seconds in (1.0, 4.0, 0.1, 9.0):
        training.fill_window(seconds)
        assert training.warnings == ["1 steps/s instead of 10: other programs probably use the cores"]


@pytest.mark.parametrize("seconds", [0.001, 0.3, 60.0])
def test_less_than_the_factor_is_not_reported(seconds: float) -> None:
    for factor, warned in ((0.95 * FACTOR, False), (1.05 * FACTOR, True)):
        training = Training()
        training.fill_window(seconds)
        training.fill_window(factor * seconds)
        assert bool(training.warnings) == warned


def test_pauses_and_short_disturbances_are_not_reported() -> None:
    training = Training()
    training.fill_window(0.1)
    for _ in range(20):
        training.run(3600, 0.1, 3600, 0.1, 0.1)  # a process that is suspended twice
    training.run(*[0.1] * 60, *[1.0] * 9, *[0.1] * 100)
    assert training.warnings == []


@pytest.mark.parametrize("first", [[1.0] * 20, [60.0]])
def test_a_slow_beginning_does_not_hide_slow_steps(first: list[float]) -> None:
    """The machine is busy, or DDP compiles in the first step."""
    training = Training()
    training.run(*first)
    for seconds in (0.1, 0.1, 1.0, 1.0):
        training.fill_window(seconds)
    assert len(training.warnings) == 1


def test_the_advice_depends_on_the_number_of_threads() -> None:
    assert "Ctrl-C" not in warning(1.0, 10.0, 1)
    text = warning(0.8123, 12.345, 2)
    assert text.startswith("0.812 steps/s instead of 12.3: other programs probably use the cores, and with ")
    assert "trainer.threads=2 each step waits for the slowest thread" in text
    assert "press Ctrl-C and repeat the command with trainer.threads=1" in text
    assert "\n" not in text


@pytest.mark.parametrize(("slow", "warned"), [("training_step", True), ("validation_step", False)])
def test_only_slow_steps_of_a_run_are_reported(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], slow: str, warned: bool
) -> None:
    monkeypatch.setattr(slow_steps, "WINDOW_S", 0.02)
    original = getattr(Classifier, slow)
    kept: list[str] = []

    def delayed(self: Classifier, *arguments: Any) -> Any:
        if self.trainer.global_step >= 12:
            time.sleep(0.6)
        kept.extend(run.warning_file.read_text() for _ in range(run.warning_file.exists()))
        return original(self, *arguments)

    monkeypatch.setattr(Classifier, slow, delayed)
    run = Run.of(make_config(optim={"epochs": 7}))
    train(run)
    lines = [line for line in capfd.readouterr().err.splitlines() if " steps/s instead of " in line]
    assert len(lines) == warned
    assert set(kept) == {f"{line}\n" for line in lines}
    assert not run.warning_file.exists()


def test_a_stopped_run_continues_with_one_thread(make_config: Make) -> None:
    with pytest.raises(StoppedError):
        train(Run.of(make_config(trainer={"threads": 2})), [StopAfter(2)])
    run = Run.of(make_config(trainer={"threads": 1}))
    assert run.step == 2
    train(run)
    assert [(attempt["from_step"], attempt["threads"]) for attempt in run.result["attempts"]] == [(0, 2), (2, 1)]


def test_a_run_on_a_gpu_is_not_timed(make_config: Make, tmp_path: Path) -> None:
    trainer = Mock(is_global_zero=True)
    for accelerator, timed in (("cpu", True), ("gpu", False)):
        run = Run(make_config(trainer={"accelerator": accelerator}), tmp_path)
        assert isinstance(_epoch_loop(trainer, run).step, SlowSteps) == timed
