"""Who owns the randomness: every random number of a run is a function of its seed and of what the number is for.

Nothing is drawn from global state during training. The order of the images is a function of (seed, epoch), an image's
augmentation of (seed, epoch, index of the image).
"""

import hashlib

import torch
from torch import Generator, Tensor, nn


def mix(*values: int | str) -> int:
    """A 63-bit seed from several values, the same on every machine and in every version of Python."""
    digest = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def order(seed: int, epoch: int, images: int) -> Tensor:
    """The permutation (images,) in which an epoch (0-based) goes through the training set."""
    return torch.randperm(images, generator=Generator().manual_seed(mix("order", seed, epoch)))


def shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's shifts of int64 keep the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """A 64-bit constant as torch's int64 has it."""
    return constant - (1 << 64)


def _scrambled(z: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele et al. 2014) on int64 numbers."""
    z = (z ^ shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ shift_right(z, 31)


def _mixed(index: Tensor, key: Tensor | int) -> Tensor:
    """SplitMix64 seeded with `key`, at each `index`: 64 random bits, as int64."""
    return _scrambled((index + 1) * _signed(0x9E3779B97F4A7C15) + key)


def augmentation_key(seed: int, epoch: int) -> int:
    """What tells the augmentations of one epoch (0-based) of one run from all others."""
    return mix("augmentation", seed, epoch)


def draws(key: Tensor | int, index: Tensor) -> Tensor:
    """62 random bits (N,), int64, for each sample index (N,), under the key () of an epoch."""
    return shift_right(_mixed(index, key), 2)


class Noise(nn.Module):
    """Random numbers for a module that needs some in training, such as a dropout.

    They are a function of the run's seed, of the module's name in the network, of the step, and, where images have
    their own, of the image's place in the batch of the step. So they are the same after a resume and on any number of
    devices. `seed_noise` gives them their seed, `position` is set at each step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key = 0
        # no buffer: DDP would give every process the first one's place
        self.position = torch.zeros(2, dtype=torch.int64)  # the step, and the place of this process's first image

    def per_batch(self, like: Tensor) -> Tensor:
        """One number (), uniform in [0, 1), for the whole batch."""
        return _uniform(self._of_step(like.device))

    def per_element(self, like: Tensor) -> Tensor:
        """Numbers of the shape of `like` (N, ...), uniform in [0, 1), for each image its own."""
        device = like.device
        first = self.position.to(device)[1]
        images = _mixed(torch.arange(like.shape[0], device=device) + first, self._of_step(device))
        each = torch.arange(like[0].numel(), device=device)
        return _uniform(_mixed(each, images[:, None])).view(like.shape)

    def _of_step(self, device: torch.device) -> Tensor:
        return _mixed(self.position.to(device)[0], self.key)


def _uniform(bits: Tensor) -> Tensor:
    """64 random bits -> float32 in [0, 1), a multiple of 2^-24."""
    return shift_right(bits, 40) * 2.0**-24


def seed_noise(network: nn.Module, seed: int) -> None:
    """Give the random numbers of every module that needs some their seed."""
    for name, module in network.named_modules():
        if isinstance(module, Noise):
            module.key = mix("noise", seed, name)


def noises(network: nn.Module) -> list[Noise]:
    """The modules of a network that need random numbers."""
    return [module for module in network.modules() if isinstance(module, Noise)]
