"""Connections with a state, which the blocks of a stage pass from one to the next.

A shortcut joins one tensor x with F(x). A connection generalises it to a state of any kind, such as several streams or
the outputs of earlier blocks. In each block

    state <- write(state, F(pre(read(state))))

At the start of a stage `open` makes the state from the stage's input, and at its end `close` computes the stage's
output from it. A shortcut is the connection whose state is x: open, read and close are the identity, and write is the
shortcut.

Connections are chosen as shortcuts are, by name in conf/model/shortcut/, and built by the same factories. The blocks
must not apply layers after the addition, since these would have to apply to a state.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from plainres.errors import InputError
from plainres.models.blocks import Block

State = Any  # a tensor, or a tuple of tensors


@runtime_checkable
class Connection(Protocol):
    """Shortcut with a state. Each block has its own connection, with its own parameters.

    A connection is built by `factory(in_channels, out_channels, stride)`. In the first block of a stage, `write`
    receives tensors with in_channels channels and the size of the branch's input, and returns tensors with the channels
    and the size of fx. Only the connection of the first block opens a state, and only that of the last one closes it.
    """

    def open(self, x: Tensor) -> State:
        """Make the state at the start of a stage from its input x (N, in_channels, H, W)."""
        ...

    def read(self, state: State) -> Tensor:
        """Make the input of the residual branch (N, in_channels, H, W)."""
        ...

    def write(self, state: State, fx: Tensor) -> State:
        """Make the next state from the output of the branch, fx (N, out_channels, H/stride, W/stride)."""
        ...

    def close(self, state: State) -> Tensor:
        """Make the output of the stage (N, out_channels, H/stride, W/stride)."""
        ...


@runtime_checkable
class StagePositioned(Protocol):
    """Connection that depends on the position of its block in its stage. The network calls `set_stage_position`."""

    def set_stage_position(self, index: int, total: int) -> None:
        """Set the 1-based index of this connection's block in its stage, and the number of blocks of the stage."""
        ...


@runtime_checkable
class Weighted(Protocol):
    """Connection whose branch reads a weighted sum of sources, such as streams or earlier outputs."""

    def reading(self, state: State) -> Tensor:
        """Return the weights of the sources (N, sources, H, W), with sizes of 1 where they are constant."""
        ...


@runtime_checkable
class Mixing(Protocol):
    """Connection that multiplies its streams by a matrix."""

    def mixing(self, state: State) -> Tensor:
        """Return the matrix R (N, n, n, H, W), with sizes of 1 where it is constant."""
        ...


class StatefulBlock(nn.Module):
    """Block whose shortcut is a connection: state <- write(state, F(pre(read(state)))).

    The residual branch F and the layers before it are those of `block`, with the same names. Where the pre-activation
    of `block` feeds both paths, as at a change of shape, it precedes `open`.

    Shapes: the first block of a stage maps x (N, in_channels, H, W) to a state, and the last one a state to
    y (N, out_channels, H/stride, W/stride).

    Args:
        block: the block.
        index: 1-based index of the block in its stage.
        total: number of blocks of the stage.

    Raises:
        InputError: the block applies layers after the addition.
    """

    def __init__(self, block: Block, index: int, total: int) -> None:
        super().__init__()
        if len(block.post_add):
            raise InputError(
                f"the shortcut {type(block.shortcut).__name__} hands a state from block to block, to which the layers "
                "of model.block.order.post_add cannot apply; choose an order without them, such as "
                "model/block/order=full_preactivation"
            )
        self.shared, self.pre, self.residual = block.shared, block.pre, block.residual
        self.shortcut: Any = block.shortcut
        self.opens, self.closes = index == 1, index == total
        if isinstance(self.shortcut, StagePositioned):
            self.shortcut.set_stage_position(index, total)

    def forward(self, state: State) -> State:
        """Map one state to the next."""
        if self.opens:
            state = self.shortcut.open(self.pre(state) if self.shared else state)
        x = self.shortcut.read(state)
        state = self.shortcut.write(state, self.residual(x if self.shared else self.pre(x)))
        return self.shortcut.close(state) if self.closes else state
