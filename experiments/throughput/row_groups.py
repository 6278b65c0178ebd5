"""Images per second of decoding at random from Parquet files with row groups of several sizes, and the memory it takes.

python experiments/throughput/row_groups.py --sizes 10,100,500,2000

The images are 2,000 JPEG files of 500x375 pixels in one file. One process makes training batches of 64 as for ImageNet.
Each size has a process of its own, in which a folder of the same files takes turns with the Parquet file.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from streaming import Folder, make_folder

from plainres.data.batches import TrainingBatches
from plainres.data.encoded import Encoded, Rows
from plainres.data.streamed_batches import StreamedImages
from plainres.data.streamed_split import StreamedSplit
from plainres.data.views import Views

IMAGES, BATCH = 2000, 64


def write(folder: Path, size: int) -> Path:
    images = [{"bytes": (folder / f"{index}.jpg").read_bytes()} for index in range(IMAGES)]
    file = folder / f"{size}.parquet"
    pq.write_table(pa.table({"image": images}), file, row_group_size=size)
    return file


def rate(encoded: Encoded, start: int, batches: int) -> float:
    """Return the images per second of CPU time in some batches of an epoch."""
    split = StreamedSplit(encoded, Views((3, 224, 224), flip=True, colour=0.1))
    pixels = StreamedImages(split, (torch.full((3,), 120.0), torch.full((3,), 60.0)), torch.device("cpu"), 0)
    training = iter(TrainingBatches(pixels, BATCH, 0, lambda: start))
    started = time.process_time()
    for _ in range(batches):
        next(training)
    return BATCH * batches / (time.process_time() - started)


def peak_mib() -> float:
    """Return the peak memory of this process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def measure(folder: Path, size: int, rounds: int, batches: int) -> str:
    torch.set_num_threads(1)
    targets = torch.zeros(IMAGES, dtype=torch.int64)
    files, rows = Folder(folder, targets), Rows(folder, [f"{size}.parquet"], "image", targets)
    rate(files, 0, batches)  # warms up
    memory = peak_mib()
    pairs = [(rate(rows, number, batches), rate(files, number, batches)) for number in range(rounds)]
    shares = [100 * of_rows / of_files for of_rows, of_files in pairs]
    return (
        f"row groups of {size}: {median(each for each, _ in pairs):.0f} images/s, {median(shares):.0f} % of a folder's "
        f"({min(shares):.0f} .. {max(shares):.0f}); {peak_mib() - memory:.0f} MiB more memory"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10,100,500,2000", help="images in a row group (default: 10,100,500,2000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        make_folder(Path(scratch), IMAGES)
        for size in map(int, options.sizes.split(",")):
            write(Path(scratch), size)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(measure, (Path(scratch), size, options.rounds, options.batches)), flush=True)


if __name__ == "__main__":
    main()
