"""Training loops over a DataLoader, from the way in which it is often written to one that differs only in its images.

Each step from one to the next shows what a choice gains, which a comparison of the first with plainres would hide.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from plainres.benchmark.loops import trainable
from plainres.config.schema import Config
from plainres.data.sources import Images, Source
from plainres.errors import InputError
from plainres.processes.forkserver import attach_to_command
from plainres.training.classifier import full_precision
from plainres.training.compilation import compiled
from plainres.training.optimizer import clip_gradient, sgd

WORKERS = 4  # maximum; torch warns if there are more workers than cores


@dataclass(frozen=True)
class Style:
    """Choices that people make, or do not make, when they write a loop over a DataLoader.

    Args:
        tuned: whether precision, threads and compilation are those of the run; otherwise eager float32 with torch's
            default number of threads.
        channels_last: whether tensors have this memory format, instead of torch's default.
        batched: whether a worker crops and mirrors all images of a batch at once; otherwise one by one with Pillow.
        keeps_memory: whether the process keeps freed memory, see `plainres.processes.memory`.
    """

    tuned: bool = True
    channels_last: bool = False
    batched: bool = False
    keeps_memory: bool = False


class DataLoaderLoop:
    """Loop over a DataLoader whose worker processes crop, mirror and normalise images.

    Raises:
        InputError: the images have a number of channels that Pillow does not support.
    """

    def __init__(self, config: Config, images: Images, source: Source, device: torch.device, style: Style) -> None:
        if source.shape[0] not in (1, 3):
            raise InputError(
                f"the images have {source.shape[0]} channels; the DataLoader baseline uses Pillow, which needs 1 or 3"
            )
        self.device = device
        self.mixed = style.tuned and config.precision == "bf16-mixed"
        self.dtype = torch.float64 if style.tuned and config.precision == "64-true" else torch.float32
        layout = torch.channels_last if style.channels_last else torch.contiguous_format
        self.network = network = trainable(config, source, device, self.dtype, layout)
        compiles = style.tuned and config.trainer.compile is True
        self.logits_of = compiled(network, device, mixed=self.mixed) if compiles else network.forward
        self.recipe = recipe = config.optim
        self.optimizer = sgd(network, recipe)
        crops = (_BatchCrops if style.batched else _PillowCrops)(images, source)
        self.batches: DataLoader[Any] = DataLoader(
            crops,
            recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=min(WORKERS, os.cpu_count() or 1),
            pin_memory=device.type == "cuda",
            persistent_workers=True,
            worker_init_fn=_attach,
            collate_fn=_as_it_is if style.batched else None,
        )
        self.layout = layout
        self.epoch: Iterator[tuple[Tensor, Tensor]] = iter(())

    def run(self, steps: int) -> None:
        """Take the given number of steps."""
        for _ in range(steps):
            batch = next(self.epoch, None)
            if batch is None:
                self.epoch = iter(self.batches)
                batch = next(self.epoch)
            images = batch[0].to(self.device, self.dtype, non_blocking=True, memory_format=self.layout)
            targets = batch[1].to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                loss = F.cross_entropy(full_precision(self.logits_of(images)), targets)
            self.optimizer.zero_grad()
            loss.backward()
            clip_gradient(self.optimizer, self.recipe)
            self.optimizer.step()


def _attach(worker: int) -> None:
    """Make a DataLoader worker exit at once if the benchmark is stopped; torch's own check takes up to 5 s."""
    attach_to_command()


def _as_it_is(batch: Any) -> Any:
    return batch


class _Crops:
    """Training images of a run, and how they are cropped, mirrored and normalised."""

    def __init__(self, images: Images, source: Source) -> None:
        self.split = images.train
        self.pad, self.flip = source.pad, source.flip
        _, self.height, self.width = source.shape
        mean, std = images.channel_statistics
        self.mean, self.std = mean[:, None, None] / 255, std.clamp(min=1e-6)[:, None, None] / 255

    def __len__(self) -> int:
        return len(self.split)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Normalise (..., H, W, C) uint8 to (..., C, H, W) float32."""
        return pixels.movedim(-1, -3).float().div(255).sub_(self.mean).div_(self.std)


class _PillowCrops(_Crops, Dataset[tuple[Tensor, int]]):
    """Images that are cropped and mirrored one at a time by Pillow."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image, ImageOps

        pixels = self.split.images[index].numpy()
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        if self.pad:
            image = ImageOps.expand(image, self.pad)
        left = int(torch.randint(image.width - self.width + 1, ()))
        top = int(torch.randint(image.height - self.height + 1, ()))
        image = image.crop((left, top, left + self.width, top + self.height))
        if self.flip and torch.rand(()) < 0.5:
            image = ImageOps.mirror(image)
        array = torch.from_numpy(np.array(image)).reshape(self.height, self.width, -1)
        return self.normalised(array).contiguous(), int(self.split.targets[index])


class _BatchCrops(_Crops, Dataset[tuple[Tensor, Tensor]]):
    """Images that are cropped and mirrored a batch at a time by indexing."""

    def __init__(self, images: Images, source: Source) -> None:
        super().__init__(images, source)
        self.padded = F.pad(self.split.images, (0, 0, *(self.pad,) * 4))

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        index = torch.tensor(indices)
        _, height, width, _ = self.padded.shape
        rows = torch.randint(height - self.height + 1, (len(index), 1)) + torch.arange(self.height)
        columns = torch.randint(width - self.width + 1, (len(index), 1)) + torch.arange(self.width)
        if self.flip:
            columns = torch.where(torch.rand(len(index), 1) < 0.5, columns.flip(1), columns)
        crops = self.padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        return self.normalised(crops), self.split.targets[index]
