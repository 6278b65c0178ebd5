"""Output of a command for programs: one JSON object on standard output, and everything else on standard error."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any


@contextmanager
def standard_output_free(free: bool = True) -> Iterator[None]:
    """Send to standard error what this process and the processes that it starts print to standard output.

    Args:
        free: False changes nothing.
    """
    if not free:
        yield
        return
    sys.stdout.flush()
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(output, 1)
        os.close(output)


def print_json(output: Mapping[str, Any]) -> None:
    """Print an object as JSON. NaN and infinite numbers, which JSON lacks, become null."""
    print(json.dumps(_finite(output), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
