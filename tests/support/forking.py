"""Processes forked from one that has done the imports, which are most of what a short command costs.

`Popen` and `run` are subprocess's, for commands that are ours; `call` calls a function. What a forked process starts in
its turn is forked as well, each by its real parent: the server of a sweep's processes, the agent and the workers of a
run on several devices, joblib's workers. A forked process has what a fresh one has, of its own: a number, arguments, an
environment, a folder, files, signals, a parent, a session, an exit code. Only the modules are there already.
"""

import _posixsubprocess
import atexit
import ctypes
import logging
import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Connection, Pipe
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NoReturn

import tqdm.std

from plainres.errors import StoppedError
from plainres.launch.sweep import PRELOADED, PRELOADED_FOR_WANDB
from plainres.processes.workers import forkserver
from support.places import PLAINRES, ROOT

EVERYTHING = [
    *PRELOADED,
    *PRELOADED_FOR_WANDB,
    "plainres.analysis.landscape",
    "plainres.analysis.lesion",
    "plainres.analysis.sharpness",
    "plainres.benchmark.measure",
    "plainres.cli.main",
    "plainres.config.compose",
    "plainres.launch.hydra_launchers",
    "plainres.launch.status",
    "plainres.reporting.report",
    "torch.distributed.launcher.api",
    "support.forking",
]
FORKED = ("plainres", "joblib.externals.loky.backend.popen_loky_posix")  # modules that python -m runs, beside ours
SERVER = "from multiprocessing.forkserver import main"  # what python -c runs
MOST_FILES = 1 << 16
_fork_exec: Callable[..., int] = _posixsubprocess.fork_exec
_Main: Any = type(multiprocessing.process.current_process())  # of a process that nobody has forked, as this is
_kept: list[Any] = []  # what must not be flushed, closed or deleted in the process that was forked


def preload_everything() -> None:
    """Have the server of this process's forked processes import all that any of them needs, whoever starts it."""
    server = multiprocessing.forkserver
    server.set_forkserver_preload = lambda modules: server._forkserver.set_forkserver_preload(EVERYTHING)


class Popen(subprocess.Popen[str]):
    """subprocess.Popen of a command of ours: [PLAINRES, ...], or Python with a module, a program or a file of ours."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *others: Any) -> None:
        _, _, cwd, env, _, _, _, p2cread, _, _, c2pwrite, _, errwrite, *_ = others
        *_, start_new_session, _ = others
        command = [os.fspath(word) for word in args]
        assert _is_ours(command), command
        streams = _streams(p2cread, c2pwrite, errwrite)
        place = (os.fspath(cwd or Path.cwd()), dict(os.environ if env is None else env), streams, start_new_session)
        self._process = _context().Process(target=_run_command, args=(command, *place))
        self._process.start()
        self.pid: int = self._process.pid or 0
        self._child_created = True
        close: Any = getattr(self, "_close_pipe_fds")  # noqa: B009
        close(*others[7:13])

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        self._process.join(timeout)
        if self._internal_poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode


def run(
    command: Sequence[str | Path], timeout: float | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """subprocess.run of a command of ours, whose output is captured."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            said = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, *said)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own; return what it returns, raise what it raises."""
    answer, theirs = Pipe(duplex=False)
    place = (os.fspath(Path.cwd()), dict(os.environ), _streams(-1, -1, -1))
    process = _context().Process(target=_call, args=(theirs, *place, function, *arguments))
    process.start()
    theirs.close()
    kind, value = answer.recv()
    process.join()
    if kind is not None:
        raise kind(*value)
    return value


def _context() -> ForkServerContext:
    return forkserver(EVERYTHING)


class _Stream:
    """A file descriptor, which travels to a process that is forked."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self.descriptor),)


def _received(descriptor: Any) -> int:
    return descriptor.detach()


def _streams(*descriptors: int) -> list[_Stream]:
    """Return standard input, output and error for a process: this process's, where -1 is given."""
    return [_Stream(number if given == -1 else given) for number, given in enumerate(descriptors)]


def _run_command(
    command: list[str], folder: str, environment: dict[str, str], streams: list[int], new_session: bool
) -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which its server ignores
    if new_session:
        os.setsid()
    _execute(command, folder, environment, streams, ())


def _call(
    answer: "Connection[Any, Any]",
    folder: str,
    environment: dict[str, str],
    streams: list[int],
    function: Callable[..., Any],
    *arguments: Any,
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _begin_anew([PLAINRES.name], folder, environment, streams, [answer.fileno()])
    try:
        result = None, function(*arguments)
    except StoppedError as stop:
        result = StoppedError, (stop.message, stop.number)
    except Exception as error:
        result = type(error), error.args
    answer.send(result)
    _exit(0)


def _is_ours(command: Sequence[str]) -> bool:
    """Tell whether a command runs something of ours, or a server from which processes are forked."""
    option, what = _interpreted(command)
    if option == "":
        return what == str(PLAINRES) or (command[0] == sys.executable and what.startswith(str(ROOT)))
    if option == "-m":
        return what.startswith("plainres.") or what in FORKED
    return what.startswith(SERVER) or "import plainres" in what or "from plainres" in what


def _interpreted(command: Sequence[str]) -> tuple[str, str]:
    """Return what Python is to run: ("-m", a module), ("-c", a program) or ("", a file)."""
    if command[0] != sys.executable:
        return "", command[0]
    for i, word in enumerate(command[1:-1], 1):
        if word in ("-m", "-c"):
            return word, command[i + 1]
        if not word.startswith("-"):
            return "", word
    return "", command[-1]


def _fork_ours(*arguments: Any) -> int:
    """Do as _posixsubprocess.fork_exec, which is below subprocess and multiprocessing, but fork what is ours."""
    args, _, _, pass_fds, cwd, env, *others = arguments
    command = [os.fsdecode(word) for word in args]
    if not _is_ours(command):
        return _fork_exec(*arguments)
    p2cread, _, _, c2pwrite, _, errwrite, _, errpipe, _, start_new_session, *_ = others
    # what a handler raises in the midst of a fork would be lost, and locks with it
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    number = os.fork()
    if number:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return number
    try:
        if start_new_session:
            os.setsid()
        pairs = [os.fsdecode(pair).partition("=") for pair in env] if env is not None else []
        environment = {name: value for name, _, value in pairs} if env is not None else dict(os.environ)
        streams = [
            0 if p2cread == -1 else p2cread,
            1 if c2pwrite == -1 else c2pwrite,
            2 if errwrite == -1 else errwrite,
        ]
        passed = set(pass_fds) - {errpipe}  # which exec closes
        _execute(command, cwd or Path.cwd(), environment, streams, passed)
    finally:
        os._exit(255)


def _execute(
    command: list[str], folder: Any, environment: Mapping[str, str], streams: Sequence[int], passed: Collection[int]
) -> NoReturn:
    """Be the process that the command's interpreter would be."""
    _begin_anew(command, folder, environment, streams, passed)
    code: Any = 0
    try:
        _interpret(command)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    _exit(code or 0)


def _interpret(command: list[str]) -> None:
    option, what = _interpreted(command)
    if option == "-c":
        sys.argv = ["-c", *command[command.index("-c") + 2 :]]
        sys.path.insert(0, "")
        exec(what, {"__name__": "__main__", "__builtins__": __builtins__})
    elif option == "-m":
        sys.argv = ["-m", *command[command.index("-m") + 2 :]]
        sys.path.insert(0, str(Path.cwd()))
        sys.modules.pop(what, None)
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = command[command.index(what) :]
        sys.path.insert(0, str(Path(what).parent))
        runpy.run_path(what, run_name="__main__")


def _exit(code: int) -> NoReturn:
    """End as an interpreter does."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    os._exit(code & 0xFF)


def _begin_anew(
    command: Sequence[str], folder: Any, environment: Mapping[str, str], streams: Sequence[int], passed: Collection[int]
) -> None:
    """Forget what a process does not inherit from the one that starts it, and take over what it is given."""
    high = [os.dup(stream) for stream in streams]
    for number, stream in enumerate(high):
        os.dup2(stream, number)
    for low, above in pairwise([2, *sorted(passed), MOST_FILES]):
        os.closerange(low + 1, above)
    for number in signal.valid_signals():
        if signal.getsignal(number) not in (signal.SIG_IGN, signal.SIG_DFL, None):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    _show(command)
    _kept.append((sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    if "-u" in command:
        sys.stdout.reconfigure(write_through=True)
    sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *_library()]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("support", "kills")]:
        _kept.append(sys.modules.pop(name))
    _forget_what_is_to_be_done_at_the_end()
    _forget_other_processes()
    _forget_bars()
    _posixsubprocess.fork_exec = _fork_ours
    subprocess._fork_exec = _fork_ours  # pyright: ignore[reportAttributeAccessIssue]


def _library() -> list[str]:
    """Return the folders of Python's own library and of what is installed."""
    prefixes = [str(Path(prefix) / "lib") for prefix in (sys.prefix, sys.base_prefix)]
    return [entry for entry in sys.path if entry.startswith(tuple(prefixes))]


def _show(command: Sequence[str]) -> None:
    """Let /proc/PID/cmdline have the command: what others find the process by."""
    if sys.platform != "linux":
        return
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    shown = b"".join(os.fsencode(word) + b"\0" for word in command)
    if begin:
        ctypes.memset(begin, 0, end - begin)
        ctypes.memmove(begin, shown, min(len(shown), end - begin - 1))


def _forget_what_is_to_be_done_at_the_end() -> None:
    """Leave to the process that forked this one what it is to do at its end: deleting its temporary files, for one."""
    finalize: Any = weakref.finalize
    util: Any = multiprocessing.util
    _kept.extend((dict(finalize._registry), dict(util._finalizer_registry)))
    finalize._registry.clear()
    finalize._registered_with_atexit = False
    util._finalizer_registry.clear()
    atexit._clear()
    atexit.register(logging.shutdown)
    atexit.register(util._exit_function)
    if coverage := sys.modules.get("coverage"):
        measuring = coverage.Coverage.current()
        if measuring is not None:
            atexit.register(measuring._atexit)


def _forget_other_processes() -> None:
    """Forget the servers and the children that multiprocessing knows of, which are the parent's."""
    process: Any = multiprocessing.process
    process._current_process, process._parent_process = _Main(), None
    process._children = set()
    multiprocessing.forkserver._forkserver.__init__()
    resource_tracker._resource_tracker.__init__()
    if loky := sys.modules.get("joblib.externals.loky.backend.resource_tracker"):
        loky._resource_tracker.__init__()


def _forget_bars() -> None:
    """Leave the parent's bars to it, and their lock, which processes share: it may die with the one that holds it."""
    std: Any = tqdm.std
    bars, lock = std.tqdm, std.TqdmDefaultWriteLock
    bars._instances, bars.monitor, lock.th_lock = weakref.WeakSet(), None, threading.RLock()
    for owner, name in ((bars, "_lock"), (lock, "mp_lock")):
        if name in vars(owner):
            delattr(owner, name)
