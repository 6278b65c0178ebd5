"""The output of --json: one object that docs/output.schema.json describes, and nothing else on standard output."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from plainres.cli.main import main
from plainres.cli.output import print_json, standard_output_free
from support import forking
from support.places import PLAINRES, ROOT

SCHEMA = json.loads((ROOT / "docs" / "output.schema.json").read_text())
SMALL = ["model.depth=8", "model.width=4", "optim.epochs=1", "data=synthetic", "data.train=64", "data.shape=[1,8,8]"]
SWEEP = ["-m", *SMALL, "study=small", "model/shortcut=plain,identity"]


def check(output: str, definition: str) -> dict[str, Any]:
    """Return the object that is the whole output, after validating it against a definition of the schema."""
    value = json.loads(output, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    schema = {"$ref": f"#/$defs/{definition}", "$defs": SCHEMA["$defs"]}
    Draft202012Validator(schema).validate(value)
    Draft202012Validator(SCHEMA).validate(value)
    return value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a study of two finished runs."""
    place = tmp_path_factory.mktemp("place")
    done = forking.run([PLAINRES, "train", *SWEEP, "--json"], cwd=place)
    assert done.returncode == 0, done.stderr
    (place / "trained.json").write_text(done.stdout)
    assert "2 missing" in done.stderr
    assert "[2/2]" in done.stderr
    return place


@pytest.fixture
def execute(place: Path) -> Callable[..., str]:
    """Return a function that executes a successful command in `place` and returns its standard output."""

    def execute(*words: str | Path) -> str:
        done = forking.run([PLAINRES, *map(str, words)], cwd=place)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return execute


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_a_sweep_says_what_was_trained(place: Path) -> None:
    runs = check((place / "trained.json").read_text(), "train")["runs"]
    assert [run["name"].partition("-")[0] for run in runs] == ["plain", "identity"]
    for run in runs:
        assert run["state"] == "finished"
        assert run["result"] == json.loads((place / run["folder"] / "result.json").read_text())


@pytest.mark.parametrize(
    "options",
    [
        ["seed=7"],
        ["seed=8", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"],
        ["-m", "seed=9,10", "hydra/launcher=joblib"],
    ],
    ids=["one", "devices", "launcher"],
)
def test_every_way_to_train_prints_one_object(options: list[str], execute: Callable[..., str]) -> None:
    runs = check(execute("train", *SMALL, *options, "--json"), "train")["runs"]
    assert {run["state"] for run in runs} == {"finished"}
    assert len(runs) == (2 if "-m" in options else 1)


def test_only_the_first_of_several_processes_prints_the_object(place: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "plainres"]
    command += ["train", *SMALL, "seed=11", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "--json"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check(done.stdout, "train")


def test_a_plan_lists_the_runs_and_their_steps(execute: Callable[..., str]) -> None:
    plan = check(execute("train", *SWEEP, "seed=0,1", "--dry-run", "--json"), "plan")
    assert sorted(run["state"] for run in plan["runs"]) == ["finished", "finished", "missing", "missing"]
    assert {run["steps"] for run in plan["runs"]} == {1}
    assert (plan["left"], plan["seconds"]) == (2, None)
    assert "`plainres bench -m model.depth=8 " in plan["note"]


def test_status_of_a_study_and_of_all_studies(execute: Callable[..., str]) -> None:
    study = check(execute("status", "runs/small", "--json"), "status_of_study")
    assert study["counts"] == {"finished": 2}
    assert [run["steps"] for run in study["runs"]] == [1, 1]
    studies = check(execute("status", "runs", "--json"), "status_of_studies")
    assert studies["studies"]["small"] == {"finished": 2}


def test_a_report_has_its_table_its_comparisons_and_its_files(place: Path, execute: Callable[..., str]) -> None:
    report = check(execute("report", "runs/small", "--json"), "report")
    runs = {
        run["result"]["shortcut"]: run["result"] for run in json.loads((place / "trained.json").read_text())["runs"]
    }
    errors = {name: result["train_error_eval"] for name, result in runs.items()}
    assert {row["family"]: row["train_error_eval_mean"] for row in report["table"]} == errors
    (comparison,) = report["comparisons"]
    assert comparison["by_seed"] == {"0": errors["plain"] - errors["identity"]}
    assert comparison["unequal_conditions"] == {}
    assert comparison["verdict"].startswith("1 seed: too few for a claim")
    assert all((place / path).exists() for path in report["files"].values())


def test_an_interval_and_a_trend_are_numbers(execute: Callable[..., str]) -> None:
    report = check(execute("report", ROOT / "experiments" / "digits", "--json"), "report")
    claim = next(each for each in report["comparisons"] if each["interval"])
    low, high = claim["interval"]
    assert low <= claim["mean"] <= high
    assert 0 <= claim["p"] <= claim["p_holm"] <= 1
    assert report["trends"][0]["seeds"] == [0, 1, 2, 3, 4]


def test_an_evaluation_has_the_error_of_each_class(place: Path, execute: Callable[..., str]) -> None:
    run = json.loads((place / "trained.json").read_text())["runs"][0]
    evaluation = check(execute("eval", run["folder"], "--json"), "eval")
    assert evaluation["error"] == pytest.approx(run["result"]["test_error"])
    assert sum(each["images"] for each in evaluation["classes"]) == evaluation["images"]
    wrong = sum(each["error"] * each["images"] for each in evaluation["classes"])
    assert wrong / evaluation["images"] == pytest.approx(evaluation["error"])
    assert (place / evaluation["predictions"]).exists()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plainres"])


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "model.depth=9"], "model.depth is 9"),
        (["train", "model.depth=9", "--dry-run"], "model.depth is 9"),
        (["train", "hydra/launcher=joblib"], "hydra/launcher=joblib starts the runs of a sweep: add -m"),
        (["status", "nowhere"], "nowhere is not a folder"),
        (["status", "nowhere", "--watch"], "--watch refreshes a table, and --json prints one object"),
        (["report", "nowhere"], "nowhere is not a folder"),
        (["report", "nowhere", "--format", "latex"], "argument --json: not allowed with argument --format"),
        (["eval", "nowhere"], "there is no such file of weights"),
    ],
)
def test_a_mistake_leaves_standard_output_empty(
    words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--json"]) == 2
    output, error = capfd.readouterr()
    assert output == ""
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("elsewhere")
def test_the_configuration_is_not_printed_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "--json"]) == 2
    output, error = capfd.readouterr()
    assert output == ""
    assert error.splitlines()[-1].startswith("plainres: --json is about runs, and there are none here")


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("options", [[], ["-m", "seed=0,1"]], ids=["one", "sweep"])
def test_failed_runs_are_part_of_the_object(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, *options, "--dry-run", "--json"]) == 0
    (first, *others) = check(capfd.readouterr().out, "plan")["runs"]
    for run in (first, *others):
        Path(run["folder"]).mkdir(parents=True)
        (Path(run["folder"]) / "failed.json").write_text('{"reason": "the loss is NaN"}')
    assert main(["train", *SMALL, *options, "--json"]) == 1
    output, error = capfd.readouterr()
    for run in check(output, "train")["runs"]:
        assert (run["state"], run["reason"], run["result"]) == ("failed", "the loss is NaN", None)
    assert "the loss is NaN" in error


def test_the_examples_of_the_manual_have_keys_of_the_schema() -> None:
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "for-programs.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    objects = [set(each["properties"]) for each in _objects(SCHEMA)]
    for block in blocks:
        assert any(json.loads(block).keys() <= keys for keys in objects), block


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every object with properties in the schema."""
    if isinstance(node, dict):
        if "properties" in node:
            yield node
        node = list(node.values())
    for part in node if isinstance(node, list) else ():
        yield from _objects(part)


def test_what_is_not_finite_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": math.nan, "b": [1.5, -math.inf, (math.inf,)], "c": {"d": math.nan, "e": "NaN"}})
    value = {"a": None, "b": [1.5, None, [None]], "c": {"d": None, "e": "NaN"}}
    assert json.loads(capsys.readouterr().out) == value


def test_other_output_and_that_of_processes_is_sent_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with standard_output_free():
        print("a table")
        subprocess.run(["echo", "of a process"], check=True)
    print("the object")
    assert capfd.readouterr() == ("the object\n", "a table\nof a process\n")
