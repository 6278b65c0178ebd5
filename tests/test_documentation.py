"""The README, the manual and the contributing guide: their commands are executed, their links lead somewhere.

`COMMANDS` has every command of these pages. A new one needs an entry that says how it is executed, or why it is not.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

import plainres
from plainres.cli.main import main
from support import forking
from support.images import write_folders
from support.places import PLAINRES, ROOT
from support.wandb_server import WandbServer

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = "plainres make python pip git nice source export torchrun srun tensorboard pytest pre-commit eval grep diff"
README_WORDS = 900


@dataclass(frozen=True)
class Execution:
    """Execution of a command: with `changes` to its overrides, or as `instead`, or not at all, for a `reason`.

    One that is `composed` trains nothing: `plainres describe` composes and checks the same overrides.
    """

    changes: tuple[str, ...] = ()
    composed: bool = False
    instead: str = ""
    reason: str = ""


def shortened(changes: str = "") -> Execution:
    """Execute a command with other values of some overrides, and with additional ones."""
    return Execution(changes=tuple(shlex.split(changes)))


def instead(command: str) -> Execution:
    """Execute a shorter command in place of the documented one."""
    return Execution(instead=command)


def not_run(reason: str) -> Execution:
    """Do not execute a command."""
    return Execution(reason=reason)


AS_IT_STANDS = shortened()
SMALL = shortened("model.depth=8 model.width=4 optim.epochs=1")
SWEEP = shortened("model.depth=8,14 model.width=4 optim.epochs=1 seed=0")
COMPOSED = Execution(composed=True)
COMPOSED_STUDY = Execution(composed=True, changes=("model.depth=20", "model/shortcut=plain", "seed=0"))
ONE_SHORTCUT = "model.depth=8 model.width=4 optim.epochs=1 seed=0"
MEASURED = "--rounds 1 --seconds 0.05"
VENV = not_run("it changes the shell that it is typed into")
CI_CALLS_IT = not_run("CI calls it; below, its target is looked for")
ELSEWHERE = "executed by tests/{}"

# in the order of execution: what trains comes before what looks at its runs
COMMANDS: dict[str, Execution] = {
    # training and sweeps
    "plainres train model.depth=20 model/shortcut=plain": SMALL,
    "plainres train -m model.depth=8,20,56 seed=0,1,2": SWEEP,
    "plainres train -m model.depth=8,20 model/shortcut=plain,identity seed=0,1,2": SWEEP,
    "plainres train experiment=digits": SWEEP,
    "plainres train experiment=digits sweep.priority=[{seed: 0}]": SWEEP,
    "plainres train experiment=digits_learning_rate": shortened(
        "model.depth=8 model/shortcut=plain model.width=4 optim.epochs=1 seed=3 sweep.tune.values=[0.05,0.1,0.2] "
        "sweep.tune.seeds=[0] sweep.tune.extensions=0"
    ),
    "plainres train -m model.depth=8,56 seed=3,4,5 data.validation_per_class=20 sweep.tune.option=optim.weight_decay "
    "sweep.tune.values=[0.00005,0.0001,0.0002] sweep.tune.seeds=[0,1,2] sweep.tune.equal=0.0001": shortened(
        "model.depth=8 model.width=4 optim.epochs=1 seed=3 sweep.tune.seeds=[0] sweep.tune.extensions=0 study=decay"
    ),
    "plainres train -m seed=0,1 sweep.runs_per_device=2": SMALL,
    "plainres train experiment=digits seed=0 study=before": shortened("model.depth=8 model.width=4 optim.epochs=1"),
    "plainres train experiment=digits seed=0 study=after": shortened("model.depth=8 model.width=4 optim.epochs=1"),
    "plainres train model.depth=20 checkpoint.every_minutes=1 checkpoint.every_n_steps=1000": SMALL,
    "plainres train model=preactivation model.depth=56": SMALL,
    "plainres train model.block.kernels=[3] model.depth=14": shortened("model.depth=5 model.width=4 optim.epochs=1"),
    "plainres train model/block/order=full_preactivation model/norm=group": SMALL,
    "plainres train model.depth=32 model/shortcut=plain model/activation=tailored model/norm=none "
    "model/init=delta_orthogonal": shortened(f"{shlex.join(SMALL.changes)} model.depth=32"),
    "plainres train data=imagenet data.path=FOLDER model=imagenet model.depth=18 optim=he2015_imagenet "
    "trainer.workers=8": COMPOSED,
    "plainres train data=digits data.validation_per_class=20": SMALL,
    "plainres train model=wide model.depth=14 model.width=32": SMALL,
    "plainres train data=synthetic data.shape=[3,32,32] data.train=1024": shortened(
        "data.shape=[3,8,8] data.train=64 model.depth=8 model.width=4 optim.epochs=1"
    ),
    "plainres train model.depth=20 probes=[responses,gradients] probes.gradients.every_n_steps=100": SMALL,
    "plainres train experiment=digits_probes": shortened(f"{ONE_SHORTCUT} model/shortcut=plain probes=[signals]"),
    "plainres train --config-dir=conf experiment=narrow": shortened("model.depth=8 optim.epochs=1 seed=0"),
    "PYTHONPATH=. plainres train --config-dir=conf experiment=digits model/shortcut=plain,identity,halved": shortened(
        ONE_SHORTCUT
    ),
    "PYTHONPATH=. plainres train --config-dir=conf experiment=digits model=preactivation model.width=8 "
    "model/shortcut=identity,momentum study=momentum": shortened(ONE_SHORTCUT),
    "plainres train model=preactivation model.depth=56 model/shortcut=hyper_connections "
    "model.shortcut.streams=2": SMALL,
    "plainres train -m model=mlp model.depth=100 model/shortcut=plain,identity model/norm=layer": SMALL,
    "plainres train -m model.depth=8,56 model.width=8 model/shortcut=plain,identity seed=0,1,2 study=classroom": SWEEP,
    "plainres train -m model.depth=56 model.width=8 model/shortcut=plain,identity optim.epochs=40 study=longer": SMALL,
    "plainres train model.depth=8 trainer=ddp trainer.accelerator=cpu trainer.devices=2": SMALL,
    "plainres train -m model.depth=8,20 trainer=ddp trainer.accelerator=cpu trainer.devices=2": not_run(
        ELSEWHERE.format("launch/test_sweep.py: test_several_devices_inside_a_sweep")
    ),
    "plainres train -m seed=0,1,2 hydra/launcher=joblib": not_run(
        ELSEWHERE.format("launch/test_hydra_launchers.py, with joblib")
    ),
    "plainres train experiment=digits hydra/launcher=ray": not_run(ELSEWHERE.format("launch/test_ray.py")),
    # images of one's own
    "plainres describe data=images data.path=flowers data.stored=32 model.depth=8": AS_IT_STANDS,
    "plainres train -m data=images data.path=flowers data.stored=32 model.depth=8,20 model/shortcut=plain,identity "
    "seed=0,1,2 study=flowers": shortened("model.depth=8 model.width=4 optim.epochs=1 optim.batch_size=8 seed=0"),
    "plainres report runs/flowers": AS_IT_STANDS,
    "plainres train data=images data.path=photographs data.test_share=0.25 data.damaged=skip": shortened(
        "model.depth=8 model.width=4 optim.epochs=1 optim.batch_size=8"
    ),
    "plainres data list": AS_IT_STANDS,
    "plainres data check": AS_IT_STANDS,
    "plainres data remove --unfinished": AS_IT_STANDS,
    "plainres data remove --older 90": AS_IT_STANDS,
    # loggers
    "plainres train model.depth=14 logger=wandb": shortened("model.width=4 optim.epochs=1"),
    "plainres train experiment=digits logger=wandb": shortened(f"{ONE_SHORTCUT} study=offline"),
    "plainres train experiment=digits logger=wandb logger.mode=online": shortened(
        f"{ONE_SHORTCUT} study=online model/shortcut=plain"
    ),
    "plainres train model.depth=8 logger=tensorboard": shortened("model.width=4 optim.epochs=1 seed=5"),
    "plainres train model.depth=8 logger=[wandb,tensorboard]": shortened("model.width=4 optim.epochs=1 seed=6"),
    "plainres train experiment=digits logger=wandb logger.artifacts=[model,predictions]": shortened(
        f"{ONE_SHORTCUT} study=artifacts"
    ),
    "plainres train experiment=digits logger=wandb logger.mode=online logger.alert=true": shortened(
        f"{ONE_SHORTCUT} study=alerts"
    ),
    "wandb sweep sweep.yaml": not_run(ELSEWHERE.format("tracking/test_wandb_agent.py")),
    "wandb agent ENTITY/plainres/SWEEP": not_run(ELSEWHERE.format("tracking/test_wandb_agent.py")),
    "plainres report runs/digits --wandb": AS_IT_STANDS,
    "plainres wandb-sync runs": AS_IT_STANDS,
    "tensorboard --logdir runs": not_run("TensorBoard is not among the dependencies"),
    # composed only
    **dict.fromkeys(
        (
            "plainres train data=cifar10 optim=cifar10_quick",
            "plainres train data=cifar10 data.path=FOLDER optim=cifar10_quick",
            "plainres train data=cifar10 data.train_per_class=500 optim=cifar10_quick",
            "plainres train data=cifar10 data.validation_per_class=500 optim=cifar10_quick",
            "plainres train data=cifar10 optim=he2015 model.depth=20",
            "plainres train data=cifar10 optim=he2015 optim.steps=null optim.epochs=200 model.depth=20",
            "plainres train data=cifar10 optim=he2015 model.depth=110 optim.warmup_lr=0.01",
            "plainres train data=cifar10 optim=he2015 model.depth=20 trainer=ddp trainer.accelerator=cpu "
            "trainer.devices=2",
            "plainres train model.depth=20 trainer=ddp trainer.devices=4",
            "plainres train -m seed=0,1,2 trainer=ddp trainer.devices=4",
        ),
        COMPOSED,
    ),
    **dict.fromkeys(
        (
            "plainres train experiment=cifar10_quick",
            "plainres train experiment=cifar10_short seed=0",
            "plainres train experiment=cifar10_degradation trainer=gpu",
            "plainres train experiment=cifar10_degradation trainer=gpu hydra/launcher=slurm "
            "hydra.launcher.partition=main hydra.launcher.gpus_per_node=1 hydra.launcher.timeout_min=240",
            "plainres train experiment=cifar10_degradation trainer=gpu hydra/launcher=ray "
            "hydra.launcher.ray.init.address=auto hydra.launcher.ray.remote.num_gpus=1",
        ),
        COMPOSED_STUDY,
    ),
    **dict.fromkeys(
        (
            "plainres train model.depth=20 data=cifar10 model.weights=resnet20-12fca82f.th",
            "plainres train model.depth=20 data=cifar100 model.weights=resnet20-12fca82f.th model.head=new",
        ),
        not_run(ELSEWHERE.format("models/test_weights.py and analysis/test_exchange.py; the file is not ours")),
    ),
    "torchrun --nnodes=2 --nproc-per-node=4 --max-restarts=3 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 "
    "-m plainres train trainer=ddp trainer.devices=4 trainer.num_nodes=2": not_run(
        ELSEWHERE.format("launch/test_hydra_launchers.py: test_torchrun_on_two_machines")
    ),
    "srun --nodes=2 --ntasks-per-node=4 plainres train trainer=ddp trainer.devices=4 trainer.num_nodes=2": not_run(
        ELSEWHERE.format("launch/test_hydra_launchers.py: test_one_run_by_srun")
    ),
    "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1": VENV,
    # looking at configurations
    "plainres list": AS_IT_STANDS,
    "plainres train experiment=digits --dry-run": SWEEP,
    "plainres train experiment=digits --dry-run --json": SWEEP,
    "plainres train experiment=digits --json > trained.json": not_run(
        ELSEWHERE.format("cli/test_json_output.py: test_a_sweep_says_what_was_trained")
    ),
    "plainres train experiment=digits seed=0 model.depth=8 --cfg job": AS_IT_STANDS,
    "plainres train --config-dir=conf data=fashion optim=cifar10_quick --cfg job": AS_IT_STANDS,
    "eval $(plainres train -sc install=bash)": not_run(ELSEWHERE.format("cli/test_main.py: test_tab_completes")),
    "plainres describe model.depth=110 data=cifar10": AS_IT_STANDS,
    "plainres describe data=cifar10 model.depth=56 model/shortcut=projection": AS_IT_STANDS,
    "plainres describe data=cifar10 model.depth=56 model/shortcut=projection --json": AS_IT_STANDS,
    "plainres describe data=cifar10 model.depth=20": AS_IT_STANDS,
    "plainres describe model=preactivation model.depth=56 model/shortcut=mhc": AS_IT_STANDS,
    "plainres describe data=cifar10 model=imagenet model.depth=18": AS_IT_STANDS,
    "plainres describe model.depth=56 model.width=8 model/shortcut=plain": AS_IT_STANDS,
    "plainres describe model.depth=56 model.width=8 model/shortcut=identity": AS_IT_STANDS,
    # looking at runs
    "plainres status runs/default": AS_IT_STANDS,
    "plainres status runs/default --watch": AS_IT_STANDS,
    "plainres status runs": AS_IT_STANDS,
    "plainres status runs/digits --json": AS_IT_STANDS,
    "plainres status runs --json": AS_IT_STANDS,
    "plainres report runs/digits --json": AS_IT_STANDS,
    "plainres report runs/digits": AS_IT_STANDS,
    "plainres report runs/digits --open": AS_IT_STANDS,
    "plainres report runs/digits runs/narrow": AS_IT_STANDS,
    "plainres report runs/digits --format markdown": AS_IT_STANDS,
    "plainres report runs/digits --title Plain against identity --width 7": AS_IT_STANDS,
    "plainres report runs/digits_probes": AS_IT_STANDS,
    "plainres report runs/classroom --open": instead("plainres report runs/classroom --format markdown"),
    "plainres report runs/longer": instead("plainres report runs/longer --format latex"),
    "plainres report experiments/digits": AS_IT_STANDS,
    "grep -h weights_sha256 runs/before/*/result.json > before.txt": AS_IT_STANDS,
    "grep -h weights_sha256 runs/after/*/result.json > after.txt": AS_IT_STANDS,
    "diff before.txt after.txt": AS_IT_STANDS,
    # after training
    "plainres eval RUN": AS_IT_STANDS,
    "plainres eval RUN --json": AS_IT_STANDS,
    "plainres eval RUN data=synthetic data.shape=[1,8,8]": AS_IT_STANDS,
    "plainres export RUN mine.safetensors": AS_IT_STANDS,
    "plainres eval mine.safetensors": AS_IT_STANDS,
    "plainres eval mine.safetensors data=digits model.depth=8": AS_IT_STANDS,
    "plainres lesion RUN RUN2": shortened("--most 1 --draws 1 --images 50"),
    "plainres linearise RUN RUN2": shortened("--steps 1 --images 50"),
    "plainres landscape RUN RUN2": shortened("--points 3 --images 50"),
    "plainres landscape RUN RUN2 --dimensions 2": shortened("--points 2 --images 50"),
    "plainres sharpness RUN RUN2": shortened("--images 50 --tolerance 0.5"),
    **dict.fromkeys(
        (
            "plainres eval resnet50.pth model=imagenet model.depth=50 model/block=bottleneck data=imagenet",
            "plainres eval resnet20-12fca82f.th model.depth=20 data=cifar10",
            "plainres eval ckpt.pth model.stages=4 model.width=64 model.depth=18 model/shortcut=projection "
            "data=cifar10",
        ),
        not_run(ELSEWHERE.format("models/test_weights.py with files of such names; these files are not ours")),
    ),
    # speed
    "plainres bench model.depth=20 model.width=8": instead(
        f"plainres bench model.depth=8 model.width=4 optim.epochs=1 {MEASURED}"
    ),
    "plainres bench experiment=digits": instead(f"plainres bench {ONE_SHORTCUT} study=digits {MEASURED}"),
    "plainres bench experiment=cifar10_quick": not_run(
        ELSEWHERE.format("benchmark/test_measure.py: test_a_study_is_measured_network_by_network, of another study")
    ),
    "plainres bench data=cifar10 optim=he2015 model.depth=20 trainer.threads=2 --rounds 5 --seconds 3 --json": instead(
        "plainres describe data=cifar10 optim=he2015 model.depth=20 trainer.threads=2 --json"
    ),
    "plainres bench model.depth=20 sweep.runs_per_device=2": not_run(
        ELSEWHERE.format("benchmark/test_measure.py, in the test's process")
    ),
    # the checkout
    "make study": CI_CALLS_IT,
    "make test": CI_CALLS_IT,
    "source .venv/bin/activate": VENV,
    "pytest -q tests/models": not_run("it is this"),
    "pre-commit install": not_run("pre-commit is not among the dependencies"),
    "python -m pip install jupyterlab tensorboard": not_run("it needs a package index; below, pip is looked for"),
    "python -m pip install tensorboard": not_run("it needs a package index; below, pip is looked for"),
    "python tests/kills.py 100": not_run(ELSEWHERE.format("training/test_resume.py, which imports it")),
    "python tests/kills.py 20 --devices 2": not_run(ELSEWHERE.format("training/test_resume.py, which imports it")),
}


def code_blocks(page: str) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each fenced or indented block; an indented one has no language."""
    fence = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
    for indent, language, text in fence.findall(page):
        yield language, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)
    for text in re.findall(r"(?:(?<=\n\n)|\A)((?: {4}.*(?:\n|$))+)", fence.sub("", page)):
        yield "", re.sub(r"^ {4}", "", text, flags=re.MULTILINE)


def command_lines(page: str) -> Iterator[str]:
    """Yield the command lines of a page: all of a sh block, and what looks like one in others but Python and YAML."""
    for language, text in code_blocks(page):
        if language in ("python", "yaml"):
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            program = next((word for word in words if not re.match(r"[A-Z_]+=", word)), "")
            if words and (language == "sh" or program in STARTS.split()):
                yield line


def normalised(line: str) -> str:
    """Return a command line without its comment, quotes and spacing: its key in COMMANDS."""
    return " ".join(shlex.split(line, comments=True))


def executable(line: str, how: Execution) -> list[str]:
    """Return the words that are executed for a documented command line."""
    if how.instead:
        return shlex.split(how.instead)
    words = shlex.split(line, comments=True)
    if how.composed:
        words[1] = "describe"
    keys = {change.partition("=")[0] for change in how.changes if "=" in change}
    return [*(word for word in words if word.partition("=")[0] not in keys), *how.changes]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Prepare a folder with the files that the pages show, the evidence of the digits, and a W&B server."""
    first_lines = re.compile(r"(?:# @package _global_\n)?# (\S+\.(?:py|yaml))\n")
    for page in PAGES:
        for language, text in code_blocks(page.read_text()):
            if language in ("python", "yaml") and (named := first_lines.match(text)):
                file = tmp_path / named[1]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
    evidence = shutil.ignore_patterns("report")
    shutil.copytree(ROOT / "experiments" / "digits", tmp_path / "experiments" / "digits", ignore=evidence)
    (tmp_path / "FOLDER").mkdir()
    pixels = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
    for name, images in {"flowers/train": 8, "flowers/test": 2, "photographs": 8}.items():
        files = {f"{name}/{kind}/{index}.png": pixels + index for kind in ("daisy", "rose") for index in range(images)}
        write_folders(tmp_path, files)
    write_folders(tmp_path, {"photographs/rose/8.png": b"damaged"})
    monkeypatch.setenv("PLAINRES_CACHE", str(tmp_path / "decoded"))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, folder in {"WANDB_CACHE_DIR": "cache", "WANDB_CONFIG_DIR": "config", "NETRC": "netrc"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("BROWSER", "true")
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield tmp_path


def execute(words: list[str], place: Path) -> "subprocess.CompletedProcess[str]":
    """Execute a command in `place`: ours in a forked process, others by the shell."""
    environment = dict(os.environ)
    while match := re.fullmatch(r"([A-Z_]+)=(.*)", words[0]):
        environment[match[1]] = match[2]
        words = words[1:]
    if words[0] == "plainres":
        return forking.run([PLAINRES, *words[1:]], timeout=120, cwd=place, env=environment)
    command = " ".join(words)
    return subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True, check=False)


def test_every_command_of_the_documentation(place: Path) -> None:
    lines = {normalised(line): line for page in PAGES for line in command_lines(page.read_text())}
    assert not sorted(lines.keys() - COMMANDS.keys()), "commands without an entry in COMMANDS"
    assert not sorted(COMMANDS.keys() - lines.keys()), "entries of COMMANDS that no page has"
    runs = []
    for depth in (8, 14):
        trained = execute(shlex.split(f"plainres train model.depth={depth} optim.epochs=1 study=trained"), place)
        runs.append(trained.stdout.splitlines()[-1])
    failed = []
    for command, how in COMMANDS.items():
        if not how.reason:
            words = [{"RUN": runs[0], "RUN2": runs[1]}.get(word, word) for word in executable(lines[command], how)]
            done = execute(words, place)
            if done.returncode:
                failed.append(f"{' '.join(words)}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    assert not failed, "\n\n".join(failed)


def test_commands_are_found_in_every_kind_of_block() -> None:
    page = (
        "Text.\n\n    plainres train a=1 \\\n        b=2   # why\n    and what it prints\n\n"
        "```sh\nX=1 other 'c d'\n# only a comment\n```\n\n"
        "1. An item\n\n    ```sh\n    plainres report x\n    ```\n\n```python\nplainres = 1\n```\n\n```\nmake it\n```\n"
    )
    assert sorted(map(normalised, command_lines(page))) == [
        "X=1 other c d",
        "make it",
        "plainres report x",
        "plainres train a=1 b=2",
    ]


@pytest.mark.parametrize("target", ["study", "test"])
def test_the_makefile_has_the_documented_targets(target: str) -> None:
    subprocess.run(["make", "-n", "-C", ROOT, target], capture_output=True, check=True)
    said = subprocess.run(["make", "-s", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^{target} +\S", said, re.MULTILINE)


def test_the_lock_has_pip() -> None:
    assert re.search(r"^pip==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert version("pip")  # its metadata: a search for the module itself would break a later import of setuptools


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], target


def test_every_page_of_the_manual_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name})" not in readme]


def test_the_parameters_are_those_of_the_networks(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "your-number-differs.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [\d.]+M \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert [int(depth) for depth, *_ in rows] == [20, 32, 44, 56, 110, 1202]
    made = [row for row in rows if row[0] in ("20", "56")]  # the deeper ones take seconds to make
    for shortcut, column in {"plain": 1, "identity": 1, "projection": 2, "projection_all": 3}.items():
        depths = ",".join(row[0] for row in made)
        command = ["describe", "-m", "data=cifar10", f"model.depth={depths}", f"model/shortcut={shortcut}", "--json"]
        assert main(command) == 0
        counted = [network["parameters"] for network in json.loads(capsys.readouterr().out)]
        assert counted == [int(row[column].replace(",", "")) for row in made]
    for n, row in [((int(row[0]) - 2) // 6, row) for row in rows]:  # and all of them by their closed forms
        plain = 97_216 * n - 21_926
        expected = [plain, plain + 2_752, plain + 5_600 * n - 2_560]
        assert [int(count.replace(",", "")) for count in row[1:]] == expected


def test_the_python_page(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    cells = [text for language, text in code_blocks(page) if language == "python"]
    assert cells
    for cell in cells:
        done = forking.run([sys.executable, "-c", cell], timeout=120, cwd=tmp_path)
        assert done.returncode == 0, f"{cell}\n{done.stderr}"
        assert done.stdout, cell


def test_the_python_page_has_every_public_name() -> None:
    names = re.findall(r"`(\w+)(?:\(|`)", (ROOT / "docs" / "python.md").read_text().partition("\n## ")[0])
    assert set(plainres.__all__) <= set(names)
