"""Exceptions with messages for the user."""

import sysconfig
import traceback
from pathlib import Path

PACKAGES = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
PLAINRES = Path(__file__).parent


class InputError(ValueError):
    """Invalid input. The message says what is wrong, what is allowed and what to do.

    The command line prints it as one line and exits with code 2. Raise it for errors of the user, never for bugs.
    """


class LockedError(InputError):
    """Another process is training the run."""


class RunFailedError(RuntimeError):
    """A run failed, for the reason in the message. The command line exits with code 1."""


class StoppedError(SystemExit):
    """A signal stopped the command, which resumes when it is run again.

    It derives from SystemExit, so that no `except Exception` treats it as a failure. Uncaught, it makes the process
    exit with code 128 + `number`, the number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(128 + number)
        self.message, self.number = message, number

    def __str__(self) -> str:
        return self.message


def reason_of(error: BaseException) -> str:
    """Return the reason of a failure in one line, with the exception's class unless its message is for the user."""
    line = first_line(error)
    return line if line and isinstance(error, InputError | RunFailedError) else f"{type(error).__name__}: {line}"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, "" if it is empty. For a YAML error, return problem and line."""
    if mark := getattr(error, "problem_mark", None):
        return f"line {mark.line + 1}: {getattr(error, 'problem', '')}"
    return next(iter(str(error).splitlines()), "")


def in_own_code(error: BaseException) -> str:
    """Return an exception in one line, with the place in the user's own code where it was raised, if it was there."""
    described = f"{type(error).__name__}: {first_line(error)}"
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        described = f"{type(error).__name__}: {error.msg}"
        places.append((error.filename or "", error.lineno))
    own = [(Path(file), line) for file, line in places if _is_own(Path(file))]
    return f"{own[-1][0].name}, line {own[-1][1]}: {described}" if own else described


def _is_own(file: Path) -> bool:
    return file.is_file() and not any(file.is_relative_to(folder) for folder in (*PACKAGES, PLAINRES))
