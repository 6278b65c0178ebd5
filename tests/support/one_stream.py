"""The identity shortcut as a connection."""

from torch import Tensor

from plainres.models.shortcuts import Identity


class OneStream(Identity):
    """Connection of one stream with read = write = 1: its state is x, and x <- x + F(x)."""

    def open(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def read(self, state: Tensor) -> Tensor:
        """Return x."""
        return state

    def write(self, state: Tensor, fx: Tensor) -> Tensor:
        """Return x + fx."""
        return fx + self.align(state)

    def close(self, state: Tensor) -> Tensor:
        """Return x."""
        return state
