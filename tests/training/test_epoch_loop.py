"""Inner training loop: equivalence with Lightning's own, and captured steps."""

import gc
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from plainres.data import batches
from plainres.data.datamodule import ImageBatches
from plainres.data.sources import Synthetic
from plainres.models.activations import ActivationFactory, TailoredReLU
from plainres.models.blocks import BlockSpec
from plainres.models.networks import BASIC, CifarNet
from plainres.models.shortcuts import Dropout, Plain, ShortcutFactory
from plainres.randomness import seed_noise
from plainres.training.classifier import Classifier
from plainres.training.epoch_loop import EAGER_STEPS, EpochLoop, Replay, cuda_graph
from support.shipped import CONNECTIONS, EVERY_SHORTCUT, STATEFUL_ORDER
from support.training import Recorder, Rows, bare_trainer, recipe

Change = Callable[[pl.Trainer], None]


def fitted(
    change: Change,
    *,
    capturable: bool = False,
    steps: int = 10,
    shortcut: ShortcutFactory = Dropout,
    activation: ActivationFactory = nn.ReLU,
    block: BlockSpec = BASIC,
    **options: Any,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return the state and the rows after two and a half epochs with augmentation."""
    source = Synthetic([1, 8, 8], 10, 70, 30, 2, True)
    optim = recipe(steps=steps, **options)
    data = ImageBatches(source.load(), source, optim.batch_size, 0)
    torch.manual_seed(0)
    network = CifarNet(1, 10, 8, 4, shortcut, block=block, activation=activation)
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


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        assert torch.equal(value, expected[key]) if isinstance(value, torch.Tensor) else value == expected[key], key


OPTIONS = {"decay": "weights", "nesterov": True, "clip_norm": 0.5}


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["default", "options"])
def test_the_loop_is_equivalent_to_lightnings_own(options: dict[str, Any]) -> None:
    lightning, lightning_rows = fitted(lambda trainer: None, **options)
    ours, our_rows = fitted(with_capture(None), **options)
    loops, our_loops = lightning.pop("loops"), ours.pop("loops")
    assert_equal(lightning, ours)
    assert lightning_rows == our_rows
    assert loops.keys() == our_loops.keys()
    for key, value in loops.items():
        if "scheduler" not in key:
            assert our_loops[key] == value, key


@pytest.mark.parametrize("name", EVERY_SHORTCUT)
def test_a_captured_step_equals_the_eager_step(name: str) -> None:
    recorder = Recorder()
    block = BlockSpec(order=STATEFUL_ORDER) if name in CONNECTIONS else BASIC
    options: dict[str, Any] = {"shortcut": EVERY_SHORTCUT[name], "block": block, "capturable": True}
    eager, eager_rows = fitted(with_capture(None), **options)
    captured, rows = fitted(with_capture(recorder), **options)
    assert len(recorder.graphs) == 1
    assert_equal(eager, captured)
    assert eager_rows == rows


def test_a_captured_step_of_tailored_rectifiers_equals_the_eager_step() -> None:
    options: dict[str, Any] = {"shortcut": Plain, "activation": partial(TailoredReLU, eta=0.5), "capturable": True}
    eager, eager_rows = fitted(with_capture(None), **options)
    captured, rows = fitted(with_capture(Recorder()), **options)
    assert_equal(eager, captured)
    assert eager_rows == rows


def test_a_captured_step_has_all_options_of_the_optimizer() -> None:
    recorder = Recorder()
    eager, eager_rows = fitted(with_capture(None), capturable=True, **OPTIONS)
    captured, rows = fitted(with_capture(recorder), capturable=True, **OPTIONS)
    assert len(recorder.graphs) == 1
    assert_equal(eager, captured)
    assert eager_rows == rows
    for option in OPTIONS:
        _, others = fitted(with_capture(None), capturable=True, **{k: v for k, v in OPTIONS.items() if k != option})
        assert others != rows, option


def test_clipping_at_infinity_changes_no_bit() -> None:
    unclipped, rows = fitted(with_capture(None))
    clipped, clipped_rows = fitted(with_capture(None), clip_norm=math.inf)
    assert_equal(unclipped, clipped)
    assert rows == clipped_rows


def test_batches_are_made_outside_the_captured_step_if_the_images_do_not_fit_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_device, on_device_rows = fitted(with_capture(None), capturable=True)
    monkeypatch.setattr(batches, "_fits", lambda images, device: False)
    sizes, recorder = [], Recorder()
    augmented = batches.DeviceImages.augmented

    def recorded(self: batches.DeviceImages, index: torch.Tensor, random: torch.Tensor) -> batches.Batch:
        sizes.append(len(index))
        return augmented(self, index, random)

    monkeypatch.setattr(batches.DeviceImages, "augmented", recorded)
    on_host, on_host_rows = fitted(with_capture(recorder), capturable=True)
    assert len(recorder.graphs) == 1
    assert len(sizes) == 10  # one for each step
    assert_equal(on_device, on_host)
    assert on_device_rows == on_host_rows


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
def test_a_resumed_run_configures_the_optimizer_for_its_own_device(captured: bool) -> None:
    """A checkpoint contains the optimizer's options for the device on which it was saved."""
    options = []

    class RestoredOptions(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.optimizers[0].param_groups[0] |= {"fused": not captured, "lr": torch.tensor(7.0)}

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
            group = trainer.optimizers[0].param_groups[0]
            options.append((group["fused"], isinstance(group["lr"], torch.Tensor), float(group["lr"])))

    def change(trainer: pl.Trainer) -> None:
        with_capture(None)(trainer)
        trainer.callbacks.append(RestoredOptions())  # pyright: ignore[reportAttributeAccessIssue]

    fitted(change, capturable=captured, steps=2)
    assert options == [(captured or None, captured, pytest.approx(lr)) for lr in (0.1, 0.01)]


def test_a_capturable_optimizer_reads_its_learning_rate_from_a_tensor() -> None:
    eager, rows = fitted(with_capture(None))
    capturable, capturable_rows = fitted(with_capture(None), capturable=True)
    assert [row["lr"] for row in rows] == [row["lr"] for row in capturable_rows]
    for key, value in eager.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, capturable[key], msg=key)
    assert rows[-1]["train/loss"] == pytest.approx(capturable_rows[-1]["train/loss"], rel=1e-4)


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand-ins for torch's CUDA graphs and streams; return the list of the streams on which graphs are captured."""
    streams: list[Any] = []

    @contextmanager
    def graph(_: Any, *, stream: Any = None) -> Iterator[None]:
        streams.append(stream)
        try:
            yield
        finally:
            if sys.exc_info()[0]:  # as the end of a capture that was interrupted
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Mock)
    monkeypatch.setattr(torch.cuda, "Stream", Mock)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return streams


@pytest.mark.parametrize("error", [ValueError("the cause"), KeyboardInterrupt()])
def test_a_failed_capture_raises_its_cause(capturing: list[Any], error: BaseException) -> None:
    def launch() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        cuda_graph(launch)
    assert raised.value is error


def test_each_graph_is_captured_on_a_stream_of_its_own(capturing: list[Any]) -> None:
    for _ in range(2):
        cuda_graph(lambda: None)
    assert None not in capturing
    assert capturing[0] is not capturing[1]


def test_garbage_is_collected_before_a_capture_rather_than_in_it(
    capturing: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: calls.append("collect"))
    cuda_graph(lambda: calls.append("launch"))
    assert calls == ["collect", "launch"]


def test_no_accumulation_of_gradients_outlives_a_step() -> None:
    """A capture would otherwise accumulate gradients on the stream of the steps before it, which it cannot wait for."""

    def accumulator(parameter: torch.Tensor) -> Any:
        """Return the node of a parameter that accumulates its gradient. It is created anew if none is alive."""
        with torch.enable_grad():
            node = parameter.expand_as(parameter).grad_fn
        assert node is not None
        return node.next_functions[0][0]

    alive: list[int] = []

    def change(trainer: pl.Trainer) -> None:
        loop = EpochLoop(trainer)
        step = loop.step

        def observed(batch: Any) -> None:
            parameters = list(trainer.lightning_module.parameters())
            forward, held = trainer.lightning_module.training_step, []

            def marked(*arguments: Any) -> Any:
                loss = forward(*arguments)
                for parameter in parameters:
                    accumulator(parameter).metadata["step"] = trainer.global_step
                return loss

            trainer.lightning_module.training_step = marked
            gc.disable()  # a cycle would keep nodes alive until the next collection
            step(batch)
            held = [parameter for parameter in parameters if "step" in accumulator(parameter).metadata]
            gc.enable()
            alive.append(len(held))
            del trainer.lightning_module.training_step

        loop.step = observed
        trainer.fit_loop.epoch_loop = loop

    fitted(change, capturable=True)
    assert alive == [0] * 10
