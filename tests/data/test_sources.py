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


def encoded(pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_parquet(folder: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]]) -> None:
    """A folder of the kind that the Hub holds: <split>-00000-of-00001.parquet with the columns img and label."""
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(img=datasets.Image(), label=datasets.Value("int64"))
    for split, images in pixels.items():
        rows = {"img": [encoded(image) for image in images], "label": labels[split]}
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
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"train": 0}, "data.train is 0; it must be at least 1"),
        ({"shape": [3, 4]}, r"data.shape is \[3, 4\]; it must be \[channels, height, width\]"),
        ({"shape": [3, 4.5, 4]}, "whole numbers"),
        ({"classes": 0}, "data.classes is 0"),
        ({"pad": -1}, "data.pad is -1"),
    ]
    for changes, message in wrong:
        values: dict[str, Any] = {"shape": [3, 4, 5], "classes": 7, "train": 20, "test": 9, "pad": 0, "flip": False}
        with pytest.raises(InputError, match=message):
            Synthetic(**(values | changes))


def test_channel_statistics_are_those_of_numpy() -> None:
    images = Synthetic([3, 9, 7], 7, 50, 1, 0, False).load()
    mean, std = images.channel_statistics
    array = images.train.images.numpy().astype(np.float64)
    np.testing.assert_allclose(mean, array.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, array.std((0, 1, 2)), rtol=1e-6)


def sorted_by_class(sizes: list[int]) -> torch.Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any), st.integers(0, 200), st.booleans())
def test_a_sample_has_each_classs_share(sizes: list[int], count: int, shuffled: bool) -> None:
    targets = sorted_by_class(sizes)
    if shuffled:
        targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    index = stratified(targets, count)
    total = len(targets)
    assert len(index) == min(count, total)
    assert index.tolist() == sorted(set(index.tolist()))
    assert torch.equal(index, stratified(targets.clone(), count))
    found = torch.bincount(targets[index], minlength=len(sizes)).tolist()
    for n, of_class in zip(sizes, found, strict=True):
        assert abs(of_class - len(index) * n / total) < 1


def test_a_sample_of_a_set_sorted_by_class_is_not_its_beginning() -> None:
    targets = sorted_by_class([1000, 3000, 1000])
    index = stratified(targets, 500)
    assert torch.bincount(targets[index]).tolist() == [100, 300, 100]
    of_first = index[targets[index] == 0]
    assert of_first.double().mean() == pytest.approx(500, abs=100)  # from all of the class
    assert torch.bincount(targets[stratified(targets, 4)]).tolist() == [1, 2, 1]
    assert torch.bincount(targets[stratified(targets, 6)]).tolist() == [1, 4, 1]  # of 1.2, 3.6, 1.2
    split = Split(torch.arange(5000).view(-1, 1, 1, 1), targets)
    sample = split.sample(500)
    assert torch.equal(sample.images.flatten(), index)
    assert torch.equal(sample.targets, targets[index])
    assert split.sample(None) is split.sample(5000) is split


def test_the_sample_of_the_digits_stays() -> None:
    """Measurements of different versions are of the same images."""
    targets = Digits(0, False).load().train.targets
    assert stratified(targets, 10).tolist() == [204, 289, 486, 905, 962, 982, 1148, 1316, 1385, 1427]


def test_the_digest_sees_every_pixel_and_target() -> None:
    images = Synthetic([1, 4, 4], 5, 8, 8, 0, False).load()
    digest = images.sha256()
    images.test.targets[3] += 1
    changed = images.sha256()
    images.train.images[2, 1, 1, 0] += 1
    assert len({digest, changed, images.sha256()}) == 3


def test_a_decoded_copy_has_every_image_in_its_place(
    tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]]
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    images = source(tmp_path).load()
    for split, name in ((images.train, "train"), (images.test, "test")):
        np.testing.assert_array_equal(split.images, pixels[name])
        assert split.targets.tolist() == labels[name]


def test_the_copy_is_made_once_and_shared(
    tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    source(tmp_path).prepare()
    monkeypatch.setattr(HubImages, "_decode", lambda *_: pytest.fail("decoded twice"))
    first = source(tmp_path).load()
    first.train.images[0] = 0  # a run's own copy of the page, not the file
    np.testing.assert_array_equal(source(tmp_path).load().train.images, pixels["train"])


def test_a_half_written_copy_is_never_used(
    tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    decode = HubImages._decode_in_parallel

    def stop(self: HubImages, rows: Any, split: str) -> Any:
        yield next(iter(decode(self, rows, split)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(HubImages, "_decode_in_parallel", stop)
        with pytest.raises(KeyboardInterrupt):
            source(tmp_path).prepare()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([], [".lock"])
    np.testing.assert_array_equal(source(tmp_path).load().train.images, pixels["train"])


def _load(source: HubImages) -> str:
    return source.load().sha256()


def test_concurrent_runs_decode_one_copy(
    tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]]
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        digests = list(pool.map(_load, [source(tmp_path)] * 2))
    assert len(set(digests)) == 1
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_changed_files_are_decoded_again(
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


def test_grey_images() -> None:
    split = Split(torch.zeros(4, 2, 2, 1, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    assert Images(split, split).channel_statistics[0].shape == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/no/such/folder"}, "data.path=/no/such/folder: there is no such folder"),
        ({"image_column": "picture"}, "no column 'picture'; it has img, label"),
        ({"label_column": "class"}, "no column 'class'; it has img, label"),
        ({"image_column": "label"}, "column 'label' of train holds no images"),
        ({"classes": 2}, "image 2 of train has the label 2; with data.classes=2 labels are 0 to 1"),
        ({"shape": [3, 6, 6]}, r"image 0 of train is 3x6x5 .* data.shape is 3x6x6"),
    ],
)
def test_what_does_not_fit_is_named(
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


def test_a_missing_split_is_named(tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]]) -> None:
    write_parquet(tmp_path / "images", {"train": pixels["train"][:5]}, {"train": labels["train"][:5]})
    with pytest.raises(InputError, match="no split 'test'; it has train"):
        source(tmp_path).prepare()


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"images cannot be read: .*any data files"):
        source(tmp_path).prepare()


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of images of many sizes and modes, by split and class, as people keep ImageNet."""
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


def test_images_of_any_size_are_kept_as_their_middle_square(photographs: Path, tmp_path: Path) -> None:
    options = {"shape": [3, 16, 16], "stored": 20, "test_split": "validation", "classes": 2, "image_column": "image"}
    own = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}
    images = source(tmp_path, path=str(photographs), **options, **own).load()
    assert images.train.images.shape == (16, 20, 20, 3)
    assert images.test.targets.tolist() == [0, 0, 1, 1]
    with Image.open(photographs / "validation" / "cat" / "0.jpg") as image:  # 90 pixels wide, 40 high
        middle = image.crop((25, 0, 65, 40)).resize((20, 20), Image.Resampling.BILINEAR)
    difference = np.asarray(middle).astype(int) - images.test.images[0].numpy()
    assert abs(difference).max() <= 3
    mean, std = images.channel_statistics
    torch.testing.assert_close(mean, torch.tensor([127.5, 102.0, 76.5]))
    torch.testing.assert_close(std, torch.tensor([25.5, 51.0, 76.5]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stored": 5}, "data.stored is 5; it must be at least 6, as data.shape"),
        ({"mean": [0.5], "std": [0.5]}, "data.mean has 1 numbers; the images have 3 channels"),
        ({"mean": [0.5, 0.5, 0.5]}, "data.mean and data.std are given together"),
    ],
)
def test_wrong_options(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        source(tmp_path, **changes)


def test_imagenet_is_trained_from_a_folder(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["model=imagenet", "model.width=4", "data=imagenet", f"data.path={photographs}", "data.cache=cache"]
    options += ["data.classes=2", "data.shape=[3,64,64]", "data.stored=72", "optim.batch_size=8", "optim.epochs=1"]
    assert main(["train", *options]) == 0
    (result,) = Path("runs").glob("*/*/result.json")
    assert json.loads(result.read_text())["depth"] == 18


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> None:
        raise ConnectionError("Couldn't reach 'someone/images' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"Couldn't reach .*data.path=FOLDER"):
        source(tmp_path, path=None).prepare()


def test_an_unwritable_cache(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write the cache .* set data.cache=FOLDER"):
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
