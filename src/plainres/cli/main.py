"""The command line: a table of commands, and the messages and exit codes of errors and signals."""

import difflib
import os
import re
import select
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import TextIO

from plainres import __version__
from plainres.cli import analysis, commands, data, training
from plainres.console import open_closed_streams, unfailing_output
from plainres.errors import InputError, RunFailedError, StoppedError
from plainres.processes.environment import isolate

HELP = """\
plainres trains deep networks that differ only in their shortcut connections,
and compares them.

  plainres train [OVERRIDES]     train one network, or every run of a sweep
  plainres list [GROUP]          list experiments, shortcuts and other options
  plainres status FOLDER         show the progress of runs; --watch refreshes it
  plainres report FOLDER ...     compare finished runs: table, verdicts, figures
  plainres describe [OVERRIDES]  show the layers of a network, and its size
  plainres bench [OVERRIDES]     measure images/s, estimate the time of a study
  plainres eval RUN|WEIGHTS      evaluate a trained network
  plainres export RUN FILE       write a run's weights as safetensors
  plainres lesion RUN ...        measure errors without some blocks
  plainres linearise RUN ...     measure errors with fewer non-linear channels
  plainres landscape RUN ...     measure the loss along random directions
  plainres sharpness RUN ...     measure the top eigenvalue of the Hessian
  plainres wandb-sync FOLDER     upload to W&B what was logged offline
  plainres data ACTION           manage the decoded copies of data sets

  plainres train experiment=digits && plainres report runs/digits

plainres COMMAND --help explains a command. --version prints the version,
--debug the traceback of an error.
OVERRIDES are group=option or path.to.key=value, as in model/shortcut=plain
model.depth=56.
Tab completion: eval "$(plainres train -sc install=bash)"
"""

COMMANDS = {
    "train": training.train,
    "list": commands.list_options,
    "status": commands.status,
    "report": commands.report,
    "describe": commands.describe,
    "bench": commands.bench,
    "eval": commands.eval_,
    "export": commands.export,
    "lesion": analysis.lesion,
    "linearise": analysis.linearise,
    "landscape": analysis.landscape,
    "sharpness": analysis.sharpness,
    "wandb-sync": commands.wandb_sync,
    "data": data.data,
}
WITHOUT_OVERRIDES = (
    *("list", "status", "report", "wandb-sync", "data", "export", "lesion", "linearise", "landscape", "sharpness"),
)
SHOWING = ("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--dry-run", "-sc", "--shell-completion")
RESUMABLE = ("lesion", "linearise", "landscape", "wandb-sync")
MEANT = {  # names that other tools give to a command
    **dict.fromkeys(("run", "fit", "sweep"), "train"),
    **dict.fromkeys(("plot", "figures", "compare", "table"), "report"),
    **dict.fromkeys(("evaluate", "test", "predict"), "eval"),
    **dict.fromkeys(("benchmark", "speed", "time"), "bench"),
    **dict.fromkeys(("ls", "options", "experiments", "shortcuts"), "list"),
    **dict.fromkeys(("summary", "info", "show"), "describe"),
    **dict.fromkeys(("sync", "wandb"), "wandb-sync"),
    **dict.fromkeys(("cache", "copies"), "data"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 for success; 1 if a run failed; 2 for invalid input; 128 + its number for a signal, also for SIGPIPE if the reader
    of the output closed it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    open_closed_streams()
    trains = given[:1] == ["train"] and not any(word.partition("=")[0] in SHOWING for word in given)
    with unfailing_output() if trains else nullcontext():  # printing must not end training
        return _main(given)


def _main(given: Sequence[str]) -> int:
    try:
        with _clean_termination():
            code = _run(given)
        sys.stdout.flush()
        return code
    except BrokenPipeError as error:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _closed_by_reader(stream)]
        if not closed:  # the pipe of a child process
            return _report(error, given)
        for stream in closed:  # otherwise Python complains when it flushes them at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE
    except StoppedError as stop:
        from plainres.processes.world import requeue

        print(f"plainres: {stop}", file=sys.stderr)
        requeue(stop)
        return 128 + stop.number
    except (InputError, RunFailedError, OSError) as error:
        return _report(error, given)
    except KeyboardInterrupt:
        from plainres.processes.signals import BEFORE_START

        resumes = "; run the same command again to resume" if given[:1] and given[0] in RESUMABLE else ""
        # `train` handles signals itself from the moment it begins to compose its runs
        print(f"plainres: {BEFORE_START if given[:1] == ['train'] else f'stopped{resumes}'}", file=sys.stderr)
        return 130


@contextmanager
def _clean_termination() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into StoppedError, so that child processes end too.

    Training installs handlers that save first. A signal that the process already ignores, as under nohup, remains
    ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise StoppedError("stopped", number)

    if threading.current_thread() is not threading.main_thread():  # Python installs handlers from it only
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(given: Sequence[str]) -> int:
    """Run the command that the arguments name.

    Raises:
        InputError: there is no such command, or as the command.
    """
    command, *rest = [word for word in given if word != "--debug"] or ["--help"]
    if command == "help" and rest:
        command, rest = rest[0], ["--help"]
    if command in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if command in ("--version", "-V"):
        print(f"plainres {__version__}")
        return 0
    if command in ("-sc", "--shell-completion"):  # the shell asks so for completions of any command
        return _complete([command, *rest])
    if command not in COMMANDS:
        raise InputError(f"there is no command {command!r}; {_advice(command, rest)}")
    isolate()
    os.environ["MPLBACKEND"] = "agg"  # figures are written to files; Lightning imports matplotlib, too
    return COMMANDS[command](rest)


def _advice(command: str, rest: Sequence[str]) -> str:
    """Say what to run instead of a command that does not exist, with the arguments that follow it."""
    if command == "resume":
        return "to resume, run the same plainres train command again"
    if "=" in command or command == "-m":
        return f"did you mean `{shlex.join(['plainres', 'train', command, *rest])}`?"
    close = [MEANT[command]] if command in MEANT else difflib.get_close_matches(command, COMMANDS, n=1)
    if not close:
        return f"the commands are {', '.join(COMMANDS)}"
    return f"did you mean `{shlex.join(['plainres', close[0], *rest])}`?"


def _report(error: Exception, given: Sequence[str]) -> int:
    """Print an error as one line, with --debug below its traceback; return the exit code."""
    if "--debug" in given or os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    print(f"plainres: {error}", file=sys.stderr)
    return 2 if isinstance(error, InputError) else 1


def _closed_by_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has closed it."""
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _complete(arguments: list[str]) -> int:
    """Print completions: of the command's name here, of its overrides through Hydra."""
    from plainres.config.compose import compose

    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if words and (len(words) == 1 or (len(words) == 2 and not line.endswith(" "))):
        print(" ".join(COMMANDS))
        return 0
    if words[1:2] in [[command] for command in WITHOUT_OVERRIDES] or (
        words[1:2] == ["eval"] and (len(words) + line.endswith(" ")) < 4
    ):
        return 0  # the shell completes folders and files itself
    os.environ["COMP_LINE"] = re.sub(r"^(\S+)\s+(train|describe|bench|eval\s+\S+)(?=\s)", r"\1", line)
    compose(arguments)
    return 0
