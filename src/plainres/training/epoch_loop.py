"""The inner loop of training: one optimizer step after another, with as little between them as there can be.

Lightning's own takes 0.3 ms of Python more for each step (experiments/throughput). This one does
the same with the same counters, so checkpoints, evaluation, curves and the end of training stay Lightning's.
"""

from collections.abc import Callable
from functools import cached_property

import lightning.pytorch as pl
import torch
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from plainres.data.batches import Batch, SampledBatch
from plainres.data.datamodule import ImageBatches
from plainres.training.classifier import Classifier

Replay = Callable[[], object]
EAGER_STEPS = 3  # before a step is captured: what is made once, such as momenta, must be there


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, for one optimizer that steps after each batch, and no scheduler.

    Of a callback's hooks in a step `on_train_batch_end` alone is called. Nothing may be logged by `self.log`; the
    classifier hands its rows to the loggers itself.

    Args:
        trainer: whose loop it becomes.
        capture: makes a graph of a step; None: each step is launched operation by operation.
    """

    def __init__(self, trainer: pl.Trainer, capture: Callable[[Replay], Replay] | None = None) -> None:
        super().__init__(trainer)
        self.step = StepGraph(self._step, capture) if capture else self._step

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing. Lightning 2.6 agrees on signals in each step in a way that waits for the GPU; see Checkpoints."""

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on the next batch."""
        if self.restarting:
            super().advance(data_fetcher)  # which knows what of an interrupted epoch is left to do
            return
        trainer, classifier = self.trainer, self.trainer.lightning_module
        assert isinstance(classifier, Classifier)
        self.val_loop.restarting = False
        sampled, *_ = next(data_fetcher)
        batches, steps = self.batch_progress, self.automatic_optimization.optim_progress.optimizer
        batches.is_last_batch = data_fetcher.done
        batch_idx = batches.current.ready
        batches.increment_ready()
        classifier.on_train_batch_start(sampled, batch_idx)
        batches.increment_started()
        steps.step.increment_ready()
        self.step(self._data.on_device(sampled))
        steps.step.increment_completed()
        steps.zero_grad.increment_ready()
        steps.zero_grad.increment_started()
        steps.zero_grad.increment_completed()
        batches.increment_processed()
        for callback in self._observers:
            callback.on_train_batch_end(trainer, classifier, None, sampled, batch_idx)
        classifier.on_train_batch_end(None, sampled, batch_idx)
        batches.increment_completed()

    @cached_property
    def _observers(self) -> list[pl.Callback]:
        callbacks: list[pl.Callback] = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        return [callback for callback in callbacks if is_overridden("on_train_batch_end", callback, pl.Callback)]

    @property
    def _data(self) -> ImageBatches:
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, ImageBatches)
        return data

    def _step(self, batch: Batch | SampledBatch) -> None:
        """Forward, backward, optimizer."""
        trainer = self.trainer
        loss = trainer.strategy.training_step(self._data.on_after_batch_transfer(batch, 0), 0)
        assert isinstance(loss, Tensor)
        (optimizer,) = trainer.optimizers
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class StepGraph:
    """A step that is captured once, all its kernels together, and then launched as one.

    The first few steps run as they are. What a step takes is copied to one place, from which every replay reads it;
    what changes otherwise, such as the learning rate, must be a tensor that stays where it is.

    Args:
        step: what is to be captured; it may not wait for the device.
        capture: records what a function launches, without carrying it out, and returns what replays it.
    """

    def __init__(self, step: Callable[[Batch | SampledBatch], None], capture: Callable[[Replay], Replay]) -> None:
        self.step, self.capture = step, capture
        self.inputs: Batch | SampledBatch | None = None
        self.replay: Replay | None = None
        self.eager_steps = 0

    def __call__(self, batch: Batch | SampledBatch) -> None:
        """Train on a batch."""
        if self.inputs is None:
            one, other = (tensor.clone() for tensor in batch)
            self.inputs = SampledBatch(one, other) if isinstance(batch, SampledBatch) else (one, other)
        inputs = self.inputs
        for here, there in zip(inputs, batch, strict=True):
            here.copy_(there)
        if self.eager_steps < EAGER_STEPS:
            self.eager_steps += 1
            self.step(inputs)
            return
        if self.replay is None:
            self.replay = self.capture(lambda: self.step(inputs))
        self.replay()


def cuda_graph(launch: Replay) -> Replay:
    """Capture what is launched on the GPU as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay
