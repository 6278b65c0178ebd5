"""A run that begins anew in a folder with files of earlier attempts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.runs import anew
from plainres.runs.anew import set_aside
from plainres.runs.record import Run

IMAGES, OTHER = "a" * 64, "b" * 64
OF_WEIGHTS = ["landscape-1d.svg", "landscape.csv", "lesion.csv", "predictions-digits.parquet", "sharpness.png"]
OF_TRAINING = ["metrics.csv", "probes", "wandb"]
KEPT = ["checkpoints", "code.json", "config.yaml", "data.json", "lesion-mine.csv", "log.txt"]


@pytest.fixture
def run(make_config: Callable[..., Config]) -> Run:
    run = Run.of(make_config())
    run.prepare()
    run.begin(IMAGES)
    for name in [*OF_WEIGHTS, "metrics.csv", "log.txt", "lesion-mine.csv"]:
        (run.folder / name).write_text(name)
    for name in ("probes", "wandb"):
        (run.folder / name).mkdir()
        (run.folder / name / "file").write_text(name)
    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_measurements_of_weights_that_are_gone_are_set_aside(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    set_aside(run, IMAGES)
    assert names(run.folder) == sorted([".earlier-1", *KEPT, *OF_TRAINING])  # W&B and the curves continue
    assert names(run.folder / ".earlier-1") == sorted([*OF_WEIGHTS, "code.json", "config.yaml", "data.json"])
    message = capfd.readouterr().err
    assert message == (
        f"{run.name} begins anew; {', '.join(OF_WEIGHTS)} of before: now in {run.folder / '.earlier-1'}\n"
    )
    set_aside(run, IMAGES)
    assert not capfd.readouterr().err
    assert not (run.folder / ".earlier-2").exists()


@pytest.mark.parametrize("changed", ["images", "plainres", "a class"])
def test_other_images_or_code_continue_nothing(
    changed: str, run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = anew.code_of(run.config)
    if changed != "images":
        run.begin(IMAGES)
        before = {"plainres": {"source_sha256": "other"}, "a class": {"classes": {"mine.Own": "1"}}}[changed]
        now = {"classes": {"mine.Own": "2", "mine.Probe": "3"}} if changed == "a class" else {}
        monkeypatch.setattr(Run, "code", code | before)
        monkeypatch.setattr(anew, "code_of", lambda config: code | now)
    set_aside(run, OTHER if changed == "images" else IMAGES)
    assert names(run.folder) == sorted([".earlier-1", *KEPT])
    assert names(run.folder / ".earlier-1") == sorted(
        [*OF_WEIGHTS, *OF_TRAINING, "code.json", "config.yaml", "data.json"]
    )
    assert f"begins anew, with other {'images' if changed == 'images' else 'code'}; " in capfd.readouterr().err
    (run.folder / "metrics.csv").touch()
    set_aside(run, OTHER if changed == "images" else IMAGES)
    assert names(run.folder / ".earlier-2") == ["code.json", "config.yaml", "data.json", "metrics.csv"]


def test_another_probe_is_not_another_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code = anew.code_of(run.config)
    monkeypatch.setattr(anew, "code_of", lambda config: code | {"classes": {"mine.Probe": "1"}})
    set_aside(run, IMAGES)
    assert (run.folder / "wandb").exists()


def test_files_that_cannot_be_moved_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match=r"cannot move .*lesion\.csv.* into .*\.earlier-1: Permission denied"):
        set_aside(run, IMAGES)
