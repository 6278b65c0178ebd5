"""Who owns the randomness: every random number of a run is a function of its seed and of what the number is for.

Nothing is drawn from global state during training. The order of the images is a function of (seed, epoch), an image's
augmentation of (seed, epoch, index of the image).
"""

import hashlib

import torch
from torch import Generator, Tensor


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


def draws(seed: int, epoch: int, index: Tensor) -> Tensor:
    """62 random bits (N,), int64, for each sample index (N,): SplitMix64 (Steele et al. 2014) at that index."""
    z = (index + 1) * _signed(0x9E3779B97F4A7C15) + mix("augmentation", seed, epoch)
    z = (z ^ shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return shift_right(z ^ shift_right(z, 31), 2)
