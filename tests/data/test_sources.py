from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plainres.data.sources import Digits, Images, Split, Synthetic, stratified
from plainres.errors import InputError


def test_digits() -> None:
    images = Digits(0, False).load()
    assert images.train.images.shape == (1500, 8, 8, 1)
    assert images.test.images.shape == (297, 8, 8, 1)
    assert images.train.images.max() == 16
    assert torch.bincount(images.train.targets).min() > 130
    assert images.sha256() == Digits(0, False).load().sha256()


def test_synthetic() -> None:
    images = Synthetic([3, 4, 5], 7, 20, 9, 0, False).load()
    assert images.train.images.shape == (20, 4, 5, 3)
    assert len(images.test) == 9
    assert images.train.targets.max() < 7
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train": 0}, "data.train is 0; it must be at least 1"),
        ({"shape": [3, 4]}, r"data.shape is \[3, 4\]; it must be \[channels, height, width\]"),
        ({"shape": [3, 4.5, 4]}, "integers >= 1"),
        ({"classes": 0}, "data.classes is 0"),
        ({"pad": -1}, "data.pad is -1"),
    ]
    for changes, message in cases:
        values: dict[str, Any] = {"shape": [3, 4, 5], "classes": 7, "train": 20, "test": 9, "pad": 0, "flip": False}
        with pytest.raises(InputError, match=message):
            Synthetic(**(values | changes))


def test_channel_statistics_match_numpy() -> None:
    images = Synthetic([3, 9, 7], 7, 50, 1, 0, False).load()
    mean, std = images.channel_statistics
    array = images.train.images.numpy().astype(np.float64)
    np.testing.assert_allclose(mean, array.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, array.std((0, 1, 2)), rtol=1e-6)


def sorted_by_class(sizes: list[int]) -> torch.Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any), st.integers(0, 200), st.booleans())
def test_sample_is_stratified_by_class(sizes: list[int], count: int, shuffled: bool) -> None:
    targets = sorted_by_class(sizes)
    if shuffled:
        targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    index = stratified(targets, count)
    total = len(targets)
    assert len(index) == min(count, total)
    assert index.tolist() == sorted(set(index.tolist()))
    assert torch.equal(index, stratified(targets.clone(), count))
    counts = torch.bincount(targets[index], minlength=len(sizes)).tolist()
    for size, sampled in zip(sizes, counts, strict=True):
        assert abs(sampled - len(index) * size / total) < 1


def test_sample_of_sorted_data_spans_each_class() -> None:
    targets = sorted_by_class([1000, 3000, 1000])
    index = stratified(targets, 500)
    assert torch.bincount(targets[index]).tolist() == [100, 300, 100]
    first_class = index[targets[index] == 0]
    assert first_class.double().mean() == pytest.approx(500, abs=100)
    assert torch.bincount(targets[stratified(targets, 4)]).tolist() == [1, 2, 1]
    assert torch.bincount(targets[stratified(targets, 6)]).tolist() == [1, 4, 1]  # rounded from 1.2, 3.6, 1.2
    split = Split(torch.arange(5000).view(-1, 1, 1, 1), targets)
    sample = split.sample(500)
    assert torch.equal(sample.images.flatten(), index)
    assert torch.equal(sample.targets, targets[index])
    assert split.sample(None) is split.sample(5000) is split


def test_sample_of_digits_is_stable() -> None:
    """Pin the sample, so that measurements of different versions remain comparable."""
    targets = Digits(0, False).load().train.targets
    assert stratified(targets, 10).tolist() == [204, 289, 486, 905, 962, 982, 1148, 1316, 1385, 1427]


def test_digest_covers_pixels_and_targets() -> None:
    images = Synthetic([1, 4, 4], 5, 8, 8, 0, False).load()
    digest = images.sha256()
    images.test.targets[3] += 1
    digest_with_other_target = images.sha256()
    images.train.images[2, 1, 1, 0] += 1
    assert len({digest, digest_with_other_target, images.sha256()}) == 3


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.integers(1, 8), st.randoms(use_true_random=False))
def test_held_out_images_are_disjoint_from_the_training_images(sizes: list[int], per_class: int, order: Any) -> None:
    targets = [target for target, size in enumerate(sizes) for _ in range(size)]
    order.shuffle(targets)
    split = Split(torch.arange(len(targets)).view(-1, 1, 1, 1), torch.tensor(targets))  # each image is its index
    if per_class >= min(sizes):
        with pytest.raises(InputError, match=rf"has only \d+ training images; set it to less than {min(sizes)}"):
            split.hold_out(per_class)
        return
    train, validation = split.hold_out(per_class)
    assert sorted([*train.images.flatten().tolist(), *validation.images.flatten().tolist()]) == list(range(len(split)))
    for part in (train, validation):
        index = part.images.flatten()
        assert index.tolist() == sorted(index.tolist())
        assert part.targets.equal(split.targets[index])
    assert torch.bincount(validation.targets).tolist() == [per_class] * len(sizes)
    assert all(a.equal(b) for a, b in zip(split.hold_out(per_class)[1].images, validation.images, strict=True))


def test_validation_images_of_the_digits() -> None:
    whole, held_out = Digits(0, False).load(), Digits(0, False, validation_per_class=20).load()
    assert held_out.validation is not None
    assert (len(held_out.train), len(held_out.validation)) == (1300, 200)
    assert held_out.test.images.equal(whole.test.images)
    digest = {image.numpy().tobytes() for image in held_out.validation.images}
    assert digest <= {image.numpy().tobytes() for image in whole.train.images}
    assert held_out.sha256() != whole.sha256()
    assert held_out.channel_statistics[0] != whole.channel_statistics[0]  # nothing of the validation set is used


@pytest.mark.parametrize("count", [0, -1])
def test_no_validation_is_not_zero_images(count: int) -> None:
    with pytest.raises(InputError, match=f"data.validation_per_class is {count}; it must be at least 1"):
        Digits(0, False, validation_per_class=count)


def test_channel_statistics_of_grey_images() -> None:
    split = Split(torch.zeros(4, 2, 2, 1, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    assert Images(split, split).channel_statistics[0].shape == (1,)
