"""Worker of a run on several devices, one per device: `python -m plainres.launch.worker FOLDER CONFIG` (see agent)."""

import json
import os
import pickle
import sys
import traceback
from pathlib import Path

from plainres.console import unfailing_output
from plainres.errors import InputError, LockedError, RunFailedError, StoppedError, first_line
from plainres.processes.world import World, exit_with_parent
from plainres.runs.record import Run
from plainres.training.train import train


def main(folder: Path, config: Path) -> int:
    """Train the run in `folder` with the configuration pickled in `config`, together with the other workers.

    A failure goes into the error file that `plainres.launch.agent` reads.

    Returns:
        The exit code.
    """
    exit_with_parent(os.getppid())
    try:
        train(Run(pickle.loads(config.read_bytes()), folder))
    except StoppedError as stop:
        if World.current().rank == 0:
            print(f"plainres: {stop}", file=sys.stderr)
        outcome = {"kind": "StoppedError", "message": str(stop), "number": stop.number}
    except (InputError, RunFailedError, OSError) as error:
        kinds = (LockedError, InputError, RunFailedError, OSError)
        kind = next(kind.__name__ for kind in kinds if isinstance(error, kind))
        outcome = {"kind": kind, "message": str(error)}
    except Exception as error:
        traceback.print_exc()
        outcome = {"kind": "Exception", "message": f"{type(error).__name__}: {first_line(error)}"}
    else:
        return 0
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(outcome))
    return 1


if __name__ == "__main__":
    with unfailing_output():
        sys.exit(main(*map(Path, sys.argv[1:])))
