"""Counter-based random numbers: each one is a function of the run's seed and of its purpose.

Training draws nothing from global random state. The order of the images is a function of (seed, epoch). The
augmentation of an image is a function of (seed, epoch, index of the image).
"""

import hashlib

import torch
from torch import Generator, Tensor, nn


def mix(*values: int | str) -> int:
    """Hash several values to a 63-bit seed, independently of the machine and the version of Python."""
    digest = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def order(seed: int, epoch: int, images: int) -> Tensor:
    """Return the order of the training images in an epoch (0-based), a permutation (images,) of int64."""
    return torch.randperm(images, generator=Generator().manual_seed(mix("order", seed, epoch)))


def shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift int64 values logically. torch's own shift is arithmetic, which keeps the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """Reinterpret an unsigned 64-bit constant as int64."""
    return constant - (1 << 64)


def _scrambled(z: Tensor) -> Tensor:
    """Apply the output function of SplitMix64 (Steele et al. 2014) to int64 values."""
    z = (z ^ shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ shift_right(z, 31)


def _mixed(index: Tensor, key: Tensor | int) -> Tensor:
    """Return the output of SplitMix64 with seed `key` at each `index`: 64 random bits as int64.

    The index is incremented by -~, since torch.compile would fold (arange + 1) * constant into the index of a kernel,
    which overflows.
    """
    return _scrambled(-~index * _signed(0x9E3779B97F4A7C15) + key)


def augmentation_key(seed: int, epoch: int) -> int:
    """Return the key of the augmentations in an epoch (0-based) of a run."""
    return mix("augmentation", seed, epoch)


def draws(key: Tensor | int, index: Tensor) -> Tensor:
    """Return 62 random bits, int64 (N,), for each sample index (N,) under the key () of an epoch."""
    return shift_right(_mixed(index, key), 2)


def uniforms(key: Tensor | int, index: Tensor, count: int) -> Tensor:
    """Return `count` numbers, uniform in [0, 1) and of float64, for each sample index: (N, count)."""
    bits = draws(draws(key, index)[:, None], torch.arange(count, device=index.device))
    return shift_right(bits, 9).double() * 2.0**-53


class Noise(nn.Module):
    """Random numbers for a module that needs them in training, such as dropout.

    They are a function of the run's seed, the module's name in the network, the step, and, for numbers per image, the
    image's position in the batch of the step. Therefore they are the same after a resume and on any number of devices.
    `seed_noise` sets the seed; the training loop sets `position` in each step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key = 0
        # not a buffer, because DDP would broadcast the position of rank 0 to all ranks
        self.position = torch.zeros(2, dtype=torch.int64)  # step, and position of this rank's first image

    def per_batch(self, like: Tensor) -> Tensor:
        """Return one number (), uniform in [0, 1), for the whole batch."""
        return _uniform(self._step_key(like.device))

    def per_element(self, like: Tensor) -> Tensor:
        """Return numbers of the shape of `like` (N, ...), uniform in [0, 1) and different for each image."""
        device = like.device
        first = self.position.to(device)[1]
        image_keys = _mixed(torch.arange(like.shape[0], device=device) + first, self._step_key(device))
        elements = torch.arange(like[0].numel(), device=device)
        return _uniform(_mixed(elements, image_keys[:, None])).view(like.shape)

    def _step_key(self, device: torch.device) -> Tensor:
        return _mixed(self.position.to(device)[0], self.key)


def _uniform(bits: Tensor) -> Tensor:
    """Convert 64 random bits to float32 in [0, 1), a multiple of 2^-24."""
    return shift_right(bits, 40) * 2.0**-24


def seed_noise(network: nn.Module, seed: int) -> None:
    """Seed the random numbers of every module of a network."""
    for name, module in network.named_modules():
        if isinstance(module, Noise):
            module.key = mix("noise", seed, name)


def noises(network: nn.Module) -> list[Noise]:
    """Return the modules of a network that draw random numbers."""
    return [module for module in network.modules() if isinstance(module, Noise)]
