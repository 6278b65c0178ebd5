"""Sweeps in which the value of an option is chosen for each network."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plainres.cli.main import main
from plainres.config.compose import compose
from plainres.config.schema import Config
from plainres.data.sources import Images, Split, Synthetic
from plainres.launch import tuned_sweep
from plainres.launch.messages import print_summary
from plainres.launch.tuned_sweep import sweep_tuned
from plainres.runs.record import DIVERGED, Run
from plainres.runs.tuning import cells
from plainres.training.train import train

SMALL = ["data=synthetic", "data.shape=[1,4,4]", "data.classes=2", "data.train=96", "data.test=32", "trainer=cpu"]
SMALL += ["data.validation_per_class=16", "model.depth=8", "model.width=2", "optim.batch_size=16", "optim.epochs=1"]
SMALL += ["optim.steps=null", "model/shortcut=plain,identity", "seed=5,6", "sweep.tune.option=optim.lr"]
SMALL += ["sweep.tune.values=[0.05,0.2,0.8]", "sweep.tune.seeds=[0,1]", "sweep.tune.extensions=1"]


def configs(folder: Path, *overrides: str) -> list[Config]:
    return compose(["-m", *SMALL, f"runs={folder}", *overrides])


def here(runs: Sequence[Run | Config], others: Sequence[Run] = ()) -> int:
    """Train runs in this process."""
    for run in runs:
        assert isinstance(run, Run)
        if not run.finished:
            train(run)
    return 0


def chosen(sweep: Sequence[Config]) -> list[tuple[str, tuple[float, ...], float | None]]:
    return [
        (cell.config.shortcut, tuple(values), choice.best) for cell in cells(sweep) for values, choice in [cell.grid()]
    ]


def test_the_test_labels_have_no_part_in_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random test labels, the same values are chosen, and the same runs are trained with them."""
    monkeypatch.setattr(tuned_sweep, "sweep", here)
    load = Synthetic.load

    def with_random_test_labels(self: Synthetic) -> Images:
        images = load(self)
        labels = torch.randint(0, 2, images.test.targets.shape, generator=torch.Generator().manual_seed(1))
        assert not torch.equal(labels, images.test.targets)
        return replace(images, test=Split(images.test.images, labels))

    original = configs(tmp_path / "original")
    assert sweep_tuned(original) == 0
    monkeypatch.setattr(Synthetic, "load", with_random_test_labels)
    random = configs(tmp_path / "random")
    assert sweep_tuned(random) == 0
    assert chosen(original) == chosen(random)
    names = [
        sorted(folder.name for folder in (tmp_path / side / "default").iterdir()) for side in ("original", "random")
    ]
    assert names[0] == names[1]
    errors = [
        [Run.read(tmp_path / side / "default" / name).result["test_error"] for name in names[0]]
        for side in ("original", "random")
    ]
    assert errors[0] != errors[1]  # the labels were replaced


def test_a_tuned_sweep_is_completed_by_the_same_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["train", "-m", *SMALL, f"runs={tmp_path}", "sweep.tune.equal=0.2"]
    assert main(command) == 0
    said = capfd.readouterr().err
    assert "choosing optim.lr for 2 networks on the validation set" in said
    assert "plain, depth 8: optim.lr=" in said
    assert "training the seeds that are compared" in said
    results = {file: file.read_bytes() for file in tmp_path.glob("default/*/result.json")}
    assert main(command) == 0
    assert {file: file.read_bytes() for file in tmp_path.glob("default/*/result.json")} == results
    assert main([*command, "--dry-run"]) == 0
    planned = capfd.readouterr().out
    assert f"{len(results)} runs: {len(results)} finished" in planned
    assert main(["report", str(tmp_path / "default")]) == 0
    assert "Choice of optim.lr by the mean validation error over seeds 0, 1" in capfd.readouterr().out
    candidate = next(run for run in map(Run.read, tmp_path.glob("default/plain-*")) if run.config.seed == 0)
    (candidate.folder / "data.json").write_text('{"sha256": "0123456789"}')
    assert main(command) == 2  # although the compared runs have the images at hand
    assert f"{candidate.folder} was trained on other images" in capfd.readouterr().err


def test_a_dry_run_says_that_later_runs_are_not_known(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", *SMALL, f"runs={tmp_path}", "--dry-run"]) == 0
    planned = capfd.readouterr().out
    assert "12 runs: 12 missing" in planned
    assert "runs with values that are not yet chosen (sweep.tune) are not included" in planned


def test_a_run_that_fails_for_another_reason_than_divergence_stops_the_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = configs(tmp_path)
    trained = []

    def one_fails(runs: Sequence[Run | Config], others: Sequence[Run]) -> int:
        trained.append(runs)
        for run in runs:
            assert isinstance(run, Run)
            run.prepare()
            run.fail("MemoryError: no memory" if run.config.seed == 0 else f"{DIVERGED}: NaN")
        return len(runs)

    monkeypatch.setattr(tuned_sweep, "sweep", one_fails)
    assert sweep_tuned(sweep) == 6
    assert len(trained) == 1


def test_a_network_of_which_every_value_diverges_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def all_diverge(runs: Sequence[Run | Config], others: Sequence[Run]) -> int:
        for run in runs:
            assert isinstance(run, Run)
            run.prepare()
            run.fail(f"{DIVERGED}: NaN")
        return len(runs)

    monkeypatch.setattr(tuned_sweep, "sweep", all_diverge)
    assert sweep_tuned(configs(tmp_path)) == 2
    said = capfd.readouterr().err
    assert "plain, depth 8: no optim.lr, since every one of 3 values from 0.05 to 0.8 diverged" in said
    assert "training the seeds" not in said


@pytest.mark.parametrize("also", [[], ["--dry-run"]], ids=["train", "dry-run"])
def test_another_launcher_is_refused(also: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", *SMALL, f"runs={tmp_path}", "hydra/launcher=joblib", *also]) == 2
    assert "sweep.tune needs hydra/launcher=basic, not joblib" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            "sweep.tune.option=optim.learning_rate",
            "sweep.tune.option is optim.learning_rate, but a network",
        ),
        ("sweep.tune.values=0.1", "sweep.tune.values"),
        ("sweep.tune.values=[0.1,0.2]", "sweep.tune.values is [0.1, 0.2]; it must be at least three positive numbers"),
        ("sweep.tune.seeds=[]", "sweep.tune.seeds is []; it must be a list of different seeds"),
        ("sweep.tune.seeds=[5,6]", "seed 5 is in sweep.tune.seeds and in the sweep"),
        ("data.validation_per_class=null", "sweep.tune chooses on the validation set, and there is none"),
        ("sweep.tune.option=''", "sweep.tune has values, seeds or equal, but no option"),
        ("sweep.tune.extensions=-1", "sweep.tune.extensions is -1; it must be at least 0"),
    ],
)
def test_a_mistake_gets_a_line(changed: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", *SMALL, f"runs={tmp_path}", changed]) == 2
    *_, line = capfd.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.parametrize("seed", [0, 7])
def test_only_runs_that_are_trained_again_are_offered_to_be_retried(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], seed: int
) -> None:
    """A run of a choice that diverged is not, and no other run of the choice has the seed 7."""
    run = Run.of(replace(configs(tmp_path)[0], seed=seed))
    run.prepare()
    run.fail(f"{DIVERGED}: NaN")
    assert print_summary([run], [run], [(run, str(run.failure))], 1.0) == 1
    said = capfd.readouterr().err
    assert f"failed: {run.name}" in said
    assert ("add sweep.retry_failed=true" in said) == (seed == 7)
