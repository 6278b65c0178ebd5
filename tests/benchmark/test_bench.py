"""Tests of `plainres bench`: the contenders do the same work, and the report follows from the measurements."""

import io
import json
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from plainres.benchmark import ceiling, trials
from plainres.benchmark.bench import _estimate, announcement, speed_of
from plainres.benchmark.loops import PARTS
from plainres.benchmark.measurement import BARE, CONTENDERS, OURS, Measurement
from plainres.benchmark.trials import compilation_s
from plainres.cli.main import main
from plainres.config.instantiate import source_of
from plainres.config.schema import Config, Loggers, SweepOptions
from plainres.launch.speeds import resolve_compile
from plainres.runs.record import Run
from plainres.training import compilation
from support import forking
from support.compiler import needs_compiler
from support.images import write_folders
from support.places import PLAINRES, ROOT

Make = Callable[..., Config]
CPU = torch.device("cpu")
SMALL = ["data=synthetic", "data.train=320", "data.test=64", "model.depth=8", "model.width=4"]


def test_compilation_depends_on_the_length_of_the_run(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_compile(make_config()).trainer.compile is False
    monkeypatch.setitem(compilation.PAYS_FROM, "32-true", 1)
    assert resolve_compile(make_config()).trainer.compile is True
    config = make_config(trainer={"compile": False})
    assert resolve_compile(config) is config


def measurement(**changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "network": "plain, depth 8",
        "settings": {"precision": "bf16-mixed"},
        "device": "cpu",
        "batch_size": 10,
        "steps": dict.fromkeys(CONTENDERS, 4) | {"dataloader": 2},
        "multiply_adds": 1_000_000,
        "windows": {contender: [1.0, 1.0, 1.0] for contender in CONTENDERS}
        | {"bare": [0.9, 1.0, 1.2], "dataloader": [1.0, 2.0, 1.5]},
        "parts": dict.fromkeys(PARTS, 0.05),
        "evaluation": 0.5,
        "ceiling": [1e9, 0.9e9],
        "peak_memory": 300.0,
    }
    return Measurement(**(values | changes))


def test_the_report_follows_from_the_measurement() -> None:
    example = measurement()
    assert [example.step(contender) for contender in ("dataloader", "bare", OURS)] == [0.75, 0.25, 0.25]
    assert example.ratios("bare") == pytest.approx([0.9, 1.0, 1.2])
    assert example.ratios("dataloader") == pytest.approx([2, 3, 4])
    text = str(example)
    assert re.search(r"bare loop +40 +250\.00  1\.000 \(0\.900 \.\. 1\.200\)\n", text)
    assert re.search(r"DataLoader, as often written +13 +750\.00  3\.000 \(2\.000 \.\. 4\.000\)\n", text)
    assert re.search(r"plainres +40 +250\.00\n", text)
    assert "data 25 %, forward 25 %, backward 25 %, optimizer 25 %\n  a step of plainres takes 0.00 ms more\n" in text
    # 6 operations for each of a million multiply-adds of 40 images in a second
    assert "0.2 GFLOP/s, 24 % of the 1 GFLOP/s of matrix products (bf16-mixed)" in text
    assert "evaluation of the test set 0.50 s; peak memory 300 MiB" in text
    assert max(map(len, text.splitlines())) <= 80
    two = str(measurement(windows={BARE: [1.0], OURS: [1.0]}, compilation=7.0))
    assert "DataLoader" not in two
    assert "compiled; later runs take 7 s for that, and a new network longer" in two


def test_the_time_of_a_run_is_estimated(make_config: Make) -> None:
    config = make_config(optim={"batch_size": 20, "epochs": 3})  # 100 images, 5 steps; 30 test images
    images = source_of(config).load()
    # 15 steps, an evaluation after each of 3 epochs, and both sets at the end
    seconds = speed_of(measurement()).seconds(config, images)
    assert seconds == pytest.approx(15 * 0.25 + (3 + 1 + 100 / 30) * 0.5)
    compiled = speed_of(measurement(compilation=7.0)).seconds(config, images)
    assert compiled == pytest.approx(seconds + 7)


@pytest.mark.parametrize(
    ("hours", "cores", "gain", "text"),
    [
        ([10], 2, 1.97, "the run: 10.0 h of training"),
        ([10, 10], 2, 2.0, "2 runs: 20.0 h .* one after another, 10.0 h as a sweep"),
        ([10, 10, 10], 2, 2.0, "3 runs: 30.0 h .* one after another, 20.0 h as a sweep"),  # the third run trains alone
        ([1, 1, 8, 2, 2], 2, 2.0, "5 runs: 14.0 h .* one after another, 8.0 h as a sweep"),
        ([10] * 4, 16, 8.0, "4 runs: 40.0 h .* one after another, at most 20.0 h as a sweep"),
        ([10] * 4, 1, 1.0, "4 runs: 40.0 h of training and evaluation one after another$"),
    ],
)
def test_the_time_of_a_sweep_depends_on_its_runs(hours: list[float], cores: int, gain: float, text: str) -> None:
    assert re.match(text, _estimate([(3600 * each, gain / cores) for each in hours], {cores}))


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # from torch.compile itself
def test_compilation_is_timed(make_config: Make) -> None:
    torch.compiler.reset()
    assert compilation_s(make_config(trainer={"compile": True})) > 0.1


def test_a_study_is_measured_network_by_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["-m", "model/shortcut=plain,identity", "seed=0,1", *SMALL, "optim.epochs=2", f"runs={tmp_path / 'runs'}"]
    monkeypatch.setenv("PLAINRES_CACHE", str(tmp_path / "cache"))
    done = forking.run([PLAINRES, "bench", *options, "--rounds", "2", "--seconds", "0.2", "--json"])
    assert done.returncode == 0, done.stderr
    assert re.match(r"measuring 2 networks, about .+: (30|34|38) timing windows of 0.2 s, and setup\n", done.stderr)
    output = json.loads(done.stdout)
    assert [each["network"].partition(",")[0] for each in output["measured"]] == ["plain", "identity"]
    for each in output["measured"]:
        assert each["batch_size"] == each["settings"]["optim.batch_size"] == 64
        largest = each is output["measured"][0]  # the first of equals
        assert {name: len(times) for name, times in each["windows"].items()} == dict.fromkeys(
            CONTENDERS if largest else (BARE, OURS), 2
        )
        assert max(each["ceiling"]) > 1e9
        assert (each["advice"] is not None) == largest
        assert each["peak_memory"] > 100
        assert each["versions"]["torch"] == torch.__version__
    assert output["estimate"].startswith("4 runs: ")
    assert not (tmp_path / "runs").exists()
    planned = json.loads(forking.run([PLAINRES, "train", *options, "--dry-run", "--json"]).stdout)
    assert planned["note"] == ""
    assert planned["seconds"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", planned["measured"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_benchmark_leaves_no_process_and_one_line(number: signal.Signals) -> None:
    with forking.Popen([PLAINRES, "bench", *SMALL], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("measuring 1 network, about ")
        time.sleep(5)  # the DataLoader's workers have started
        process.send_signal(number)
        rest = process.stderr.read()  # until the last process has closed it
    assert process.returncode == 128 + number
    assert rest.splitlines()[-1] == "plainres: stopped"
    assert "Traceback" not in rest
    assert "leaked" not in rest


def test_the_announcement_counts_windows_and_setup(make_config: Make) -> None:
    one_at_a_time = SweepOptions(runs_per_device=1)
    config = make_config(sweep=one_at_a_time)
    assert announcement([config], 5, 3.0) == "measuring 1 network, about 4 min: 65 timing windows of 3 s, and setup"
    compiled = make_config(sweep=one_at_a_time, trainer={"compile": True})
    side_by_side = make_config(sweep=SweepOptions(runs_per_device=2))
    assert announcement([compiled, side_by_side], 5, 3.0) == (
        "measuring 2 networks, about 6 min: 85 timing windows of 3 s, and setup; "
        "torch.compile may add a minute per network"
    )


def test_images_that_are_decoded_while_training_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        f"{split}/{name}/0.png": np.full((8, 8), ord(name), np.uint8) for split in ("train", "test") for name in "ab"
    }
    folder = write_folders(tmp_path / "images", files)
    options = ["data=images", f"data.path={folder}", "data.stream=true", "data.shape=[3,8,8]", "optim.batch_size=2"]
    assert main(["bench", "model.depth=8", *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "plainres: plainres bench measures images that are in memory, but these are decoded while training; use other "
        "data, and measure decoding with experiments/throughput/streaming.py"
    )


def test_a_part_of_the_gpu_script_that_fails_leaves_its_traceback_and_the_others_their_results(tmp_path: Path) -> None:
    script, archive = ROOT / "experiments" / "throughput" / "gpu.py", tmp_path / "results.tar.gz"
    options = ["--dry-run", "--only=step-eager,ceilings", f"--pack={archive}"]
    command = [sys.executable, script, tmp_path / "results", *options, "optim.lr=-1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step-eager: FAILED" in done.stdout
    with tarfile.open(archive) as packed:
        parts = {name: json.load(packed.extractfile(name) or io.BytesIO()) for name in packed.getnames()}
    assert parts.keys() == {"ceilings.json", "step-eager.json"}
    assert "Traceback" in parts["step-eager.json"]["failure"]
    assert "optim.lr is -1" in parts["step-eager.json"]["failure"]
    assert parts["ceilings.json"]["result"]["flop_per_s"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.depth=21"], "model.depth is 21"),
        (["--rounds=0"], "--rounds: must be an integer >= 1, got '0'; see plainres bench --help"),
        (["--seconds=never"], "--seconds: must be a number > 0, got 'never'"),
        (["trainer.devices=2"], "measures runs on one device; add trainer.devices=1"),
        (["--jsn"], "there is no option --jsn; --hydra-help shows"),
    ],
)
def test_invalid_options_get_one_line(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main(["bench", *SMALL, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_the_fastest_product_of_matrices_is_the_ceiling(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MKL's product in float32 was slower than convolutions on some CPUs, so that a step reached 139 % of it."""
    durations = iter([0.5, 0.25])
    monkeypatch.setattr(ceiling, "_seconds", lambda multiply, device: next(durations))
    expected = 0.5 if precision == "64-true" else 0.25
    measured = ceiling.matrix_product_flop_per_s(torch.device("cpu"), precision)
    assert measured == 2 * ceiling.SIZE["cpu"] ** 3 / expected


def test_the_ceiling_does_without_a_product_that_the_cpu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*operands: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mkldnn_linear: bf16 path needs the cpu support avx_ne_convert or avx512bw")

    monkeypatch.setitem(ceiling.SIZE, "cpu", 64)
    monkeypatch.setattr("torch.nn.functional.linear", refuse)
    assert ceiling.matrix_product_flop_per_s(torch.device("cpu"), "bf16-mixed") > 0


def test_the_clock_stands_still_during_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch, unused = trials.Stopwatch(), cast("Any", None)
    stopwatch.started = 1.0
    times = iter([5.0, 8.0])
    monkeypatch.setattr(stopwatch, "clock", lambda: next(times))
    stopwatch.on_validation_start(unused, unused)
    stopwatch.on_validation_end(unused, unused)
    assert stopwatch.started == 1.0 + 3.0


def test_a_benchmark_uploads_nothing(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Run] = []
    monkeypatch.setattr(trials, "train", lambda run, observers: trained.append(run))
    trials.train_endlessly(replace(make_config(), logger=Loggers(wandb=True, mode="online")), trials.Stopwatch())
    assert trained[0].config.logger == Loggers()
