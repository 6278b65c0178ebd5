"""Analysis of a trained run whose images, or whose cache, have moved since its training."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plainres
from plainres.cli.main import main
from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.runs.location import located, location_in, location_of
from plainres.runs.record import Run
from support.images import write_folders

COMMANDS = {
    "lesion": ["lesion", "RUN", "--most", "1", "--draws", "1"],
    "linearise": ["linearise", "RUN", "--steps", "1"],
    "landscape": ["landscape", "RUN", "--points", "3", "--images", "8"],
    "sharpness": ["sharpness", "RUN", "--images", "8", "--iterations", "2"],
    "eval": ["eval", "RUN"],
    "export": ["export", "RUN", "weights.safetensors"],
}


def images(seed: int) -> dict[str, "np.ndarray[Any, Any]"]:
    generator = np.random.default_rng(seed)
    return {
        f"{split}/{name}/{index}.png": generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        for split in ("train", "test")
        for name in "ab"
        for index in range(4)
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run on images of one's own, then move the images and delete its cache."""
    folder = tmp_path_factory.mktemp("moved")
    write_folders(folder / "mine", images(0))
    small = ["data=images", "data.classes=2", "model.depth=8", "model.width=4", "optim.epochs=1", "optim.batch_size=8"]
    location = [f"data.path={folder / 'mine'}", f"data.cache={folder / 'cache'}", f"runs={folder / 'runs'}"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sys.argv", ["plainres"])
        assert main(["train", *small, *location]) == 0
    (folder / "mine").rename(folder / "elsewhere")
    shutil.rmtree(folder / "cache")
    write_folders(folder / "others", images(1))
    return folder


@pytest.fixture
def moved(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of the run, in a working directory without files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["plainres"])
    monkeypatch.delenv("PLAINRES_CACHE", raising=False)
    (run,) = (trained / "runs" / "default").iterdir()
    yield run
    shutil.rmtree(trained / "cache", ignore_errors=True)


def command(name: str, run: Path, *overrides: str) -> int:
    return main([str(run) if word == "RUN" else word for word in COMMANDS[name]] + list(overrides))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_new_location(
    name: str, moved: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (moved / "result.json").rename(moved / "kept")  # an unfinished run needs its images for the channel statistics
    if name not in ("export", "eval"):
        (moved / "kept").rename(moved / "result.json")
    try:
        path = f"data.path={trained / 'elsewhere'}"
        assert command(name, moved, path, f"data.cache={tmp_path / 'a'}") == 0
        assert list((tmp_path / "a").glob("*/metadata.json"))
        monkeypatch.setenv("PLAINRES_CACHE", str(tmp_path / "b"))
        assert command(name, moved, path) == 0
        assert list((tmp_path / "b").glob("*/metadata.json"))
        assert command(name, moved, path, f"data.cache={tmp_path / 'c'}") == 0
        assert list((tmp_path / "c").glob("*/metadata.json"))
        assert not (trained / "cache").exists()
    finally:
        if (moved / "kept").exists():
            (moved / "kept").rename(moved / "result.json")


@pytest.mark.parametrize("name", COMMANDS)
def test_other_images_are_refused(
    name: str, moved: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = (moved / "result.json").read_text()
    if name == "export":
        (moved / "result.json").unlink()
    assert command(name, moved, f"data.path={trained / 'others'}", f"data.cache={tmp_path}") == 2
    (moved / "result.json").write_text(result)
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(
        f"plainres: {moved} was trained on other images (data=images data.path={trained / 'mine'}, digest "
    )
    assert f") than these (data=images data.path={trained / 'others'}, digest " in message


@pytest.mark.parametrize("name", ["lesion", "linearise", "landscape", "sharpness", "export"])
@pytest.mark.parametrize("override", ["data.flip=true", "trainer=gpu", "data.path=a,b", "seed=1"])
def test_only_the_location_can_be_overridden(
    name: str, override: str, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(name, moved, override) == 2
    assert capsys.readouterr().err == (
        f"plainres: {override}: cannot be overridden here; data.path=FOLDER and data.cache=FOLDER locate images that "
        "have moved since the training\n"
    )


def test_a_moved_run_is_loaded_from_python(moved: Path, trained: Path, tmp_path: Path) -> None:
    location = [f"data.path={trained / 'elsewhere'}", f"data.cache={tmp_path / 'cache'}"]
    assert len(plainres.predict(moved, location).targets) == 8
    network = plainres.load(moved, location)
    assert network(torch.zeros(2, 8, 8, 3, dtype=torch.uint8)).shape == (2, 2)


def test_the_environment_replaces_the_cache_of_the_training_and_an_override_replaces_both(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"_target_": "plainres.data.HubImages", "name": "tiny", "path": "/a", "cache": "/cache"}
    config = make_config(data=data)
    monkeypatch.delenv("PLAINRES_CACHE", raising=False)
    assert located(config) == config
    assert location_in(config) == (("path", "/a"), ("cache", "/cache"))
    monkeypatch.setenv("PLAINRES_CACHE", "/env")
    assert located(config).data == data | {"cache": "/env"}
    location = location_of(["data.path=2024_01_15", "data.cache='~/x'"])
    assert located(config, location).data == data | {"path": "2024_01_15", "cache": "~/x"}
    assert located(make_config()) == make_config()
    assert Run.of(located(config, location)).name == Run.of(config).name
    with pytest.raises(InputError, match=r"data\.path=FOLDER"):
        location_of(["data.name=x"])
