"""Images of one's own, from the command line: trained on, evaluated, named by class; and data sets of the Hub."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from data import torture
from plainres.analysis.evaluation import compose_one
from plainres.cli.main import main
from plainres.config.instantiate import source_of
from plainres.data.decoding import decode
from plainres.data.hub import HubImages
from plainres.errors import InputError
from support.images import encode, images_in, rows_of, write_folders, write_table

GENERATOR = np.random.default_rng(0)
FLOWERS = {
    f"{split}/{name}/{split}{index}.png": GENERATOR.integers(
        100 * number, 100 * number + 100, (8, 8, 3), dtype=np.uint8
    )
    for split, count in (("train", 12), ("test", 4))
    for number, name in enumerate(("daisy", "rose"))
    for index in range(count)
}
SHORT = ["model.depth=8", "model.width=4", "optim.epochs=1", "optim.batch_size=8"]


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLAINRES_CACHE", str(tmp_path / "cache"))
    return write_folders(tmp_path / "flowers", FLOWERS)


def test_a_folder_is_trained_on_and_evaluated(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "data=images", "data.path=flowers", *SHORT]) == 0
    captured = capsys.readouterr()
    assert "flowers: 24 training and 8 test images, 3x8x8, 2 classes: 0 (daisy), 1 (rose)" in captured.err
    (run,) = Path("runs").glob("*/*/")
    assert (
        json.loads((run / "result.json").read_text())["data_sha256"]
        == images_in(flowers, Path("cache")).load().sha256()
    )
    assert main(["eval", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4] == "class  images  error in %  name"
    assert [line.split()[-1] for line in lines[5:7]] == ["daisy", "rose"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_folder_is_a_class_without_images_even_if_there_is_a_decoded_copy(
    split: str, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["describe", "data=images", "data.path=flowers", "model.depth=8"]
    assert main(command) == 0
    (flowers / split / "lily").mkdir()
    assert main(command) == 2
    assert "flowers: class 1 (lily) of 3 has no training images" in capsys.readouterr().err
    (flowers / split / "lily" / "notes.txt").write_text("to be photographed")
    assert main(command) == 2
    assert "flowers: class 1 (lily) of 3 has no training images" in capsys.readouterr().err


def test_files_that_change_without_a_new_time_of_modification_are_decoded_again(tmp_path: Path) -> None:
    write_folders(tmp_path / "data", torture.IDX)
    assert images_in(tmp_path / "data", tmp_path / "cache").load().train.targets.tolist() == [0, 1]
    labels = tmp_path / "data" / "train-labels-idx1-ubyte"
    before = labels.stat()
    labels.write_bytes(labels.read_bytes()[:-2] + bytes([1, 0]))
    os.utime(labels, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert labels.stat().st_mtime_ns == before.st_mtime_ns
    assert images_in(tmp_path / "data", tmp_path / "cache").load().train.targets.tolist() == [1, 0]


def test_a_network_is_described_for_images_that_are_found(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "data=images", f"data.path={flowers}", "model.depth=8"]) == 0
    assert "identity, depth 8, width 16, on images" in capsys.readouterr().out
    assert len(list(Path("cache").glob("flowers-*/metadata.json"))) == 1


def test_damaged_images_of_a_streamed_data_set_are_listed_as_its_message_says(
    flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(5):
        (flowers / f"train/rose/damaged{index}.png").write_bytes(b"")
    options = ["data=images", "data.path=flowers", "data.shape=[3,8,8]", "data.stream=true", "data.damaged=skip"]
    assert main(["describe", *options]) == 2
    command = re.search("plainres (.*) lists all damaged images", capsys.readouterr().err)
    assert command is not None
    assert main(command[1].split()) == 2
    (listing,) = Path("cache").glob("*.damaged.txt")
    assert listing.read_text().splitlines() == [f"train/rose/damaged{index}.png is empty" for index in range(5)]


def test_images_are_decoded_only_where_their_shape_is_needed(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["data=images", "data.path=flowers"]
    known = ["data.shape=[3,8,8]", "data.classes=2"]
    for command in (
        ["train", *options, *SHORT, "--cfg", "job"],
        ["train", *options, *known, *SHORT, "--dry-run"],
        ["describe", *options, *known, "model.depth=8"],
    ):
        assert main(command) == 0
        assert not Path("cache").exists()
    assert "the images of data=images are downloaded or decoded when the command starts" in capsys.readouterr().out
    assert main(["train", *options, *SHORT, "--dry-run"]) == 0
    assert list(Path("cache").glob("*/metadata.json"))


def test_two_folders_have_two_names(flowers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("others").symlink_to(flowers)
    for name in ("flowers", "others"):
        assert main(["train", "data=images", f"data.path={name}", *SHORT, "--dry-run"]) == 0
    assert (
        len({line.split()[1] for line in capsys.readouterr().out.splitlines() if "waiting" in line or "runs/" in line})
        == 2
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "data.path is not set; set it to a folder of images, or to a name on the Hugging Face Hub"),
        (["data.path=/gone"], "data.path=/gone: there is no such folder"),
        (["data.path=./gone"], "data.path=./gone: there is no such folder"),
        (["data.path=flowers", "data.damaged=maybe"], "data.damaged is 'maybe'; it must be refuse or skip"),
        (["data.path=flowers", "data.test_share=1.5"], "data.test_share is 1.5; it must be between 0 and 1"),
        (["data.path=notes.txt"], "data.path=notes.txt is not a folder and not an .npz file"),
    ],
)
def test_a_mistake_is_one_line(
    overrides: list[str], message: str, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").touch()
    assert main(["describe", "data=images", *overrides]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"plainres: {message}"


def test_a_seeded_test_split_is_stratified_and_stable(tmp_path: Path) -> None:
    folder = write_folders(
        tmp_path / "x",
        {f"{name}/{index}.png": np.full((2, 2), index, np.uint8) for name in "ab" for index in range(20)},
    )
    images = images_in(folder, tmp_path / "cache", test_share=0.25).load()
    assert torch.bincount(images.train.targets).tolist() == [15, 15]
    assert torch.bincount(images.test.targets).tolist() == [5, 5]
    values = [sorted(split.images[:, 0, 0, 0].tolist()) for split in (images.train, images.test)]
    assert sorted(values[0] + values[1]) == sorted(2 * list(range(20)))
    assert images.test.images[:, 0, 0, 0].tolist() == [11, 16, 2, 5, 9, 10, 13, 16, 18, 6]


def test_a_test_split_alone_can_be_evaluated_but_not_trained_on(
    flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "data=images", "data.path=flowers", *SHORT]) == 0
    run = next(Path("runs").glob("*/*/"))
    (flowers / "test").rename("held_out")
    Path("alone").mkdir()
    Path("held_out").rename("alone/test")
    assert main(["eval", str(run), "data=images", "data.path=alone"]) == 0
    assert "of 8 images" in capsys.readouterr().out
    assert main(["train", "data=images", "data.path=alone", *SHORT]) == 2
    assert "there are only 0 training images" in capsys.readouterr().err


def test_all_pixels_of_a_decoded_photograph_follow_the_stated_rule() -> None:
    pixels = GENERATOR.integers(0, 256, (40, 90, 3), dtype=np.uint8)
    assert decode(encode(pixels), 3, 20).shape == (20, 20, 3)
    assert decode(encode(pixels), 3, 20, whole=True).shape == (20, 45, 3)
    assert decode(encode(pixels), 1, 20, whole=True).shape == (20, 45, 1)
    np.testing.assert_array_equal(decode(encode(pixels), 3), pixels)


DIGITS = np.arange(10).repeat(2).astype(np.uint8)


def in_original_files(name: str) -> tuple[dict[str, bytes], np.ndarray]:
    """Return the original files of a data set with two images of each class, and these images (N, H, W, C)."""
    pixels = GENERATOR.integers(0, 256, (20, 28, 28, 1) if name == "fashion_mnist" else (20, 32, 32, 3), dtype=np.uint8)
    if name == "svhn":
        content = torture.mat(X=pixels.transpose(1, 2, 3, 0), y=np.where(DIGITS == 0, 10, DIGITS)[:, None])
        return {f"{split}_32x32.mat": content for split in ("train", "test")}, pixels
    if name == "fashion_mnist":
        arrays = {"images-idx3-ubyte": pixels[..., 0], "labels-idx1-ubyte": DIGITS}
        return {
            f"{split}-{kind}": torture.idx(each) for split in ("train", "t10k") for kind, each in arrays.items()
        }, pixels
    batch = {b"data": pixels.transpose(0, 3, 1, 2).reshape(20, -1), b"labels": DIGITS.tolist()}
    parts = [f"data_batch_{number}" for number in range(1, 6)]
    files = {
        part: pickle.dumps({key: value[i * 4 : i * 4 + 4] for key, value in batch.items()})
        for i, part in enumerate(parts)
    }
    names = {b"label_names": [b"class %d" % number for number in range(10)]}
    return files | {"test_batch": pickle.dumps(batch), "batches.meta": pickle.dumps(names)}, pixels


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "svhn"])
def test_a_named_data_set_is_read_from_its_original_files(name: str, tmp_path: Path) -> None:
    files, pixels = in_original_files(name)
    folder = write_folders(tmp_path / "original", files)
    source = source_of(compose_one([f"data={name}", f"data.path={folder}", f"data.cache={tmp_path}/cache"]))
    images = source.load()
    for split in (images.train, images.test):
        np.testing.assert_array_equal(split.images, pixels)
        assert split.targets.tolist() == DIGITS.tolist()


class Hub:
    """Hub with one data set, in a folder."""

    def __init__(self, folder: Path, revisions: dict[str, list[str]]) -> None:
        self.folder, self.revisions, self.downloaded = folder, revisions, []

    def list_repo_files(self, name: str, *, repo_type: str, revision: str) -> list[str]:
        assert (name, repo_type) == ("someone/flowers", "dataset")
        if revision not in self.revisions:
            raise RevisionNotFoundError("404", response=_Response())  # pyright: ignore[reportArgumentType]
        return self.revisions[revision]

    def snapshot_download(self, name: str, *, allow_patterns: list[str], **_: Any) -> str:
        self.downloaded += allow_patterns
        return str(self.folder)


class _Response:
    headers: dict[str, str] = {}  # noqa: RUF012
    request = None


def hub(monkeypatch: pytest.MonkeyPatch, folder: Path, revisions: dict[str, list[str]]) -> Hub:
    made = Hub(folder, revisions)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", made.list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


FILES = [
    "x/train-00000-of-00001.parquet",
    "x/test-00000-of-00001.parquet",
    "x/extra-00000-of-00001.parquet",
    "README.md",
]


@pytest.mark.parametrize("revision", ["main", "refs/convert/parquet"])
def test_only_the_splits_in_use_are_downloaded(revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = [GENERATOR.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in range(2)]
    for file in FILES[:2]:
        write_table(tmp_path / file, {"image": rows_of([encode(each) for each in pixels]), "label": pa.array([0, 1])})
    made = hub(monkeypatch, tmp_path, {"main": ["README.md"]} | {revision: FILES})
    for source in (
        images_in("someone/flowers", tmp_path / "cache", name="someone/flowers"),
        HubImages(cache=str(tmp_path / "cache2"), pad=0, flip=False, name="someone/flowers"),
    ):
        np.testing.assert_array_equal(source.load().train.images, np.stack(pixels))
    assert made.downloaded == 2 * FILES[:2]


def test_a_data_set_of_the_hub_without_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, tmp_path, {"main": ["images.zip"]})
    with pytest.raises(InputError, match=r"has no Parquet files; download it and set data.path=FOLDER"):
        images_in("someone/flowers", tmp_path / "cache")


def test_a_name_that_the_hub_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise RepositoryNotFoundError("404 Client Error\n\nRepository Not Found", response=_Response())  # pyright: ignore

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", missing)
    with pytest.raises(InputError, match=r"data.path=some/where: there is no such folder; cannot read some/where from"):
        images_in("some/where", tmp_path / "cache")


def test_training_images_are_not_evaluated_as_test_images(
    tmp_path: Path, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {name.removeprefix("train/"): pixels for name, pixels in FLOWERS.items() if name.startswith("train/")}
    undivided = write_folders(tmp_path / "undivided", training)
    options = ["data=images", f"data.path={undivided}"]
    assert main(["train", *options, "data.test_share=0.25", *SHORT]) == 0
    (run,) = Path("runs").glob("*/*/")
    assert main(["eval", str(run)]) == 0
    predictions = (run / "predictions-images.parquet").read_bytes()
    capsys.readouterr()
    assert main(["export", str(run), "mine.safetensors"]) == 0
    half, described = [*options, "data.test_share=0.5"], [word for word in SHORT if word.startswith("model")]
    commands = [
        [str(run), "data.test_share=0.5"],
        [str(run), *half],
        ["mine.safetensors", options[1], "data.test_share=0.5"],
        ["mine.safetensors", *half],
        ["mine.safetensors", *half, *described],
    ]
    for command in commands:
        capsys.readouterr()
        assert main(["eval", *command]) == 2
        assert "data.test_share is 0.5, but 0.25 in the training of this network" in capsys.readouterr().err
    assert (run / "predictions-images.parquet").read_bytes() == predictions
    assert main(["eval", str(run), "data=images", f"data.path={flowers}"]) == 0


def test_a_drawn_test_split_is_that_of_the_training_or_refused(
    tmp_path: Path, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image more draws other test images, most of which the network has seen."""
    training = {name.removeprefix("train/"): pixels for name, pixels in FLOWERS.items() if name.startswith("train/")}
    undivided = write_folders(tmp_path / "undivided", training)
    assert main(["train", "data=images", f"data.path={undivided}", "data.test_share=0.25", *SHORT]) == 0
    (run,) = Path("runs").glob("*/*/")
    assert main(["export", str(run), "mine.safetensors"]) == 0
    path = f"data.path={undivided}"
    described = [word for word in SHORT if word.startswith("model")]
    commands = [
        ["eval", str(run)],
        ["eval", str(run), "data.test_per_class=2"],
        ["eval", str(run), "data.mean=[0.5,0.5,0.5]", "data.std=[0.2,0.2,0.2]"],
        ["eval", str(run), "data=images", path, "data.test_share=0.25", "data.damaged=skip"],
        ["eval", "mine.safetensors", path],
        ["eval", "mine.safetensors", path, "data.test_per_class=2"],
        ["eval", "mine.safetensors", "data=images", path, "data.test_share=0.25", *described],
    ]
    for command in commands:
        assert main(command) == 0
    write_folders(undivided, {"daisy/another.png": FLOWERS["test/daisy/test0.png"]})
    for command in commands:
        capsys.readouterr()
        assert main(command) == 2
        assert "was trained on other images (" in capsys.readouterr().err
    assert main(["eval", str(run), "data=images", f"data.path={flowers}"]) == 0  # test images of another data set


def test_classes_are_numbered_as_in_the_training(
    tmp_path: Path, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "data=images", f"data.path={flowers}", *SHORT]) == 0
    (run,) = Path("runs").glob("*/*/")
    assert main(["export", str(run), "mine.safetensors"]) == 0
    tested = {name: pixels for name, pixels in FLOWERS.items() if name.startswith("test/")}
    others = {"rose": "a rose", "daisy": "daisy"}, {"rose": "tulip", "daisy": "lily"}
    for number, names in enumerate(others):
        renamed = {
            "/".join([*name.split("/")[:1], names[name.split("/")[1]], name.split("/")[2]]): pixels
            for name, pixels in tested.items()
        }
        folder = write_folders(tmp_path / str(number), renamed)
        for network in (str(run), "mine.safetensors"):
            capsys.readouterr()
            code = main(["eval", network, "data=images", f"data.path={folder}"])
            printed = capsys.readouterr().err
            if number == 0:  # "a rose" comes before "daisy"
                assert code == 2
                assert "class daisy has the number 1 in these images, but 0 in the training of" in printed
            else:
                assert code == 0, printed
                assert "was trained without classes 0 (lily), 1 (tulip); predictions are compared by number" in printed


def test_files_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    images = rows_of([encode(np.zeros((8, 8, 3), np.uint8))] * 2)
    for split, names in (("train", ["dark", "light"]), ("test", ["light", "dark"])):
        columns = {"img": images, "label": pa.array([0, 1])}
        write_table(tmp_path / "data" / f"{split}-00000-of-00001.parquet", columns, names)
    with pytest.raises(InputError, match=r"the classes of .* are light, dark, but those of .* are dark, light"):
        images_in(tmp_path / "data", tmp_path / "cache").load()
