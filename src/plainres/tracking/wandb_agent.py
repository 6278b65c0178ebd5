"""Runs that an agent of W&B starts: `wandb agent` runs `plainres train` once for each run of a W&B sweep.

The agent names in environment variables the W&B run that it has created for the process. The client then ignores the
id, project and entity that it is given, so the folder of the run takes over what the agent has assigned.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from plainres.config.schema import Config
from plainres.errors import InputError


@dataclass(frozen=True)
class Assignment:
    """Sweep and W&B run that an agent of W&B has assigned to this process."""

    sweep: str
    id: str | None  # of the W&B run
    project: str | None
    entity: str | None
    parameters: str | None  # file with the sweep's parameters for this run

    def is_for(self, id: str) -> bool:
        """Whether the agent has assigned the W&B run `id`, or none in particular."""
        return self.id in (None, id)

    def variables(self, id: str) -> dict[str, str]:
        """Return the environment variables by which the client attaches the W&B run `id` to the sweep."""
        values = {
            "WANDB_SWEEP_ID": self.sweep,
            "WANDB_RUN_ID": id,
            "WANDB_PROJECT": self.project,
            "WANDB_ENTITY": self.entity,
            "WANDB_SWEEP_PARAM_PATH": self.parameters,
        }
        return {name: value for name, value in values.items() if value}


def assignment(environment: Mapping[str, str] = os.environ) -> Assignment | None:
    """Return what an agent of W&B has assigned to this process, None if none has started it."""
    names = ("SWEEP_ID", "RUN_ID", "PROJECT", "ENTITY", "SWEEP_PARAM_PATH")
    sweep, *others = (environment.get(f"WANDB_{name}") or None for name in names)
    return Assignment(sweep, *others) if sweep else None


def check_logged(config: Config) -> None:
    """Check that a run that an agent of W&B has started is logged there.

    Raises:
        InputError: it is not.
    """
    if (assigned := assignment()) and not (config.logger.wandb and config.logger.mode == "online"):
        raise InputError(
            f"an agent of W&B has started this run for the sweep {assigned.sweep}, which needs its curves: add "
            "logger=wandb logger.mode=online to the command in sweep.yaml (or unset WANDB_SWEEP_ID if there is no "
            "agent)"
        )


def check_single() -> None:
    """Check that no agent of W&B has started this process, since it counts on one run of each process.

    Raises:
        InputError: one has.
    """
    if assigned := assignment():
        raise InputError(
            f"an agent of W&B has started this command for the sweep {assigned.sweep}; it starts one run at a time, so "
            "list the values under `parameters` in sweep.yaml, not in the command (or unset WANDB_SWEEP_ID if there is "
            "no agent)"
        )
