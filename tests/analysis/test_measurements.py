"""The commands lesion, linearise, landscape and sharpness, from the command line; killed and resumed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

import plainres.analysis.sharpness
from plainres.analysis.landscape import measure_row as measure_point
from plainres.analysis.lesion import measure_row as measure_lesion
from plainres.analysis.lesion import plan_rows
from plainres.analysis.linearise import measure_row as measure_linear
from plainres.analysis.measurements import Finished, Plan, labels, loss_and_error, measure, read_finished
from plainres.cli.main import main
from plainres.config.instantiate import source_of
from plainres.data.batches import DeviceImages
from plainres.data.sources import stratified
from plainres.files import csv_text, read_rows
from plainres.models.curvature import Estimate
from plainres.runs.record import Run
from support import forking
from support.places import PLAINRES

SMALL = ["model.depth=14", "model.width=4", "optim.epochs=1", "data=synthetic", "data.train=128", "data.shape=[1,8,8]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two finished runs in runs/default."""
    folder = tmp_path_factory.mktemp("trained")
    for shortcut in ("plain", "identity"):
        assert main(["train", *SMALL, f"runs={folder}/runs", f"model/shortcut={shortcut}"]) == 0
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Copies of the runs, identity then plain, in runs/default of the current folder."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return sorted(Path("runs/default").iterdir())


def remove_figures(folder: Path) -> None:
    for file in folder.rglob("*.svg"):
        file.unlink()


def test_lesions(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    weights = [Run.read(run).result["weights_sha256"] for run in runs]
    capsys.readouterr()
    command = ["lesion", *map(str, runs), "--most=2", "--draws=2"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "runs/default/lesion.svg"
    assert "block 3 deleted, changes the shape" in out
    tables = [(run / "lesion.csv").read_text() for run in runs]
    for run, digest in zip(runs, weights, strict=True):
        assert all((run / f"lesion.{kind}").exists() for kind in ("svg", "png"))
        rows = read_rows(run / "lesion.csv")
        kinds = [row["kind"] for row in rows]
        assert [kinds.count(kind) for kind in ("none", "block", "delete", "swap")] == [1, 6, 2, 2]
        assert {(row["weights"], row["images"]) for row in rows} == {(digest[:8], "128")}
        result = Run.read(run).result
        assert float(rows[0]["train_error"]) == result["train_error_eval"]
        assert float(rows[0]["test_error"]) == result["test_error"]
        finished = Finished.read(run)
        original = {key: value.clone() for key, value in finished.network.state_dict().items()}
        for row in (rows[1], rows[7], rows[-1]):
            assert [repr(value) for value in measure_lesion(finished, row)] == list(row.values())[-4:]
        assert all(torch.equal(value, original[key]) for key, value in finished.network.state_dict().items())
    remove_figures(Path("runs"))
    assert main(command) == 0
    assert capsys.readouterr().out == out
    assert [(run / "lesion.csv").read_text() for run in runs] == tables
    assert main(["lesion", str(runs[0]), str(runs[0]), "--most=1", "--draws=1", "--images=50"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(runs[0] / "lesion.svg")
    assert (runs[0] / "lesion.csv").read_text().endswith(tables[0].split("\n", 1)[1])  # rows of other options stay


def test_lesions_on_other_test_images_have_other_keys(tmp_path: Path) -> None:
    assert main(["train", *SMALL, "data.test=200", f"runs={tmp_path}/runs"]) == 0
    (run,) = tmp_path.glob("runs/default/*")
    sample, complete = ([*plan_rows(Finished.read(run, images), 1, 1, 0)[0].items()] for images in (128, None))
    assert set(sample) ^ set(complete) == {("test_images", "128 of 200"), ("test_images", "200")}


def test_linear_channels(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["linearise", *map(str, runs), "--steps=4"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "runs/default/linearise.svg"
    for run, depth in zip(runs, (10.0, 13.0), strict=True):
        assert all((run / f"linearise.{kind}").exists() for kind in ("svg", "png"))
        rows = read_rows(run / "linearise.csv")
        assert [row["linear"] for row in rows] == ["0", "29", "58", "87", "116"]
        result = Run.read(run).result
        assert float(rows[0]["train_error"]) == result["train_error_eval"]
        assert float(rows[0]["test_error"]) == result["test_error"]
        assert (float(rows[0]["effective_depth"]), float(rows[0]["nonlinear_layers"])) == (depth, 13)
        assert (float(rows[-1]["effective_depth"]), float(rows[-1]["nonlinear_layers"])) == (0, 0)
        depths = [float(row["effective_depth"]) for row in rows]
        assert depths == sorted(depths, reverse=True)
        finished = Finished.read(run)
        original = {key: value.clone() for key, value in finished.network.state_dict().items()}
        intact = [
            *loss_and_error(finished.network, finished.training),
            *loss_and_error(finished.network, finished.test),
        ]
        assert [repr(value) for value in intact] == list(rows[0].values())[-4:]
        assert [repr(value) for value in measure_linear(finished, rows[2])] == list(rows[2].values())[-6:]
        state = finished.network.state_dict()
        assert list(state) == list(original)
        assert all(torch.equal(value, original[key]) for key, value in state.items())
    remove_figures(Path("runs"))
    assert main(command) == 0  # measures nothing again
    assert capsys.readouterr().out == out
    (runs[0] / "linearise.csv").unlink()
    assert main(["linearise", str(runs[0]), "--steps=1", "--images=50"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(runs[0] / "linearise.svg")


def test_rows_of_an_older_version_on_the_first_images_are_not_reused(runs: list[Path]) -> None:
    run = runs[0]
    command = ["landscape", str(run), "--points=2", "--images=64"]
    assert main(command) == 0
    rows = read_rows(run / "landscape.csv")
    assert {row["images"] for row in rows} == {"64 of 128"}
    old = [row | {"images": "64", "loss": "123.0"} for row in rows]
    (run / "landscape.csv").write_text(csv_text(old))
    assert main(command) == 0
    assert read_rows(run / "landscape.csv") == [*rows, *old]


def test_both_sets_are_sampled_by_class(runs: list[Path]) -> None:
    finished = Finished.read(runs[0], 50)
    images = source_of(finished.run.config).load()
    for batches, split in ((finished.training, images.train), (finished.test, images.test)):
        assert isinstance(batches.pixels, DeviceImages)
        assert torch.equal(batches.pixels.images, split.images[stratified(split.targets, 50)])
        assert torch.equal(batches.pixels.targets, split.sample(50).targets)
    assert plan_rows(finished, 1, 1, 0)[0].items() >= {("images", "50 of 128"), ("test_images", "50 of 256")}


def threads(finished: Finished, row: Mapping[str, str]) -> list[float]:
    return [float(torch.get_num_threads())]


def test_each_process_has_one_thread(runs: list[Path]) -> None:
    config = runs[0] / "config.yaml"
    config.write_text(config.read_text().replace("threads: 1", "threads: 2"))
    try:
        (finished,) = read_finished(runs[:1])
        assert torch.get_num_threads() == 2
        ((row,),) = measure([Plan(finished, "threads", [finished.key])], ["threads"], threads, None, "row")
        assert row["threads"] == "1.0"
    finally:
        torch.set_num_threads(1)


def test_landscapes(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    (runs[0] / "landscape.csv").write_text("weights,ima")
    capsys.readouterr()
    assert main(["landscape", *map(str, runs), "--points=3", "--images=64", "--range=0.5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "runs/default/landscape-1d.svg"
    for run in runs:  # the first one had a file with half a header
        rows = read_rows(run / "landscape.csv")
        assert [(row["a"], row["b"]) for row in rows] == [("-0.5", "0.0"), ("0.0", "0.0"), ("0.5", "0.0")]
        assert all((run / f"landscape-1d.{kind}").exists() for kind in ("svg", "png"))
    assert main(["landscape", str(runs[0]), "--points=3", "--images=64", "--range=0.5", "--dimensions=2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(runs[0] / "landscape-2d.svg")
    assert len(read_rows(runs[0] / "landscape.csv")) == 9  # the line is part of the plane


def wait_for_rows(file: Path, count: int, process: "subprocess.Popen[str] | None" = None) -> None:
    deadline = time.monotonic() + 300
    while not file.exists() or file.read_text().count("\n") <= count:
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_and_interrupted_landscape_resumes(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, *_ = runs
    file = run / "landscape.csv"
    command = ["landscape", str(run), "--points=300", "--images=128"]
    process = forking.Popen([PLAINRES, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_rows(file, 4, process)
    process.kill()
    process.communicate()
    head, first, *later = file.read_text().splitlines(keepends=True)
    assert len(later) < 250
    marked = f"{first.rsplit(',', 2)[0]},123.0,45.0\n"  # values that a second measurement would replace
    half = later[-1][: len(later[-1]) // 2]
    file.write_text("".join([head, marked, *later[:-1], half]))

    def interrupt() -> None:
        wait_for_rows(file, len(later) + 10)
        os.kill(os.getpid(), signal.SIGINT)

    capsys.readouterr()
    threading.Thread(target=interrupt, daemon=True).start()
    assert main(command) == 130
    assert capsys.readouterr().err.endswith("plainres: stopped; run the same command again to resume\n")
    assert file.read_text().count("\n") < 301
    assert main(command) == 0
    rows = read_rows(file)
    assert len(rows) == len({row["a"] for row in rows}) == 300
    assert [float(row["a"]) for row in rows] == sorted(float(row["a"]) for row in rows)
    assert [row["loss"] for row in rows].count("123.0") == 1
    finished = Finished.read(run, 128)
    for row in [row for row in rows if row["loss"] != "123.0"][::80]:
        assert [repr(value) for value in measure_point(finished, row)] == [row["loss"], row["error"]]


def test_sharpness(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["sharpness", *map(str, runs), "--images=64", "--iterations=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "runs/default/sharpness.svg"
    for name, run, line in zip(("identity", "plain"), runs, lines[1:3], strict=True):
        rows = read_rows(run / "sharpness.csv")
        assert [row["iteration"] for row in rows] == ["1", "2"]
        value, residual = f"{float(rows[-1]['eigenvalue']):.6g}", f"{float(rows[-1]['residual']):.2g}"
        expected = rf"{name}, 14 layers: {re.escape(value)} after 2 iterations, residual {re.escape(residual)}, .*"
        assert re.fullmatch(expected + "; 64 images", line)
        assert "NOT converged to 0.001; increase --iterations" in line
        assert {row["converged"] for row in rows} == {"False"}
        assert f"{name}, 14 layers, not converged: " in (run.parent / "sharpness.svg").read_text()


def test_runs_of_one_name_are_labelled_by_their_folders(runs: list[Path]) -> None:
    others = runs[0].parents[1] / "edited"
    shutil.copytree(runs[0], others / runs[0].name)
    read = [Run.read(folder) for folder in (*runs, others / runs[0].name)]
    assert labels(read) == [str(runs[0]), "plain, 14 layers", str(others / runs[0].name)]


def test_an_interrupted_sharpness_writes_nothing(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> Iterator[Estimate]:
        yield Estimate(1.0, 0.5, converged=False)
        raise KeyboardInterrupt

    monkeypatch.setattr(plainres.analysis.sharpness, "estimates", interrupted)
    capsys.readouterr()
    assert main(["sharpness", str(runs[0])]) == 130
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines()[-1] == "plainres: stopped; run the same command again to start over"
    assert "Traceback" not in err
    assert not (runs[0] / "sharpness.csv").exists()


def test_a_run_trained_on_a_gpu_is_measured_without_one(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = runs[0] / "config.yaml"
    config.write_text(config.read_text().replace("accelerator: cpu", "accelerator: gpu"))
    assert Run.read(runs[0]).config.trainer.accelerator == "gpu"
    assert main(["sharpness", str(runs[0]), "--images=64", "--iterations=1"]) == 0


def test_a_run_in_double_precision_is_measured_in_double_precision(tmp_path: Path) -> None:
    assert main(["train", *SMALL, f"runs={tmp_path}/runs", "precision=64-true"]) == 0
    (run,) = tmp_path.glob("runs/default/*")
    assert all(weight.dtype == torch.float64 for weight in Finished.read(run).network.parameters())


@pytest.mark.parametrize("command", ["lesion", "linearise", "landscape", "sharpness"])
def test_a_checkpoint_that_does_not_match_the_result_is_rejected(
    command: str, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (final,) = (runs[0] / "checkpoints").iterdir()
    state = torch.load(final, weights_only=True)
    state["state_dict"]["network.head.linear.bias"] += 1
    torch.save(state, final.with_name("step-000000001.ckpt"))
    final.write_bytes(final.read_bytes()[:1000])
    capsys.readouterr()
    assert main([command, str(runs[0])]) == 2
    skipped, message, *more = capsys.readouterr().err.splitlines()
    assert "is damaged" in skipped
    assert f"the newest readable checkpoint in {runs[0]} does not match its result.json" in message
    assert not more
    assert not (runs[0] / f"{command}.csv").exists()


@pytest.mark.parametrize("command", ["lesion", "linearise", "landscape", "sharpness"])
def test_invalid_arguments(command: str, runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    run, other = map(str, runs)
    (runs[1] / "result.json").rename("result.json")
    Path("nothing").mkdir()

    def mistake(*arguments: str) -> str:
        capsys.readouterr()
        assert main([command, *arguments]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert f"plainres {command} needs RUN, as in `plainres {command} runs/digits/identity-" in mistake()
    assert "nothing is not the folder of a run" in mistake("nothing")
    assert f"{other} is not finished" in mistake(run, other)
    assert "--images: must be an integer >= 1, got '0'" in mistake(run, "--images=0")
    assert "--images: must be an integer >= 1, got 'x'" in mistake(run, "--images", "x")
    assert "unrecognized arguments: --depth=3" in mistake(run, "--depth=3")
    (runs[0] / f"{command}.csv").mkdir()
    assert f"{command}.csv" in mistake(run)
    shutil.rmtree(runs[0] / "checkpoints")
    assert "has no readable checkpoint; delete its result.json and train it again" in mistake(run)


def test_invalid_tables_and_options_of_landscape(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = str(runs[0])
    file = runs[0] / "landscape.csv"
    for text, arguments, message in (
        (
            "a,b\n1,2\n",
            [],
            "landscape.csv was not written by plainres landscape, or is damaged (unexpected columns); move it away",
        ),
        ("weights,images,seed,a,b,loss,error\n1,2,3,4,5,six,7\n", [], "could not convert string to float: 'six'"),
        ("", ["--dimensions=3"], "--dimensions: invalid choice: 3"),
        ("", ["--points=1"], "--points: must be an integer >= 2, got '1'"),
        ("", ["--range=-1"], "--range: must be a number > 0, got '-1'"),
        ("", ["--range=wide"], "--range: must be a number > 0, got 'wide'"),
    ):
        file.write_text(text)
        capsys.readouterr()
        assert main(["landscape", run, *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    file.unlink()
    with Run.read(runs[0]).lock():
        assert main(["landscape", run]) == 2
    assert f"{run} is locked by another process" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["lesion", "linearise", "landscape", "sharpness"])
def test_help_is_instant(command: str) -> None:
    code = (
        "import sys; from plainres.cli.main import main\ntry: main(sys.argv[1:])\nfinally: print(sorted(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True
    )
    assert f"usage: plainres {command}" in process.stdout
    assert not [name for name in ("torch", "numpy", "matplotlib") if f"'{name}'" in process.stdout]
