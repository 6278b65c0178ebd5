"""The command line. What a command needs is imported when it is called, so that `plainres --help` is instant."""

import argparse
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plainres import after_training
from plainres.arguments import Arguments, above_zero, whole
from plainres.errors import InputError, RunFailedError, StoppedError

if TYPE_CHECKING:
    from plainres.runs import Run

ON_FOLDERS = (
    "status",
    "report",
    "wandb-sync",
    "export",
    "lesion",
    "landscape",
    "sharpness",
)  # commands that take no overrides

HELP = """\
plainres puts one change to a deep network, the shortcut, on a test bench.

  plainres train [OVERRIDES]        train one network, or a study: see plainres train --help
  plainres status FOLDER [--watch]  how far the runs of a study are
  plainres report FOLDER            compare the finished runs of a study: table, verdict, figures, page; --wandb
  plainres wandb-sync FOLDER        send what was logged to W&B offline: a run, a study, all of runs/
  plainres describe [OVERRIDES]     a network layer by layer; --json for programs
  plainres bench [OVERRIDES]        images/s here, against a bare loop and the customary way; how long a study takes
  plainres eval RUN|WEIGHTS [OVERRIDES]   a trained network on a test set: loss, error, error of each class, predictions
  plainres export RUN FILE          a run's weights as safetensors, in torchvision's names where it has such
  plainres lesion RUN [RUN ...]     finished runs without some of their blocks, or with blocks swapped: errors
  plainres landscape RUN [RUN ...]  the training loss around them, along one or two random directions
  plainres sharpness RUN [RUN ...]  the top eigenvalue of their Hessian

  plainres train experiment=digits && plainres report runs/digits

An override is group=choice or path.to.key=value, as in model/shortcut=plain model.depth=56.
--debug shows the traceback of an error. Tab completion: eval "$(plainres train -sc install=bash)"
"""

EVAL_HELP = """\
plainres eval RUN [OVERRIDES]       a run, by its folder, on its own test set, or, with data=..., on another
plainres eval WEIGHTS [OVERRIDES]   a file of weights (.pth, .th, .safetensors): the overrides say of which network

  plainres eval runs/default/identity-20-w16-s0-a1b2c3d4
  plainres eval resnet50.pth model=imagenet model.depth=50 model/block=bottleneck data=imagenet

Prints loss, error and the error of each class, and writes a row for each image as Parquet: target, prediction, loss,
logits; of a run into its folder, of a file into this one.
"""


BENCH = """\
How fast this machine trains a network, or each network of a study: images/s and ms/step of plainres as you run it, of a
bare loop over the same network, batches and precision in torch alone (the limit), and of the customary way (a
DataLoader whose worker processes crop and mirror image by image; eager float32). They take turns in one process. Then
the parts of a step, the peak memory, and how long the run or the study would take.

  plainres bench data=cifar10 optim=he2015 model.depth=20 trainer.threads=2
  plainres bench experiment=cifar10_degradation trainer=gpu precision=bf16-mixed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code.

    0; 1 if a run failed; 2 if what was asked for cannot be done; 128 + the signal's number if one stopped it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or os.environ.get("HYDRA_FULL_ERROR") == "1"
    command, *rest = [word for word in given if word != "--debug"] or ["--help"]
    try:
        if command in ("--help", "-h", "help"):
            print(HELP, end="")
            return 0
        if command in ("-sc", "--shell-completion"):  # how the shell asks for completions, whatever the command
            return _complete([command, *rest])
        if command not in COMMANDS:
            raise InputError(f"there is no command {command!r}; there are {', '.join(COMMANDS)}")
        return COMMANDS[command](rest)
    except StoppedError as stop:
        from plainres.slurm import requeue

        print(f"plainres: {stop}", file=sys.stderr)
        requeue(stop)
        return 128 + stop.number
    except (InputError, RunFailedError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"plainres: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("plainres: stopped; the same command goes on", file=sys.stderr)
        return 130


def _train(arguments: list[str]) -> int:
    from plainres.processes import place
    from plainres.signals import Signals

    with Signals(early=place().size == 1):
        from plainres.compose import compose_jobs
        from plainres.runs import Run

        jobs = compose_jobs(arguments)
        runs = [Run.of(config) for config in jobs.configs]
        if jobs.launcher != "basic":
            if not jobs.overrides:
                raise InputError(f"hydra/launcher={jobs.launcher} starts the runs of a sweep: add -m")
            from plainres.launchers import sweep_with

            return 1 if sweep_with(jobs) else 0
        if len(runs) > 1:
            from plainres.sweep import sweep

            return 1 if sweep(runs) else 0
        for run in runs:
            _train_one(run)
    return 0


def _train_one(run: "Run") -> None:
    from plainres.processes import place

    if run.finished and run.result:
        print(f"{run.name} is finished already", file=sys.stderr)
    elif (reason := run.failure) and not run.config.retry_failed:
        raise RunFailedError(f"{run.folder} has failed: {reason}; retry_failed=true tries it again")
    else:
        from plainres.build import check
        from plainres.processes import launch

        check(run.config)  # before the seconds that the import of Lightning takes
        launch(run)
    if place().rank == 0:
        result = type(run).of(run.config).result
        print(
            f"train error {result['train_error']:.2f} % (running), {result['train_error_eval']:.2f} % (eval); "
            f"test error {result['test_error']:.2f} %"
        )
        print(run.folder)


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("plainres report", description="Compare the finished runs of a study.")
    parser.add_argument("folder", type=Path, help="the folder of the study's runs, for example runs/digits")
    modes = ("offline", "online")
    parser.add_argument("--wandb", nargs="?", const="offline", choices=modes, help="show it in W&B; offline: later")
    for place, word in enumerate(arguments[1:], 1):
        if arguments[place - 1] == "--wandb" and word not in modes:
            arguments[place - 1] = "--wandb=offline"  # the folder stands behind it
    given = parser.parse_args(arguments)
    from plainres.report import write

    print(write(given.folder))
    if given.wandb:
        from plainres.runs import REPORT
        from plainres.study import read
        from plainres.wandb_study import show

        print(show(read(given.folder), given.folder / REPORT, given.wandb))
    return 0


def _wandb_sync(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("plainres wandb-sync", description="Send to W&B what has not been sent.")
    parser.add_argument("folder", type=Path, help="a run's folder, a study's, or all runs'")
    parser.add_argument(
        "--timeout", type=float, default=60, metavar="SECONDS", help="how long to wait for W&B, each time (60)"
    )
    given = parser.parse_args(arguments)
    from plainres.wandb_sync import sync

    whole = True
    for line, sent in sync(given.folder, given.timeout):
        print(line, file=sys.stdout if sent else sys.stderr, flush=True)
        whole &= sent
    if not whole:
        raise RunFailedError(f"not everything in {given.folder} was sent; the same command tries again")
    return 0


def _status(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("plainres status", description="Say how far the runs of a study are.")
    parser.add_argument("folder", type=Path, help="the folder of the study's runs, for example runs/digits")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="again and again, until nothing is left to train, or nothing has been running for half a minute",
    )
    given = parser.parse_args(arguments)
    from plainres.status import status, watch

    watch(given.folder) if given.watch else print(status(given.folder))
    return 0


def _describe(arguments: list[str]) -> int:
    from plainres.build import description_of, source_of
    from plainres.compose import compose
    from plainres.families import labelled
    from plainres.runs import Run

    runs = [Run.of(config) for config in compose([argument for argument in arguments if argument != "--json"])]
    families = labelled(runs) if runs else {}
    descriptions = {}
    for run in runs:
        config = run.config
        source, model = source_of(config), config.model
        key = (json.dumps(model), *source.shape, source.classes)
        if key not in descriptions:
            label, _ = families[run.name]
            name = f"{label}, depth {model['depth']}, width {model['width']}, on {config.choices['data']}"
            descriptions[key] = name, description_of(config, source)
    if "--json" in arguments:
        from dataclasses import asdict

        found = [{"network": name, **asdict(description)} for name, description in descriptions.values()]
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2))
    else:
        print("\n\n".join(f"{name}\n{description}" for name, description in descriptions.values()))
    return 0


def _bench(arguments: list[str]) -> int:
    parser = Arguments("plainres bench", description=BENCH, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.usage = "plainres bench [OVERRIDES] [--rounds N] [--seconds S] [--json]"
    parser.add_argument("--rounds", type=whole(1), default=5, help="turns of each of the three (5)")
    parser.add_argument(
        "--seconds",
        type=above_zero,
        default=3.0,
        help="about the length of a turn (3); in one below a second what the customary way has prepared before counts",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    given, overrides = parser.parse_known_args(arguments)
    from plainres.compose import compose

    configs = compose(overrides)
    if not configs:
        return 0
    from dataclasses import asdict

    from plainres.bench import bench

    found, estimate = bench(configs, given.rounds, given.seconds)
    if given.json:
        print(json.dumps({"measured": [asdict(one) for one in found], "estimate": estimate}, indent=2))
    else:
        print("\n\n".join(map(str, found)), estimate, sep="\n\n")
    return 0


def _eval(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(EVAL_HELP, end="")
        return 0
    if not arguments or "=" in arguments[0]:
        raise InputError("plainres eval needs the folder of a run or a file of weights first; see plainres eval --help")
    from plainres.build import check, network_of, source_of
    from plainres.evaluate import predict, the_one, trained, with_overrides
    from plainres.runs import Run

    target, overrides = Path(arguments[0]), arguments[1:]
    if not target.exists():
        raise InputError(f"{target}: there is no such file of weights, and no such folder of a run")
    if target.is_dir():
        run = Run.read(target)
        config = with_overrides(run.config, overrides)
        network, name, prefix = trained(run), run.name, f"{target}/"
    else:
        config = the_one(overrides)
        config.model["weights"] = str(target)
        check(config)
        network, name, prefix = network_of(config, source_of(config)), target.stem, f"{target.stem}-"
    found = predict(network, config)
    data = config.choices["data"]
    file = Path(f"{prefix}predictions-{data}.parquet")
    found.save(file)
    print(f"{name} on the test set of {data}")
    print(found)
    print(f"\n{file}")
    return 0


def _export(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("plainres export", description="Write the weights of a run as safetensors.")
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("file", type=Path, help="the file to write, NAME.safetensors")
    given = parser.parse_args(arguments)
    if given.file.suffix != ".safetensors":
        raise InputError(f"{given.file}: the name of the file must end with .safetensors")
    from plainres.runs import Run

    run = Run.read(given.run)
    from plainres.evaluate import trained
    from plainres.weights import save_weights

    names = save_weights(trained(run), run.config.model, given.file)
    print(f"{given.file}: in {names} names")
    return 0


def _complete(arguments: list[str]) -> int:
    """Let Hydra complete what stands behind the name of our command."""
    from plainres.compose import compose

    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if words and (len(words) == 1 or (len(words) == 2 and not line.endswith(" "))):
        print(" ".join(COMMANDS))
        return 0
    if words[1:2] in [[command] for command in ON_FOLDERS] or (
        words[1:2] == ["eval"] and (len(words) + line.endswith(" ")) < 4
    ):
        return 0  # a folder or a file: the shell's own completion
    os.environ["COMP_LINE"] = re.sub(r"^(\S+)\s+(train|describe|bench|eval\s+\S+)(?=\s)", r"\1", line)
    compose(arguments)
    return 0


COMMANDS = {
    "train": _train,
    "status": _status,
    "report": _report,
    "describe": _describe,
    "bench": _bench,
    "eval": _eval,
    "export": _export,
    "lesion": after_training.lesion,
    "landscape": after_training.landscape,
    "sharpness": after_training.sharpness,
    "wandb-sync": _wandb_sync,
}
