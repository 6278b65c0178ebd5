"""Network that records its inputs, and fails or stops on request, for tests that start processes."""

import os
import signal
import time

from torch import Tensor, nn

from plainres.models.activations import ActivationFactory
from plainres.models.blocks import BlockSpec
from plainres.models.networks import BASIC, CifarNet
from plainres.models.normalisation import NormFactory
from plainres.models.shortcuts import ShortcutFactory


class Recording(CifarNet):
    """CifarNet that appends a line for each training step to the file $RECORD-<rank>.

    The line contains width, world size and the first pixel of each image. Rank 0 sends itself SIGTERM after
    $RECORD_STOP steps. Rank 1 fails if the width is $RECORD_FAIL. A step takes $RECORD_PAUSE additional seconds, so
    that other processes can meet even a short run in training.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        depth: int,
        width: int,
        shortcut: ShortcutFactory,
        *,
        block: BlockSpec = BASIC,
        norm: NormFactory = nn.BatchNorm2d,
        activation: ActivationFactory = nn.ReLU,
        stages: int = 3,
        stem_width: int | None = None,
    ) -> None:
        super().__init__(
            *(in_channels, classes, depth, width, shortcut),
            block=block,
            norm=norm,
            activation=activation,
            stages=stages,
            stem_width=stem_width,
        )
        self.steps, self.width = 0, width

    def forward(self, images: Tensor) -> Tensor:
        if self.training and not images.is_meta:
            rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
            pixels = " ".join(map(repr, images[:, 0, 0, 0].tolist()))
            with open(f"{os.environ['RECORD']}-{rank}", "a") as file:  # noqa: PTH123
                file.write(f"{self.width} {size} {pixels}\n")
            time.sleep(float(os.environ.get("RECORD_PAUSE", "0")))
            self.steps += 1
            if str(self.steps) == os.environ.get("RECORD_STOP") and rank == "0":
                signal.raise_signal(signal.SIGTERM)
            if str(self.width) == os.environ.get("RECORD_FAIL") and rank == "1":
                raise ValueError("on purpose, in the second process")
        return super().forward(images)
