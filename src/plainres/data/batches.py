"""Batches of shuffled, augmented and normalised images on a device.

Batches are stateless: the images of a step and their augmentation are a function of the seed and the number of the
step. A run can therefore resume from any step and with any number of devices, and sees the same batches.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from plainres.data.sources import Source, Split
from plainres.errors import InputError
from plainres.randomness import augmentation_key, draws, order, shift_right

Batch = tuple[Tensor, Tensor]  # images (N, C, H, W) float32 in channels_last order, targets (N,) int64


class SampledBatch(NamedTuple):
    """Training batch before materialization."""

    indices: Tensor  # (N,) int64, of the images
    key: Tensor  # () int64, random key of the epoch's augmentation


class StreamedBatch(NamedTuple):
    """Training batch before normalisation, of images that were decoded by workers."""

    pixels: Tensor  # (N, H, W, C) uint8; in tests with several crops of each image (N, crops, H, W, C)
    colours: Tensor  # (N, C) float32, to be added to all pixels of an image
    targets: Tensor  # (N,) int64


TrainingBatch = SampledBatch | StreamedBatch  # what `Pixels.materialize` accepts

# Batch size by device type, which does not affect the results of evaluation. With 512 images the activations exceed a
# CPU's cache, and an image of CIFAR-10 takes up to 1.75 times as long (experiments/throughput). The size for GPUs has
# not been tuned. Small batches would be bound by kernel launches, and a size that does not divide CIFAR's numbers of
# images would leave a smaller last batch, for which cuDNN chooses its algorithms anew.
EVALUATION_BATCH = {"cpu": 256, "cuda": 2500, "mps": 1000}


def batches_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of full training batches in an epoch.

    Raises:
        InputError: there is none, because there are fewer images than a batch has.
    """
    if batch_size > images:
        most = f"; set it to at most {images}" if images else ""
        raise InputError(f"optim.batch_size is {batch_size}, but there are only {images:,} training images{most}")
    return images // batch_size


class Pixels(Protocol):
    """Images of a split, from which batches are made."""

    targets: Tensor  # (N,) int64
    fits: bool  # whether `training` yields batches on the device
    evaluation_batch: int  # number of images in a batch of `evaluation`

    def batch(self, index: Tensor) -> Batch:
        """Return the images at `index` (N,) without augmentation, cropped to the centre if they are larger."""
        ...

    def training(self, sampled: Iterator[SampledBatch]) -> Iterator[TrainingBatch]:
        """Yield training batches that `materialize` accepts."""
        ...

    def materialize(self, batch: TrainingBatch) -> Batch:
        """Build a training batch."""
        ...

    def evaluation(self, indices: Iterator[Tensor]) -> Iterator[Batch]:
        """Yield batches of the images at each of `indices` (N,), without augmentation."""
        ...

    def close(self) -> None:
        """Stop the processes that read images, if there are any."""
        ...


class DeviceImages:
    """Images of a split on a device, which are materialized as batches.

    Each channel of a batch is normalised to zero mean and unit variance.

    Args:
        split: images, which may be larger than `source.shape`.
        source: shape of the network's input, and augmentation.
        statistics: mean and standard deviation of each channel (C,), in units of pixel values.
        device: device of the images and batches. If the images do not fit there, both are on the CPU.
    """

    def __init__(self, split: Split, source: Source, statistics: tuple[Tensor, Tensor], device: torch.device) -> None:
        self.fits = _fits(split.images, device)
        storage = device if self.fits else torch.device("cpu")
        self.images, self.targets = split.images.to(storage), split.targets.to(storage)
        mean, std = statistics
        self.mean, self.scale = mean.to(storage), 1 / std.clamp(min=1e-6).to(storage)
        _, self.height, self.width = source.shape
        self.pad, self.flip = source.pad, source.flip
        # height and width of the images in excess of the network's input
        self.excess = split.images.shape[1] - self.height, split.images.shape[2] - self.width
        self.evaluation_batch = EVALUATION_BATCH[storage.type]

    @property
    def augmenting(self) -> bool:
        """Whether training images are augmented."""
        return bool(self.pad or self.flip or any(self.excess))

    def batch(self, index: Tensor) -> Batch:
        """Return the images at `index` (N,) without augmentation, cropped to the centre if they are larger."""
        index = index.to(self.images.device)
        images = self.images[index]
        if any(self.excess):
            top, left = (excess // 2 for excess in self.excess)
            images = images[:, top : top + self.height, left : left + self.width]
        return self._normalise(images), self.targets[index]

    def training(self, sampled: Iterator[SampledBatch]) -> Iterator[SampledBatch]:
        """Yield the batches as they are, since the images need no preparation."""
        return sampled

    def materialize(self, batch: TrainingBatch) -> Batch:
        """Build a training batch from its indices and key."""
        assert isinstance(batch, SampledBatch)
        if self.augmenting:
            return self.augmented(batch.indices, draws(batch.key, batch.indices))
        return self.batch(batch.indices)

    def evaluation(self, indices: Iterator[Tensor]) -> Iterator[Batch]:
        """Yield batches of the images at each of `indices` (N,), without augmentation."""
        return map(self.batch, indices)

    def close(self) -> None:
        """Do nothing, since there are no other processes."""

    def augmented(self, index: Tensor, random: Tensor) -> Batch:
        """Return the images at `index` (N,), padded, randomly cropped and, if `flip`, flipped with probability 1/2.

        He et al. 2015, sections 3.4 and 4.2. Each side is padded with `pad` pixels, which are zeros after
        normalisation, and the crop has the size of the network's input. `random` (N,) holds the random bits of each
        image.
        """
        index, random = index.to(self.images.device), random.to(self.images.device)
        _, height, width, _ = self.images.shape
        pad = self.pad
        top = (random >> 1) % (self.excess[0] + 2 * pad + 1)
        left = shift_right(random, 32) % (self.excess[1] + 2 * pad + 1)
        rows = torch.arange(-pad, self.height - pad, device=index.device) + top[:, None]
        columns = torch.arange(-pad, self.width - pad, device=index.device) + left[:, None]
        if self.flip:
            columns = torch.where((random & 1).bool()[:, None], columns.flip(1), columns)
        crops = self.images[
            index[:, None, None], rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
        ]
        images = self._normalise(crops)
        if pad:
            inside_rows = (rows >= 0) & (rows < height)
            inside_columns = (columns >= 0) & (columns < width)
            images *= (inside_rows[:, None, :, None] & inside_columns[:, None, None, :]).to(images.dtype)
        return images, self.targets[index]

    def _normalise(self, pixels: Tensor) -> Tensor:
        """Normalise (N, H, W, C) uint8 to (N, C, H, W) float32, in channels_last order without a copy."""
        return pixels.float().sub_(self.mean).mul_(self.scale).permute(0, 3, 1, 2)


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the images take less than half of a GPU's free memory, which leaves the rest for training."""
    return device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] / 2


class TrainingBatches:
    """Sampled batches of the current epoch, without the last, incomplete batch.

    Args:
        pixels: images to sample from.
        batch_size: size of the global batch. Each rank gets a contiguous part of it.
        seed: seed of the run.
        position: function that returns the number of completed optimizer steps, which determines the epoch and the
            first batch.
        rank: rank of this process.
        world_size: number of ranks.
    """

    def __init__(
        self,
        pixels: Pixels,
        batch_size: int,
        seed: int,
        position: Callable[[], int],
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.pixels, self.batch_size, self.seed = pixels, batch_size, seed
        self.position, self.rank, self.world_size = position, rank, world_size

    def __len__(self) -> int:
        return batches_per_epoch(len(self.pixels.targets), self.batch_size)

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self.pixels.training(self._sampled())

    def _sampled(self) -> Iterator[SampledBatch]:
        epoch, start = divmod(self.position(), len(self))
        device = self.pixels.targets.device  # one transfer per epoch instead of one per batch
        permutation = order(self.seed, epoch, len(self.pixels.targets)).to(device)
        key = torch.tensor(augmentation_key(self.seed, epoch), device=device)
        per_rank = self.batch_size // self.world_size
        for step in range(start, len(self)):
            first = step * self.batch_size + self.rank * per_rank
            yield SampledBatch(permutation[first : first + per_rank], key)

    def state_dict(self) -> dict[str, object]:
        """Return an empty dict. Lightning resumes mid-epoch only if a dataloader has this method."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Do nothing, since `position` determines where to resume."""


class EvaluationBatches:
    """Batches of every image once, without augmentation.

    Each of `world_size` ranks gets a part of the images, and these differ in size by at most one. All ranks have the
    same number of batches, so the last one may be empty.
    """

    def __init__(self, pixels: Pixels, rank: int = 0, world_size: int = 1) -> None:
        self.pixels = pixels
        parts = torch.arange(len(pixels.targets)).tensor_split(world_size)
        self.index, self.max_images = parts[rank], len(parts[0])
        self.size = pixels.evaluation_batch

    @property
    def image_count(self) -> int:
        """Number of images of this rank."""
        return len(self.index)

    def __len__(self) -> int:
        return math.ceil(self.max_images / self.size)

    def __iter__(self) -> Iterator[Batch]:
        starts = range(0, self.max_images, self.size)
        return self.pixels.evaluation(self.index[start : start + self.size] for start in starts)
