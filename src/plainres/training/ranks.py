"""Agreement of the ranks of a run, whose machines may have other files."""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from plainres.errors import InputError


def check_alike(run: str, mine: Mapping[str, str], group: Any) -> None:
    """Check that all ranks of a run have the same properties. Each rank calls it.

    Args:
        run: name of the run, for the message.
        mine: properties of this rank by name.
        group: process group of all ranks, on the CPU.

    Raises:
        InputError: two ranks differ.
    """
    all_ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(all_ranks, dict(mine), group)
    for name in mine:
        for rank, theirs in enumerate(all_ranks):
            if theirs[name] != all_ranks[0][name]:
                raise InputError(
                    f"the ranks of {run} have different {name}: rank 0 {all_ranks[0][name]}, rank {rank} "
                    f"{theirs[name]}; give all machines the same, and run the same command again"
                )
