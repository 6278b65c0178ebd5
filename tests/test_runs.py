import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plainres.config import Config, Devices
from plainres.errors import InputError
from plainres.runs import Run, identity, run_name, write_atomically

Make = Callable[..., Config]

HUB = {
    "_target_": "plainres.data.HubImages",
    "name": "uoft-cs/cifar10",
    "path": None,
    "cache": "~/.cache/plainres",
}


def test_what_determines_the_result_makes_the_name(make_config: Make) -> None:
    base = make_config()
    others = [
        make_config(seed=1),
        make_config(depth=14),
        make_config(shortcut="plain"),
        make_config(optim={"lr": 0.1}),
        make_config(data=HUB),
        make_config(precision="bf16-mixed"),
    ]
    assert len({run_name(config) for config in (base, *others)}) == 7
    assert run_name(base) == run_name(make_config())
    assert run_name(base).startswith("identity-8-w4-s0-")


def test_what_does_not_determine_it_is_no_part_of_it(make_config: Make) -> None:
    base = make_config(data=HUB)
    elsewhere = make_config(data=HUB | {"path": "/data/cifar10", "cache": "/scratch"})
    ddp = replace(base, trainer=Devices(accelerator="gpu", devices=2, threads=4), runs="elsewhere", study="other")
    assert identity(base) == identity(elsewhere) == identity(ddp)


def test_the_name_is_fixed_for_all_time(make_config: Make) -> None:
    assert run_name(make_config()) == "identity-8-w4-s0-96b79b12"


def test_a_run_is_read_back(make_config: Make) -> None:
    config = make_config(shortcut="plain", optim={"epochs": None, "steps": 7})
    run = Run.of(config)
    assert not run.folder.exists()
    run.prepare()
    found = Run.read(run.folder)
    assert found.config == config
    assert found.name == run.folder.name
    assert not found.finished
    assert found.curve() == []
    record = {"test_error": 1.5, "train_error": 0.5, "train_error_eval": 0.25, "weights_sha256": "ab"}
    found.finish(record)
    assert found.finished
    assert found.result == record
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "config.yaml", "result.json"]


def test_a_row_that_is_being_written_is_not_read(make_config: Make) -> None:
    run = Run.of(make_config())
    run.prepare()
    (run.folder / "metrics.csv").write_text("epoch,step,test/error\n1,4,50.0\n2,8,4")
    assert run.curve() == [{"epoch": 1, "step": 4, "test/error": 50}]


def test_a_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not the folder of a run: it has no config.yaml"):
        Run.read(tmp_path)
    with pytest.raises(InputError, match="is not the folder of a run: there is no such folder"):
        Run.read(tmp_path / "nowhere")
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(InputError, match=r"is not the folder of a run: config.yaml: Is a directory"):
        Run.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ""),
        ("seed: 1\nmodel: [", "line 2: expected the node content"),
        ("model: {depth: 8}\nsede: 1\n", "Key 'sede' not in 'Config'"),
        ("- 1\n", ""),
        ("model: 3\n", ""),
    ],
)
def test_a_damaged_configuration(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"config.yaml is damaged \({reason}.*\); delete it and repeat") as caught:
        Run.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_result(make_config: Make) -> None:
    run = Run.of(make_config())
    run.prepare()
    (run.folder / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result.json is damaged .* delete it and repeat"):
        _ = run.result


def test_an_unwritable_folder(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write the run's folder .* set runs=FOLDER"):
        Run.of(make_config(runs=str(tmp_path / "file"))).prepare()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.json"
    write_atomically(file, json.dumps({"old": 1}))

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, json.dumps({"new": 1}))
    assert json.loads(file.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]
