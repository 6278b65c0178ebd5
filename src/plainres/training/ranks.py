"""Agreement of the ranks of a run, whose machines may have other files."""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from plainres.errors import InputError

RESUME = "run the same command again to resume"  # an attempt before may still have been writing a checkpoint
ALIKE = "give all machines the same, and run the same command again"


def check_alike(run: str, mine: Mapping[str, tuple[str, str]], group: Any) -> None:
    """Check that all ranks of a run have the same properties. Each rank calls it.

    Args:
        run: name of the run, for the message.
        mine: properties of this rank by name, each with advice for ranks that differ: `RESUME` or `ALIKE`.
        group: process group of all ranks, on the CPU.

    Raises:
        InputError: two ranks differ.
    """
    all_ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(all_ranks, dict(mine), group)
    for name, (_, advice) in mine.items():
        values = [properties[name][0] for properties in all_ranks]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise InputError(
                f"the ranks of {run} have different {name}: rank 0 {values[0]}, rank {other} {values[other]}; {advice}"
            )
