"""Training loops in torch alone, which can be paused between steps."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from plainres.config.instantiate import network_of
from plainres.config.schema import Config
from plainres.data.batches import Batch, DeviceImages, EvaluationBatches, Pixels, TrainingBatch, TrainingBatches
from plainres.data.sources import Images, Source
from plainres.randomness import noises
from plainres.training.classifier import full_precision
from plainres.training.compilation import compiled
from plainres.training.epoch_loop import AnyBatch, Replay, StepGraph
from plainres.training.optimizer import clip_gradient, sgd

PARTS = ("data", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class Windows:
    """Timing windows of each contender.

    Args:
        rounds: number of windows.
        seconds: approximate length of a window.
    """

    rounds: int
    seconds: float


class Loop(Protocol):
    """Training loop that can be paused between steps, and that does not evaluate."""

    def run(self, steps: int) -> None:
        """Take the given number of optimizer steps."""
        ...


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work. Do nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def trainable(
    config: Config, source: Source, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> nn.Module:
    """Return the initialised network of a run on a device, in a dtype and memory format."""
    network = network_of(config, source).to(device, dtype, memory_format=layout)  # pyright: ignore[reportCallIssue]
    for noise in noises(network):  # a copy of the position in each step would wait for a GPU
        noise.position = noise.position.to(device)
    return network


class BareLoop:
    """Handwritten PyTorch loop over the same network, batches and precision, as the limit of the speed.

    It has no metrics, evaluation, curves, checkpoints or record.

    Args:
        config: configuration of the run.
        images: images of the run.
        source: source of these images.
        device: device to train on.
        capture: makes a CUDA graph of a step; None: launch each operation separately.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        source: Source,
        device: torch.device,
        capture: Callable[[Replay], Replay] | None = None,
    ) -> None:
        self.device, self.dtype = device, torch.float64 if config.precision == "64-true" else torch.float32
        self.network = trainable(config, source, device, self.dtype, torch.channels_last)
        self.mixed = config.precision == "bf16-mixed"
        compiles = config.trainer.compile is True
        self.logits_of = compiled(self.network, device, mixed=self.mixed) if compiles else self.network.forward
        self.training = DeviceImages(images.train, source, images.channel_statistics, device)
        self.step = 0
        self.batches = TrainingBatches(self.training, config.optim.batch_size, config.seed, lambda: self.step)
        self.recipe = config.optim
        self.optimizer = sgd(self.network, self.recipe, capturable=capture is not None)
        self.epoch: Iterator[TrainingBatch] = iter(())
        self.take = StepGraph(self._step, capture) if capture else self._step

    def run(self, steps: int) -> None:
        """Take the given number of steps."""
        for _ in range(steps):
            self.take(self._next())
            self.step += 1

    def parts(self, steps: int) -> dict[str, float]:
        """Take steps without a CUDA graph, and return the mean seconds of each part of a step.

        On a GPU each part waits for the previous one, so that their sum is longer than a step.
        """
        seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for _ in range(steps):
            last = time.perf_counter()

            def done(part: str) -> None:
                nonlocal last
                wait_for(self.device)
                now = time.perf_counter()
                seconds[part] += (now - last) / steps
                last = now

            self._step(self._next(), done)
            self.step += 1
        return seconds

    def _next(self) -> AnyBatch:
        batch = next(self.epoch, None)
        if batch is None:
            self.epoch = iter(self.batches)
            batch = next(self.epoch)
        return batch if self.training.fits else self._batch(batch)

    def _batch(self, batch: TrainingBatch) -> Batch:
        images, targets = self.training.materialize(batch)
        return images.to(self.device, self.dtype), targets.to(self.device)

    def _step(self, batch: AnyBatch, done: Callable[[str], None] = lambda part: None) -> None:
        images, targets = self._batch(batch) if isinstance(batch, TrainingBatch) else batch
        done("data")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            loss = F.cross_entropy(full_precision(self.logits_of(images)), targets)
        done("forward")
        self.optimizer.zero_grad()
        loss.backward()
        done("backward")
        clip_gradient(self.optimizer, self.recipe)
        self.optimizer.step()
        done("optimizer")


@torch.no_grad()
def evaluate(network: nn.Module, split: Pixels, *, mixed: bool) -> float:
    """Return the error on a set of images in percent, under bfloat16 autocast if `mixed`."""
    weight = next(network.parameters())
    network.eval()
    wrong = torch.zeros((), device=weight.device)
    for images, targets in EvaluationBatches(split):
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=mixed):
            logits = full_precision(network(images.to(weight.device, weight.dtype)))
            wrong += (logits.argmax(1) != targets.to(weight.device)).sum()
    network.train()
    return 100 * wrong.item() / len(split.targets)
