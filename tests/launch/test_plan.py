"""`plainres train --dry-run`: what it refuses, and the time that it gives."""

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plainres.config.compose import Jobs
from plainres.config.instantiate import source_of
from plainres.config.schema import Config, SweepOptions, Tuning
from plainres.data.sources import Synthetic
from plainres.errors import InputError
from plainres.launch.estimate import makespan
from plainres.launch.plan import Plan, plan
from plainres.launch.speeds import FOLDER, Speed, keep, kept, resolve_compile
from plainres.runs.option_values import with_value
from plainres.runs.record import Run

Make = Callable[..., Config]
SPEED = Speed(step=0.5, evaluation=3.0, compilation=0.0, at_a_time=2, gain=1.6, measured="2025-01-31")
TWO = SweepOptions(runs_per_device=2)
OWN_IMAGES = {"_target_": "plainres.data.HubImages", "path": "./nowhere", "cache": "cache", "pad": 0, "flip": False}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLAINRES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def planned(*configs: Config, command: tuple[str, ...] = ("-m", "seed=0,1")) -> Plan:
    return plan(Jobs(list(configs)), command)


def measured(config: Config, speed: Speed = SPEED) -> None:
    keep(resolve_compile(config), speed)


def interrupted(config: Config, step: int) -> None:
    run = Run.of(config)
    run.prepare()
    (run.checkpoints / f"step-{step:09d}.ckpt").touch()


def test_a_speed_is_found_for_other_seeds_and_lengths_only(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve_compile(make_config())
    keep(config, SPEED)
    assert kept(config) == SPEED
    assert kept(replace(config, seed=5, study="another", runs="elsewhere")) == SPEED
    assert kept(replace(config, optim=replace(config.optim, epochs=None, steps=900))) == SPEED
    others: list[dict[str, Any]] = [
        {"depth": 14},
        {"width": 8},
        {"shortcut": "plain"},
        {"precision": "64-true"},
        {"optim": {"batch_size": 16}},
        {"trainer": {"threads": 2}},
        {"trainer": {"compile": True}},
        {"data": config.data | {"test": 40}},
    ]
    for changes in others:
        assert kept(resolve_compile(make_config(**changes))) is None, changes
    monkeypatch.setattr(platform, "node", lambda: "another machine")
    assert kept(config) is None


def test_a_speed_is_found_for_every_value_of_a_tuned_option(make_config: Make) -> None:
    tune = Tuning("optim.lr", [0.1, 0.2, 0.4], [0])
    config = replace(resolve_compile(make_config()), sweep=SweepOptions(tune=tune))
    keep(config, SPEED)
    assert kept(with_value(config, "optim.lr", 0.8)) == SPEED
    assert kept(with_value(config, "optim.weight_decay", 0.5)) is None
    assert kept(replace(with_value(config, "optim.lr", 0.8), sweep=SweepOptions())) is None


def test_a_damaged_speed_is_not_found(make_config: Make, cache: Path) -> None:
    config = resolve_compile(make_config())
    keep(config, SPEED)
    (file,) = (cache / FOLDER).iterdir()
    for text in ("{", "[]", json.dumps(json.loads(file.read_text()) | {"speed": {}})):
        file.write_text(text)
        assert kept(config) is None


def test_a_speed_that_cannot_be_kept_is_reported(
    make_config: Make, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.touch()
    keep(resolve_compile(make_config()), SPEED)
    assert capsys.readouterr().err.startswith("the speed is not kept for plainres train --dry-run: ")


def test_the_time_of_one_run_and_of_its_rest(make_config: Make) -> None:
    config = make_config(optim={"batch_size": 20, "epochs": 3})  # 5 steps per epoch; 100 and 30 images
    assert planned(config).seconds is None
    measured(config)
    at_the_end = (1 + 100 / 30) * 3  # the test set, and the training set
    assert planned(config).seconds == pytest.approx(15 * 0.5 + 3 * 3 + at_the_end)
    interrupted(config, 7)
    rest = planned(config)
    assert rest.seconds == pytest.approx(8 * 0.5 + 2 * 3 + at_the_end)
    assert str(rest).splitlines()[2:] == [
        "1 run: 1 interrupted",
        "1 run that is left: about 23 s of training and evaluation, "
        "plus the start of each (plainres bench, 2025-01-31)",
    ]


def test_a_validation_set_is_evaluated_too(make_config: Make) -> None:
    data = make_config().data | {"validation_per_class": 1}
    config = make_config(data=data, optim={"batch_size": 20, "epochs": 2})
    images = source_of(config).load()
    assert images.validation is not None
    share = (30 + len(images.validation)) / 30
    steps = 2 * (len(images.train) // 20)
    expected = steps * 0.5 + 3 * (3 * share + len(images.train) / 30)
    assert SPEED.seconds(config, images) == pytest.approx(expected)


def test_the_time_of_a_sweep_counts_concurrent_runs(make_config: Make) -> None:
    configs = [make_config(seed=seed, sweep=TWO) for seed in range(4)]
    measured(configs[0])
    alone = SPEED.seconds(configs[0], source_of(configs[0]).load())
    sweep = planned(*configs)
    assert (sweep.left, sweep.at_a_time, sweep.measured) == (4, 2, "2025-01-31")
    assert sweep.seconds == pytest.approx(4 * alone / 1.6)
    assert [run.seconds for run in sweep.runs] == [pytest.approx(alone)] * 4
    assert "4 runs that are left: about " in str(sweep)
    assert str(sweep).endswith(
        " of training and evaluation, 2 at a time, plus the start of each (plainres bench, 2025-01-31)"
    )


def test_a_sweep_without_every_speed_has_no_time(make_config: Make) -> None:
    configs = [make_config(depth=depth, sweep=TWO) for depth in (8, 14)]
    measured(configs[0])
    sweep = planned(*configs, command=("-m", "study=a b"))
    assert sweep.seconds is None
    assert [run.seconds is None for run in sweep.runs] == [False, True]
    assert str(sweep).splitlines()[-1] == (
        "the time is not known: the speed of 1 of the 2 runs was not measured on this machine with these settings; "
        "`plainres bench -m 'study=a b'` measures it"
    )


def test_a_speed_of_another_number_of_runs_gives_no_time(make_config: Make) -> None:
    configs = [make_config(seed=seed, sweep=SweepOptions(runs_per_device=3)) for seed in range(2)]
    measured(configs[0])
    assert planned(*configs).note == (
        "the time is not known: 3 runs train at a time, but 2 were measured; `plainres bench -m seed=0,1` measures them"
    )
    assert planned(configs[0]).seconds is not None  # it trains alone


def test_what_bench_does_not_measure_has_no_time(make_config: Make) -> None:
    config = make_config(devices=2)
    assert planned(config).note == "the time is not known: plainres bench measures runs on one device"


def test_a_run_in_training_is_not_included(make_config: Make) -> None:
    here, there = configs = [make_config(seed=seed, sweep=TWO) for seed in range(2)]
    measured(here)
    Run.of(there).prepare()
    with Run.of(there).lock():
        sweep = planned(*configs)
    assert sweep.seconds == pytest.approx(SPEED.seconds(here, source_of(here).load()))
    lines = str(sweep).splitlines()
    assert lines[-2].startswith("1 run that is left: about ")
    assert lines[-1] == "1 run in training not included"


def test_finished_and_failed_runs_take_no_time(make_config: Make) -> None:
    done, failed = configs = [make_config(seed=seed) for seed in range(2)]
    run = Run.of(done)
    run.prepare()
    errors = dict.fromkeys(("train_error", "train_error_eval", "test_error"), 1.0)
    run.finish({**errors, "weights_sha256": "ab", "steps": 6})
    Run.of(failed).prepare()
    Run.of(failed).fail("the loss is NaN")
    assert str(planned(*configs)).endswith("2 runs: 1 finished, 1 failed")
    retried = planned(done, replace(failed, sweep=SweepOptions(retry_failed=True)))
    assert retried.left == 1


def test_the_rest_of_a_sweep_is_faster_alone() -> None:
    assert makespan([], [], 2) == 0
    assert makespan([10.0], [0.8], 2) == pytest.approx(10)
    assert makespan([10.0, 10.0], [0.8, 0.8], 2) == pytest.approx(12.5)
    assert makespan([10.0, 4.0], [0.8, 0.8], 2) == pytest.approx(5 + 6)
    assert makespan([10.0, 4.0, 6.0], [0.8, 0.8, 0.8], 2) == pytest.approx(12.5)
    assert makespan([3.0, 4.0], [1.0, 1.0], 1) == pytest.approx(7)


def _damage_result(run: Run) -> None:
    (run.folder / "result.json").write_text("{")


def _other_configuration(run: Run) -> None:
    file = run.folder / "config.yaml"
    file.write_text(file.read_text().replace("lr: 0.05", "lr: 0.5"))


def _other_data(run: Run) -> None:
    (run.checkpoints / "step-000000005.ckpt").touch()
    (run.folder / "data.json").write_text('{"sha256": "0123456789"}')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_damage_result, "result.json is damaged"),
        (_other_configuration, "contains a run of another configuration, where optim.lr is 0.5 "),
        (_other_data, "was trained on other images"),
    ],
)
def test_a_record_that_the_command_would_refuse_is_refused(
    make_config: Make, change: Callable[[Run], None], message: str
) -> None:
    config = make_config()
    Run.of(config).prepare()
    change(Run.of(config))
    for configs in ([config], [config, make_config(seed=1)]):
        with pytest.raises(InputError, match=message):
            planned(*configs)


def test_an_edited_class_is_refused(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    run = Run.of(config)
    run.prepare()
    (run.folder / "code.json").write_text('{"classes": {"mine.Halved": "0123456789"}}')
    (run.checkpoints / "step-000000005.ckpt").touch()
    monkeypatch.setattr("plainres.runs.agreement.own_classes", lambda _: {"mine.Halved": "9876543210"})
    with pytest.raises(InputError, match="was trained with another source of mine"):
        planned(config)
    monkeypatch.setattr(Synthetic, "at_hand", False, raising=False)
    with pytest.raises(InputError, match="was trained with another source of mine"):
        planned(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 9}, "model.depth is 9"),
        ({"optim": {"batch_size": 101}}, "optim.batch_size is 101, but there are only 100 training images"),
        ({"sweep": SweepOptions(priority=[{"sed": 0}])}, "sweep.priority names sed"),
        ({"data": OWN_IMAGES}, "nowhere"),
        ({"trainer": {"num_nodes": 2}, "optim": {"batch_size": 32}}, "start a run on several machines with torchrun"),
    ],
)
def test_an_invalid_configuration_is_refused(make_config: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(make_config(**changes))


def test_a_folder_that_cannot_be_made_is_refused(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write the run's folder .*file is not a folder; set runs=FOLDER"):
        planned(make_config(runs=str(tmp_path / "file")))


def test_a_plan_writes_nothing(make_config: Make, tmp_path: Path) -> None:
    planned(make_config(), make_config(seed=1))
    assert not list(tmp_path.iterdir())


def test_a_sweep_in_a_group_of_processes_is_refused(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="a sweep starts in one process"):
        planned(make_config(), make_config(seed=1))
