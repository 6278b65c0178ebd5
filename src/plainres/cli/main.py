"""The command line: a table of commands, and what their mistakes and signals become on the screen."""

import os
import re
import sys
import traceback
from collections.abc import Sequence

from plainres.cli import analysis, commands
from plainres.errors import InputError, RunFailedError, StoppedError

HELP = """\
plainres puts one change to a deep network, the shortcut, on a test bench.

  plainres train [OVERRIDES]        train one network, or a study: see plainres train --help
  plainres status FOLDER [--watch]  how far the runs of a study are
  plainres report FOLDER ...        compare the finished runs of studies: table, verdicts, figures, page, LaTeX, W&B
  plainres wandb-sync FOLDER        send what was logged to W&B offline: a run, a study, all of runs/
  plainres describe [OVERRIDES]     a network layer by layer; --json for programs
  plainres bench [OVERRIDES]        images/s here, against a bare loop and a DataLoader; how long a study takes
  plainres eval RUN|WEIGHTS [OVERRIDES]   a trained network on a test set: loss, error, error of each class, predictions
  plainres export RUN FILE          a run's weights as safetensors, in torchvision's names where it has such
  plainres lesion RUN [RUN ...]     finished runs without some of their blocks, or with blocks swapped: errors
  plainres landscape RUN [RUN ...]  the training loss around them, along one or two random directions
  plainres sharpness RUN [RUN ...]  the top eigenvalue of their Hessian

  plainres train experiment=digits && plainres report runs/digits

An override is group=option or path.to.key=value, as in model/shortcut=plain model.depth=56.
--debug shows the traceback of an error. Tab completion: eval "$(plainres train -sc install=bash)"
"""

COMMANDS = {
    "train": commands.train,
    "status": commands.status,
    "report": commands.report,
    "describe": commands.describe,
    "bench": commands.bench,
    "eval": commands.eval_,
    "export": commands.export,
    "lesion": analysis.lesion,
    "landscape": analysis.landscape,
    "sharpness": analysis.sharpness,
    "wandb-sync": commands.wandb_sync,
}
ON_FOLDERS = ("status", "report", "wandb-sync", "export", "lesion", "landscape", "sharpness")  # they take no overrides


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
        from plainres.processes.world import requeue

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


def _complete(arguments: list[str]) -> int:
    """Let Hydra complete what stands behind the name of our command."""
    from plainres.config.compose import compose

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
