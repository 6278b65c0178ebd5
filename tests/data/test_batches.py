from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from plainres.data.batches import EVALUATION_BATCH, DeviceImages, EvaluationBatches, TrainingBatches
from plainres.data.sources import Split, Synthetic
from plainres.randomness import draws

CPU = torch.device("cpu")


def indexed_split(count: int = 70) -> Split:
    """Create a split whose targets are the indices of its images."""
    images = Synthetic([3, 6, 5], 10, count, 1, 0, False).load().train.images
    return Split(images, torch.arange(count))


def pixels(pad: int = 0, flip: bool = False, shape: tuple[int, int, int] = (3, 6, 5)) -> DeviceImages:
    source = Synthetic(shape, 70, 1, 1, pad, flip)
    return DeviceImages(indexed_split(), source, (torch.full((3,), 127.0), torch.full((3,), 50.0)), CPU)


def loader(position: Callable[[], int], **world: int) -> TrainingBatches:
    return TrainingBatches(pixels(2, True), 16, 3, position, **world)


def stream(steps: int, start: int = 0, **world: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the batches of steps `start` to `steps`, over several epochs."""
    step, batches = start, []
    training = loader(lambda: step, **world)
    while step < steps:
        for sampled in training:
            batches.append(training.pixels.materialize(sampled))
            step += 1
            if step == steps:
                break
    return batches


def test_epoch_visits_every_image_once_except_the_incomplete_batch() -> None:
    epoch = torch.cat([targets for _, targets in stream(4)])
    assert len(epoch) == 64
    assert len(set(epoch.tolist())) == 64
    next_epoch = torch.cat([targets for _, targets in stream(8)[4:]])
    assert not torch.equal(epoch, next_epoch)


@pytest.mark.parametrize("start", [1, 3, 4, 6, 11])
def test_resumed_batches_match_an_uninterrupted_run(start: int) -> None:
    whole, resumed = stream(12)[start:], stream(12, start)
    assert all(torch.equal(a, b) for x, y in zip(whole, resumed, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batch_does_not_depend_on_world_size(world_size: int) -> None:
    single = stream(6)
    ranks = [stream(6, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, (images, targets) in enumerate(single):
        assert torch.equal(images, torch.cat([rank[step][0] for rank in ranks]))
        assert torch.equal(targets, torch.cat([rank[step][1] for rank in ranks]))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 4), st.booleans())
def test_augmentation_matches_pad_crop_flip(seed: int, pad: int, flip: bool) -> None:
    index = torch.arange(20)
    random = draws(seed, index)
    store = pixels(pad, flip)
    augmented, targets = store.augmented(index, random)
    plain, _ = store.batch(index)
    assert torch.equal(targets, index)
    for image, crop, bits in zip(plain, augmented, random.tolist(), strict=True):
        top, left = (bits >> 1) % (2 * pad + 1), (bits >> 32) % (2 * pad + 1)
        expected = F.pad(image, (pad,) * 4)[:, top : top + 6, left : left + 5]
        if flip and bits & 1:
            expected = expected.flip(-1)
        assert torch.equal(crop, expected)


def test_larger_images_are_cropped_randomly_for_training_and_centrally_for_evaluation() -> None:
    index = torch.arange(20)
    random = draws(1, index)
    store, whole = pixels(shape=(3, 4, 2)), pixels()
    assert store.augmenting
    assert not whole.augmenting
    plain, _ = whole.batch(index)
    crops, targets = store.augmented(index, random)
    assert torch.equal(targets, index)
    assert torch.equal(store.batch(index)[0], plain[:, :, 1:5, 1:3])
    offsets = set()
    for image, crop, bits in zip(plain, crops, random.tolist(), strict=True):
        top, left = (bits >> 1) % 3, (bits >> 32) % 4
        offsets.add((top, left))
        assert torch.equal(crop, image[:, top : top + 4, left : left + 2])
    assert len(offsets) > 5


def test_crop_offsets_and_flips_are_uniform() -> None:
    random = draws(0, torch.arange(20000))
    for offset in ((random >> 1) % 9, (random >> 32) % 9):
        assert torch.bincount(offset).min() > 20000 / 9 * 0.9
    assert abs((random & 1).double().mean() - 0.5) < 0.02


def test_batches_are_normalised_float_and_channels_last() -> None:
    images, _ = pixels().batch(torch.arange(8))
    raw = indexed_split().images[:8].permute(0, 3, 1, 2)
    torch.testing.assert_close(images, (raw.float() - 127) / 50)
    assert images.is_contiguous(memory_format=torch.channels_last)
    augmented, _ = stream(1)[0]
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    assert augmented.dtype == torch.float32


@given(st.integers(1, 1200), st.integers(1, 5))
def test_evaluation_visits_every_image_exactly_once(count: int, world_size: int) -> None:
    split = Split(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.arange(count))
    store = DeviceImages(split, Synthetic([1, 1, 1], 1200, 1, 1, 0, False), (torch.zeros(1), torch.ones(1)), CPU)
    parts = [EvaluationBatches(store, rank, world_size) for rank in range(world_size)]
    targets = [batch_targets for part in parts for _, batch_targets in part]
    assert torch.equal(torch.cat(targets).sort().values, torch.arange(count))
    assert [len(list(part)) for part in parts] == [len(part) for part in parts]


def test_constant_channel_does_not_divide_by_zero() -> None:
    split = Split(torch.full((2, 2, 2, 1), 7, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    statistics = torch.tensor([7.0]), torch.tensor([0.0])
    images, _ = DeviceImages(split, Synthetic([1, 2, 2], 2, 1, 1, 0, False), statistics, CPU).batch(torch.arange(2))
    assert not images.any()


@pytest.mark.parametrize("images", [10_000, 50_000, 45_000, 5_000])  # test, training, and a validation set held out
def test_evaluation_of_cifar_on_a_gpu_has_equal_batches(images: int) -> None:
    """cuDNN would choose its algorithms anew for a smaller last batch."""
    assert images % EVALUATION_BATCH["cuda"] == 0
