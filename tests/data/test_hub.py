import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from plainres.cli.main import main
from plainres.data import cached, making
from plainres.data.hub import HubImages
from plainres.data.streamed_split import StreamedSplit
from plainres.errors import InputError
from plainres.files import read_rows
from support.images import write_parquet
from support.places import CIFAR10, ROOT


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
    monkeypatch.setattr(cached, "make_copy", lambda *_, **__: pytest.fail("decoded twice"))
    first = source(tmp_path).load()
    np.testing.assert_array_equal(first.train.images, pixels["train"])
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "train_images.bin" in line]
    assert all(line.split()[1] == "r--s" for line in maps)  # read-only and shared
    assert maps
    np.testing.assert_array_equal(source(tmp_path).load().train.images, pixels["train"])


def test_partial_copy_is_never_used(
    tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    in_parallel = making.in_parallel

    def interrupt(*arguments: Any) -> Any:
        yield next(iter(in_parallel(*arguments)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(making, "in_parallel", interrupt)
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
    with pytest.raises(InputError, match=r"class 1 has only 2 images; data.test_per_class asks for 3 of each class"):
        source(tmp_path, test_per_class=3).load()
    labels["test"] = [label if label < 2 else 0 for label in labels["test"]]  # none of the last class
    write_parquet(tmp_path / "images", pixels, labels)
    with pytest.raises(InputError, match=r"class 2 has only 0 images; data.test_per_class asks for 2 of each class"):
        source(tmp_path, test_per_class=2).load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/no/such/folder"}, "data.path=/no/such/folder: there is no such folder"),
        ({"image_column": "picture"}, "no column 'picture'; available columns: img, label"),
        ({"label_column": "class"}, "no column 'class'; available columns: img, label"),
        (
            {"image_column": "label"},
            "column 'label' of train.* does not contain images, but int64; set data.image_column",
        ),
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
    with pytest.raises(InputError, match=r"images does not hold a data set .* accepted: folders of images"):
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
        ({"stored": 0}, "data.stored is 0; it must be at least 1"),
        ({"stored": 5}, "data.stored is 5; it must be at least 6, as in data.shape"),
        ({"mean": [0.5], "std": [0.5]}, "data.mean has length 1; it must have length 3, one value per channel"),
        (
            {"mean": [125.3, 123.0, 113.9], "std": [63.0, 62.1, 66.7]},
            "data.mean has the value 125.3; as a share of 255",
        ),
        ({"mean": [0.5] * 3, "std": [0.2, 0.0, 0.2]}, "data.std has the value 0.0; .* must be above 0 and at most 1"),
        ({"mean": [0.5] * 3, "std": [0.2, float("nan"), 0.2]}, "data.std has the value nan"),
        ({"mean": ["a"] * 3, "std": [0.2] * 3}, "data.mean has the value a; as a share of 255 it must be at least 0"),
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


def test_the_study_on_imagenet_trains_from_a_folder(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["experiment=imagenet_degradation", "model.depth=18", "model.width=4", f"data.path={photographs}"]
    options += ["data.classes=2", "data.shape=[3,32,32]", "data.scales=[37,69]", "data.test_scale=37"]
    assert main(["train", *options, "optim.batch_size=8", "optim.steps=3", "sweep.runs_per_device=1"]) == 0
    results = [json.loads(file.read_text()) for file in Path("runs/imagenet_degradation").glob("*/result.json")]
    assert sorted(result["shortcut"] for result in results) == ["identity", "plain"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": True, "pad": 4}, "data.pad is 4, which needs a decoded copy; set it to 0, or data.stream=false"),
        ({"stream": True, "stored": 20}, "data.stored is 20, .*; set it to null, or data.stream=false"),
        (
            {"stream": True, "damaged": "skip"},
            "data.damaged is skip, .*; set it to refuse, or data.stream=false; plainres describe .* lists all damaged",
        ),
        ({"stream": True, "shape": None}, "data.shape is not set; images that are decoded while training need"),
        ({"stream": True, "test_crops": 3}, "data.test_crops is 3; it must be 1 or 10"),
        ({"colour": 0.1}, "data.crop, scales, colour, test_scale and test_crops apply .*; set data.stream=true"),
    ],
)
def test_options_of_streamed_images(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        source(tmp_path, **changes)


def test_a_streamed_image_without_a_label_is_refused(tmp_path: Path, pixels: dict[str, np.ndarray]) -> None:
    labels = {name: [None, *(index % 2 for index in range(len(images) - 1))] for name, images in pixels.items()}
    write_parquet(tmp_path / "images", pixels, labels)
    with pytest.raises(InputError, match=r"row 0 of .*\.parquet has no label; data.stream=false and data.damaged=skip"):
        source(tmp_path, stream=True, classes=2).load()


def test_streamed_images_are_listed_once(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"stream": True, "shape": [3, 16, 16], "classes": None, "test_split": "validation"}
    images = source(tmp_path, path=str(photographs), **options)
    assert images.classes == 2
    assert len(images.load().train) == 16
    assert capsys.readouterr().err == f"reading {photographs} ...\n"


def test_streamed_validation_images_are_held_out(photographs: Path, tmp_path: Path) -> None:
    options = {"stream": True, "shape": [3, 16, 16], "classes": 2, "test_split": "validation", "test_crops": 10}
    whole = source(tmp_path, path=str(photographs), **options).load()
    images = source(tmp_path, path=str(photographs), validation_per_class=3, **options).load()
    assert isinstance(images.train, StreamedSplit)
    assert isinstance(images.validation, StreamedSplit)
    train, held_out = (
        {split.encoded.name(index) for index in range(len(split))} for split in (images.train, images.validation)
    )
    assert (len(train), len(held_out), len(train | held_out)) == (10, 6, 16)
    assert images.validation.targets.bincount().tolist() == [3, 3]
    assert images.validation.views.test_crops == 10
    assert images.sha256() != whole.sha256()


def test_streamed_rows_of_large_row_groups_are_reported(
    tmp_path: Path, pixels: dict[str, np.ndarray], labels: dict[str, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "images", pixels, labels)
    digest = source(tmp_path, stream=True).load().sha256()
    assert capsys.readouterr().err.splitlines()[1:] == [
        "someone/images: train-00000-of-00001.parquet has row groups of up to 1,201 images, and each image takes the "
        "reading and the memory of its whole row group; write the files with row_group_size=10, or use a folder of "
        "images"
    ]
    table = pq.read_table(tmp_path / "images/train-00000-of-00001.parquet")
    pq.write_table(table, tmp_path / "images/train-00000-of-00001.parquet", row_group_size=10)
    assert source(tmp_path, stream=True).load().sha256() == digest
    assert capsys.readouterr().err == f"reading {tmp_path / 'images'} ...\n"


def test_notes_on_streamed_images_are_printed(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source(tmp_path, path=str(photographs), stream=True, shape=[3, 16, 16], classes=2).load()
    note = "someone/images: there is no split 'test'; 'validation' is used as the test images\n"
    assert note in capsys.readouterr().err


def test_unreachable_hub_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'someone/images' on the Hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
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
    part = source(
        tmp_path, name="uoft-cs/cifar10", path=str(CIFAR10), classes=10, shape=[3, 32, 32], train_per_class=500
    )
    digests = {row["data_sha256"] for row in read_rows(ROOT / "experiments" / "cifar10_quick" / "results.csv")}
    assert digests == {replace(part, test_per_class=100).load().sha256()}  # of committed evidence
