"""Batches of images that are decoded while a network trains, for data sets that do not fit into memory.

Workers decode parts of the next batches into a ring of batches in shared memory, as uint8. The device normalises them.
The batches do not depend on the number of workers, and a run can resume from any step and with any number of devices.
"""

import math
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from plainres.data.batches import Batch, DeviceImages, Pixels, SampledBatch, StreamedBatch, TrainingBatch
from plainres.data.sources import AnySplit, Source, Split
from plainres.data.streamed_split import Decoder, Part, StreamedSplit
from plainres.data.workers import Workers

PART = 16  # images that a worker decodes at a time, about 40 ms of work on photographs
BATCHES_AHEAD = 2  # batches that the workers decode in advance
# images of an evaluation batch by device type; activations of large images take much memory
EVALUATION_BATCH = {"cpu": 32, "cuda": 256, "mps": 64}

Wanted = tuple[Tensor, int | None]  # indices (N,) of a batch, and the key of its augmentation; None: crops of a test


class StreamedImages:
    """Images of a split that are decoded by worker processes and normalised on a device.

    Each channel of a batch is normalised to zero mean and unit variance.

    Args:
        split: the images.
        statistics: mean and standard deviation of each channel (C,), in units of pixel values.
        device: device of the batches.
        workers: number of worker processes; 0: this process decodes.
    """

    fits = True  # batches are on the device
    augmenting = True

    def __init__(
        self, split: StreamedSplit, statistics: tuple[Tensor, Tensor], device: torch.device, workers: int
    ) -> None:
        self.split, self.device, self.workers = split, device, workers
        self.targets = split.targets
        mean, std = statistics
        self.mean, self.scale = mean.to(device), 1 / std.clamp(min=1e-6).to(device)
        self.evaluation_batch = max(1, EVALUATION_BATCH[device.type] // split.views.test_crops)
        self.open: weakref.WeakSet[Workers] = weakref.WeakSet()

    def batch(self, index: Tensor) -> Batch:
        """Return the middle crops of the images at `index` (N,), decoded in this process."""
        pixels = self.split.middle_crops(index).to(self.device)
        return self._normalise(pixels), self.targets[index].to(self.device)

    def materialize(self, batch: TrainingBatch) -> Batch:
        """Normalise a training batch on the device. Decode it in this process first, if that has not been done."""
        if isinstance(batch, SampledBatch):
            (batch,) = self._stream(iter([_wanted(batch)]), workers=0, crops=1)
        pixels, colours, targets = (tensor.to(self.device) for tensor in batch)
        # Lightning converts them to float64 in the first step after a resume if precision is 64-true
        return self._normalise(pixels, colours.float()[:, None, None]), targets

    def training(self, sampled: Iterator[SampledBatch]) -> Iterator[StreamedBatch]:
        """Decode training batches, and yield them on the device."""
        return self._on_device(self._stream(map(_wanted, sampled), self.workers, crops=1))

    def evaluation(self, indices: Iterator[Tensor]) -> Iterator[Batch]:
        """Yield batches of the images at each of `indices` (N,), without augmentation.

        With several crops, the images of a batch are (N, crops, C, H, W).
        """
        crops = self.split.views.test_crops
        for pixels, _, targets in self._on_device(
            self._stream(((index, None) for index in indices), self.workers, crops)
        ):
            if crops == 1:
                yield self._normalise(pixels), targets
            else:
                yield self._normalise(pixels.flatten(0, 1)).unflatten(0, (-1, crops)), targets

    def close(self) -> None:
        """Stop the workers of batches that have not been exhausted."""
        for workers in list(self.open):
            workers.close()

    def _stream(self, batches: Iterator[Wanted], workers: int, crops: int) -> Iterator[StreamedBatch]:
        """Decode batches of equal size, except for a smaller last one.

        The tensors of a batch are valid until the batch after the next one is requested.
        """
        first = next(batches, None)
        if first is None:
            return
        images = len(first[0])
        parts_per_batch = max(1, math.ceil(images / PART))
        ahead = max(BATCHES_AHEAD * parts_per_batch, 2 * workers) if workers else 0
        # the batches that are decoded in advance, the one that is completed, and the one that is used
        slots = math.ceil(ahead / parts_per_batch) + 2
        decoder = Decoder.of(self.split.encoded, self.split.views, slots, images, crops)
        if workers:
            decoder.pixels.share_memory_()
            decoder.colours.share_memory_()
        wanted: deque[tuple[int, Tensor]] = deque()  # slot and images of each batch that is being decoded
        with _pinned(decoder.pixels, self.device), closing(Workers(decoder, workers)) as pool:
            self.open.add(pool)
            for part in pool.decode(_parts(chain([first], batches), slots, wanted), ahead):
                slot, indices = wanted[0]
                if part.first + len(part.indices) == len(indices):
                    wanted.popleft()
                    pixels, colours = (ring[slot, : len(indices)] for ring in (decoder.pixels, decoder.colours))
                    yield StreamedBatch(pixels if crops > 1 else pixels[:, 0], colours, self.targets[indices])

    def _on_device(self, batches: Iterator[StreamedBatch]) -> Iterator[StreamedBatch]:
        """Copy each batch to the device while the device works on the batch before it."""
        if self.device.type != "cuda":
            yield from batches
            return
        copying, using = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        previous: tuple[StreamedBatch, torch.cuda.Event] | None = None
        for batch in chain(batches, [None]):
            copied = torch.cuda.Event()
            if batch is not None:
                with torch.cuda.stream(copying):
                    batch = StreamedBatch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))  # noqa: PLW2901
                    copied.record(copying)
            if previous is not None:
                ready, event = previous
                using.wait_event(event)
                for tensor in ready:
                    tensor.record_stream(using)
                yield ready
                event.synchronize()  # the ring may be overwritten from now on
            previous = None if batch is None else (batch, copied)

    def _normalise(self, pixels: Tensor, colours: Tensor | float = 0.0) -> Tensor:
        """Normalise (N, H, W, C) uint8 to (N, C, H, W) float32, in channels_last order without a copy."""
        return pixels.float().sub_(self.mean - colours).mul_(self.scale).permute(0, 3, 1, 2)


@contextmanager
def _pinned(tensor: Tensor, device: torch.device) -> Iterator[None]:
    """Pin a tensor's memory if the device is a GPU, so that copies to it need not wait."""
    cuda: Any = torch.cuda.cudart() if device.type == "cuda" else None
    if cuda:
        torch.cuda.check_error(cuda.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
    try:
        yield
    finally:
        if cuda:
            torch.cuda.synchronize(device)  # copies from it may not have finished
            cuda.cudaHostUnregister(tensor.data_ptr())


def _wanted(sampled: SampledBatch) -> Wanted:
    return sampled.indices, int(sampled.key)


def _parts(batches: Iterator[Wanted], slots: int, wanted: deque[tuple[int, Tensor]]) -> Iterator[Part]:
    """Divide batches into parts, and append the slot and the images of each batch to `wanted`."""
    for number, (indices, key) in enumerate(batches):
        slot = number % slots
        wanted.append((slot, indices))
        for number_of_part, part in enumerate(indices.split(PART)):
            yield Part(slot, number_of_part * PART, part.tolist(), key)


def pixels_on(
    device: torch.device,
    split: AnySplit,
    source: Source,
    statistics: tuple[Tensor, Tensor],
    workers: int = 0,
) -> Pixels:
    """Return the images of a split for batches on a device: kept there, or decoded by workers if they are streamed."""
    if isinstance(split, Split):
        return DeviceImages(split, source, statistics, device)
    assert isinstance(split, StreamedSplit)
    return StreamedImages(split, statistics, device, workers)
