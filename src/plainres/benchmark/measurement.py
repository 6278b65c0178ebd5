"""Measurements of `plainres bench`, and their text."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from plainres.benchmark.advice import Advice
from plainres.benchmark.dataloader import Style
from plainres.benchmark.loops import PARTS
from plainres.console import aligned
from plainres.runs.provenance import versions

OURS, BARE = "plainres", "bare"
DATALOADERS = {  # each step from one to the next is a single choice
    "dataloader": Style(tuned=False),
    "dataloader_tuned": Style(),
    "dataloader_channels_last": Style(channels_last=True),
    "dataloader_batched": Style(channels_last=True, batched=True),
    "dataloader_keeps_memory": Style(channels_last=True, batched=True, keeps_memory=True),
}
NAMES = {
    "dataloader": "DataLoader, as often written",
    "dataloader_tuned": "  with settings of plainres",
    "dataloader_channels_last": "  and channels_last",
    "dataloader_batched": "  and crops by the batch",
    "dataloader_keeps_memory": "  and freed memory kept",
    BARE: "bare loop",
    OURS: "plainres",
}
CONTENDERS = tuple(NAMES)


@dataclass
class Measurement:
    """Measurement of one network on this machine, with times in seconds and memory in MiB."""

    network: str
    settings: dict[str, Any]
    device: str
    batch_size: int
    steps: dict[str, int] = field(default_factory=dict)  # steps in a window of each contender
    multiply_adds: int = 0  # of the forward pass of one image
    windows: dict[str, list[float]] = field(default_factory=dict)  # times of each contender's windows, one per round
    parts: dict[str, float] = field(default_factory=dict)  # times of the parts of a step in the bare loop
    evaluation: float = 0.0  # time to evaluate the test set
    compilation: float = 0.0  # time that a later run takes to compile, with torch's cache filled
    ceiling: list[float] = field(default_factory=list)  # FLOP/s of matrix products in this precision, by round
    peak_memory: float | None = None  # of training and evaluation by plainres
    side_by_side: int = 1  # concurrent runs in a sweep on this machine
    gains: list[float] = field(default_factory=list)  # images/s of concurrent runs relative to one run, one per round
    advice: Advice | None = None
    versions: dict[str, str] = field(default_factory=versions)

    def step(self, contender: str) -> float:
        """Return the median seconds per step."""
        return median(self.windows[contender]) / self.steps[contender]

    def ratios(self, contender: str) -> list[float]:
        """Return the ratios of images/s of plainres to those of another contender in each round, sorted."""
        steps = self.steps[OURS] / self.steps[contender]
        return sorted(
            steps * other / ours for ours, other in zip(self.windows[OURS], self.windows[contender], strict=True)
        )

    @property
    def gain(self) -> float:
        """Median images/s of concurrent runs relative to a single run."""
        return median(self.gains) if self.gains else 1.0

    @property
    def flop_per_s(self) -> float:
        """Floating-point operations of the network's multiply-adds per second; backward costs twice the forward."""
        return 6 * self.multiply_adds * self.batch_size / self.step(OURS)

    def __str__(self) -> str:
        rounds = len(self.windows[OURS])
        rows = [["", "images/s", "ms/step", f"plainres / this, {rounds} rounds"]]
        for contender in (name for name in CONTENDERS if name in self.windows):
            step, ratios = self.step(contender), self.ratios(contender)
            ratio = f"{median(ratios):.3f} ({ratios[0]:.3f} .. {ratios[-1]:.3f})" if contender != OURS else ""
            rows.append([NAMES[contender], f"{self.batch_size / step:,.0f}", f"{1000 * step:.2f}", ratio])
        lines = [self.network, *aligned(rows, right=(1, 2), indent="  ")]
        shares = ", ".join(f"{name} {100 * self.parts[name] / sum(self.parts.values()):.0f} %" for name in PARTS)
        added = 1000 * (self.step(OURS) - self.step(BARE))
        lines.append(f"  time in the bare loop: {shares}")
        lines.append(f"  a step of plainres takes {abs(added):.2f} ms {'more' if added >= 0 else 'less'}")
        ceiling, precision = max(self.ceiling), self.settings["precision"]
        lines.append(
            f"  {self.flop_per_s / 1e9:,.1f} GFLOP/s, {100 * self.flop_per_s / ceiling:.0f} % of the "
            f"{ceiling / 1e9:,.0f} GFLOP/s of matrix products ({precision})"
        )
        memory = f"; peak memory {self.peak_memory:,.0f} MiB" if self.peak_memory is not None else ""
        lines.append(f"  evaluation of the test set {self.evaluation:.2f} s{memory}")
        if self.compilation:
            lines.append(f"  compiled; later runs take {self.compilation:.0f} s for that, and a new network longer")
        if self.gains:
            spread = f"{min(self.gains):.2f} .. {max(self.gains):.2f}"
            lines.append(
                f"  {self.side_by_side} runs side by side: {self.gain:.2f} times the images/s of one ({spread})"
            )
        return "\n".join(lines + ([str(self.advice)] if self.advice else []))
