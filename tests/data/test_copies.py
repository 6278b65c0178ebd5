"""Decoded copies: larger than the memory, on a full disk, damaged, unfinished, and the commands that manage them."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plainres.cli.main import main
from plainres.config.schema import Config
from plainres.data import copies, hub
from plainres.data.batches import DeviceImages, TrainingBatches
from plainres.data.copies import METADATA, Contents, Copy, readable
from plainres.errors import InputError
from plainres.models import CifarNet, Identity
from plainres.runs.record import Run
from plainres.training.train import train
from support.images import images_in, write_folders
from support.users import run_as_nobody, shared_folder

GENERATOR = np.random.default_rng(0)
IMAGES = {
    f"{split}/{name}/{index}.png": GENERATOR.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    for split in ("train", "test")
    for name in "ab"
    for index in range(4)
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "mine", IMAGES)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def copy_in(cache: Path) -> Copy:
    (copy,) = copies.copies_in(cache)
    return copy


def resized(copy: Copy, split: str, count: int, size: list[int]) -> None:
    """Make a copy's split a sparse file of `count` images of another size."""
    contents = copy.read()
    assert contents is not None
    os.truncate(copy.folder / f"{split}_images.bin", count * int(np.prod(size)))
    (torch.arange(count) % 2).numpy().tofile(copy.folder / f"{split}_targets.bin")
    histograms = [[count * size[0] * size[1]] + [0] * 255] * 3
    files = contents.files | {file.name: (file.stat().st_size, "") for file in copy.folder.glob(f"{split}_*.bin")}
    values: dict[str, Any] = json.loads((copy.folder / METADATA).read_text())
    values |= {"images": contents.images | {split: count}, "size": size, "files": files, "histograms": histograms}
    copy.write(Contents(**values))


def test_a_large_copy_is_made_only_if_asked_for(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LARGE", 16 * (6 * 5 * 3 + 8) - 1)
    message = (
        r"a decoded copy of .* takes 0.0 GiB; set data.stream=true .* while training, or data.stream=false to make"
    )
    with pytest.raises(InputError, match=message):
        images_in(folder, cache)
    assert list(copies.copies_in(cache)) == []
    assert images_in(folder, cache, stream=False).shape == [3, 6, 5]
    monkeypatch.setattr(hub, "LARGE", 16 * (6 * 5 * 3 + 8))
    assert images_in(folder, cache).load().train.images.shape == (8, 6, 5, 3)


def test_300_gb_are_mapped_and_trained_on(folder: Path, cache: Path) -> None:
    source: Any = images_in(folder, cache, stored=256, shape=[3, 32, 32], classes=2, pad=0, flip=True)
    source.prepare()
    resized(copy_in(cache), "test", 8, [256, 256, 3])
    resized(copy_in(cache), "train", 1_530_000, [256, 256, 3])
    assert (copy_in(cache).folder / "train_images.bin").stat().st_size > 300e9
    images = source.load()
    assert images.train.images.nbytes > 300e9
    assert images.sha256() == copy_in(cache).read().data_sha256  # pyright: ignore[reportOptionalMemberAccess]
    pixels = DeviceImages(images.train, source, images.channel_statistics, torch.device("cpu"))
    network = CifarNet(3, 2, depth=8, width=4, shortcut=Identity)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = network.state_dict()["head.linear.bias"].clone()
    batches = iter(TrainingBatches(pixels, batch_size=16, seed=0, position=lambda: 0))
    for _ in range(2):
        x, targets = pixels.materialize(next(batches))
        torch.nn.functional.cross_entropy(network(x), targets).backward()
        optimizer.step()
    assert not torch.equal(before, network.state_dict()["head.linear.bias"])


def test_recorded_statistics_and_digest_are_those_of_the_images(folder: Path, cache: Path) -> None:
    images = images_in(folder, cache).load()
    contents = copy_in(cache).read()
    assert contents is not None
    pixels = np.stack([IMAGES[f"train/{name}/{index}.png"] for name in "ab" for index in range(4)])
    np.testing.assert_allclose(images.channel_statistics[0], pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(contents.mean, pixels.mean((0, 1, 2)) / 255, rtol=1e-6)  # pyright: ignore
    np.testing.assert_allclose(contents.std, pixels.std((0, 1, 2)) / 255, rtol=1e-6)  # pyright: ignore
    digest = hashlib.sha256()
    for split in (images.train, images.test):
        for array in (split.images, split.targets):
            digest.update(str(tuple(array.shape)).encode() + array.numpy().tobytes())
    assert images.sha256() == digest.hexdigest() == contents.data_sha256
    part = images_in(folder, cache, train_per_class=2).load()
    assert part.sha256() != images.sha256()
    np.testing.assert_allclose(part.channel_statistics[0], pixels[[0, 1, 4, 5]].mean((0, 1, 2)), rtol=1e-6)


def test_damaged_images_that_are_left_out_are_recorded(
    folder: Path, cache: Path, make_config: Callable[..., Config]
) -> None:
    for index in range(8, 13):
        (folder / f"train/a/{index}.png").write_bytes(b"")
    images = images_in(folder, cache, damaged="skip").load()
    assert len(images.train) == 8
    contents = copy_in(cache).read()
    assert contents is not None
    assert sorted(contents.damaged) == sorted(f"train/a/{index}.png is empty" for index in range(8, 13))
    assert contents.images == {"train": 8, "test": 8}
    assert images.left_out == 5
    data = {"_target_": "plainres.data.HubImages", "path": str(folder), "cache": str(cache), "damaged": "skip"}
    data |= {"pad": 0, "flip": False}
    run = Run.of(make_config(data=data, optim={"batch_size": 4, "epochs": 1}))
    train(run)
    assert run.result["images_left_out"] == 5


def test_a_full_disk_is_reported_and_nothing_is_left(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(InputError, match=r"the decoded copy takes 1.6 kB, but .* has .* left \(No space left"):
            images_in(folder, cache).load()
    with monkeypatch.context() as patch:
        patch.setattr(copies.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        with pytest.raises(InputError, match=r"has 1.0 kB left .*; free some space .* or set data.cache=FOLDER"):
            images_in(folder, cache).load()
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert len(images_in(folder, cache).load().train) == 8


def test_a_file_system_without_space(tmp_path: Path, folder: Path) -> None:
    """Decode in a process whose files may have 400 bytes: writing fails there as on a full disk."""
    code = (
        "import resource, signal, sys; from plainres.cli.main import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400)); "
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "describe", "data=images", f"data.path={folder}"]
    done = subprocess.run(
        [*command, f"data.cache={tmp_path / 'cache'}"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert "the decoded copy takes" in done.stderr.splitlines()[-1]
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted", "metadata", "targets", "altered"])
def test_a_damaged_copy_is_decoded_again(
    damage: str, folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = images_in(folder, cache).load().sha256()
    copy = copy_in(cache).folder
    if damage == "truncated":
        os.truncate(copy / "train_images.bin", 100)
    elif damage == "emptied":
        os.truncate(copy / "test_images.bin", 0)
    elif damage == "deleted":
        (copy / "train_images.bin").unlink()
    elif damage == "metadata":
        (copy / METADATA).write_text("{")
    elif damage == "targets":
        (copy / "train_targets.bin").unlink()
    else:
        file = copy / "train_images.bin"
        file.write_bytes(bytes(file.stat().st_size))
    capsys.readouterr()
    assert images_in(folder, cache).load().sha256() == digest
    assert f"{copy} is damaged; decoding {folder} again" in capsys.readouterr().err


def test_unfinished_copies_of_dead_processes_are_removed(folder: Path, cache: Path) -> None:
    images_in(folder, cache).load()
    copy = copy_in(cache).folder
    left = copy.with_name(f"{copy.name}.tmp-123")
    copy.rename(left)
    images_in(folder, cache).load()
    assert not left.exists()


def test_listing_checking_and_removing(
    folder: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    images_in(folder, cache).load()
    copy = copy_in(cache).folder
    (cache / "mine-0.tmp-12").mkdir()
    (older := cache / "old-1").mkdir()
    (older / "train_images.npy").write_bytes(b"x")
    (cache / "notes").mkdir()  # not a copy
    (cache / "notes" / "x.txt").touch()
    capsys.readouterr()
    command = ["data", "list", "--cache", str(cache)]
    assert main(command) == 0
    listed = capsys.readouterr().out
    (row,) = [line.split() for line in listed.splitlines() if line.startswith(copy.name)]
    assert (row[1], row[-1]) == ("16", str(folder))
    assert sorted(line.split()[0] for line in listed.splitlines()[1:-1]) == ["mine-0.tmp-12", copy.name, "old-1"]
    assert listed.splitlines()[-1].startswith(f"3 copies in {cache}, ")
    assert "unfinished" in listed
    assert "older" in listed
    monkeypatch.setenv("COLUMNS", "80")
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 or line.strip() == str(folder) for line in lines[:-1])  # a path is never split
    assert main(["data", "check", "--cache", str(cache)]) == 0
    assert f"{copy.name}: intact" in capsys.readouterr().out
    with (copy / "train_images.bin").open("r+b") as file:
        file.write(b"\0\1\2")
    assert main(["data", "check", copy.name, "--cache", str(cache)]) == 1
    output = capsys.readouterr()
    assert output.out == f"{copy.name}: train_images.bin does not match its digest\n"
    assert output.err == f"plainres: damaged: {copy.name}; remove with `plainres data remove {copy.name}`\n"
    assert main(["data", "remove", "--unfinished", "--cache", str(cache)]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "removed mine-0.tmp-12",
        "removed old-1",
    ]
    assert main(["data", "remove", "--older", "1", "--cache", str(cache)]) == 0
    assert capsys.readouterr().out == "no copy to remove\n"
    assert copy.exists()
    os.utime(copy / "used", (0, 0))
    assert main(["data", "remove", "--older", "1", "--cache", str(cache)]) == 0
    assert not copy.exists()
    images_in(folder, cache).load()
    assert main(["data", "remove", copy.name, "--cache", str(cache)]) == 0
    assert not copy.exists()
    assert (cache / "notes" / "x.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["remove"], "plainres data remove needs names, --unfinished or --older DAYS"),
        (["remove", "x"], "there is no decoded copy 'x' in"),
        (["list", "--unfinished"], "--unfinished and --older belong to plainres data remove"),
        (["tidy"], "invalid choice: 'tidy'"),
    ],
)
def test_invalid_commands(arguments: list[str], message: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *arguments, "--cache", str(cache)]) == 2
    assert message in capsys.readouterr().err


def test_a_copy_that_is_being_written_is_not_removed(folder: Path, cache: Path) -> None:
    images_in(folder, cache).load()
    copy = copy_in(cache)
    command = ["data", "remove", copy.folder.name, "--cache", str(cache)]
    with copies.reserved(copy.folder):
        assert not copies.remove(copy)
        assert main(command) == 1
    assert main([*command, "--older", "30"]) == 2
    assert copies.remove(copy)


def test_sizes_are_readable() -> None:
    assert [readable(each) for each in (5, 1500, 2e9, 3e14)] == ["5 bytes", "1.5 kB", "2.0 GB", "300.0 TB"]


@pytest.fixture
def without_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Set a home folder that does not exist, and return the temporary folder."""
    monkeypatch.delenv("PLAINRES_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nonexistent"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    copies._temporary_cache.cache_clear()
    yield tmp_path
    copies._temporary_cache.cache_clear()


def test_without_a_home_folder_copies_are_in_a_temporary_one(
    folder: Path, without_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    temporary = without_home / f"plainres-{os.getuid()}"
    for _ in range(2):
        images_in(folder, Path("~/.cache/plainres")).load()
    assert [copy.folder.parent for copy in copies.copies_in(temporary)] == [temporary]
    assert (
        capsys.readouterr().err.count(
            f"the home folder cannot be used: decoded copies are in {temporary}; PLAINRES_CACHE names another folder\n"
        )
        == 1
    )
    assert temporary.stat().st_mode & 0o777 == 0o700
    assert main(["data", "list"]) == 0
    assert f"1 copy in {temporary}, " in capsys.readouterr().out
    assert not (without_home / "nonexistent").exists()


def test_a_cache_among_the_temporary_folders_must_be_ones_own(
    without_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (without_home / f"plainres-{os.getuid()}").symlink_to("/elsewhere")
    with pytest.raises(InputError, match=r"cannot use the cache .*; set data\.cache=FOLDER or PLAINRES_CACHE"):
        copies.cache_folder("~/.cache/plainres")
    monkeypatch.setattr("os.getuid", lambda: 4242)
    (without_home / "plainres-4242").mkdir()
    with pytest.raises(InputError, match=r"it belongs to another user; set data\.cache=FOLDER or PLAINRES_CACHE"):
        copies.cache_folder("~/.cache/plainres")


AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a home folder")


@pytest.mark.parametrize("home", [pytest.param(None, marks=AS_ROOT), "/nonexistent", "/"])
def test_a_user_without_a_home_folder_has_a_cache(home: str | None) -> None:
    with shared_folder() as shared:
        shared.chmod(0o777)
        code, output, error = run_as_nobody(["data", "list"], before=["data", "list"], HOME=home, TMPDIR=str(shared))
        assert code == 0
        (temporary,) = shared.iterdir()
        assert output == f"0 copies in {temporary}, 0 bytes\n"
        assert error.count("\n") == 1
        assert str(temporary) in error


def test_files_of_file_managers_change_neither_a_copy_nor_its_name(folder: Path, cache: Path) -> None:
    images_in(folder, cache).load()
    copy = copy_in(cache)
    for name in (".DS_Store", "._x", "Thumbs.db", "desktop.ini"):
        (copy.folder / name).touch()
        (folder / "train" / name).touch()
    images_in(folder, cache).load()
    assert copy_in(cache) == copy
    (copy.folder / "notes.txt").touch()
    assert not list(copies.copies_in(cache))  # a folder with files of the user's is never removed
