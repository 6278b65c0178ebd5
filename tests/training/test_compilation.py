"""torch.compile: when it pays, its effect on rounding, and runs whose compilation fails."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kills import digits, elsewhere, final_state, kill_in_one_process, when
from plainres.config.compose import compose
from plainres.config.instantiate import check, description_of, source_of
from plainres.config.schema import Config, Devices
from plainres.errors import InputError
from plainres.models.networks import CifarNet
from plainres.models.normalisation import convert_batch_norm_by_image
from plainres.models.shortcuts import Dropout, Identity
from plainres.randomness import seed_noise
from plainres.runs.record import Run
from plainres.training import compilation
from plainres.training.compilation import PAYS_FROM, compiled, pays
from plainres.training.train import train
from support import forking
from support.compiler import needs_compiler
from support.places import PLAINRES

Make = Callable[..., Config]
Forward = Callable[[Tensor], Tensor]


def on_cpu(compile: Any = "auto", **changes: Any) -> dict[str, Any]:
    return {"accelerator": "cpu", "devices": 1, "threads": 1, "compile": compile, **changes}


@needs_compiler
def test_a_compiled_run_equals_the_eager_run_to_rounding_and_resumes_bit_exactly(tmp_path: Path) -> None:
    eager = digits(tmp_path / "eager", 10**6)
    train(eager)
    trainer = replace(eager.config.trainer, compile=True)
    whole = Run.of(replace(eager.config, trainer=trainer, runs=str(tmp_path / "compiled")))
    kill_in_one_process(whole, iter([]))
    run = elsewhere(whole, tmp_path / "killed", 7)
    assert kill_in_one_process(run, when(lambda: 7 < run.step < 60)) == 1
    assert final_state(run) == final_state(whole)
    assert (eager.result["compile"], run.result["compile"]) == (False, True)
    assert run.curve()[0] == pytest.approx(eager.curve()[0], rel=1e-2)


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # from torch.compile itself
@pytest.mark.parametrize("shortcut", ["identity", "dropout"])
def test_a_step_compiled_as_a_whole_equals_the_eager_step_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortcut: str
) -> None:
    """As on a GPU: augmentation, network, loss and counting are one function."""
    options = ["data=synthetic", "data.shape=[3,8,8]", "data.train=64", "data.test=16", "optim.batch_size=16"]
    options += ["data.pad=1", "data.flip=true", "model.depth=8", "model.width=4", f"model/shortcut={shortcut}"]
    options += ["optim.steps=6", "optim.epochs=null", "precision=64-true"]
    results = {}
    for name, compile, whole in (("eager", False, ()), ("compiled", True, ("cpu",))):
        torch.compiler.reset()
        monkeypatch.setattr(compilation, "WHOLE", whole)
        (config,) = compose([*options, f"trainer.compile={str(compile).lower()}", f"runs={tmp_path / name}"])
        run = Run.of(config)
        train(run)
        results[name] = run.result
    assert (results["eager"]["compile"], results["compiled"]["compile"]) == (False, True)
    for key in ("train_loss", "train_error", "train_loss_eval", "test_loss", "test_error"):
        assert results["compiled"][key] == pytest.approx(results["eager"][key], rel=1e-9), key


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # from torch.compile itself
def test_a_network_that_draws_random_numbers_for_each_element_compiles() -> None:
    """Inductor would fold the counters of these numbers into indices of 64 bits, which overflow."""
    network = CifarNet(1, 10, 8, 4, Dropout)
    seed_noise(network, 0)
    images = torch.randn(4, 1, 8, 8)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(network.forward, dynamic=False)(images), network(images))


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # from torch.compile itself
def test_results_that_overwrite_no_input_are_the_same() -> None:
    network = CifarNet(3, 10, 8, 16, Identity).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    convert_batch_norm_by_image(network)
    results = []
    for forward in (torch.compile(network.forward, dynamic=False), compiled(network, torch.device("cpu"), mixed=True)):
        torch.compiler.reset()
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(images)
        logits.sum().backward()
        results.append([logits, *(weight.grad for weight in network.parameters())])
    for in_place, not_in_place in zip(*results, strict=True):
        assert torch.equal(in_place, not_in_place)


@pytest.mark.parametrize("precision", PAYS_FROM)
def test_the_length_of_a_run_decides_whether_compilation_pays(make_config: Make, precision: str) -> None:
    config = make_config(precision=precision, trainer=on_cpu(threads=4))
    per_step = 6 * 1000 * config.optim.batch_size  # with 1,000 multiply-adds
    steps = round(4 * PAYS_FROM[precision] / per_step)
    assert pays(config, 1000, steps + 1)
    assert not pays(config, 1000, steps - 1)
    unsupported = ({"devices": 2}, {"accelerator": "gpu"}, {"threads": 8})
    for changes in unsupported:
        assert not pays(replace(config, trainer=Devices(**on_cpu(**{"threads": 4, **changes}))), 1000, steps + 1)


@pytest.mark.parametrize(
    ("options", "images", "expected"),
    [
        (["optim=digits", "model.depth=56", "model.width=8"], 1500, False),  # the longest run of experiment=digits
        (["optim=cifar10_quick", "data=cifar10", "model.depth=56", "model.width=8"], 5000, False),
        (["optim=cifar10_quick", "data=cifar10", "model.depth=56", "precision=bf16-mixed"], 5000, False),
        (["optim=he2015", "data=cifar10", "model.depth=20"], 50_000, True),
        (["optim=he2015", "data=cifar10", "model.depth=20", "optim.steps=5000"], 50_000, False),
        (["optim=he2015", "data=cifar10", "model.depth=20", "optim.steps=5000", "precision=bf16-mixed"], 50_000, True),
    ],
)
def test_short_studies_are_not_compiled(options: list[str], images: int, expected: bool) -> None:
    (config,) = compose(options)
    multiply_adds = description_of(config, source_of(config)).multiply_adds
    steps = config.optim.length(images // config.optim.batch_size)
    assert pays(config, multiply_adds, steps) is expected


def no_op_compiler(forward: Forward, *, dynamic: bool, options: Mapping[str, bool] | None = None) -> Forward:
    assert not dynamic
    return forward


def broken_compiler(forward: Forward, *, dynamic: bool, options: Mapping[str, bool] | None = None) -> Forward:
    def fail(images: Tensor) -> Tensor:
        forward(images)  # changes the statistics of batch normalisation
        raise RuntimeError("No working C++ compiler found\nand more")

    return fail


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("compiler", [no_op_compiler, broken_compiler])
def test_compilation_does_not_change_the_result(
    make_config: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compiler: Callable[..., Forward],
    precision: str,
) -> None:
    alone = Run.of(make_config(shortcut="dropout", precision=precision))
    train(alone)
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setitem(compilation.PAYS_FROM, precision, 0)
    run = Run.of(make_config(shortcut="dropout", precision=precision, study="long"))
    train(run)
    err = capsys.readouterr().err
    assert "compiling the network with torch.compile (a long run)" in err
    compiled = compiler is not broken_compiler
    failure = "torch.compile failed (RuntimeError: No working C++ compiler found); training without it"
    assert ("compiled in" if compiled else failure) in err
    assert run.result["compile"] is compiled
    assert run.result["weights_sha256"] == alone.result["weights_sha256"]
    assert run.curve() == alone.curve()


def test_networks_of_earlier_runs_do_not_keep_one_from_being_compiled(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one function, torch keeps 8 compiled variants; further ones would run uncompiled, with a warning only."""
    calls: list[str] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append("reset"))
    monkeypatch.setattr(
        torch, "compile", lambda *each, **options: calls.append("compile") or no_op_compiler(*each, **options)
    )
    for seed in range(2):
        train(Run.of(make_config(seed=seed, trainer={"compile": True})))
    assert calls == ["reset", "compile"] * 2


def test_a_failed_compilation_that_was_requested_is_an_error(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", broken_compiler)
    run = Run.of(make_config(trainer=on_cpu(True)))
    message = r"No working C\+\+ compiler found\); use trainer.compile=false to train without it"
    with pytest.raises(InputError, match=message):
        train(run)
    assert not run.failure


def test_compilation_that_was_requested_needs_a_compiler(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(trainer=on_cpu(True))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"trainer.compile=true needs a C\+\+ compiler"):
        check(config)
    check(make_config(trainer=on_cpu("auto")))


@pytest.mark.parametrize("value", ["maybe", 1, None])
def test_invalid_values_of_compile_are_rejected(value: Any) -> None:
    with pytest.raises(InputError, match=r"trainer.compile is .*; it must be true, false or auto"):
        Devices(**on_cpu(value))


@needs_compiler
def test_ctrl_c_during_compilation(tmp_path: Path) -> None:
    """The compiler receives the signal, too, which does not count as a failure of the run."""
    options = ["data=synthetic", "model.depth=14", "model.width=8", "optim.epochs=null", "optim.steps=1000000000"]
    command = [PLAINRES, "train", *options, f"runs={tmp_path}"]
    with forking.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        assert "compiling the network with torch.compile (a long run)" in process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "plainres: stopped before any run had started; run the same command again to start"
    assert "Traceback" not in err
    (folder,) = tmp_path.glob("default/*")
    assert not Run.read(folder).failure
