"""The inner loop of training: Lightning's own does the same, and a step can be captured."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from plainres.data import batches
from plainres.data.datamodule import ImageBatches
from plainres.data.sources import Synthetic
from plainres.models.networks import CifarNet
from plainres.models.shortcuts import Dropout, ShortcutFactory
from plainres.randomness import seed_noise
from plainres.training.classifier import Classifier
from plainres.training.epoch_loop import EAGER_STEPS, EpochLoop, Replay
from support.shipped import SHORTCUTS
from support.training import Recorder, Rows, bare_trainer, recipe

Change = Callable[[pl.Trainer], None]


def fitted(
    change: Change, *, capturable: bool = False, steps: int = 10, shortcut: ShortcutFactory = Dropout
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """All state and all rows of a run of two and a half epochs, with augmentation."""
    source = Synthetic([1, 8, 8], 10, 70, 30, 2, True)
    optim = recipe(steps=steps)
    data = ImageBatches(source.load(), source, optim.batch_size, 0)
    torch.manual_seed(0)
    network = CifarNet(1, 10, 8, 4, shortcut)
    seed_noise(network, 0)
    classifier = Classifier(network, optim, steps, data.steps_per_epoch, capturable=capturable)
    rows = Rows()
    trainer = bare_trainer(steps, data.steps_per_epoch, rows)
    change(trainer)
    trainer.fit(classifier, datamodule=data)
    assert trainer.global_step == steps
    momenta = {str(i): state["momentum_buffer"] for i, state in enumerate(trainer.optimizers[0].state.values())}
    loops = trainer.fit_loop.state_dict()
    return {**classifier.state_dict(), **momenta, "loops": loops}, rows.rows


def with_capture(capture: Callable[[Replay], Replay] | None) -> Change:
    def change(trainer: pl.Trainer) -> None:
        trainer.fit_loop.epoch_loop = EpochLoop(trainer, capture)

    return change


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def test_the_loop_does_what_lightnings_own_does() -> None:
    own, own_rows = fitted(lambda trainer: None)
    ours, our_rows = fitted(with_capture(None))
    loops, our_loops = own.pop("loops"), ours.pop("loops")
    assert_equal(own, ours)
    assert own_rows == our_rows
    assert loops.keys() == our_loops.keys()
    for key, value in loops.items():
        if "scheduler" not in key:
            assert our_loops[key] == value, key


@pytest.mark.parametrize("name", SHORTCUTS)
def test_a_captured_step_is_the_step(name: str) -> None:
    recorder = Recorder()
    eager, eager_rows = fitted(with_capture(None), capturable=True, shortcut=SHORTCUTS[name])
    captured, rows = fitted(with_capture(recorder), capturable=True, shortcut=SHORTCUTS[name])
    assert len(recorder.graphs) == 1
    assert_equal(eager, captured)
    assert eager_rows == rows


def test_images_that_do_not_fit_on_the_device_are_made_batches_outside_of_the_captured_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near, near_rows = fitted(with_capture(None), capturable=True)
    monkeypatch.setattr(batches, "_fits", lambda images, device: False)
    made, recorder = [], Recorder()
    augmented = batches.DeviceImages.augmented

    def noted(self: batches.DeviceImages, index: torch.Tensor, random: torch.Tensor) -> batches.Batch:
        made.append(len(index))
        return augmented(self, index, random)

    monkeypatch.setattr(batches.DeviceImages, "augmented", noted)
    far, far_rows = fitted(with_capture(recorder), capturable=True)
    assert len(recorder.graphs) == 1
    assert len(made) == 10  # one for each step
    assert_equal(near, far)
    assert near_rows == far_rows


def test_the_first_steps_are_not_captured() -> None:
    calls: list[str] = []

    def capture(launch: Replay) -> Replay:
        calls.append("capture")
        return lambda: calls.append("replay") or launch()

    fitted(with_capture(capture), steps=EAGER_STEPS)
    assert calls == []
    fitted(with_capture(capture), steps=EAGER_STEPS + 2)
    assert calls == ["capture", "replay", "replay"]


@pytest.mark.parametrize("captured", [True, False])
def test_a_run_goes_on_with_the_optimizer_of_its_own_device(captured: bool) -> None:
    """What a checkpoint says of how the optimizer works is of where it was saved."""
    seen = []

    class Elsewhere(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.optimizers[0].param_groups[0] |= {"fused": not captured, "lr": torch.tensor(7.0)}

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
            group = trainer.optimizers[0].param_groups[0]
            seen.append((group["fused"], isinstance(group["lr"], torch.Tensor), float(group["lr"])))

    def change(trainer: pl.Trainer) -> None:
        with_capture(None)(trainer)
        trainer.callbacks.append(Elsewhere())  # pyright: ignore[reportAttributeAccessIssue]

    fitted(change, capturable=captured, steps=2)
    assert seen == [(captured or None, captured, pytest.approx(lr)) for lr in (0.1, 0.01)]


def test_an_optimizer_that_is_captured_reads_its_learning_rate_from_a_tensor() -> None:
    plain, rows = fitted(with_capture(None))
    captured, captured_rows = fitted(with_capture(None), capturable=True)
    assert [row["lr"] for row in rows] == [row["lr"] for row in captured_rows]
    for key, value in plain.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, captured[key], msg=key)
    assert rows[-1]["train/loss"] == pytest.approx(captured_rows[-1]["train/loss"], rel=1e-4)
