"""Network without batch normalisation, whose training does not depend on the division of a batch among devices."""

from torch import Tensor, nn

from plainres.models.shortcuts import ShortcutFactory


class Linear(nn.Module):
    def __init__(self, in_channels: int, classes: int, depth: int, width: int, shortcut: ShortcutFactory) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels * 8 * 8, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))
