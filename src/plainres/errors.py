"""The exceptions whose messages are meant for the person at the keyboard."""


class InputError(ValueError):
    """What was asked for cannot be done: the message says what is wrong, what is allowed and what to do.

    The command line prints it as one line and exits with code 2; raise it for mistakes of the user, never of ours.
    """


class RunFailedError(RuntimeError):
    """A run that was begun cannot be ended: the message says why. The command line exits with code 1."""


class StoppedError(RuntimeError):
    """A signal ended a run before its last step; the same command goes on. `number` is the signal's."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}; the same command goes on")
        self.number = number
