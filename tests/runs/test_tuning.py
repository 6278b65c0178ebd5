"""Choice of the value of an option for each network of a sweep."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from plainres.config.compose import compose
from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.runs.option_values import with_value
from plainres.runs.record import DIVERGED
from plainres.runs.tuning import Cell, Choice, cells, choice, extended, runs_of, undecided

SMALL = ["data=synthetic", "data.shape=[1,4,4]", "data.classes=2", "data.train=64", "data.test=16"]
SMALL += ["data.validation_per_class=8", "model.depth=8", "model.width=2", "optim.batch_size=16"]
TUNE = ["sweep.tune.option=optim.lr", "sweep.tune.values=[0.1,0.2,0.4]", "sweep.tune.seeds=[0,1]"]


def configs(folder: Path, *overrides: str) -> list[Config]:
    sweep = ["-m", "model/shortcut=plain,identity", "seed=2,3"]
    return compose([*sweep, *SMALL, *TUNE, f"runs={folder}", *overrides])


def test_a_cell_has_the_seeds_of_a_network(tmp_path: Path) -> None:
    plain, identity = cells(configs(tmp_path))
    assert (plain.config.shortcut, identity.config.shortcut) == ("plain", "identity")
    assert plain.seeds == identity.seeds == (2, 3)
    candidates = plain.candidates(plain.tuning.values)
    assert [(value, list(by_seed)) for value, by_seed in candidates.items()] == [(lr, [0, 1]) for lr in (0.1, 0.2, 0.4)]
    runs = [run for by_seed in candidates.values() for run in by_seed.values()]
    assert [(run.config.optim.lr, run.config.seed) for run in runs] == [
        (lr, seed) for lr in (0.1, 0.2, 0.4) for seed in (0, 1)
    ]
    assert len({run.name for run in runs}) == 6


def test_an_option_of_the_model_can_be_chosen(tmp_path: Path) -> None:
    (config,) = compose([*SMALL, "model/shortcut=stochastic_depth", f"runs={tmp_path}"])
    assert with_value(config, "model.shortcut.last", 0.7).model["shortcut"]["last"] == 0.7
    assert with_value(config, "optim.weight_decay", 0.1).optim.weight_decay == 0.1
    assert config.optim.weight_decay != 0.1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.validation_per_class=null"], "set data.validation_per_class"),
        (["seed=1,2"], "seed 1 is in sweep.tune.seeds and in the sweep"),
        (["optim.lr=0.1,0.2"], "optim.lr is chosen by sweep.tune, so the sweep cannot have several values of it"),
        (
            ["sweep.tune.option=optim.rate"],
            "sweep.tune.option is optim.rate, but a network of this sweep has no such option; give one that all",
        ),
        (["sweep.tune.option=precision"], "precision, whose value is 32-true; it must be an option whose value is a"),
        (["sweep.tune.option=optim.batch_size"], "optim.batch_size, whose value is 16; it must be an option whose"),
        (["sweep.tune.option=optim.clip_norm"], "optim.clip_norm, whose value is null; it must be an option whose"),
        (["sweep.tune.option=checkpoint.every_minutes"], "checkpoint.every_minutes, which does not change the result"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cells(configs(tmp_path, *overrides))


def test_the_grid_is_ascending(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least three positive numbers, ascending"):
        configs(tmp_path, "sweep.tune.values=[0.2,0.1,0.4]")


def errors_of(**means: float) -> dict[float, dict[int, float]]:
    return {float(value.replace("_", ".")): {0: mean, 1: mean + 1} for value, mean in means.items()}


def record(cell: Cell, errors: Mapping[float, float | None]) -> None:
    """Record the validation errors of a cell's runs by value; a run without one diverged."""
    for value, error in errors.items():
        for seed, run in cell.candidates([value])[value].items():
            run.prepare()
            if error is None:
                run.fail(f"{DIVERGED}: the loss is NaN")
                continue
            result = {"validation_error": error + seed, "test_error": 100 - error}
            result |= {"train_error": 0.0, "train_error_eval": 0.0, "weights_sha256": ""}
            (run.folder / "result.json").write_text(json.dumps(result))


def test_the_lowest_mean_validation_error_decides_and_divergence_is_infinitely_bad(tmp_path: Path) -> None:
    cell, _ = cells(configs(tmp_path))
    record(cell, {0.1: 20.0, 0.2: 10.0, 0.4: None})
    chosen = choice(cell.candidates(cell.tuning.values), cell.tuning.seeds)
    assert chosen.errors == {0.1: {0: 20, 1: 21}, 0.2: {0: 10, 1: 11}, 0.4: {0: math.inf, 1: math.inf}}
    assert [chosen.mean(value) for value in chosen.errors] == [20.5, 10.5, math.inf]
    assert chosen.best == 0.2
    assert not chosen.at_edge


def test_there_is_no_choice_while_a_run_is_missing_or_has_failed_for_another_reason(tmp_path: Path) -> None:
    cell, _ = cells(configs(tmp_path))
    record(cell, {0.1: 20.0, 0.2: 10.0})
    chosen = choice(cell.candidates(cell.tuning.values), cell.tuning.seeds)
    assert not chosen.complete
    assert chosen.best is None
    assert not chosen.at_edge
    record(cell, {0.4: 5.0})
    (run, *_) = cell.candidates([0.4])[0.4].values()
    (run.folder / "result.json").unlink()
    run.fail("MemoryError: no memory")
    assert choice(cell.candidates(cell.tuning.values), cell.tuning.seeds).best is None


def test_equal_errors_choose_the_smallest_value_and_divergence_of_all_none() -> None:
    assert Choice(errors_of(_1=5, _2=5), (0, 1)).best == 0.1
    assert Choice(errors_of(_1=math.inf, _2=math.inf), (0, 1)).best is None


@pytest.mark.parametrize(
    ("errors", "more"),
    [
        (errors_of(_1=1, _2=2, _4=3), [0.05, 0.1, 0.2, 0.4]),
        (errors_of(_1=3, _2=2, _4=1), [0.1, 0.2, 0.4, 0.8]),
        (errors_of(_1=3, _2=1, _4=2), [0.1, 0.2, 0.4]),
        (errors_of(_1=math.inf, _2=math.inf, _4=math.inf), [0.1, 0.2, 0.4]),
    ],
)
def test_a_best_value_at_the_edge_extends_the_grid(
    tmp_path: Path, errors: dict[float, dict[int, float]], more: list[float]
) -> None:
    cell, _ = cells(configs(tmp_path))
    assert extended(sorted(errors), Choice(errors, (0, 1)), cell.tuning) == more


def test_a_grid_is_extended_a_limited_number_of_times_and_found_again(tmp_path: Path) -> None:
    cell, _ = cells(configs(tmp_path, "sweep.tune.extensions=2"))
    record(cell, {0.025: 1.0, 0.05: 2.0, 0.1: 3.0, 0.2: 4.0, 0.4: 5.0})
    values, chosen = cell.grid()
    assert values == [0.025, 0.05, 0.1, 0.2, 0.4]
    assert chosen.best == 0.025
    assert chosen.at_edge
    assert extended(values, chosen, cell.tuning) == values


def test_a_grid_is_not_extended_to_a_value_that_the_option_may_not_have(tmp_path: Path) -> None:
    probability = ["model/shortcut=stochastic_depth", "sweep.tune.option=model.shortcut.last"]
    cell, *_ = cells(configs(tmp_path, *probability, "sweep.tune.values=[0.25,0.5,1]"))
    record(cell, {0.25: 3.0, 0.5: 2.0, 1.0: 1.0})
    values, chosen = cell.grid()
    assert values == [0.25, 0.5, 1.0]  # 2 is no probability
    assert chosen.best == 1.0
    assert chosen.at_edge
    record(cell, {0.25: 0.0})
    assert cell.grid()[0] == [0.125, 0.25, 0.5, 1.0]


def test_the_runs_of_a_command_grow_with_what_is_known(tmp_path: Path) -> None:
    sweep = configs(tmp_path, "sweep.tune.equal=0.2", "model/shortcut=plain")

    def listed() -> list[tuple[float, int]]:
        return [(run.config.optim.lr, run.config.seed) for run in runs_of(sweep)]

    candidates = [(lr, seed) for lr in (0.1, 0.2, 0.4) for seed in (0, 1)]
    assert listed() == [*candidates, (0.2, 2), (0.2, 3)]
    assert undecided(sweep)
    (cell,) = cells(sweep)
    record(cell, {0.1: 1.0, 0.2: 2.0, 0.4: 3.0})
    wider = [(0.05, 0), (0.05, 1), *candidates]
    assert listed() == [*wider, (0.2, 2), (0.2, 3)]  # 0.05 may be better
    assert undecided(sweep)
    record(cell, {0.05: 3.0})
    assert listed() == [*wider, (0.2, 2), (0.2, 3), (0.1, 2), (0.1, 3)]
    assert not undecided(sweep)
    assert runs_of(compose([*SMALL, f"runs={tmp_path}"]))[0].config.tuning is None
