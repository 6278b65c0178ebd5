"""Images per second that plainres and a DataLoader with Pillow decode and augment as in He et al. 2015.

python experiments/throughput/streaming.py --rounds 9

The contenders take turns, so that other load on the machine affects all of them. Each makes batches of 64 normalised
images from the same JPEG files of 500x375 pixels: the shorter side is resized to a random length in [256, 480], then
a crop of 224 pixels, a flip and a random colour.

- pillow: a DataLoader over a dataset as in PyTorch's ImageNet example, which resizes the whole image and returns
  normalised float32.
- pillow-uint8: the same, but it returns uint8, and colour and normalisation are applied to the batch.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from plainres.data.batches import TrainingBatches
from plainres.data.streamed_batches import StreamedImages
from plainres.data.streamed_split import StreamedSplit
from plainres.data.views import COMPONENTS, DEVIATIONS, Views

BATCH = 64
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
COMPONENTS_OF_RGB = torch.from_numpy(COMPONENTS * DEVIATIONS).float()


@dataclass(frozen=True)
class Folder:
    """JPEG files of a folder."""

    folder: Path
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> bytes:
        return (self.folder / f"{index}.jpg").read_bytes()

    def name(self, index: int) -> str:
        return f"{index}.jpg"


def make_folder(folder: Path, count: int) -> Folder:
    """Write `count` photographs: random smooth colours with detail, of about 110 kB as in ImageNet."""
    for index in range(count):
        generator = np.random.default_rng(index)
        layers = []
        for scale, weight in ((40, 0.6), (8, 0.25), (2, 0.15)):
            noise = generator.integers(0, 256, (375 // scale + 2, 500 // scale + 2, 3), dtype=np.uint8)
            layers.append(weight * np.asarray(Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)))
        Image.fromarray(np.sum(layers, 0).astype(np.uint8)).save(folder / f"{index}.jpg", quality=92)
    return Folder(folder, torch.zeros(count, dtype=torch.int64))


class PillowDataset(Dataset[tuple[Tensor, int]]):
    """The customary dataset: one image at a time, by Pillow and torch's random numbers."""

    def __init__(self, folder: Folder, *, normalised: bool) -> None:
        self.folder, self.normalised = folder, normalised

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.open(io.BytesIO(self.folder.read(index))).convert("RGB")
        shorter = int(torch.randint(256, 481, ()))
        scale = shorter / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (int(torch.randint(length - 224 + 1, ())) for length in image.size)
        image = image.crop((left, top, left + 224, top + 224))
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image))
        if not self.normalised:
            return pixels, 0
        scaled = pixels.permute(2, 0, 1).contiguous().float().div(255)
        colour = COMPONENTS_OF_RGB @ (0.1 * torch.randn(3))
        return scaled.add_(colour[:, None, None]).sub_(MEAN[:, None, None]).div_(STD[:, None, None]), 0


def plainres(folder: Folder, workers: int) -> Iterator[Tensor]:
    split = StreamedSplit(folder, Views((3, 224, 224), flip=True, colour=0.1))
    pixels = StreamedImages(split, (255 * MEAN, 255 * STD), torch.device("cpu"), workers)
    for epoch in range(10**6):
        steps = len(folder) // BATCH
        for batch in TrainingBatches(pixels, BATCH, 0, lambda: epoch * steps):  # noqa: B023
            yield pixels.materialize(batch)[0]


def pillow(folder: Folder, workers: int, *, normalised: bool) -> Iterator[Tensor]:
    options: dict[str, Any] = {"persistent_workers": workers > 0, "num_workers": workers}
    dataset = PillowDataset(folder, normalised=normalised)
    loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=True, **options)
    while True:
        for images, _ in loader:
            if normalised:
                yield images
            else:
                colour = 255 * (COMPONENTS_OF_RGB @ (0.1 * torch.randn(3, len(images)))).T
                yield (images.float() + colour[:, None, None]).sub_(255 * MEAN).div_(255 * STD).permute(0, 3, 1, 2)


def measure(folder: Folder, workers: int, rounds: int, batches: int) -> dict[str, list[float]]:
    """Return the images/s of each contender in each round: per second of CPU time, or with workers of wall time."""
    contenders = {
        "plainres": plainres(folder, workers),
        "pillow": pillow(folder, workers, normalised=True),
        "pillow-uint8": pillow(folder, workers, normalised=False),
    }
    clock = time.perf_counter if workers else time.process_time
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-1, rounds):  # the first round warms up
        for name in contenders if number % 2 else reversed(contenders):
            started = clock()
            for _ in range(batches):
                next(contenders[name])
            if number >= 0:
                rates[name].append(batches * BATCH / (clock() - started))
            time.sleep(1 if workers else 0)  # until its workers are idle, with their batches in advance
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each measurement (default: 9)")
    parser.add_argument("--batches", type=int, default=4, help="batches of each window (default: 4)")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1], help="numbers of workers (default: 0 1)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_folder(Path(scratch), 512)
        size = sum(file.stat().st_size for file in Path(scratch).iterdir()) / len(folder)
        print(f"{len(folder)} files of {size / 1000:.0f} kB on average, {options.rounds} rounds")
        for workers in options.workers:
            # batches in advance must not count: a window is longer than what is decoded in advance
            rates = measure(folder, workers, options.rounds, options.batches * (4 if workers else 1))
            print(f"{workers} workers, images per second" + ("" if workers else " of CPU time"))
            for name, values in rates.items():
                ratios = sorted(ours / other for ours, other in zip(rates["plainres"], values, strict=True))
                ratio = f"plainres / {name} {median(ratios):.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})"
                print(f"  {name:13} {median(values):6.0f}   {ratio if name != 'plainres' else ''}")


if __name__ == "__main__":
    main()
