"""The ranks of a run on several machines must have the same checkpoint, images and code."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.processes.signals import StopSignals
from plainres.runs.record import Run
from plainres.runs.saved import Saved
from plainres.training.checkpoints import Checkpoints
from plainres.training.ranks import ALIKE, RESUME, check_alike
from support.images import write_folders

RANK = """
import os, sys
from plainres.cli.main import main
sys.exit(main(["train", *sys.argv[1:], f"data.path=images{os.environ['RANK']}"]))
"""
OPTIONS = ["data=images", "data.name=flowers", "optim.batch_size=4", "optim.epochs=1", "model.depth=8", "model.width=4"]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_first_rank_that_differs_is_named(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [
        {"checkpoints": (f"of step {step}", RESUME), "images": (digest, ALIKE)} for step, digest in ((5, "a"),) * 3
    ]

    def gather(gathered: list[Any], mine: Any, group: Any) -> None:
        assert mine == ranks[rank]
        gathered[:] = ranks

    monkeypatch.setattr(dist, "get_world_size", lambda group: 3)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    check_alike("run", ranks[rank], None)
    ranks[2]["images"] = "b", ALIKE
    with pytest.raises(InputError, match=f"have different images: rank 0 a, rank 2 b; {ALIKE}"):
        check_alike("run", ranks[rank], None)
    ranks[1]["checkpoints"] = "of step 4", RESUME
    with pytest.raises(InputError, match=f"different checkpoints: rank 0 of step 5, rank 1 of step 4; {RESUME}"):
        check_alike("run", ranks[rank], None)


@pytest.mark.parametrize(
    "changes", [{"source_sha256": "1"}, {"classes": {"mine.Sum": "1"}}, {"versions": {"torch": "1"}}]
)
def test_code_classes_and_versions_are_compared(
    changes: dict[str, Any], make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = {"source_sha256": "0", "classes": {}, "versions": {"torch": "0"}}
    told: list[Any] = []
    monkeypatch.setattr(dist, "new_group", lambda backend: None)
    monkeypatch.setattr("plainres.training.checkpoints.check_alike", lambda name, mine, group: told.append(mine))
    for conditions in (attempt, attempt | changes):
        signals: Any = StopSignals()
        monkeypatch.setattr(signals, "listen", lambda: None)
        run = Run.of(make_config())
        callback = Checkpoints(run, run.config.checkpoint, signals, Saved(), conditions, data_sha256="0")
        trainer: Any = SimpleNamespace(world_size=2)
        callback.on_fit_start(trainer, trainer)
    before, after = told
    assert len([name for name in before if before[name] != after[name]]) == 1


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
