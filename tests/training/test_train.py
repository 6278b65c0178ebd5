"""Training of a run from its configuration to its result: in this process, in other processes, on two devices."""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import plainres.training.train
from plainres.analysis.evaluation import evaluate
from plainres.analysis.evaluation import load_network as trained_network
from plainres.config.instantiate import build_network, check, network_of, source_of
from plainres.config.schema import Config, Devices
from plainres.data.sources import Images, Synthetic
from plainres.errors import InputError, RunFailedError
from plainres.launch.devices import launch
from plainres.launch.sweep import train_quietly
from plainres.runs.provenance import weights_sha256
from plainres.runs.record import Run
from plainres.training.checkpoints import AtomicCheckpointIO
from plainres.training.classifier import full_precision
from plainres.training.train import train
from support import forking
from support.places import TESTS

Make = Callable[..., Config]

DIGITS = {"_target_": "plainres.data.Digits", "pad": 0, "flip": False}


def trained(config: Config) -> Run:
    run = Run.of(config)
    train(run)
    return run


def weights(run: Run) -> str:
    return Run(run.config, run.folder).result["weights_sha256"]


def test_a_process_trains_one_run_at_a_time(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    inner: list[str] = []
    load = Synthetic.load

    def load_and_train(source: Synthetic) -> Images:
        try:
            train(Run.of(make_config(seed=1)))
        except InputError as error:
            inner.append(str(error))
        return load(source)

    monkeypatch.setattr(Synthetic, "load", load_and_train)
    run = trained(make_config())
    assert set(inner) == {"this process is training another run; train several at a time with plainres.sweep"}
    assert run.finished


def test_networks_that_threads_build_have_the_weights_of_their_seeds(make_config: Make) -> None:
    configs = [make_config(seed=seed, shortcut="projection", depth=20) for seed in range(8)]
    alone = [weights_sha256(build_network(config)) for config in configs]
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda config: weights_sha256(build_network(config)), configs)] == alone


def test_weights_in_float64_initialise_a_network_in_float64(make_config: Make, tmp_path: Path) -> None:
    config = make_config(precision="64-true")
    network = build_network(config).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1e-10)
    file = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), file)
    again = build_network(replace(config, model={**config.model, "weights": str(file)}))
    assert weights_sha256(again) == weights_sha256(network)


def test_a_deterministic_run_leaves_no_variable_behind(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    trained(make_config(trainer={"deterministic": True}))
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_the_result(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    run = trained(make_config(shortcut="projection", depth=14, seed=3))
    result = run.result
    assert (result["shortcut"], result["depth"], result["width"], result["seed"]) == ("projection", 14, 4, 3)
    assert (result["steps"], result["epochs"], result["batch_size"]) == (6, 2, 32)
    curve = run.curve()
    assert [row["step"] for row in curve] == [3, 6]
    assert result["train_error"] == curve[-1]["train/error"]
    assert result["train_error_steps"] == 3
    assert result["test_error"] == curve[-1]["test/error"]
    assert result["best_test_error"] == min(row["test/error"] for row in curve)
    assert 0 <= result["train_error_eval"] <= 100
    assert result["parameters"] == sum(p.numel() for p in network_of(run.config, source_of(run.config)).parameters())
    assert result["versions"]["torch"] == torch.__version__
    assert result["peak_memory_mib"] > 100
    assert result["wall_time_s"] > 0
    assert len(result["weights_sha256"]) == len(result["data_sha256"]) == 64
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000000006.ckpt"]
    assert "6/6" in capfd.readouterr().err


def test_bf16_losses_and_errors_are_computed_from_float32_logits(make_config: Make) -> None:
    """With 8 bits, bfloat16 is wrong in the third digit of log_softmax, and argmax depends on ties."""
    run = trained(make_config(precision="bf16-mixed", data={**DIGITS}, optim={"batch_size": 64, "epochs": 1}))
    predictions = evaluate(trained_network(run), run.config)
    assert predictions.logits.dtype == torch.float32
    assert all(row.unique().numel() == 10 for row in predictions.logits)  # no ties, unlike bfloat16
    assert any(row.unique().numel() < 10 for row in predictions.logits.bfloat16())
    loss, error = predictions.losses.double().mean().item(), 100 * predictions.wrong.double().mean().item()
    assert run.result["test_loss"] == pytest.approx(loss, rel=1e-6)
    assert run.result["test_error"] == pytest.approx(error)
    coarse = F.cross_entropy(predictions.logits.bfloat16(), predictions.targets).item()
    assert coarse != pytest.approx(loss, rel=1e-6)


def test_the_training_loss_is_computed_from_float32_logits() -> None:
    logits = torch.randn(64, 10).bfloat16()
    targets = torch.arange(64) % 10
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(full_precision(logits), targets)
    assert loss.dtype == torch.float32
    assert loss.item() == F.cross_entropy(logits.float(), targets).item()
    double = torch.randn(2, 3).double()
    assert full_precision(double) is double


def test_the_final_evaluation_uses_the_final_weights_and_every_image(make_config: Make) -> None:
    run = trained(make_config())
    source = source_of(run.config)
    images, network = source.load(), network_of(run.config, source)
    state = torch.load(run.checkpoints / "step-000000006.ckpt", weights_only=True)["state_dict"]
    network.load_state_dict({key.removeprefix("network."): value for key, value in state.items()})
    mean, std = images.channel_statistics
    for split, error in ((images.train, "train_error_eval"), (images.test, "test_error")):
        logits = network.eval()(((split.images - mean) / std).permute(0, 3, 1, 2))
        assert run.result[error] == 100 * (logits.argmax(1) != split.targets).sum().item() / len(split)


def test_the_validation_error_is_in_the_curves_and_in_the_result(make_config: Make) -> None:
    run = trained(make_config(data={**DIGITS, "validation_per_class": 20}, optim={"batch_size": 64, "epochs": 3}))
    images = source_of(run.config).load()
    assert images.validation is not None
    result, curve = run.result, run.curve()
    assert list(curve[0])[-4:] == ["test/loss", "test/error", "validation/loss", "validation/error"]
    chosen = min(curve, key=lambda row: row["validation/error"])
    assert result["best_validation_error"] == chosen["validation/error"]
    assert result["best_validation_error_epoch"] == chosen["epoch"]
    assert result["test_error_at_best_validation"] == chosen["test/error"]
    network = trained_network(run).eval()
    mean, std = images.channel_statistics
    logits = network(((images.validation.images - mean) / std).permute(0, 3, 1, 2))
    wrong = (logits.argmax(1) != images.validation.targets).sum().item()
    assert result["validation_error"] == curve[-1]["validation/error"] == 100 * wrong / 200
    whole = source_of(make_config(data={**DIGITS})).load()
    logits = network(((whole.test.images - mean) / std).permute(0, 3, 1, 2))
    assert result["test_error"] == 100 * (logits.argmax(1) != whole.test.targets).sum().item() / 297


def test_without_a_validation_set_nothing_speaks_of_it(make_config: Make) -> None:
    run = trained(make_config())
    assert not [key for key in (*run.result, *run.curve()[0]) if "validation" in key]


def test_the_result_does_not_depend_on_the_process(make_config: Make, tmp_path: Path) -> None:
    """Weights and curves are the same alone, after other runs, in a pool's process and in a fresh process."""
    config = make_config(depth=14, seed=5)
    alone = weights(trained(config))
    trained(make_config(shortcut="plain", depth=8, seed=1, runs=str(tmp_path / "others")))
    torch.rand(17)  # stands for anything else the process has done
    after_others = trained(make_config(depth=14, seed=5, runs=str(tmp_path / "after")))
    fresh, pooled = (Run.of(make_config(depth=14, seed=5, runs=str(tmp_path / name))) for name in ("fresh", "pooled"))
    fresh.prepare()
    file = tmp_path / "config.pickle"
    file.write_bytes(pickle.dumps(fresh.config))
    worker = [sys.executable, "-m", "plainres.launch.worker", fresh.folder, file]
    subprocess.run(worker, check=True, capture_output=True)
    other = Run.of(make_config(shortcut="projection", seed=2, runs=str(tmp_path / "pooled")))
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        for run in (other, pooled):
            run.prepare()
            assert pool.submit(train_quietly, run).result() is None
    assert weights(after_others) == weights(fresh) == weights(pooled) == alone
    assert trained(make_config(depth=14, seed=6)).result["weights_sha256"] != alone
    rows = [run.curve() for run in (Run.of(config), after_others, fresh, pooled)]
    assert all(curve == rows[0] for curve in rows)


def test_a_run_that_another_process_has_finished_is_left_as_it_is(make_config: Make) -> None:
    run = trained(make_config())
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    train(Run.of(replace(run.config, trainer=replace(run.config.trainer, threads=2))))
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_cuda_graphs_need_a_single_gpu(accelerator: str) -> None:
    with pytest.raises(InputError, match=r"trainer\.cuda_graph=true is for one GPU"):
        Devices(accelerator=accelerator, devices=2, threads=1, cuda_graph=True)


def test_training_does_not_change_the_global_random_state(make_config: Make) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    trained(make_config(shortcut="projection_all"))
    assert torch.equal(state, torch.get_rng_state())


def test_an_interrupted_run_resumes_from_its_newest_checkpoint(make_config: Make, tmp_path: Path) -> None:
    config = make_config(optim={"epochs": 4})
    config.checkpoint.every_n_steps = 7
    whole = trained(config)
    assert sorted(path.name for path in whole.checkpoints.iterdir()) == ["step-000000007.ckpt", "step-000000012.ckpt"]
    interrupted = Run.of(make_config(optim={"epochs": 4}, runs=str(tmp_path / "interrupted")))
    interrupted.prepare()
    (whole.checkpoints / "step-000000007.ckpt").rename(interrupted.checkpoints / "step-000000007.ckpt")
    # the killed process had written one epoch more than its checkpoint, and half of a row
    (interrupted.folder / "metrics.csv").write_text((whole.folder / "metrics.csv").read_text() + "5,15,0.")
    train(interrupted)
    assert weights(interrupted) == weights(whole)
    assert interrupted.curve() == whole.curve()


def test_a_checkpoint_without_the_names_of_its_parameters_resumes(make_config: Make) -> None:
    """Version 0.2.0 did not save them. The probe needs them."""
    gradients = {"_target_": "plainres.models.Gradients", "images": 30, "every_n_steps": 1}
    config = make_config(probes={"gradients": gradients})
    config.checkpoint.every_n_steps = 4
    run = trained(config)
    expected = weights(run)
    file = run.checkpoints / "step-000000004.ckpt"
    saved = torch.load(file, weights_only=True)
    (group,) = saved["optimizer_states"][0]["param_groups"]
    del group["param_names"]
    torch.save(saved, file)
    (run.checkpoints / "step-000000006.ckpt").unlink()
    (run.folder / "result.json").unlink()
    assert weights(trained(config)) == expected


@pytest.mark.parametrize("optim", [{"epochs": 2}, {"epochs": None, "steps": 7}])
def test_a_run_killed_after_its_last_step_resumes(make_config: Make, optim: dict[str, int | None]) -> None:
    run = trained(make_config(optim=optim))
    result, curve = run.result, run.curve()
    (run.folder / "result.json").unlink()
    again = trained(make_config(optim=optim))
    assert again.curve() == curve
    ignored = {"wall_time_s", "peak_memory_mib", "attempts"}
    assert {k: v for k, v in again.result.items() if k not in ignored} == {
        k: v for k, v in result.items() if k not in ignored
    }


def test_resuming_before_a_partial_last_epoch_does_not_change_the_curve(make_config: Make) -> None:
    config = make_config(optim={"epochs": None, "steps": 7, "warmup_lr": 0.01})
    config.checkpoint.every_n_steps = 3
    run = trained(config)
    result, curve = run.result, run.curve()
    (run.folder / "result.json").unlink()
    (run.checkpoints / "step-000000007.ckpt").unlink()
    again = trained(config)
    assert again.curve() == curve
    assert again.result["train_error"] == result["train_error"]
    assert again.result["weights_sha256"] == result["weights_sha256"]


def test_a_damaged_checkpoint_is_reported_and_skipped(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    config = make_config()
    config.checkpoint.every_n_steps = 3
    run = trained(config)
    digest = weights(run)
    (run.folder / "result.json").unlink()
    newest = run.checkpoints / "step-000000006.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert weights(trained(config)) == digest
    assert f"skipping {newest}: it is damaged, or not a checkpoint of plainres" in capfd.readouterr().err


@pytest.mark.parametrize("damage", [b"", b"epoch,step\n1,abc\n", b"\xff\xfe\x00", None])
def test_damaged_curves_are_restored_from_the_checkpoint(make_config: Make, damage: bytes | None) -> None:
    run = trained(make_config())
    curve = run.curve()
    (run.folder / "result.json").unlink()
    file = run.folder / "metrics.csv"
    file.unlink() if damage is None else file.write_bytes(damage)
    assert trained(make_config()).curve() == curve


def test_a_run_that_diverges(make_config: Make) -> None:
    run = Run.of(make_config(optim={"lr": 1e30}))
    with pytest.raises(RunFailedError, match=r"NaN or infinite after step \d, with a learning rate of 1e\+30"):
        train(run)
    assert not run.finished
    assert "has diverged" in str(run.failure)


def test_a_length_in_steps_may_end_within_an_epoch(make_config: Make) -> None:
    run = trained(make_config(optim={"epochs": None, "steps": 7}))
    assert [row["step"] for row in run.curve()] == [3, 6, 7]
    assert run.result["steps"] == 7
    assert run.result["test_error"] == run.curve()[-1]["test/error"]


def test_bf16(make_config: Make) -> None:
    run = trained(make_config(precision="bf16-mixed"))
    assert weights(run) != weights(trained(make_config()))


def linear(config: Config) -> Config:
    config.model["_target_"] = "support.linear.Linear"
    return config


def test_two_ranks_share_every_batch(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without batch normalisation, DistributedDataParallel over gloo averages to the whole batch's gradient."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    optim = {"epochs": None, "steps": 8, "lr": 0.01, "decay": "weights", "clip_norm": 2.0}
    alone = trained(linear(make_config(optim=optim)))
    run = Run.of(linear(make_config(optim=optim, devices=2, runs=str(tmp_path / "ddp"))))
    forking.call(launch, run)
    assert run.name == alone.name
    assert run.result["devices"] == 2
    assert [row["step"] for row in run.curve()] == [3, 6, 8]
    for row, expected in zip(run.curve(), alone.curve(), strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    states = [
        torch.load(each.checkpoints / "step-000000008.ckpt", weights_only=True)["state_dict"] for each in (run, alone)
    ]
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], atol=1e-6, rtol=1e-5)


def test_two_ranks_with_batch_normalisation(make_config: Make) -> None:
    run = Run.of(make_config(devices=2, optim={"warmup_lr": 0.01}))
    forking.call(launch, run)
    assert run.finished


def test_a_failing_rank_fails_the_run(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    run = Run.of(make_config(devices=2, optim={"batch_size": 200}))
    with pytest.raises(InputError, match="there are only 100 training images"):
        forking.call(launch, run)
    assert "Traceback" not in capfd.readouterr().err
    assert not run.finished


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 21}, "model.depth is 21"),
        ({"data": {"_target_": "plainres.data.Nowhere"}}, "has no attribute 'Nowhere'"),
        (
            {"data": {"_target_": "plainres.data.sources"}},
            "data._target_=plainres.data.sources is not a class or function",
        ),
        (
            {"data": {"_taget_": "plainres.data.Digits"}},
            "data has only _taget_; it needs _target_, the path of its class",
        ),
        (
            {"data": {"_target_": "plainres.data.Digits", "pad": -1, "flip": False}},
            "data.pad is -1; it must be at least 0",
        ),
        ({"width": 10**9}, "model: "),
        (
            {"data": {"_target_": "plainres.data.Digits", "pda": 0}},
            "data has no option 'pda'; Digits takes pad, flip",
        ),
        ({"data": {"_target_": "plainres.data.Digits", "pad": 0}}, "data lacks flip, which Digits needs"),
        (
            {"data": {"_target_": "plainres.data.Digits", "pad": "4", "flip": False}},
            "data.pad is '4'; it must be an integer",
        ),
        (
            {"data": {"_target_": "plainres.data.Digits", "pad": 0, "flip": 1}},
            "data.flip is 1; it must be true or false",
        ),
    ],
)
def test_invalid_options_are_reported(make_config: Make, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(make_config(**changes))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("depht", 20, "model has no option 'depht'; CifarNet takes in_channels, classes, depth, width, shortcut"),
        ("depth", "twenty", "model.depth is 'twenty'; it must be an integer"),
        ("depth", True, "model.depth is True; it must be an integer"),
    ],
)
def test_model_options_that_do_not_match_its_signature(
    make_config: Make, key: str, value: object, message: str
) -> None:
    config = make_config()
    config.model[key] = value
    with pytest.raises(InputError, match=message):
        check(config)


def test_options_of_a_shortcut_are_checked(make_config: Make) -> None:
    config = make_config()
    config.model["shortcut"]["scale"] = 0.5
    with pytest.raises(InputError, match=r"model.shortcut has no option 'scale'; Identity takes"):
        check(config)


def test_a_batch_larger_than_the_data(make_config: Make) -> None:
    run = Run.of(make_config(optim={"batch_size": 101}))
    with pytest.raises(InputError, match="batch_size is 101, but there are only 100 training images"):
        train(run)
    assert not run.folder.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(make_config: Make) -> None:
    config = make_config()
    config.trainer.accelerator = "gpu"
    with pytest.raises(InputError, match=r"trainer.accelerator is gpu, but torch finds no GPU here; use trainer=cpu$"):
        check(config)
    config.trainer.devices = 2
    with pytest.raises(InputError, match=r"or add trainer.accelerator=cpu for 2 processes on the CPU$"):
        check(config)


def test_too_few_gpus(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = make_config()
    config.trainer.accelerator, config.trainer.devices = "gpu", 4
    with pytest.raises(InputError, match=r"devices is 4, but torch finds 1 GPU here; set it to at most 1, or use"):
        check(config)


def test_the_batch_size_must_be_a_multiple_of_the_devices(make_config: Make) -> None:
    with pytest.raises(InputError, match="must be a multiple of 3"):
        make_config(devices=3)


def test_a_checkpoint_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoints" / "step-000000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.ones(3)}, path)

    def fail(_: int) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=r"\(disk full\); step-000000001.ckpt is intact; free some space and run"):
        AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(3)}, path.with_name("step-000000002.ckpt"))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert torch.load(path, weights_only=True)["x"].sum() == 3


def test_config_yaml_contains_plain_values_only(make_config: Make) -> None:
    run = Run.of(make_config())
    run.prepare()
    text = (run.folder / "config.yaml").read_text()
    assert "!!" not in text
    assert json.dumps(run.config.model["shortcut"]["_target_"]).strip('"') in text


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("no.such.host", "are to meet at no.such.host, a name that does not resolve here"),
        ("127.0.0.1", "lost or did not find each other within 0:00:02"),
    ],
)
def test_processes_that_cannot_meet_say_so_within_the_limit(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    group = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**group, "GROUP_RANK": "1", "MASTER_ADDR": address, "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    with pytest.raises(InputError, match=message):
        forking.call(train_with_limit, make_config(optim={"batch_size": 32}, trainer={"num_nodes": 2}), 2)
    assert time.monotonic() - started < 60


def train_with_limit(config: Config, seconds: int) -> None:
    plainres.training.train.MEETING = timedelta(seconds=seconds)
    train(Run.of(config))


def test_a_result_that_is_not_finite_is_a_divergence(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.of(make_config())
    result = plainres.training.train._result
    monkeypatch.setattr(plainres.training.train, "_result", lambda *of: result(*of) | {"test_loss": float("inf")})
    with pytest.raises(RunFailedError, match=r"the run has diverged: test_loss not finite; lower optim\.lr"):
        train(run)
    assert run.diverged
    assert not run.finished
