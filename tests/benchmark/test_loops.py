"""Tests of the training loops with which plainres is compared: they do the same work."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from plainres.benchmark.dataloader import DataLoaderLoop, Style
from plainres.benchmark.loops import PARTS, BareLoop, evaluate, trainable
from plainres.benchmark.measurement import DATALOADERS
from plainres.config.instantiate import source_of
from plainres.config.schema import Config
from plainres.data import batches
from plainres.data.batches import DeviceImages
from plainres.data.sources import Synthetic
from plainres.errors import InputError
from plainres.randomness import noises
from plainres.runs.provenance import weights_sha256
from plainres.runs.record import Run
from plainres.training.train import train
from support.training import Recorder

Make = Callable[..., Config]
CPU = torch.device("cpu")


def bare(config: Config, recorder: Recorder | None = None) -> BareLoop:
    source = source_of(config)
    return BareLoop(config, source.load(), source, CPU, recorder)


def test_the_noise_of_a_network_is_drawn_on_its_device(make_config: Make) -> None:
    config = make_config(shortcut="dropout")
    network = trainable(config, source_of(config), torch.device("meta"), torch.float32, torch.channels_last)
    assert {noise.position.device.type for noise in noises(network)} == {"meta"}


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_the_bare_loop_trains_to_the_weights_of_a_run(make_config: Make, precision: str) -> None:
    config = make_config(precision=precision, optim={"epochs": None, "steps": 7, "milestones": []})
    run = Run.of(config)
    train(run)
    loop = bare(config)
    loop.run(3)
    seconds = loop.parts(4)
    assert weights_sha256(loop.network) == run.result["weights_sha256"]
    source = source_of(config)
    images = source.load()
    test = DeviceImages(images.test, source, images.channel_statistics, CPU)
    assert evaluate(loop.network, test, mixed=precision == "bf16-mixed") == pytest.approx(run.result["test_error"])
    assert seconds.keys() == set(PARTS)
    assert all(part > 0 for part in seconds.values())


@pytest.mark.parametrize("fits", [True, False])
def test_the_bare_loop_is_captured_like_a_run(make_config: Make, monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    monkeypatch.setattr(batches, "_fits", lambda images, device: fits)
    config = make_config(optim={"milestones": []})
    eager, captured = bare(config), bare(config, recorder := Recorder())
    for loop in (eager, captured):
        loop.run(8)
    assert len(recorder.graphs) == 1
    replayed = captured.network.state_dict()
    for key, value in eager.network.state_dict().items():
        torch.testing.assert_close(value, replayed[key], msg=key)  # a fused optimizer rounds differently


# coverage warns in a forked worker, and an error there would stop it
@pytest.mark.filterwarnings("default::coverage.exceptions.CoverageWarning")
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_dataloader_loop_shows_the_images_of_a_run(make_config: Make, channels: int, batched: bool) -> None:
    source = Synthetic([channels, 8, 8], 10, 40, 30, 2, True)
    images = source.load()
    config = make_config(optim={"batch_size": 8})
    config.data |= {"shape": [channels, 8, 8], "train": 40}
    loop = DataLoaderLoop(config, images, source, CPU, Style(batched=batched))
    originals, _ = bare(config).training.batch(torch.arange(40))
    augmentations = set()
    for _ in range(3):
        for crops, targets in loop.batches:
            assert crops.shape == (8, channels, 8, 8)
            for crop, target in zip(crops[:2], targets, strict=False):
                augmentations.add(_augmentation(crop, originals[images.train.targets == target]))
    assert None not in augmentations
    assert len(augmentations) > 10
    with pytest.raises(InputError, match="the images have 2 channels"):
        DataLoaderLoop(config, images, Synthetic([2, 8, 8], 10, 40, 30, 2, True), CPU, Style())


# coverage warns in a forked worker, and an error there would stop it
@pytest.mark.filterwarnings("default::coverage.exceptions.CoverageWarning")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("style", DATALOADERS.values(), ids=DATALOADERS.keys())
def test_each_dataloader_loop_trains_the_network_of_a_run(make_config: Make, style: Style, precision: str) -> None:
    config = make_config(precision=precision)
    source = source_of(config)
    loop = DataLoaderLoop(config, source.load(), source, CPU, style)
    before = bare(config).network.state_dict()
    seen = []
    loop.logits_of, logits_of = lambda images: seen.append(images) or logits_of(images), loop.logits_of
    loop.run(7)  # more than an epoch
    weights = loop.network.state_dict()
    assert weights.keys() == before.keys()
    for key, value in weights.items():
        assert value.isfinite().all(), key
        if value.dim() > 1:
            assert not torch.equal(value.double(), before[key].double()), key
    assert len(seen) == 7
    expected = torch.float64 if style.tuned and precision == "64-true" else torch.float32
    layout = torch.channels_last if style.channels_last else torch.contiguous_format
    for images in seen:
        assert images.dtype == expected
        assert images.is_contiguous(memory_format=layout)


def _augmentation(crop: torch.Tensor, originals: torch.Tensor) -> tuple[int, int, bool] | None:
    """Return (top, left, mirrored) with which a crop was made from one of the images. The padding may be black."""
    for image in originals:
        for top in range(5):
            for left in range(5):
                inside = F.pad(torch.ones(1, 8, 8), (2,) * 4)[:, top : top + 8, left : left + 8].bool()
                cut = F.pad(image, (2,) * 4)[:, top : top + 8, left : left + 8]
                for mirrored in (False, True):
                    upright = crop.flip(-1) if mirrored else crop
                    if torch.allclose(torch.where(inside, upright, 0.0), torch.where(inside, cut, 0.0), atol=1e-5):
                        return top, left, mirrored
    return None
