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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from plainres.benchmark.baselines import PARTS, BareLoop, DataLoaderBaseline, evaluate
from plainres.benchmark.measure import CONTENDERS, OURS, Measurement, announcement, speed_of
from plainres.cli.main import main
from plainres.config.instantiate import source_of
from plainres.config.schema import Config, SweepOptions
from plainres.data import batches
from plainres.data.sources import Synthetic
from plainres.errors import InputError
from plainres.launch.speeds import resolve_compile
from plainres.runs.provenance import weights_sha256
from plainres.runs.record import Run
from plainres.training import compilation
from plainres.training.train import train
from support import forking
from support.images import write_folders
from support.places import PLAINRES, ROOT
from support.training import Recorder

Make = Callable[..., Config]
CPU = torch.device("cpu")
SMALL = ["data=synthetic", "data.train=320", "data.test=64", "model.depth=8", "model.width=4"]


def bare(config: Config, recorder: Recorder | None = None) -> BareLoop:
    source = source_of(config)
    return BareLoop(config, source.load(), source, CPU, recorder)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_the_bare_loop_trains_to_the_weights_of_a_run(make_config: Make, precision: str) -> None:
    config = make_config(precision=precision, optim={"epochs": None, "steps": 7, "milestones": []})
    run = Run.of(config)
    train(run)
    loop = bare(config)
    loop.run(3)
    seconds = loop.parts(4)
    assert weights_sha256(loop.network) == run.result["weights_sha256"]
    assert evaluate(loop.network, loop.test, mixed=precision == "bf16-mixed") == pytest.approx(run.result["test_error"])
    assert seconds.keys() == set(PARTS)
    assert all(part > 0 for part in seconds.values())


@pytest.mark.parametrize("fits", [True, False])
def test_the_bare_loop_is_captured_like_a_run(make_config: Make, monkeypatch: pytest.MonkeyPatch, fits: bool) -> None:
    monkeypatch.setattr(batches, "_fits", lambda images, device: fits)
    config = make_config(optim={"milestones": []})
    eager, captured = bare(config), bare(config, recorder := Recorder())
    for loop in (eager, captured):
        loop.run(8)
    assert len(recorder.graphs) == 1
    replayed = captured.network.state_dict()
    for key, value in eager.network.state_dict().items():
        torch.testing.assert_close(value, replayed[key], msg=key)  # a fused optimizer rounds differently


def test_compilation_depends_on_the_length_of_the_run(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_compile(make_config()).trainer.compile is False
    monkeypatch.setattr(compilation, "PAYS_FROM", 1)
    assert resolve_compile(make_config()).trainer.compile is True
    config = make_config(trainer={"compile": False})
    assert resolve_compile(config) is config


# coverage warns in a forked worker, and an error there would stop it
@pytest.mark.filterwarnings("default::coverage.exceptions.CoverageWarning")
@pytest.mark.parametrize("channels", [1, 3])
def test_the_dataloader_baseline_shows_the_same_images(make_config: Make, channels: int) -> None:
    source = Synthetic([channels, 8, 8], 10, 40, 30, 2, True)
    images = source.load()
    config = make_config(optim={"batch_size": 8})
    config.data |= {"shape": [channels, 8, 8], "train": 40}
    loop, reference = DataLoaderBaseline(config, images, source, CPU), bare(config)
    test_images, targets = next(iter(loop.test))
    expected_images, expected_targets = reference.test.batch(torch.arange(8))
    torch.testing.assert_close(test_images, expected_images, atol=1e-5, rtol=1e-5)
    assert torch.equal(targets, expected_targets)
    originals, _ = reference.training.batch(torch.arange(40))
    augmentations = set()
    for _ in range(3):
        for crop, target in loop.batches:
            assert crop.shape == (8, channels, 8, 8)
            augmentations.add(_augmentation(crop[0], originals[images.train.targets == target[0]]))
    assert None not in augmentations
    assert len(augmentations) > 5
    loop.run(6)  # an epoch, its evaluation, and the next
    assert loop.step == 6
    with pytest.raises(InputError, match="the images have 2 channels"):
        DataLoaderBaseline(config, images, Synthetic([2, 8, 8], 10, 40, 30, 2, True), CPU)


def _augmentation(crop: torch.Tensor, originals: torch.Tensor) -> tuple[int, int, bool] | None:
    """Return (top, left, mirrored) with which a crop was made from one of the images. The padding may be black."""
    for image in originals:
        for top in range(5):
            for left in range(5):
                inside = F.pad(torch.ones(1, 8, 8), (2,) * 4)[:, top : top + 8, left : left + 8].bool()
                cut = F.pad(image, (2,) * 4)[:, top : top + 8, left : left + 8]
                for mirrored in (False, True):
                    upright = crop.flip(-1) if mirrored else crop
                    if torch.allclose(torch.where(inside, upright, 0.0), torch.where(inside, cut, 0.0), atol=1e-5):
                        return top, left, mirrored
    return None


def measurement(**changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "network": "plain, depth 8",
        "settings": {},
        "device": "cpu",
        "batch_size": 10,
        "steps": {"bare": 4, OURS: 4, "dataloader": 2},
        "multiply_adds": 1000,
        "windows": {"bare": [0.9, 1.0, 1.2], OURS: [1.0, 1.0, 1.0], "dataloader": [1.0, 2.0, 1.5]},
        "parts": dict.fromkeys(PARTS, 0.05),
        "evaluation": 0.5,
        "peak_memory": 300.0,
    }
    return Measurement(**(values | changes))


def test_the_report_follows_from_the_measurement() -> None:
    example = measurement()
    assert [example.step(contender) for contender in CONTENDERS] == [0.25, 0.25, 0.75]
    assert example.ratios("bare") == pytest.approx([0.9, 1.0, 1.2])
    assert example.ratios("dataloader") == pytest.approx([2, 3, 4])
    text = str(example)
    assert "bare loop              40     250.00   225.00 .. 300.00" in text
    assert "images/s of plainres / bare loop: 1.000 (0.900 .. 1.200; 3 rounds)" in text
    assert "images/s of plainres / DataLoader: 3.000 (2.000 .. 4.000; 3 rounds)" in text
    assert "data 25 %, forward 25 %, backward 25 %, optimizer 25 %\n  a step of plainres takes 0.00 ms more\n" in text
    assert "evaluation of the test set 0.50 s" in text
    assert "peak memory 300 MiB" in text


def test_the_time_of_a_run_is_estimated(make_config: Make) -> None:
    config = make_config(optim={"batch_size": 20, "epochs": 3})  # 100 images, 5 steps; 30 test images
    images = source_of(config).load()
    # 15 steps, an evaluation after each of 3 epochs, and both sets at the end
    seconds = speed_of(measurement(), 5).seconds(config, images)
    assert seconds == pytest.approx(15 * 0.25 + (3 + 1 + 100 / 30) * 0.5)
    # a window of 10 steps contains two epochs with their evaluations
    speed = speed_of(measurement(windows={OURS: [4.0]}, steps={OURS: 10}), 5)
    assert speed.seconds(config, images) == pytest.approx(15 * 0.3 + (3 + 1 + 100 / 30) * 0.5)


def test_a_study_is_measured_network_by_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["-m", "model/shortcut=plain,identity", "seed=0,1", *SMALL, "optim.epochs=2", f"runs={tmp_path / 'runs'}"]
    monkeypatch.setenv("PLAINRES_CACHE", str(tmp_path / "cache"))
    done = forking.run([PLAINRES, "bench", *options, "--rounds", "2", "--seconds", "0.2", "--json"])
    assert done.returncode == 0, done.stderr
    assert re.match(r"measuring 2 networks, about \d+ s: (12|20) timing windows of 0.2 s, and setup\n", done.stderr)
    output = json.loads(done.stdout)
    assert [each["network"].partition(",")[0] for each in output["measured"]] == ["plain", "identity"]
    for each in output["measured"]:
        assert each["batch_size"] == each["settings"]["optim.batch_size"] == 64
        assert {name: len(times) for name, times in each["windows"].items()} == dict.fromkeys(CONTENDERS, 2)
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
    assert announcement([config], 5, 3.0) == "measuring 1 network, about 65 s: 15 timing windows of 3 s, and setup"
    compiled = make_config(sweep=one_at_a_time, trainer={"compile": True})
    side_by_side = make_config(sweep=SweepOptions(runs_per_device=2))
    assert announcement([compiled, side_by_side], 5, 3.0) == (
        "measuring 2 networks, about 3 min: 40 timing windows of 3 s, and setup; "
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


@pytest.mark.parametrize("shortcut", ["plain", "identity"])
def test_seeds_stacked_into_one_network_have_the_weights_of_their_separate_runs(shortcut: str) -> None:
    script = ROOT / "experiments" / "throughput" / "stacked.py"
    options = ["model.depth=14", "model.width=4", f"model/shortcut={shortcut}", "--rounds=0"]
    done = forking.run([sys.executable, script, *options])
    assert done.returncode == 0, done.stderr
    worst = float(done.stdout.split("largest difference ")[1].split(",", maxsplit=1)[0])
    assert 0 < worst < 1e-9


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
