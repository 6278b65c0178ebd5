"""The exceptions whose messages are meant for the person at the keyboard."""


class InputError(ValueError):
    """What was asked for cannot be done: the message says what is wrong, what is allowed and what to do.

    The command line prints it as one line and exits with code 2; raise it for mistakes of the user, never of ours.
    """


class LockedError(InputError):
    """Another process is at this very run; it cannot be trained twice at once."""


class RunFailedError(RuntimeError):
    """A run that was begun cannot be ended: the message says why. The command line exits with code 1."""


class StoppedError(SystemExit):
    """A signal ended the work before its end, and the same command goes on.

    No `except Exception` on the way takes it for a failure. Uncaught, it ends the process with code 128 + `number`,
    the signal's.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(128 + number)
        self.message, self.number = message, number

    def __str__(self) -> str:
        return self.message


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, be it empty; of a YAML file's, what is wrong and where."""
    if mark := getattr(error, "problem_mark", None):
        return f"line {mark.line + 1}: {getattr(error, 'problem', '')}"
    return next(iter(str(error).splitlines()), "")
