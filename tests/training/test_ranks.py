"""The ranks of a run on several machines must have the same images."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from support.images import write_folders

RANK = """
import os, sys
from plainres.cli.main import main
sys.exit(main(["train", *sys.argv[1:], f"data.path=images{os.environ['RANK']}"]))
"""
OPTIONS = ["data=images", "data.name=flowers", "optim.batch_size=4", "optim.epochs=1", "model.depth=8", "model.width=4"]


def test_ranks_with_other_images_are_refused(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for rank, (first, second) in enumerate((("daisy", "rose"), ("rose", "daisy"))):  # one machine has swapped names
        images = {
            f"{split}/{name}/{number}.png": generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            for split, count in (("train", 4), ("test", 2))
            for name in (first, second)
            for number in range(count)
        }
        write_folders(tmp_path / f"images{rank}", images)
    (tmp_path / "rank.py").write_text(RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "rank.py"]
    done = subprocess.run(
        [*torchrun, *OPTIONS, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "have different images: rank 0 with the digest " in done.stderr
    assert "give all machines the same, and run the same command again" in done.stderr
    assert not list(tmp_path.glob("runs/*/*/result.json"))
