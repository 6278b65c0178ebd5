"""The batches of a run: images in their order, augmented, normalised, on the device.

Nothing here has a state of its own: which images a step sees, and how, follows from the number of steps done. So a run
can go on from any step, on any number of devices, and see what it would have seen.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from plainres.data.sources import Source, Split
from plainres.randomness import augmentation_key, draws, order, shift_right

Batch = tuple[Tensor, Tensor]  # images (N, C, H, W) float32 in channels_last order, targets (N,) int64


class SampledBatch(NamedTuple):
    """A training batch before it is made: which images, and what their augmentation is sampled with."""

    which: Tensor  # (N,) int64, their indices
    key: Tensor  # () int64, that of the epoch


# Images, by where they are; in evaluation mode the result does not depend on it. Of 512, activations leave a CPU's
# cache, and an image of CIFAR-10 takes up to 1.75 times as long (experiments/throughput). A GPU, where nobody has
# measured it, would wait for launches if there were few images in each.
EVALUATION_BATCH = {"cpu": 256, "cuda": 1024}


class DeviceImages:
    """The images of a split on a device, as what a network takes: zero mean and unit variance in each channel.

    Args:
        split: images, which may be larger than those of `source.shape`.
        source: the shape that the network is shown, and the augmentation.
        statistics: mean and standard deviation of each channel (C,), in units of pixel values.
        device: where the batches are made, if the images fit there.
    """

    def __init__(self, split: Split, source: Source, statistics: tuple[Tensor, Tensor], device: torch.device) -> None:
        self.fits = _fits(split.images, device)
        home = device if self.fits else torch.device("cpu")
        self.images, self.targets = split.images.to(home), split.targets.to(home)
        mean, std = statistics
        self.mean, self.scale = mean.to(home), 1 / std.clamp(min=1e-6).to(home)
        _, self.height, self.width = source.shape
        self.pad, self.flip = source.pad, source.flip
        # pixels that lie beside a crop, in each direction
        self.spare = split.images.shape[1] - self.height, split.images.shape[2] - self.width

    @property
    def augmenting(self) -> bool:
        """Whether a training image is shown in more than one way."""
        return bool(self.pad or self.flip or any(self.spare))

    def batch(self, index: Tensor) -> Batch:
        """The images at `index` (N,) as they are, or their middle if they are larger than what is shown."""
        index = index.to(self.images.device)
        images = self.images[index]
        if any(self.spare):
            top, left = (spare // 2 for spare in self.spare)
            images = images[:, top : top + self.height, left : left + self.width]
        return self._normalised(images), self.targets[index]

    def materialize(self, sampled: SampledBatch) -> Batch:
        """A training batch."""
        if self.augmenting:
            return self.augmented(sampled.which, draws(sampled.key, sampled.which))
        return self.batch(sampled.which)

    def augmented(self, index: Tensor, random: Tensor) -> Batch:
        """The images at `index` (N,), each cropped at random from its padded self and, if `flip`, perhaps mirrored.

        He et al. 2015, sections 3.4 and 4.2: `pad` pixels on each side (here zeros after normalisation), then a crop of
        the size that is shown. `random` (N,) has the random bits of each image.
        """
        index, random = index.to(self.images.device), random.to(self.images.device)
        _, height, width, _ = self.images.shape
        pad = self.pad
        top = (random >> 1) % (self.spare[0] + 2 * pad + 1)
        left = shift_right(random, 32) % (self.spare[1] + 2 * pad + 1)
        rows = torch.arange(-pad, self.height - pad, device=index.device) + top[:, None]
        columns = torch.arange(-pad, self.width - pad, device=index.device) + left[:, None]
        if self.flip:
            columns = torch.where((random & 1).bool()[:, None], columns.flip(1), columns)
        crops = self.images[
            index[:, None, None], rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
        ]
        images = self._normalised(crops)
        if pad:
            inside_rows = (rows >= 0) & (rows < height)
            inside_columns = (columns >= 0) & (columns < width)
            images *= (inside_rows[:, None, :, None] & inside_columns[:, None, None, :]).to(images.dtype)
        return images, self.targets[index]

    def _normalised(self, pixels: Tensor) -> Tensor:
        """(N, H, W, C) uint8 -> (N, C, H, W) float32, channels_last without a copy."""
        return pixels.float().sub_(self.mean).mul_(self.scale).permute(0, 3, 1, 2)


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether a GPU can hold the images and still has half of its free memory for the training."""
    return device.type != "cuda" or images.nbytes < torch.cuda.mem_get_info(device)[0] / 2


class TrainingBatches:
    """The batches of one epoch after another, sampled; the last images of an epoch, too few for a batch, are left out.

    `position` tells the number of optimizer steps done, from which the epoch and the place in it follow. Each of
    `world_size` processes gets its contiguous part of every global batch.
    """

    def __init__(
        self,
        pixels: DeviceImages,
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
        return len(self.pixels.targets) // self.batch_size

    def __iter__(self) -> Iterator[SampledBatch]:
        epoch, start = divmod(self.position(), len(self))
        home = self.pixels.targets.device  # to which each epoch is brought at once, and not each batch
        permutation = order(self.seed, epoch, len(self.pixels.targets)).to(home)
        key = torch.tensor(augmentation_key(self.seed, epoch), device=home)
        share = self.batch_size // self.world_size
        for step in range(start, len(self)):
            first = step * self.batch_size + self.rank * share
            yield SampledBatch(permutation[first : first + share], key)

    def state_dict(self) -> dict[str, object]:
        """Nothing. That there is this method tells Lightning that the batches can go on in mid-epoch."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing: `position` tells where to go on."""


class EvaluationBatches:
    """Every image once, as it is; each of `world_size` processes gets its part, which may differ by one in size.

    All processes have as many batches, be it an empty one.
    """

    def __init__(self, pixels: DeviceImages, rank: int = 0, world_size: int = 1) -> None:
        self.pixels = pixels
        parts = torch.arange(len(pixels.targets)).tensor_split(world_size)
        self.index, self.longest = parts[rank], len(parts[0])
        self.size = EVALUATION_BATCH[pixels.targets.device.type]

    def __len__(self) -> int:
        return math.ceil(self.longest / self.size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.longest, self.size):
            yield self.pixels.batch(self.index[start : start + self.size])
