"""Synthetic studies: runs with records of networks that were never trained."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plainres.config.schema import CheckpointTimes, Config, Devices, Recipe, ReportOptions
from plainres.files import write_atomically
from plainres.runs.record import Run

EPOCHS, STEPS = 10, 230
END = EPOCHS * 23


def a_run(folder: Path, shortcut: str, depth: int, seed: int, **changes: Any) -> Run:
    """Prepare a run that has not started.

    `changes` are width, epochs, norm, groups, shortcut_norm, reference, validation_per_class, and parameters of the
    shortcut.
    """
    norm = changes.pop("norm", "batch")
    report = ReportOptions(changes.pop("reference", {}))
    recipe = Recipe(64, changes.pop("epochs", EPOCHS), None, 0.05, 0.9, 1e-4, [0.5, 0.75], 0.1, None, 80.0)
    model = {"_target_": "plainres.models.CifarNet", "_partial_": True, "depth": depth}
    model["width"] = changes.pop("width", 8)
    model["norm"] = {
        "_target_": f"somewhere.{norm.title()}",
        **({"groups": changes.pop("groups", 8)} if norm == "group" else {}),
    }
    validation = {"validation_per_class": changes.pop("validation_per_class", None)}
    own = {"norm": changes.pop("shortcut_norm")} if "shortcut_norm" in changes else {}
    model["shortcut"] = {"_target_": f"plainres.models.{shortcut.title()}", "_partial_": True, **own, **changes}
    run = Run.of(
        Config(
            model=model,
            data={"_target_": "plainres.data.Digits", "pad": 0, "flip": False, **validation},
            optim=recipe,
            trainer=Devices(accelerator="cpu", devices=1, threads=1),
            checkpoint=CheckpointTimes(every_minutes=5),
            study=folder.name,
            runs=str(folder.parent),
            seed=seed,
            precision="32-true",
            options={"model": "cifar", "model/norm": norm, "model/shortcut": shortcut, "trainer": "cpu"},
            report=report,
        )
    )
    run.prepare()
    return run


def train(run: Run, epochs: int, error: float) -> None:
    noise = random.Random(run.name)
    validated = run.config.data.get("validation_per_class") is not None
    rows = [f"epoch,step,lr,train/loss,train/error,test/loss,test/error{',validation/error' * validated}"]
    for epoch in range(1, epochs + 1):
        now = error + (90 - error) * 0.55**epoch
        test = min(100, now + 2 + noise.random())
        rows.append(f"{epoch},{epoch * 23},0.05,{now / 40},{now},{now / 30},{test}{f',{test - 1}' * validated}")
    write_atomically(run.folder / "metrics.csv", "\n".join(rows) + "\n")


def finish(run: Run, error: float, **changes: Any) -> Run:
    epochs = run.config.optim.epochs or 0
    train(run, epochs, error)
    model = run.config.model
    result = {
        "name": run.name,
        "study": run.config.study,
        "shortcut": run.config.shortcut,
        "seed": run.config.seed,
    }
    result |= {
        "depth": model["depth"],
        "width": model["width"],
        "train_error": error + 0.5,
        "train_loss": error / 40,
    }
    result |= {
        "train_error_eval": error,
        "train_loss_eval": error / 50,
        "test_error": error + 2,
        "test_loss": 0.1,
    }
    result |= {
        "best_test_error": error + 1,
        "best_test_error_epoch": 9,
        "steps": epochs * 23,
        "epochs": epochs,
    }
    result |= {
        "batch_size": 64,
        "parameters": model["depth"] * 1000,
        "multiply_adds": model["depth"] * 100_000,
    }
    result |= {"weights_sha256": "ab", "data_sha256": "cd", "wall_time_s": 1.5, "peak_memory_mib": 300}
    result |= {"versions": {"python": "3.12.1", "torch": "2.13.0"}, "git_commit": None}
    result |= {"device": "cpu", "devices": 1, "threads": 1}
    run.finish(result | changes)
    return run


def data_of(page: str) -> dict[str, Any]:
    """Return the data that a page's script draws."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


def observe(run: Run, *, steps: Sequence[int] = (0, END), probe: str = "responses", columns: str = "std") -> Path:
    """Write rows of a probe with equal values in all columns, and return the file."""
    run.config.probes[probe] = {"_target_": f"somewhere.{probe.title()}"}
    run.prepare()
    (run.folder / "probes").mkdir(exist_ok=True)
    file = run.folder / "probes" / f"{probe}.csv"
    values = f"{{0}}{',{0}' * columns.count(',')}"
    rows = [f"{step},{i},layer{i},{values.format(1 + i + step)}" for step in steps for i in range(3)]
    file.write_text("\n".join([f"step,layer,name,{columns}", *rows, ""]))
    return file
