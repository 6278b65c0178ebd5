"""The command line, in this process where its words are the point, in one of its own where the process is."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plainres.cli.main import main
from support import forking
from support.places import CONF, PLAINRES, ROOT

SMALL = ["model.depth=8", "model.width=4", "optim.epochs=2", "data=synthetic", "data.train=128", "data.shape=[1,8,8]"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plainres"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return forking.run([PLAINRES, *arguments], env=os.environ | environment)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from plainres.cli.main import main; main(['--help']); print(sorted(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "plainres train [OVERRIDES]" in said
    assert not [name for name in ("torch", "hydra", "numpy", "matplotlib", "yaml") if f"'{name}'" in said]


def test_help_of_train_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert "model/shortcut: convolution, dropout, exclusive_gating, highway, identity, plain, projection, " in said
    assert "experiment=digits" in said
    for file in (CONF / "experiment").glob("*.yaml"):
        first = file.read_text().splitlines()[1].removeprefix("# ")
        assert f"  {file.stem} " in said
        assert f" {first}\n" in said
    assert max(map(len, said.splitlines())) <= 200


def test_hydras_own_options_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "model.depth=32", "--cfg", "job"]) == 0
    assert "depth: 32" in capsys.readouterr().out
    info = run("train", "model.depth=32", "--info", "defaults")
    assert info.returncode == 0
    assert "model/shortcut" in info.stdout
    assert not list(Path.cwd().iterdir())


def test_one_run_prints_its_folder_last_and_the_second_time_trains_nothing(tmp_path: Path) -> None:
    command = [PLAINRES, "train", *SMALL]
    first = subprocess.run(command, capture_output=True, text=True, check=False)  # an interpreter of its own
    assert first.returncode == 0, first.stderr
    folder = tmp_path / first.stdout.splitlines()[-1]
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "lock",
        "metrics.csv",
        "result.json",
    ]
    assert "Warning" not in first.stderr
    assert "GPU available" not in first.stderr
    written = (folder / "result.json").stat().st_mtime_ns
    second = run("train", *SMALL)
    assert second.returncode == 0
    assert "is finished already" in second.stderr
    assert second.stdout == first.stdout
    assert (folder / "result.json").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_sweep_and_its_report(tmp_path: Path) -> None:
    sweep = ("train", *SMALL, "model.depth=8,14", "model/shortcut=plain,identity", "seed=0,1", "study=small", "-m")
    first = run(*sweep)
    assert first.returncode == 0, first.stderr
    assert "8 runs\n      8 missing\n" in first.stderr
    assert "[8/8]" in first.stderr
    second = run(*sweep)
    assert second.returncode == 0
    assert "8 runs\n      8 finished\n" in second.stderr
    report = run("report", "runs/small")
    assert report.returncode == 0, report.stderr
    assert "equal training budget: 4 steps of 64 images" in report.stdout
    assert report.stdout.rstrip().endswith("runs/small/report/index.html")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_describe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "data=cifar10", "model.depth=110", "model/shortcut=projection"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("projection, depth 110, width 16, on cifar10\n")
    assert said.split()[-2:] == ["1,730,714", "253,149,824"]
    assert main(["describe", "data=cifar10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parameters"], found["multiply_adds"]) == (269722, 40551040)
    assert main(["describe", "-m", "data=cifar10", "model.depth=20,32", "seed=0,1", "--json"]) == 0
    assert [each["parameters"] for each in json.loads(capsys.readouterr().out)] == [269722, 464154]
    assert main(["describe", "-m", "model/norm=batch,none", "model.width=4,8", "--json"]) == 0
    names = [each["network"] for each in json.loads(capsys.readouterr().out)]
    assert names == [
        f"identity (norm {norm}, width {width}), depth 20, width {width}, on digits"
        for norm in ("batch", "none")
        for width in (4, 8)
    ]


@pytest.mark.parametrize("command", ["train", "describe"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depth=21", "model.depth is 21; it must be 6n+2 with n at least 1: the nearest are 20 and 26"),
        (
            "model/shortcut=highwya",
            "there are convolution, dropout, exclusive_gating, highway, identity, plain, projec",
        ),
        (
            "model/block=bottlenek",
            "model/block=bottlenek: there is no such option; there are basic, bottleneck, resblk",
        ),
        ("model/block/order=post", "there are bn_after_addition, fixup, full_preactivation, no_relu_after_addition, "),
        ("model.block.kernels=[2]", "model.block.kernels is [2]; it is a list of odd kernel sizes"),
        ("model.block.kernels=3", "model.block.kernels is 3; it is a list of odd kernel sizes"),
        (
            "model.block.order.tail=[gelu]",
            "model.block.order.tail names 'gelu'; it is a list of any of norm, relu, bias,",
        ),
        ("model/init=xavier", "there are delta_orthogonal, fixup, he_fan_in, he_fan_out, orthogonal, zero_gamma"),
        ("model/norm=layer", "there are batch, group, none"),
        ("model=resnet", "there are cifar, fixup, imagenet, preactivation, resblk, skipinit, wide"),
        ("model.dept=20", "there is no option model.dept (did you mean depth?)"),
        ("sede=1", "there is no option sede (did you mean seed?)"),
        ("optim.batchsize=1", "there is no option optim.batchsize (did you mean batch_size?)"),
        ("+model.shortcut.scale=1", "model.shortcut has no option 'scale'"),
        ("optim.batch_size=0", "optim.batch_size is 0; it must be at least 1"),
        ("optim.batch_size=many", "optim.batch_size=many: optim.batch_size must be a whole number"),
        ("optim.lr=fast", "optim.lr=fast: optim.lr must be a number"),
        ("optim.epochs=1.5", "optim.epochs=1.5: optim.epochs must be a whole number or null"),
        ("seed=null", "seed=null: seed must be a whole number"),
        ("sweep.retry_failed=maybe", "sweep.retry_failed=maybe: sweep.retry_failed must be true or false"),
        ("optim.milestones=[x]", "optim.milestones=[x]: optim.milestones[0] must be a number"),
        ("optim.milestones=0.5", "optim.milestones=0.5: optim.milestones must be a list"),
        (
            "probes=[responses,gradient]",
            "probes=gradient: there is no such option; there are gradient_correlation, gradients, responses, signals",
        ),
        ("probes.responses.images=1", "there is no option probes.responses\n"),
        ("-m --cfg=job", "--cfg and --info show one configuration: leave out -m"),
        ("optim.steps.x=1", "optim.steps.x=1"),
        ("model.depth=twenty", "model.depth is 'twenty'; it must be a whole number"),
        (
            "data=cifar11",
            "data=cifar11: there is no such option; there are cifar10, cifar100, digits, imagenet, synthetic",
        ),
        ("precision=16", "precision is '16'; it must be one of 32-true, bf16-mixed"),
        ("trainer.accelerator=tpu", "trainer.accelerator is 'tpu'; it must be cpu or gpu"),
        ("depth", "missing EQUAL"),
        ("~model.depth", "model lacks depth"),
        ("model.shortcut=plain", "it is chosen with a slash, model/shortcut=plain"),
        ("model.block=bottleneck", "it is chosen with a slash, model/block=bottleneck"),
        ("model.block.order=fixup", "it is chosen with a slash, model/block/order=fixup"),
        ("model.norm=group", "it is chosen with a slash, model/norm=group"),
        ("model.block.order.pre=null", "model.block.order.pre names None; it is a list of any of norm, relu"),
        ("model.block.order.pre=[[relu]]", "model.block.order.pre names ['relu']; it is a list of any of norm"),
        ("model.block.kernels=[true]", "model.block.kernels is [True]; it is a list of odd kernel sizes"),
        ("model.weights=nowhere.pth", "model.weights=nowhere.pth: there is no such file"),
        ("model.weights=123", "model.weights=123: it cannot be read"),
        ("model.weights=.", "model.weights=.: it cannot be read"),
        ("model.depth=8,20", "to train each of several values, add -m"),
        ("optim.lr=inf", "optim.lr is inf; it must be above 0 and finite"),
        ("study=../x", "study is '../x'; it must be the name of a folder"),
        ("runs=", "runs is empty"),
    ],
)
def test_a_mistake_gets_one_line(
    command: str, override: str, message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([command, *override.split()]) == 2
    said = capfd.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not list(tmp_path.iterdir())


def test_a_missing_data_folder(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "data=cifar10", "data.path=nowhere", f"data.cache={tmp_path / 'cache'}"]) == 2
    assert capfd.readouterr().err == "plainres: data.path=nowhere: there is no such folder\n"
    assert not list(tmp_path.iterdir())


def test_a_missing_file_of_weights(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = "model.weights=nowhere.pth"
    for command in (["train", wrong], ["train", "-m", "seed=0,1", wrong], ["eval", "nowhere.pth"]):
        assert main([*command, *SMALL]) == 2
        assert "nowhere.pth: there is no such file" in capfd.readouterr().err
        assert not list(tmp_path.iterdir())


def test_an_unwritable_runs_folder(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert main(["train", *SMALL, "runs=file/runs"]) == 2
    said = capfd.readouterr().err
    assert "cannot write the run's folder file/runs/" in said
    assert said.count("\n") == 1


def test_a_sweep_with_a_mistake_trains_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "-m", *SMALL, "model.depth=8,21"]) == 2
    assert "model.depth is 21" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "nowhere is not a folder"),
        (["report", "."], "holds no runs"),
        (["trian"], "there is no command 'trian'; there are train, status, report, describe, bench, eval, export, "),
    ],
)
def test_other_mistakes(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capfd.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_how_to_go_on(how: signal.Signals, tmp_path: Path) -> None:
    command = [PLAINRES, "train", *SMALL, "optim.epochs=10000"]
    stopped = forking.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("runs/default/*/metrics.csv")):
        assert stopped.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    stopped.send_signal(how)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + how
    assert "the same command goes on" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not list(tmp_path.glob("runs/default/*/result.json"))


def test_a_yaml_file_with_a_mistake_is_named_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "conf" / "optim" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("defaults: [digits]\nlr: 0.1: 2\n")
    assert main(["train", f"--config-dir={tmp_path / 'conf'}", "optim=mine"]) == 2
    assert f"{file}, line 2: mapping values are not allowed here" in capfd.readouterr().err


def test_a_damaged_record_is_not_a_finished_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL]) == 0
    (record,) = tmp_path.glob("runs/default/*/result.json")
    record.write_text("{}")
    capfd.readouterr()
    for command in (["train", *SMALL], ["train", "-m", *SMALL, "seed=0,1"]):
        assert main(command) == 2
        assert "result.json is damaged (it lacks" in capfd.readouterr().err


def test_the_traceback_is_there_for_who_wants_it() -> None:
    assert "Traceback" not in run("describe", "model.depth=21").stderr
    for said in (run("describe", "model.depth=21", "--debug"), run("describe", "model.depth=21", HYDRA_FULL_ERROR="1")):
        assert said.returncode == 2
        assert "Traceback" in said.stderr
        assert said.stderr.splitlines()[-1].startswith("plainres: model.depth is 21")


def test_the_documented_shortcut_of_ones_own(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "networks.md").read_text()
    section = page[page.index("## A shortcut of your own") : page.index("## Weights of others")]
    blocks = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", section, re.DOTALL))
    assert set(blocks) == {"mine.py", "conf/model/shortcut/halved.yaml"}
    for name, text in blocks.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    train, report = re.findall(r"^((?:PYTHONPATH=. )?plainres .*)$", section, re.MULTILINE)
    path = f"{PLAINRES.parent}{os.pathsep}{os.environ['PATH']}"

    def typed(line: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PATH": path}
        return subprocess.run(
            line, cwd=tmp_path, shell=True, capture_output=True, text=True, check=False, env=environment
        )

    trained = typed(f"{train} model.depth=8,14 model.width=4 optim.epochs=1 seed=0,1")
    assert trained.returncode == 0, trained.stderr
    assert "halved-8-w4-s0" in trained.stderr
    reported = typed(report)
    assert reported.returncode == 0, reported.stderr
    assert "Training error, plain minus halved" in reported.stdout
    assert "halved: 14 minus 8" in reported.stdout
    page = (tmp_path / "runs" / "digits" / "report" / "index.html").read_text()
    assert page.count("halved") > 5
    weights = [json.loads(file.read_text())["weights_sha256"] for file in tmp_path.glob("runs/digits/*/result.json")]
    assert len(set(weights)) == 12


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("line", "completions"),
    [
        ("plainres tr", {"train"}),
        ("plainres train model/shortcut=pro", {"model/shortcut=projection", "model/shortcut=projection_all"}),
        ("plainres train experiment=cifar10_d", {"experiment=cifar10_degradation"}),
        ("plainres eval runs/x trainer=d", {"trainer=ddp"}),
        ("plainres describe model.dep", {"model.depth="}),
    ],
)
def test_tab_completes(line: str, completions: set[str]) -> None:
    script = f"""
        PATH={PLAINRES.parent}:$PATH
        eval "$(plainres train -sc install=bash)"
        COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({line}) COMP_CWORD={len(line.split()) - 1}
        COMP_TYPE=9 COMP_KEY=9
        hydra_bash_completion
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(said.stdout.split()) == completions, said.stderr


def test_the_makefile_runs_the_study_and_its_report() -> None:
    said = subprocess.run(["make", "-n", "-C", ROOT, "study"], capture_output=True, text=True, check=True).stdout
    assert said.index("plainres train experiment=digits") < said.index("plainres report runs/digits")
