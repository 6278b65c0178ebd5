import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plainres.data.views import COMPONENTS, DEVIATIONS, RANDOM_NUMBERS, View, Views
from plainres.errors import InputError
from plainres.randomness import uniforms

sizes = st.integers(20, 900)
numbers = st.lists(st.floats(0, 1, exclude_max=True), min_size=RANDOM_NUMBERS, max_size=RANDOM_NUMBERS)


def views(**changes: Any) -> Views:
    return Views(**{"shape": (3, 224, 224), "flip": True, **changes})


def lies_within(view: View, height: int, width: int) -> bool:
    rounding = 1e-9 * (height + width)
    return 0 <= view.left < view.right <= width + rounding and 0 <= view.top < view.bottom <= height + rounding


@given(sizes, sizes, numbers, st.sampled_from(["scale", "inception"]))
def test_a_view_lies_within_the_image(height: int, width: int, random: list[float], crop: str) -> None:
    assert lies_within(views(crop=crop).training(height, width, random), height, width)
    assert all(lies_within(view, height, width) for view in views(test_crops=10).test(height, width))


@given(sizes, sizes, numbers)
def test_the_shorter_side_is_resized_to_between_256_and_480(height: int, width: int, random: list[float]) -> None:
    view = views().training(height, width, random)
    magnification = 224 / (view.right - view.left if width <= height else view.bottom - view.top)
    shorter = magnification * min(height, width)
    assert round(shorter) == pytest.approx(shorter, abs=1e-6)
    assert 256 <= round(shorter) <= 480


def test_every_length_and_place_is_equally_likely() -> None:
    drawn = [views().training(375, 500, random) for random in uniforms(3, torch.arange(20000), RANDOM_NUMBERS).tolist()]
    lengths = np.array([round(375 * 224 / (view.bottom - view.top)) for view in drawn])
    assert (lengths.min(), lengths.max()) == (256, 480)
    expected = 20000 / 225
    assert ((np.bincount(lengths)[256:] - expected) ** 2 / expected).sum() < 225 + 5 * math.sqrt(2 * 225)
    assert abs(np.mean([view.mirror for view in drawn]) - 0.5) < 0.02
    shares = np.array([view.top / (375 - (view.bottom - view.top)) for view in drawn])  # of the free rows
    assert abs(shares.mean() - 0.5) < 0.02
    assert ((shares < 0.1).mean(), (shares > 0.9).mean()) == pytest.approx((0.1, 0.1), abs=0.02)
    assert not any(views(flip=False).training(375, 500, [0.0] * RANDOM_NUMBERS).mirror for _ in range(3))


def test_areas_and_ratios_of_inception_crops() -> None:
    inception = views(crop="inception")
    drawn = [
        inception.training(400, 400, random) for random in uniforms(5, torch.arange(5000), RANDOM_NUMBERS).tolist()
    ]
    sides = np.array([(view.bottom - view.top, view.right - view.left) for view in drawn])
    area, ratio = sides.prod(1) / 400**2, sides[:, 1] / sides[:, 0]
    assert area.min() == pytest.approx(0.08, abs=0.005)
    assert area.max() > 0.95
    assert (ratio.min(), ratio.max()) == pytest.approx((3 / 4, 4 / 3), abs=0.02)
    assert abs(np.log(ratio).mean()) < 0.02
    # of an image that is too narrow for any rectangle, the middle square
    assert inception.training(1000, 10, [0.5] * RANDOM_NUMBERS) == (0, 495, 10, 505, False)


def test_test_crops() -> None:
    one, ten = (views(test_crops=crops).test(256, 356) for crops in (1, 10))
    assert one == [View(66, 16, 290, 240)]
    assert ten[0] == one[0]
    assert [view.mirror for view in ten] == [False, True] * 5
    assert {view[:2] for view in ten[2:]} == {(0, 0), (132, 0), (0, 32), (132, 32)}
    (scaled,) = views(test_scale=224).test(448, 600)
    assert scaled == pytest.approx((76, 0, 524, 448, False), abs=1)


def test_scales_follow_the_size_of_the_input() -> None:
    (view,) = views(shape=(3, 56, 56)).test(64, 64)
    assert view == View(4, 4, 60, 60)
    assert views(shape=(3, 56, 56)).training(64, 64, [0.5] + [0.0] * 26) == View(0, 0, 56, 56)


def test_colours_have_the_published_principal_components() -> None:
    random = uniforms(1, torch.arange(20000), RANDOM_NUMBERS).tolist()
    shifts = np.array([views(colour=0.1).colour_shift(numbers) for numbers in random])
    multiples = shifts / 255 @ COMPONENTS / DEVIATIONS  # the components are orthonormal
    np.testing.assert_allclose(COMPONENTS.T @ COMPONENTS, np.eye(3), atol=1e-3)
    np.testing.assert_allclose(multiples.std(0), 0.1, rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(multiples.T), np.eye(3), atol=0.03)
    assert not views().colour_shift(random[0]).any()
    assert np.isfinite(views(colour=0.1).colour_shift([0.0] * RANDOM_NUMBERS)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "random"}, "data.crop is 'random'; it must be scale or inception"),
        (
            {"scales": [200, 480]},
            r"data.scales is \[200, 480\]; it must be two lengths in ascending order, at least 224",
        ),
        ({"scales": [480, 256]}, "ascending order"),
        ({"test_scale": 100}, "data.test_scale is 100; it must be at least 224, as in data.shape"),
        ({"test_crops": 5}, "data.test_crops is 5; it must be 1 or 10"),
        ({"colour": -1.0}, "data.colour is -1.0; it must be at least 0"),
        ({"colour": 0.1, "shape": (1, 8, 8)}, "data.colour needs images with 3 channels, but data.shape has 1"),
        ({"shape": (2, 8, 8)}, "data.shape has 2 channels; images that are streamed have 1 or 3"),
    ],
)
def test_invalid_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        views(**changes)
