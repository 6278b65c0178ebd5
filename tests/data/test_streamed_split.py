import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plainres.data.decoding import decode
from plainres.data.sources import Images, Split, stratified
from plainres.data.streamed_split import StreamedSplit, decoded
from plainres.data.views import Views
from support.photographs import Photographs, jpeg

PHOTOGRAPHS = Photographs.of(100)
VIEWS = Views((3, 16, 16), flip=True, colour=0.1)


def test_samples_and_digests_of_streamed_images() -> None:
    split = StreamedSplit(PHOTOGRAPHS, VIEWS)
    sample = split.sample(30)
    assert isinstance(sample, Split)
    index = stratified(PHOTOGRAPHS.targets, 30)
    assert torch.equal(sample.targets, PHOTOGRAPHS.targets[index])
    assert torch.equal(sample.images, split.middle_crops(index))
    mean, std = Images(split, split).channel_statistics
    pixels = split.middle_crops(torch.arange(100)).double().flatten(0, 2)
    torch.testing.assert_close(mean.double(), pixels.mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(std.double(), pixels.std(0, correction=0), rtol=1e-5, atol=0)
    digest = Images(split, split).sha256()
    assert digest == Images(split, split).sha256()
    changed = replace(split, encoded=Photographs([*PHOTOGRAPHS.files[:-1], jpeg(1, 40, 40)]))
    assert digest != Images(changed, split).sha256()
    assert torch.equal(
        split[torch.tensor([5, 2])].middle_crops(torch.tensor([1])), split.middle_crops(torch.tensor([2]))
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_fast_decoder_agrees_with_the_rule(mode: str, channels: int) -> None:
    for seed in range(3):
        encoded = jpeg(seed, 41 + seed, 50, mode)
        np.testing.assert_array_equal(decoded(encoded, channels), decode(encoded, channels))


def rotated(**tags: Any) -> bytes:
    """Return a photograph of height 30 and width 40 as a JPEG file with tags."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(jpeg(0, 30, 40))) as image:
        image.save(file, "JPEG", **tags)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
PROFILE = b"\xff\xe2\xff\xff" + bytes(65533)  # segment that is as long as one can be


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(rotated(exif=EXIF), id="exif"),
        pytest.param(b"\xff\xd8" + 2 * PROFILE + rotated(exif=EXIF)[2:], id="exif-behind-a-profile"),
        pytest.param(rotated(xmp=b'<rdf:Description tiff:Orientation="6"/>'), id="xmp"),
    ],
)
def test_the_orientation_follows_the_rule(encoded: bytes) -> None:
    assert decoded(encoded, 3).shape == (40, 30, 3)
    np.testing.assert_array_equal(decoded(encoded, 3), decode(encoded, 3))


def test_other_formats_follow_the_rule() -> None:
    png = jpeg(0, 30, 40, format="PNG")
    np.testing.assert_array_equal(decoded(png, 3), decode(png, 3))
