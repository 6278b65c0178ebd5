"""Processes that are forked from a server with all imports done, because imports dominate the cost of short commands.

`Popen` and `run` replace those of subprocess for commands of plainres; `call` calls a function. A forked process forks
the processes that it starts: the server of a sweep's processes, the agent and the workers of a run on several devices,
joblib's workers. Like a fresh process, a forked one has its own process ID, arguments, environment, working
directory, files, signal handlers, parent, session and exit code. Only its modules are already imported.
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
from plainres.processes.forkserver import forkserver
from support.places import PLAINRES, ROOT

EVERYTHING = [
    *PRELOADED,
    *PRELOADED_FOR_WANDB,
    "plainres.analysis.landscape",
    "plainres.analysis.lesion",
    "plainres.analysis.linearise",
    "plainres.analysis.sharpness",
    "plainres.benchmark.bench",
    "plainres.cli.main",
    "plainres.config.compose",
    "plainres.launch.hydra_launchers",
    "plainres.launch.status",
    "plainres.reporting.report",
    "torch.distributed.launcher.api",
    "support.forking",
]
FORKED = ("plainres", "joblib.externals.loky.backend.popen_loky_posix")  # further modules for `python -m`
SERVER = "from multiprocessing.forkserver import main"  # beginning of a program for `python -c`
MOST_FILES = 1 << 16
_fork_exec: Callable[..., int] = _posixsubprocess.fork_exec
_Main: Any = type(
    multiprocessing.process.current_process()
)  # class of the current process in a process that was not forked
_kept: list[Any] = []  # objects that a forked process must not flush, close or delete


def preload_everything() -> None:
    """Make the fork server import every module that a forked process needs, whichever code starts the server."""
    server = multiprocessing.forkserver
    server.set_forkserver_preload = lambda modules: server._forkserver.set_forkserver_preload(EVERYTHING)


class Popen(subprocess.Popen[str]):
    """subprocess.Popen for [PLAINRES, ...], and for Python with a module, program or file of plainres."""

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *others: Any) -> None:
        _, _, cwd, env, _, _, _, p2cread, _, _, c2pwrite, _, errwrite, *_ = others
        *_, start_new_session, _ = others
        command = [os.fspath(word) for word in args]
        assert _is_ours(command), command
        streams = _streams(p2cread, c2pwrite, errwrite)
        state = (os.fspath(cwd or Path.cwd()), dict(os.environ if env is None else env), streams, start_new_session)
        self._process = _context().Process(target=_run_command, args=(command, *state))
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
    """Run a command of plainres like subprocess.run, and capture its output."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            output = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, *output)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a separate process. Return its result or raise its exception."""
    receiver, sender = Pipe(duplex=False)
    state = (os.fspath(Path.cwd()), dict(os.environ), _streams(-1, -1, -1))
    process = _context().Process(target=_call, args=(sender, *state, function, *arguments))
    process.start()
    sender.close()
    kind, value = receiver.recv()
    process.join()
    if kind is not None:
        raise kind(*value)
    return value


def _context() -> ForkServerContext:
    return forkserver(EVERYTHING)


class _Stream:
    """File descriptor that can be sent to a forked process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self.descriptor),)


def _received(descriptor: Any) -> int:
    return descriptor.detach()


def _streams(*descriptors: int) -> list[_Stream]:
    """Return standard input, output and error for a process. -1 stands for the stream of this process."""
    return [_Stream(number if other == -1 else other) for number, other in enumerate(descriptors)]


def _run_command(
    command: list[str], folder: str, environment: dict[str, str], streams: list[int], new_session: bool
) -> NoReturn:
    _handle_signals_of_the_terminal()
    if new_session:
        os.setsid()
    _execute(command, folder, environment, streams, ())


def _call(
    sender: "Connection[Any, Any]",
    folder: str,
    environment: dict[str, str],
    streams: list[int],
    function: Callable[..., Any],
    *arguments: Any,
) -> None:
    _handle_signals_of_the_terminal()
    _reset_process([PLAINRES.name], folder, environment, streams, [sender.fileno()])
    try:
        result = None, function(*arguments)
    except StoppedError as stop:
        result = StoppedError, (stop.message, stop.number)
    except Exception as error:
        result = type(error), error.args
    sender.send(result)
    _exit(0)


def _handle_signals_of_the_terminal() -> None:
    """Handle the signals that the server ignores as a fresh process does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _is_ours(command: Sequence[str]) -> bool:
    """Whether a command runs code of plainres, or a fork server."""
    option, what = _interpreted(command)
    if option == "":
        return what == str(PLAINRES) or (command[0] == sys.executable and what.startswith(str(ROOT)))
    if option == "-m":
        return what.startswith("plainres.") or what in FORKED
    return what.startswith(SERVER) or "import plainres" in what or "from plainres" in what


def _interpreted(command: Sequence[str]) -> tuple[str, str]:
    """Return the code that Python would run: ("-m", module), ("-c", program) or ("", file)."""
    if command[0] != sys.executable:
        return "", command[0]
    for i, word in enumerate(command[1:-1], 1):
        if word in ("-m", "-c"):
            return word, command[i + 1]
        if not word.startswith("-"):
            return "", word
    return "", command[-1]


def _fork_ours(*arguments: Any) -> int:
    """Replace _posixsubprocess.fork_exec, which subprocess and multiprocessing call, and fork commands of plainres."""
    args, _, _, pass_fds, cwd, env, *others = arguments
    command = [os.fsdecode(word) for word in args]
    if not _is_ours(command):
        return _fork_exec(*arguments)
    p2cread, _, _, c2pwrite, _, errwrite, _, errpipe, _, start_new_session, *_ = others
    # an exception from a signal handler during the fork would be lost, and leave locks held
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
        passed = set(pass_fds) - {errpipe}  # exec would close errpipe
        _execute(command, cwd or Path.cwd(), environment, streams, passed)
    finally:
        os._exit(255)


def _execute(
    command: list[str], folder: Any, environment: Mapping[str, str], streams: Sequence[int], passed: Collection[int]
) -> NoReturn:
    """Run a command in this process, as a fresh interpreter would."""
    _reset_process(command, folder, environment, streams, passed)
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
        if "-P" not in command:
            sys.path.insert(0, str(Path.cwd()))
        sys.modules.pop(what, None)
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv = command[command.index(what) :]
        sys.path.insert(0, str(Path(what).parent))
        runpy.run_path(what, run_name="__main__")


def _exit(code: int) -> NoReturn:
    """Exit as an interpreter does."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    os._exit(code & 0xFF)


def _reset_process(
    command: Sequence[str], folder: Any, environment: Mapping[str, str], streams: Sequence[int], passed: Collection[int]
) -> None:
    """Reset everything that exec would reset, and set the state that the new process gets from its parent."""
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
    _set_command_line(command)
    _kept.append((sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    if "-u" in command:
        sys.stdout.reconfigure(write_through=True)
    sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *_library()]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("support", "kills")]:
        _kept.append(sys.modules.pop(name))
    _clear_exit_handlers()
    _reset_multiprocessing()
    _reset_bars()
    _posixsubprocess.fork_exec = _fork_ours
    subprocess._fork_exec = _fork_ours  # pyright: ignore[reportAttributeAccessIssue]


def _library() -> list[str]:
    """Return the folders of the standard library and of installed packages."""
    prefixes = [str(Path(prefix) / "lib") for prefix in (sys.prefix, sys.base_prefix)]
    return [entry for entry in sys.path if entry.startswith(tuple(prefixes))]


def _set_command_line(command: Sequence[str]) -> None:
    """Write the command to /proc/PID/cmdline, by which other processes find this one."""
    if sys.platform != "linux":
        return
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    shown = b"".join(os.fsencode(word) + b"\0" for word in command)
    if begin:
        ctypes.memset(begin, 0, end - begin)
        ctypes.memmove(begin, shown, min(len(shown), end - begin - 1))


def _clear_exit_handlers() -> None:
    """Remove the exit handlers of the parent, such as the deletion of its temporary files."""
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


def _reset_multiprocessing() -> None:
    """Reset multiprocessing's servers and children, which belong to the parent."""
    process: Any = multiprocessing.process
    process._current_process, process._parent_process = _Main(), None
    process._children = set()
    multiprocessing.forkserver._forkserver.__init__()
    resource_tracker._resource_tracker.__init__()
    if loky := sys.modules.get("joblib.externals.loky.backend.resource_tracker"):
        loky._resource_tracker.__init__()


def _reset_bars() -> None:
    """Reset tqdm's bars, which belong to the parent, and their lock, whose holder may have died."""
    std: Any = tqdm.std
    bars, lock = std.tqdm, std.TqdmDefaultWriteLock
    bars._instances, bars.monitor, lock.th_lock = weakref.WeakSet(), None, threading.RLock()
    for owner, name in ((bars, "_lock"), (lock, "mp_lock")):
        if name in vars(owner):
            delattr(owner, name)
