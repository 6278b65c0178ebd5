"""Baselines of `plainres bench`: a bare training loop, and a DataLoader that crops single images."""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset

from plainres.config.instantiate import network_of
from plainres.config.schema import Config
from plainres.data.batches import Batch, DeviceImages, EvaluationBatches, Pixels, TrainingBatch, TrainingBatches
from plainres.data.sources import Images, Source, Split
from plainres.errors import InputError
from plainres.processes.forkserver import attach_to_command
from plainres.training.classifier import full_precision
from plainres.training.epoch_loop import AnyBatch, Replay, StepGraph

PARTS = ("data", "forward", "backward", "optimizer")
DATALOADER_WORKERS = 4  # maximum; torch warns if there are more workers than cores


class Loop(Protocol):
    """Training loop that can be paused between steps, and that evaluates the test set after each epoch."""

    def run(self, steps: int) -> None:
        """Take the given number of optimizer steps."""
        ...


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work. Do nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class BareLoop:
    """Handwritten PyTorch loop over the same network, batches and precision, as the limit of the speed.

    It has no metrics, curves, checkpoints or record.

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
        self.network = network_of(config, source).to(device, self.dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        forward = self.network.forward
        self.logits_of = torch.compile(forward, dynamic=False) if config.trainer.compile is True else forward
        self.mixed = config.precision == "bf16-mixed"
        statistics = images.channel_statistics
        self.training, self.test = (DeviceImages(s, source, statistics, device) for s in (images.train, images.test))
        self.step = 0
        self.batches = TrainingBatches(self.training, config.optim.batch_size, config.seed, lambda: self.step)
        recipe = config.optim
        self.optimizer = SGD(
            self.network.parameters(),
            torch.tensor(recipe.lr, device=device) if capture else recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=capture is not None or device.type == "cuda" or None,
        )
        self.epoch: Iterator[TrainingBatch] = iter(())
        self.take = StepGraph(self._step, capture) if capture else self._step

    def run(self, steps: int) -> None:
        """Take the given number of steps."""
        for _ in range(steps):
            self.take(self._next())
            self._count()

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
            self._count()
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
        self.optimizer.step()
        done("optimizer")

    def _count(self) -> None:
        self.step += 1
        if self.step % len(self.batches) == 0:
            evaluate(self.network, self.test, mixed=self.mixed)


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


def _attach(worker: int) -> None:
    """Make a DataLoader worker exit at once if the benchmark is stopped; torch's own check takes up to 5 s."""
    attach_to_command()


class DataLoaderBaseline:
    """DataLoader baseline: worker processes crop, mirror and normalise single images; training in eager float32.

    It uses torch's default memory format. Call it with torch's default number of threads.

    Raises:
        InputError: the images have a number of channels that Pillow does not support.
    """

    def __init__(self, config: Config, images: Images, source: Source, device: torch.device) -> None:
        if source.shape[0] not in (1, 3):
            raise InputError(
                f"the images have {source.shape[0]} channels; the DataLoader baseline uses Pillow, which needs 1 or 3"
            )
        self.device = device
        self.network = network_of(config, source).to(device)
        recipe = config.optim
        self.optimizer = SGD(
            self.network.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        workers = min(DATALOADER_WORKERS, os.cpu_count() or 1)
        options: dict[str, Any] = {"num_workers": workers, "pin_memory": device.type == "cuda"}
        options |= {"persistent_workers": True, "worker_init_fn": _attach}
        train, test = (_PillowDataset(split, source, images, training) for split, training in _splits(images))
        self.batches = DataLoader(train, recipe.batch_size, shuffle=True, drop_last=True, **options)
        self.test = DataLoader(test, recipe.batch_size, **options)
        self.epoch: Iterator[tuple[Tensor, Tensor]] = iter(())
        self.step = 0

    def run(self, steps: int) -> None:
        """Take the given number of steps."""
        for _ in range(steps):
            batch = next(self.epoch, None)
            if batch is None:
                self.epoch = iter(self.batches)
                batch = next(self.epoch)
            images, targets = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            loss = F.cross_entropy(self.network(images), targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            if self.step % len(self.batches) == 0:
                self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the error on the test set in percent."""
        self.network.eval()
        wrong = images_seen = 0
        for batch in self.test:
            images, targets = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            wrong += int((self.network(images).argmax(1) != targets).sum())
            images_seen += len(targets)
        self.network.train()
        return 100 * wrong / images_seen


def _splits(images: Images) -> tuple[tuple[Split, bool], tuple[Split, bool]]:
    return (images.train, True), (images.test, False)


class _PillowDataset(Dataset[tuple[Tensor, int]]):
    """Images of a split, cropped and mirrored one at a time by Pillow."""

    def __init__(self, split: Split, source: Source, images: Images, training: bool) -> None:
        self.split, self.training = split, training
        self.pad, self.flip = source.pad, source.flip
        _, self.height, self.width = source.shape
        mean, std = images.channel_statistics
        self.mean, self.std = mean[:, None, None] / 255, std.clamp(min=1e-6)[:, None, None] / 255

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image, ImageOps

        pixels = self.split.images[index].numpy()
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
        if self.training:
            if self.pad:
                image = ImageOps.expand(image, self.pad)
            left = int(torch.randint(image.width - self.width + 1, ()))
            top = int(torch.randint(image.height - self.height + 1, ()))
        image = image.crop((left, top, left + self.width, top + self.height))
        if self.training and self.flip and torch.rand(()) < 0.5:
            image = ImageOps.mirror(image)
        array = torch.from_numpy(np.array(image)).reshape(self.height, self.width, -1)
        scaled = array.permute(2, 0, 1).contiguous().float().div(255)
        return scaled.sub_(self.mean).div_(self.std), int(self.split.targets[index])
