"""Commands as another user, who owns nothing."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from plainres.cli.main import main
from support import forking

NOBODY = 65534


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Make a folder that all users can read. The folders of pytest can be read by their owner only."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for path in [folder, *folder.rglob("*")]:  # a parent first, so that its children can be listed
            path.chmod(0o755)
        shutil.rmtree(folder)


def run_as_nobody(command: Sequence[str], before: Sequence[str], **environment: str | None) -> tuple[int, str, str]:
    """Run a command of plainres without the privileges of root, which every file is readable to.

    Another user than root keeps its number, for which the tests remove their own permissions.

    Args:
        command: the arguments of plainres.
        before: the arguments of a command that imports the same modules, which nobody may not be able to read.
        environment: changes to the environment; None removes a variable.

    Returns:
        Exit code, output and errors.
    """
    return forking.call(_run_as_nobody, list(command), list(before), environment)


def _run_as_nobody(command: list[str], before: list[str], environment: dict[str, str | None]) -> tuple[int, str, str]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        main(before)
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    tempfile.tempdir = None
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    with ExitStack() as stack:
        out, err = io.StringIO(), io.StringIO()
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        code = main(command)
    return code, out.getvalue(), err.getvalue()
