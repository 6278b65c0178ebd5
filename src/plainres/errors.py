"""The one exception whose message is meant for the person at the keyboard."""


class InputError(ValueError):
    """What was asked for cannot be done: the message says what is wrong, what is allowed and what to do.

    The command line prints it as one line and exits with code 2; raise it for mistakes of the user, never of ours.
    """
