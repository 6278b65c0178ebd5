"""Tests of the command line: in this process for its messages, in a separate one for exit codes, signals and pipes."""

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from plainres.cli.main import COMMANDS, HELP, WITHOUT_OVERRIDES, main
from plainres.config import compose
from support import forking
from support.places import CONF, PLAINRES, ROOT

SMALL = ["model.depth=8", "model.width=4", "optim.epochs=2", "data=synthetic", "data.train=128", "data.shape=[1,8,8]"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plainres"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return forking.run([PLAINRES, *arguments], env=os.environ | environment)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from plainres.cli.main import main; main(['--help']); print(sorted(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "plainres train [OVERRIDES]" in output
    assert not [name for name in ("torch", "hydra", "numpy", "matplotlib", "yaml") if f"'{name}'" in output]


def test_every_command_has_its_own_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in COMMANDS:
        if command == "train":
            assert main([command, "--help"]) == 0
        else:
            with pytest.raises(SystemExit) as stop:
                main([command, "--help"])
            assert stop.value.code == 0
        output = capsys.readouterr().out
        assert output.startswith(f"usage: plainres {command} ")
        assert f"  plainres {command} " in HELP
        assert ("plainres list" in output) == (command not in WITHOUT_OVERRIDES or command == "list")
        for line, following in pairwise([*output.splitlines(), ""]):
            assert len(line) <= 80
            if line.startswith("  -"):
                assert re.search(r"\S  +\S", line) or following.startswith(" " * 8), "an option without an explanation"


def test_help_of_train_fits_on_one_screen_and_imports_nothing_heavy() -> None:
    code = "import sys; from plainres.cli.main import main; main(['train', '-h']); print('hydra' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.endswith("\nFalse\n")
    assert len(output.splitlines()) <= 40
    for word in ("experiment=digits", "--dry-run", "--cfg job", "--config-dir", "plainres list", "resume", "-m"):
        assert word in output


def test_the_main_help_fits_into_80_columns() -> None:
    assert max(map(len, HELP.splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("status", "plainres status needs FOLDER, as in `plainres status runs/digits`"),
        ("report", "plainres report needs FOLDER, as in `plainres report runs/digits`"),
        ("lesion", "plainres lesion needs RUN, as in `plainres lesion runs/digits/identity-"),
        ("export", "plainres export needs RUN and FILE, as in `plainres export runs/digits/identity-"),
        ("data", "plainres data needs ACTION, as in `plainres data list`"),
        ("wandb-sync", "plainres wandb-sync needs FOLDER, as in `plainres wandb-sync runs/digits`"),
    ],
)
def test_a_missing_argument_is_named_with_an_example(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command]) == 2
    output = capsys.readouterr().err
    assert output.startswith(f"plainres: {message}")
    assert output.count("\n") == 1


def test_help_with_the_name_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "train"]) == 0
    assert capsys.readouterr().out.startswith("usage: plainres train ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"plainres {importlib.metadata.version('plainres')}\n"


def test_list_shows_every_option_with_the_first_line_of_its_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    for file in CONF.rglob("*.yaml"):
        group = file.parent.relative_to(CONF).as_posix()
        if group != ".":
            first = next(line for line in file.read_text().splitlines() if not line.startswith("# @package"))
            assert f"\n{group}\n" in f"\n{output}"
            assert re.search(rf"^  {file.stem} +{re.escape(first.removeprefix('# '))}$", output, re.MULTILINE)
            assert first.endswith("."), f"{file}: the first line is not a sentence"
    assert max(map(len, output.splitlines())) <= 150


def test_list_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_list_shows_the_launchers_of_plugins_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "hydra/launcher"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["hydra/launcher"]
    assert ["basic", "plainres itself, on this machine."] in lines
    assert ["joblib", "The plugin hydra_joblib_launcher."] in lines


def test_list_shows_no_path_of_a_file_as_its_description(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    option = tmp_path / "conf" / "data" / "own.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("# conf/data/own.yaml\n# Images of mine.\n")
    assert main(["list", "data", "--config-dir", str(tmp_path / "conf")]) == 0
    assert "  own            Images of mine." in capsys.readouterr().out.splitlines()


def test_list_shows_one_group(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    option = tmp_path / "conf" / "model" / "shortcut" / "halved.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("# y = F(x) + x / 2.\n_target_: mine.Halved\n")
    assert main(["list", "model/shortcut", "--config-dir", "conf"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0] == "model/shortcut"
    assert any(re.fullmatch(r"  halved +y = F\(x\) \+ x / 2\.", line) for line in output)
    assert {line.split()[0] for line in output[1:]} == {
        file.stem for file in [option, *(CONF / "model" / "shortcut").glob("*.yaml")]
    }


def test_options_of_hydra_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "model.depth=32", "--cfg", "job"]) == 0
    assert "depth: 32" in capsys.readouterr().out
    info = run("train", "model.depth=32", "--info", "defaults")
    assert info.returncode == 0
    assert "model/shortcut" in info.stdout
    assert not list(Path.cwd().iterdir())


def test_one_run_prints_its_folder_last_and_is_not_trained_again(tmp_path: Path) -> None:
    command = [PLAINRES, "train", *SMALL]
    first = subprocess.run(command, capture_output=True, text=True, check=False)  # an interpreter of its own
    assert first.returncode == 0, first.stderr
    folder = tmp_path / first.stdout.splitlines()[-1]
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "code.json",
        "config.yaml",
        "data.json",
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
    assert "same training budget: 4 steps of 64 images" in report.stdout
    assert report.stdout.rstrip().endswith("runs/small/report/index.html")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_describe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "data=cifar10", "model.depth=110", "model/shortcut=projection"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("projection, depth 110, width 16, on cifar10\n")
    assert output.split()[-2:] == ["1,730,714", "253,149,824"]
    assert main(["describe", "data=cifar10", "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert (description["parameters"], description["multiply_adds"]) == (269722, 40551040)
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
        ("model.depth=21", "model.depth is 21; it must be 6n+2 with n >= 1; the nearest valid depths are 20 and 26"),
        (
            "model/shortcut=highwya",
            "did you mean model/shortcut=highway? There are attention_residuals, convolution, decayed_identity, ",
        ),
        (
            "model/block=bottlenek",
            "model/block=bottlenek: there is no such option; did you mean model/block=bottleneck? There are basic, ",
        ),
        ("data=cifar", "data=cifar: there is no such option; did you mean data=cifar10 or data=cifar100? There are "),
        ("experiment=digit", "experiment=digit: there is no such option; did you mean experiment=digits? There are "),
        ("-m data=digits,cifa", "data=cifa: there is no such option; did you mean data=cifar10? There are cifar10, "),
        ("data=mnist", "data=mnist: there is no such option; there are cifar10, cifar100, digits, fashion_mnist, im"),
        ("model/block/order=post", "there are bn_after_addition, fixup, full_preactivation, no_relu_after_addition, "),
        ("model.block.kernels=[2]", "model.block.kernels is [2]; it must be a list of odd kernel sizes"),
        ("model.block.kernels=3", "model.block.kernels is 3; it must be a list of odd kernel sizes"),
        (
            "model.block.order.tail=[gelu]",
            "model.block.order.tail is ['gelu']; it must be a list of any of norm, relu, bias,",
        ),
        ("model/init=xavier", "there are delta_orthogonal, fixup, he_fan_in, he_fan_out, orthogonal, zero_gamma"),
        ("model/norm=instance", "there are batch, group, layer, none"),
        ("model=resnet", "there are cifar, fixup, imagenet, mlp, preactivation, resblk, skipinit, wide"),
        ("model.dept=20", "there is no option model.dept; did you mean model.depth=20?\n"),
        ("sede=1", "there is no option sede; did you mean seed=1?\n"),
        ("optim.batchsize=1", "there is no option optim.batchsize; did you mean optim.batch_size=1?\n"),
        ("lr=0.1", "there is no option lr; did you mean optim.lr=0.1?\n"),
        ("+lr=0.1", "there is no option lr; did you mean optim.lr=0.1?\n"),
        ("+optim.dampening=0", "there is no option optim.dampening; there are batch_size, epochs, steps, lr, "),
        ("++lr=3", "there is no option lr; did you mean optim.lr=3?\n"),
        ("+trainer.max_time=3", "there is no option trainer.max_time; there are accelerator, devices, threads, "),
        ("++optim.learning_rate=3", "there is no option optim.learning_rate; did you mean optim.lr=3?\n"),
        ("+max_epochs=3", "there is no option max_epochs; did you mean optim.epochs=3?\n"),
        ("dataset=digits", "there is no option dataset; did you mean data=digits?\n"),
        ("~optim.lr", "~optim.lr: it cannot be removed; set another value, optim.lr=VALUE\n"),
        ("~sede", "there is no option sede; did you mean seed?\n"),
        ("~study", "study must be set, as in study=VALUE\n"),
        ("~seed", "seed must be set, as in seed=VALUE\n"),
        ("+model.foo=1", "model has no option 'foo'; CifarNet takes in_channels, classes, depth, width, shortcut, "),
        ("++model.foo=1", "model has no option 'foo'; CifarNet takes in_channels, classes, depth, width, shortcut, "),
        ("+data.foo=1", "data has no option 'foo'; Digits takes pad, flip, validation_per_class\n"),
        (
            "+model/foo=x",
            "there is no group model/foo; the groups are data, experiment, hydra/launcher, logger, model, ",
        ),
        ("+hydra.foo=1", "there is no option hydra.foo; there are defaults, mode, searchpath, "),
        ("+probes.foo=1", "probes.foo is 1; it must be a node with _target_, as in conf/probes/gradients.yaml\n"),
        ("+options.data=x", "there is no option options"),
        ("weights_sha256=abc", "there is no option weights_sha256"),
        ("model/shortcut=[plain,identity]", "takes one option, not a list; -m model/shortcut=plain,identity trains a "),
        ("-m model/shortcut=[plain,identity]", "model/shortcut=[plain,identity]: model/shortcut takes one option, "),
        ("data=[digits]", "data=[digits]: data takes one option, not a list; write data=digits\n"),
        ("study=a~b", "study=a~b: ~ must be quoted, as in 'study=\"a~b\"'\n"),
        ("\u2013m seed=0,1", "'\u2013m' begins with an en dash (U+2013), not with a hyphen; write -m\n"),
        ("-m seed=0, 1", "'seed=0,' and '1' are separate words; write seed=0,1 without spaces\n"),
        ("depth=20", "there is no option depth; did you mean model.depth=20?\n"),
        ("epochs=3", "there is no option epochs; did you mean optim.epochs=3?\n"),
        ("epoch=3", "there is no option epoch; did you mean optim.epochs=3?\n"),
        ("shortcut=identity", "there is no option shortcut; did you mean model/shortcut=identity?\n"),
        ("order=fixup", "there is no option order; did you mean model/block/order=fixup?\n"),
        ("model.shortcuts=plain", "there is no option model.shortcuts; did you mean model/shortcut=plain?\n"),
        ("model/shortcuts=plain", "there is no group model/shortcuts; did you mean model/shortcut=plain?\n"),
        (
            "model/x=y",
            "there is no group model/x; the groups are data, experiment, hydra/launcher, logger, model, model/act",
        ),
        ("xyz=1", "there is no option xyz; there are model, data, optim, trainer, checkpoint, logger, study, runs, "),
        ("--depth 20", "there is no option --depth; did you mean model.depth=20?\n"),
        ("--depth=20", "there is no option --depth; did you mean model.depth=20?\n"),
        ("--batch-size 8", "there is no option --batch-size; did you mean optim.batch_size=8?\n"),
        ("--experiment digits", "there is no option --experiment; did you mean experiment=digits?\n"),
        ("-m depth=20,32", "there is no option depth; did you mean model.depth=20,32?\n"),
        ("--xyz 1", "there is no option --xyz; --hydra-help shows Hydra's own options\n"),
        ("--resume", "there is no option --resume; run the same command again, without it, to resume\n"),
        ("resume=true", "there is no option resume; run the same command again, without it, to resume\n"),
        ("optim.steps=40", "; use optim.steps=40 optim.epochs=null\n"),
        ("experiment=digits optim.steps=40", "; use optim.steps=40 optim.epochs=null\n"),
        ("optim=he2015 optim.epochs=3", "optim.steps is 64000 in this recipe, and "),
        ("optim=he2015 optim.epochs=3", "; use optim.epochs=3 optim.steps=null\n"),
        ("optim.epochs=3 optim.steps=40", ": optim.epochs=3 optim.steps=null, or optim.steps=40 optim.epochs=null\n"),
        ("optim.epochs=null", "optim.epochs and optim.steps are both null; give the length in one of the two, such as"),
        ("+model.shortcut.scale=1", "model.shortcut has no option 'scale'"),
        ("optim.batch_size=0", "optim.batch_size is 0; it must be at least 1"),
        ("optim.batch_size=many", "optim.batch_size=many: optim.batch_size must be an integer"),
        ("optim.lr=fast", "optim.lr=fast: optim.lr must be a number"),
        ("optim.epochs=1.5", "optim.epochs=1.5: optim.epochs must be an integer or null"),
        ("seed=null", "seed=null: seed must be an integer"),
        ("sweep.retry_failed=maybe", "sweep.retry_failed=maybe: sweep.retry_failed must be true or false"),
        ("optim.milestones=[x]", "optim.milestones=[x]: optim.milestones[0] must be a number"),
        ("optim.milestones=0.5", "optim.milestones=0.5: optim.milestones must be a list"),
        (
            "probes=[responses,gradient]",
            "probes=gradient: there is no such option; did you mean probes=gradients? There are connections, ",
        ),
        (
            "probes.responses.images=1",
            "there is no option probes.responses; choose the probe as well, as in 'probes=[responses]'\n",
        ),
        ("model-depth=8", "there is no option model-depth; did you mean model.depth=8?\n"),
        ("experiment=mine", "digits_warmup, imagenet_degradation; --config-dir=FOLDER adds those of your own\n"),
        ("-m --cfg=job", "--cfg and --info show one configuration: leave out -m"),
        ("optim.steps.x=1", "optim.steps.x=1"),
        ("model.depth=twenty", "model.depth is 'twenty'; it must be an integer"),
        ("precision=16", "precision is '16'; it must be one of 32-true, bf16-mixed"),
        ("trainer.accelerator=tpu", "trainer.accelerator is 'tpu'; it must be cpu, gpu or mps"),
        ("depth", "'depth' is not an override; write group=option or path.to.key=value, as in "),
        ("~model.depth", "model lacks depth"),
        ("model.shortcut=plain", "choose an option with a slash, model/shortcut=plain"),
        ("model.block=bottleneck", "choose an option with a slash, model/block=bottleneck"),
        ("model.block.order=fixup", "choose an option with a slash, model/block/order=fixup"),
        ("model.norm=group", "choose an option with a slash, model/norm=group"),
        ("model.activation=leaky", "choose an option with a slash, model/activation=leaky"),
        ("model.block.order.pre=null", "model.block.order.pre is None; it must be a list of any of norm, relu"),
        ("model.block.order.pre=[[relu]]", "model.block.order.pre is [['relu']]; it must be a list of any of norm"),
        ("model.block.kernels=[true]", "model.block.kernels is [True]; it must be a list of odd kernel sizes"),
        ("model.weights=nowhere.pth", "model.weights=nowhere.pth: there is no such file"),
        ("model.weights=123", "model.weights=123: it cannot be read"),
        ("model.weights=.", "model.weights=.: it cannot be read"),
        (
            "model.depth=8,20",
            "plainres: model.depth=8,20 lists several values: add -m for a run with each of them, or give one value\n",
        ),
        ("optim.lr=inf", "optim.lr is inf; it must be above 0 and finite"),
        ("study=../x", "study is '../x'; it must be the name of a folder"),
        ("runs=", "runs is empty"),
    ],
)
def test_invalid_overrides_get_one_line(
    command: str, override: str, message: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([command, *override.split()]) == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_a_missing_data_folder(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "data=cifar10", "data.path=nowhere", f"data.cache={tmp_path / 'cache'}"]) == 2
    assert capfd.readouterr().err == "plainres: data.path=nowhere: there is no such folder\n"
    assert not list(tmp_path.iterdir())


def test_a_missing_file_of_weights(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = "model.weights=nowhere.pth"
    for command in (["train", missing], ["train", "-m", "seed=0,1", missing], ["eval", "nowhere.pth"]):
        assert main([*command, *SMALL]) == 2
        assert "nowhere.pth: there is no such file" in capfd.readouterr().err
        assert not list(tmp_path.iterdir())


def test_an_unwritable_runs_folder(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert main(["train", *SMALL, "runs=file/runs"]) == 2
    message = capfd.readouterr().err
    assert "cannot write the run's folder file/runs/" in message
    assert message.count("\n") == 1


def test_a_sweep_with_an_invalid_run_trains_nothing(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "-m", *SMALL, "model.depth=8,21"]) == 2
    assert "model.depth is 21" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "nowhere is not a folder"),
        (["report", "."], "holds no runs"),
        (
            ["list", "model/shortcat"],
            "there is no group 'model/shortcat'; did you mean `plainres list model/shortcut`?\n",
        ),
        (["list", "init"], "there is no group 'init'; did you mean `plainres list model/init`?\n"),
        (["list", "xyz"], "there is no group 'xyz'; the groups are data, experiment, hydra/launcher, logger, model, "),
        (["list", "xyz"], "list one with its whole name, as in `plainres list model/shortcut`\n"),
        (["trian"], "there is no command 'trian'; did you mean `plainres train`?\n"),
        (["xyz"], "there is no command 'xyz'; the commands are train, list, status, report, describe, bench, eval, "),
        (["plot", "my runs"], "there is no command 'plot'; did you mean `plainres report 'my runs'`?\n"),
        (["resume"], "there is no command 'resume'; to resume, run the same plainres train command again\n"),
        (["depth=20", "-m"], "there is no command 'depth=20'; did you mean `plainres train depth=20 -m`?\n"),
    ],
)
def test_invalid_arguments_get_one_line(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output = capfd.readouterr().err
    assert message in output
    assert output.count("\n") == 1


def test_a_dry_run_lists_the_states_of_the_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sweep = ["train", "-m", *SMALL, "study=small", "model/shortcut=plain,identity"]
    assert main([*sweep, "--dry-run"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[:2]] == ["missing", "missing"]
    assert rows[0].split()[1].startswith("runs/small/plain-8-w4-s0-")
    assert rows[2:4] == ["", "2 runs: 2 missing"]
    assert rows[4].startswith("the time is not known: the speed of 2 of the 2 runs was not measured on this machine")
    assert not list(tmp_path.iterdir())
    assert main(["train", *SMALL, "study=small", "model/shortcut=plain"]) == 0
    (run,) = (tmp_path / "runs" / "small").iterdir()
    failed = Path(rows[1].split()[1])
    failed.mkdir()
    (failed / "failed.json").write_text('{"reason": "the loss is NaN"}')
    capsys.readouterr()
    assert main(["train", "--dry-run", *sweep[1:]]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["finished", f"runs/small/{run.name}"]
    assert rows[1].split(maxsplit=2) == ["failed", str(failed), "the loss is NaN"]
    assert rows[-1] == "2 runs: 1 finished, 1 failed"


def test_a_dry_run_reports_an_invalid_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dry-run", "-m", *SMALL, "model.depth=8,21"]) == 2
    assert "model.depth is 21" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["train", "--cfg", "job"], ["train", "--dry-run"], ["train", "--help"]]
)
def test_a_closed_pipe_is_silent(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with forking.Popen([PLAINRES, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True) as process:
            _, errors = process.communicate(timeout=60)
    finally:
        os.close(writer)
    assert errors == ""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_resume(number: signal.Signals, tmp_path: Path) -> None:
    command = [PLAINRES, "train", *SMALL, "optim.epochs=10000"]
    stopped = forking.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("runs/default/*/metrics.csv")):
        assert stopped.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    stopped.send_signal(number)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + number
    assert "run the same command again to resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("runs/default/*/result.json"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_before_the_first_run_says_so(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(compose, "compose_jobs", lambda _: signal.raise_signal(number))
    assert main(["train", *SMALL]) == 128 + number
    message = "plainres: stopped before any run had started; run the same command again to start\n"
    assert capfd.readouterr().err == message
    assert not list(tmp_path.iterdir())


def test_an_invalid_yaml_file_is_named_with_its_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" not in run("describe", "model.depth=21").stderr
    for process in (
        run("describe", "model.depth=21", "--debug"),
        run("describe", "model.depth=21", HYDRA_FULL_ERROR="1"),
    ):
        assert process.returncode == 2
        assert "Traceback" in process.stderr
        assert process.stderr.splitlines()[-1].startswith("plainres: model.depth is 21")


def example(folder: Path, heading: str, following: str) -> tuple[set[str], list[str]]:
    """Write the files of a section of docs/networks.md to a folder; return their names and the section's commands."""
    page = (ROOT / "docs" / "networks.md").read_text()
    section = page[page.index(f"## {heading}") : page.index(f"## {following}")]
    blocks = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", section, re.DOTALL))
    for name, text in blocks.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return set(blocks), re.findall(r"^((?:PYTHONPATH=. )?plainres .*)$", section, re.MULTILINE)


def test_the_documented_connection_of_ones_own(tmp_path: Path) -> None:
    files, (train,) = example(tmp_path, "A connection of your own", "Weights from other projects")
    assert files == {"momentum.py", "conf/model/shortcut/momentum.yaml"}
    command = [PLAINRES, *shlex.split(train)[2:], "model.depth=8,14", "model.width=4", "optim.epochs=1", "seed=0,1"]
    trained = forking.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": "."})
    assert trained.returncode == 0, trained.stderr
    results = [json.loads(file.read_text()) for file in tmp_path.glob("runs/momentum/*/result.json")]
    assert len({result["weights_sha256"] for result in results}) == 8
    refused = forking.run([*command, "model=cifar"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": "."})
    assert refused.returncode == 2
    assert "Momentum hands a state from block to block" in refused.stderr


def test_the_documented_shortcut_of_ones_own(tmp_path: Path) -> None:
    files, (train, report) = example(tmp_path, "A shortcut of your own", "A connection of your own")
    assert files == {"mine.py", "conf/model/shortcut/halved.yaml"}
    path = f"{PLAINRES.parent}{os.pathsep}{os.environ['PATH']}"

    def shell(line: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PATH": path}
        return subprocess.run(
            line, cwd=tmp_path, shell=True, capture_output=True, text=True, check=False, env=environment
        )

    trained = shell(f"{train} model.depth=8,14 model.width=4 optim.epochs=1 seed=0,1")
    assert trained.returncode == 0, trained.stderr
    assert "halved-8-w4-s0" in trained.stderr
    reported = shell(report)
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
    process = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(process.stdout.split()) == completions, process.stderr


def test_the_makefile_runs_the_study_and_its_report() -> None:
    commands = subprocess.run(["make", "-n", "-C", ROOT, "study"], capture_output=True, text=True, check=True).stdout
    assert commands.index("plainres train experiment=digits") < commands.index("plainres report runs/digits")


@pytest.mark.parametrize("flag", ["--dryrun", "--dry_run", "--dry-rn"])
def test_a_misspelt_dry_run_is_not_a_run(flag: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", *SMALL, flag]) == 2
    assert capfd.readouterr().err == f"plainres: there is no option {flag}; did you mean --dry-run?\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (2, 0, 3, 1), (3, 0, 1, 2), (0, 2, 1, 3)])
def test_flags_may_stand_anywhere_among_the_overrides(
    order: tuple[int, ...], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a=b" / "model" / "shortcut").mkdir(parents=True)
    (tmp_path / "a=b" / "model" / "shortcut" / "own.yaml").write_text("defaults: [identity]\n")
    parts = [["--config-dir", "a=b"], ["model/shortcut=own"], ["--cfg", "job"], ["model.depth=14"]]
    assert main(["train", *(word for number in order for word in parts[number])]) == 0
    assert "depth: 14" in capfd.readouterr().out


SHORTCUT = """
from torch import nn

class Own(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()

    def forward(self, x, fx):
        return fx
"""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("Own(nn.Module)", "Own(nn.Module"), "model.shortcut._target_=own{n}.Own: own{n}.py, line 4: SyntaxError: "),
        (("from torch import nn", ""), "model.shortcut._target_=own{n}.Own: own{n}.py, line 4: NameError: name 'nn' "),
        (("class Own", "class Mine"), "module 'own{n}' has no attribute 'Own'; it has Mine\n"),
        (("super().__init__()", "self.norm = nn.ReLU()"), "model: own{n}.py, line 6: AttributeError: cannot assign "),
        (("return fx", "return gx"), "model fails on images of shape [1, 8, 8]: own{n}.py, line 9: NameError: name "),
        (("return fx", "fx"), "must be Tensor, not NoneType (--debug shows where)\n"),
    ],
)
def test_a_mistake_in_a_shortcut_of_ones_own_is_one_line(
    changes: tuple[str, str],
    message: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    name = f"own{abs(hash(changes))}"  # a module is imported once
    (tmp_path / f"{name}.py").write_text(SHORTCUT.replace(*changes))
    monkeypatch.syspath_prepend(tmp_path)
    option = tmp_path / "conf" / "model" / "shortcut" / "own.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(f"_target_: {name}.Own\n_partial_: true\n")
    options = [*SMALL, "--config-dir=conf", "model/shortcut=own"]
    assert main(["train", *options, "--dry-run"]) == 2
    captured = capfd.readouterr()
    assert message.replace("own{n}", name) in captured.err
    assert captured.err.count("\n") == 1
