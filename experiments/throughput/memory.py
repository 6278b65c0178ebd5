"""Peak memory of a run whose images are decoded while training, with all of its processes.

python experiments/throughput/memory.py --images 20000

A folder of JPEG files of 500x375 pixels is made of copies of a few files. The run trains for some steps, and evaluates
the whole training set once. The memory is the sum of the proportional set sizes of all processes of the run, which
counts shared pages once.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from streaming import make_folder

DISTINCT = 100  # files; the others are copies of them


def make_classes(folder: Path, images: int) -> None:
    """Make a folder in ImageNet's layout, of `images` training images and a fiftieth as many for tests."""
    source = folder / "distinct"
    source.mkdir()
    make_folder(source, DISTINCT)
    for split, count in (("train", images), ("validation", images // 50)):
        for index in range(count):
            target = folder / "images" / split / f"class{index % 10}" / f"{index}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / f"{index % DISTINCT}.jpg", target)


def tree(root: int) -> list[int]:
    """Return a process and its descendants."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    members = [root]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return members


def memory_mib(root: int) -> float:
    """Return the sum of the proportional set sizes of a process and its descendants."""
    total = 0
    for member in tree(root):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20000, help="number of training images (default: 20000)")
    parser.add_argument("--steps", type=int, default=100, help="steps of training (default: 100)")
    parser.add_argument("overrides", nargs="*", help="further overrides, such as trainer.workers=1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        make_classes(Path(scratch), options.images)
        command = [sys.executable, "-m", "plainres", "train", "data=imagenet", f"data.path={scratch}/images"]
        command += ["data.classes=10", "model=imagenet", "model.width=16", "optim=he2015_imagenet"]
        command += ["optim.batch_size=64", f"optim.steps={options.steps}", f"runs={scratch}/runs", *options.overrides]
        environment = {**os.environ, "HF_HOME": f"{scratch}/hf"}
        run = subprocess.Popen(command, env=environment)
        measured = []
        while run.poll() is None:
            measured.append(memory_mib(run.pid))
            time.sleep(0.5)
    quarters = [max(measured[len(measured) * i // 4 : len(measured) * (i + 1) // 4]) for i in range(4)]
    text = ", ".join(f"{quarter:,.0f}" for quarter in quarters)
    print(f"exit code {run.returncode}; peak memory {max(measured):,.0f} MiB; in each quarter of the time {text} MiB")


if __name__ == "__main__":
    main()
