import io
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import datasets.config as datasets_config
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from plainres.cli.main import main
from plainres.data.hub import HubImages
from plainres.data.sources import Digits, Images, Split, Synthetic, stratified
from plainres.errors import InputError
from support.places import CIFAR10


def encode(pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_parquet(folder: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]]) -> None:
    """Write a folder in the Hub's layout: <split>-00000-of-00001.parquet with the columns img and label."""
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(img=datasets.Image(), label=datasets.Value("int64"))
    for split, images in pixels.items():
        rows = {"img": [encode(image) for image in images], "label": labels[split]}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def pixels() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        split: generator.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
        for split, count in (("train", 1201), ("test", 7))
    }


@pytest.fixture
def labels() -> dict[str, list[int]]:
    return {"train": [index % 3 for index in range(1201)], "test": [0, 1, 2, 0, 1, 2, 0]}


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


def source(tmp_path: Path, **changes: Any) -> HubImages:
    values: dict[str, Any] = {
        "name": "someone/images",
        "path": str(tmp_path / "images"),
        "cache": str(tmp_path / "cache"),
        "image_column": "img",
        "label_column": "label",
        "classes": 3,
        "shape": [3, 6, 5],
        "train_per_class": None,
        "test_per_class": None,
        "pad": 0,
        "flip": False,
    }
    return HubImages(**(values | changes))


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


def test_decoded_copy_preserves_images_and_order(
    tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]]
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    images = source(tmp_path).load()
    for split, name in ((images.train, "train"), (images.test, "test")):
        np.testing.assert_array_equal(split.images, pixels[name])
        assert split.targets.tolist() == labels[name]


def test_decoded_copy_is_written_once_and_shared(
    tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    source(tmp_path).prepare()
    monkeypatch.setattr(HubImages, "_decode", lambda *_: pytest.fail("decoded twice"))
    first = source(tmp_path).load()
    first.train.images[0] = 0  # copy-on-write: the file does not change
    np.testing.assert_array_equal(source(tmp_path).load().train.images, pixels["train"])


def test_partial_copy_is_never_used(
    tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    decode = HubImages._decode_in_parallel

    def interrupt(self: HubImages, rows: Any, split: str) -> Any:
        yield next(iter(decode(self, rows, split)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(HubImages, "_decode_in_parallel", interrupt)
        with pytest.raises(KeyboardInterrupt):
            source(tmp_path).prepare()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([], [".lock"])
    np.testing.assert_array_equal(source(tmp_path).load().train.images, pixels["train"])


def digest_of(source: HubImages) -> str:
    return source.load().sha256()


def test_concurrent_runs_share_one_copy(
    tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]]
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        digests = list(pool.map(digest_of, [source(tmp_path)] * 2))
    assert len(set(digests)) == 1
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_modified_files_are_decoded_again(
    tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]]
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    before = source(tmp_path).load().sha256()
    write_parquet(tmp_path / "images", {"test": pixels["test"][::-1]}, labels)
    assert source(tmp_path).load().sha256() != before


def test_first_per_class(tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]]) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    images = source(tmp_path, train_per_class=5, test_per_class=2).load()
    assert images.train.targets.tolist() == [0, 1, 2] * 5
    np.testing.assert_array_equal(images.train.images, pixels["train"][:15])
    assert len(images.test) == 6
    with pytest.raises(InputError, match=r"data.train_per_class is -5; it must be at least 1"):
        source(tmp_path, train_per_class=-5)
    with pytest.raises(InputError, match="class 1 has only 2"):
        source(tmp_path, test_per_class=3).load()


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/no/such/folder"}, "data.path=/no/such/folder: there is no such folder"),
        ({"image_column": "picture"}, "no column 'picture'; available columns: img, label"),
        ({"label_column": "class"}, "no column 'class'; available columns: img, label"),
        ({"image_column": "label"}, "column 'label' of train does not contain images; set data.image_column"),
        ({"classes": 2}, "image 2 of train has label 2; with data.classes=2 it must be between 0 and 1"),
        ({"shape": [3, 6, 6]}, r"image 0 of train is 3x6x5 .*, but data.shape is 3x6x6"),
    ],
)
def test_mismatched_data_is_reported(
    tmp_path: Path,
    pixels: dict[str, np.ndarray],
    labels: dict[str, list[int]],
    changes: dict[str, Any],
    message: str,
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    with pytest.raises(InputError, match=message):
        source(tmp_path, **changes).prepare()
    cache = tmp_path / "cache"
    assert not cache.exists() or not [path for path in cache.iterdir() if path.is_dir()]


def test_missing_split_is_reported(tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]]) -> None:
    write_parquet(tmp_path / "images", {"train": pixels["train"][:5]}, {"train": labels["train"][:5]})
    with pytest.raises(InputError, match="no split 'test'; available splits: train"):
        source(tmp_path).prepare()


def test_empty_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*images: .*any data files"):
        source(tmp_path).prepare()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Folder of images of several sizes and modes, in ImageNet's layout by split and class."""
    folder = tmp_path / "photographs"
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 2)):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                height, width = 40 + 10 * index, 90 - 5 * index
                smooth = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
                array = (smooth + generator.integers(0, 55)).astype(np.uint8)
                image = Image.fromarray(array).convert(["RGB", "L", "CMYK"][index % 3])
                image.save(folder / split / label / f"{index}.jpg")
    return folder


def test_stored_images_are_centre_squares(photographs: Path, tmp_path: Path) -> None:
    options = {"shape": [3, 16, 16], "stored": 20, "test_split": "validation", "classes": 2, "image_column": "image"}
    statistics = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    images = source(tmp_path, path=str(photographs), **options, **statistics).load()
    assert images.train.images.shape == (16, 20, 20, 3)
    assert images.test.targets.tolist() == [0, 0, 1, 1]
    with Image.open(photographs / "validation" / "cat" / "0.jpg") as image:  # 90 pixels wide, 40 high
        centre = image.crop((25, 0, 65, 40)).resize((20, 20), Image.Resampling.BILINEAR)
    difference = np.asarray(centre).astype(int) - images.test.images[0].numpy()
    assert abs(difference).max() <= 3
    mean, std = images.channel_statistics
    torch.testing.assert_close(mean, torch.tensor([127.5, 102.0, 76.5]))
    torch.testing.assert_close(std, torch.tensor([25.5, 51.0, 76.5]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stored": 5}, "data.stored is 5; it must be at least 6, as in data.shape"),
        ({"mean": [0.5], "std": [0.5]}, "data.mean has length 1; it must have length 3, one value per channel"),
        ({"mean": [0.5, 0.5, 0.5]}, "only one of data.mean and data.std is set; set both or neither"),
    ],
)
def test_invalid_options_are_reported(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        source(tmp_path, **changes)


def test_imagenet_trains_from_a_folder(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["model=imagenet", "model.width=4", "data=imagenet", f"data.path={photographs}", "data.cache=cache"]
    options += ["data.classes=2", "data.shape=[3,64,64]", "data.scales=null", "data.test_scale=null"]
    options += ["data.test_crops=10", "optim.batch_size=8", "optim.epochs=1"]
    assert main(["train", *options]) == 0
    (result,) = Path("runs").glob("*/*/result.json")
    assert json.loads(result.read_text())["depth"] == 18
    assert not Path("cache").exists()
    assert main(["eval", str(result.parent), "data.test_crops=1", "data.path=nowhere"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": True, "pad": 4}, "data.pad is 4, but images that are decoded while training .*; set it to 0, or"),
        ({"stream": True, "stored": 20}, "data.stored is 20, but .*; set it to null, or data.stream=false"),
        ({"stream": True, "test_crops": 3}, "data.test_crops is 3; it must be 1 or 10"),
        ({"colour": 0.1}, "data.crop, scales, colour, test_scale and test_crops apply .*; set data.stream=true"),
    ],
)
def test_options_of_streamed_images(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        source(tmp_path, **changes)


def test_unreachable_hub_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> None:
        raise ConnectionError("Couldn't reach 'someone/images' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"Couldn't reach .*data.path=FOLDER"):
        source(tmp_path, path=None).prepare()


def test_unwritable_cache_is_reported(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to the cache .* set data.cache=FOLDER"):
        source(tmp_path, cache=str(tmp_path / "file" / "cache")).prepare()


@pytest.mark.skipif(not CIFAR10.exists(), reason=f"no CIFAR-10 at {CIFAR10}; PLAINRES_CIFAR10 names a folder")
def test_real_cifar10(tmp_path: Path) -> None:
    cifar = source(tmp_path, name="uoft-cs/cifar10", path=str(CIFAR10), classes=10, shape=[3, 32, 32])
    images = cifar.load()
    assert torch.bincount(images.train.targets).tolist() == [5000] * 10
    assert torch.bincount(images.test.targets).tolist() == [1000] * 10
    mean, std = images.channel_statistics
    assert (mean / 255).tolist() == pytest.approx([0.49140, 0.48216, 0.44653], abs=1e-5)
    assert (std / 255).tolist() == pytest.approx([0.24703, 0.24349, 0.26159], abs=1e-5)
