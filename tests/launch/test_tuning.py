"""Choice of the value of an option for each network of a sweep."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from plainres.config.compose import compose
from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.launch.tuning import Cell, Choice, cells, choose, extended, grids, with_value

SMALL = ["data=synthetic", "data.shape=[1,4,4]", "data.classes=2", "data.train=64", "data.test=16"]
SMALL += ["data.validation_per_class=8", "model.depth=8", "model.width=2", "optim.batch_size=16"]
TUNE = "sweep.tune={option: optim.lr, values: [0.1, 0.2, 0.4], seeds: [0, 1]}"


def configs(folder: Path, *overrides: str) -> list[Config]:
    sweep = ["-m", "model/shortcut=plain,identity", "seed=2,3"]
    return compose([*sweep, *SMALL, TUNE, f"runs={folder}", *overrides])


def test_a_cell_has_the_seeds_of_a_network(tmp_path: Path) -> None:
    plain, identity = cells(configs(tmp_path))
    assert (plain.config.shortcut, identity.config.shortcut) == ("plain", "identity")
    assert plain.seeds == identity.seeds == (2, 3)
    runs = plain.candidates(plain.tuning.values)
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
        (["seed=1,2"], "seeds 1 are in sweep.tune.seeds and in the sweep"),
        (["sweep.tune.option=optim.rate"], "sweep.tune.option is optim.rate; it must be an option that is a number"),
        (["sweep.tune.option=precision"], "it must be an option that is a number, such as optim.lr"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cells(configs(tmp_path, *overrides))


def test_the_grid_is_ascending(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least three positive numbers, ascending"):
        configs(tmp_path, "sweep.tune.values=[0.2,0.1,0.4]")


def recorded(errors: Mapping[float, float | None]) -> Callable[[Cell], None]:
    """Return a function that records the validation errors of a cell's runs by value; None is a failed run."""

    def record(cell: Cell) -> None:
        for value, error in errors.items():
            for seed in cell.tuning.seeds:
                run = cell.run(value, seed)
                run.prepare()
                if error is None:
                    run.fail("diverged")
                else:
                    (run.folder / "result.json").write_text(
                        f'{{"validation_error": {error + seed}, "test_error": {100 - error}}}'
                    )

    return record


def test_the_lowest_mean_validation_error_decides_and_failed_runs_are_infinitely_bad(tmp_path: Path) -> None:
    cell, _ = cells(configs(tmp_path))
    recorded({0.1: 20.0, 0.2: 10.0, 0.4: None})(cell)
    choice = choose(cell, cell.tuning.values)
    assert choice.errors == {0.1: 20.5, 0.2: 10.5, 0.4: math.inf}
    assert choice.best == 0.2
    assert not choice.at_edge


def test_equal_errors_choose_the_smallest_value_and_failures_alone_none() -> None:
    assert Choice({0.1: 5.0, 0.2: 5.0}).best == 0.1
    assert Choice({0.1: math.inf, 0.2: math.inf}).best is None


@pytest.mark.parametrize(
    ("errors", "more"),
    [
        ({0.1: 1.0, 0.2: 2.0, 0.4: 3.0}, [0.05, 0.1, 0.2, 0.4]),
        ({0.1: 3.0, 0.2: 2.0, 0.4: 1.0}, [0.1, 0.2, 0.4, 0.8]),
        ({0.1: 3.0, 0.2: 1.0, 0.4: 2.0}, [0.1, 0.2, 0.4]),
        ({0.1: math.inf, 0.2: math.inf, 0.4: math.inf}, [0.1, 0.2, 0.4]),
    ],
)
def test_a_best_value_at_the_edge_extends_the_grid(
    tmp_path: Path, errors: dict[float, float], more: list[float]
) -> None:
    cell, _ = cells(configs(tmp_path))
    assert extended(sorted(errors), Choice(errors), cell.tuning) == more


def test_a_grid_is_extended_a_limited_number_of_times_and_found_again(tmp_path: Path) -> None:
    cell, _ = cells(configs(tmp_path, "sweep.tune.extensions=2"))
    recorded({0.025: 1.0, 0.05: 2.0, 0.1: 3.0, 0.2: 4.0, 0.4: 5.0})(cell)
    ((_, values, choice),) = grids([cell])
    assert values == [0.025, 0.05, 0.1, 0.2, 0.4]
    assert choice.best == 0.025
    assert choice.at_edge
    assert extended(values, choice, cell.tuning) == values
