"""The public API: what `import plainres` gives, and a notebook that uses nothing else."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import plainres
from plainres.config.schema import ReportOptions

NAMES = [
    *("Config", "InputError", "Run", "RunFailedError", "__version__", "build_network", "compose", "curves", "load"),
    *("load_network", "predict", "read_study", "results", "sweep", "sweep_tuned", "train", "write_report"),
]


def test_exactly_these_names_are_public() -> None:
    assert sorted(plainres.__all__) == sorted(NAMES)
    assert all(getattr(plainres, name) is not None for name in NAMES)
    assert sorted(dir(plainres)) == sorted(NAMES)
    with pytest.raises(AttributeError, match="has no attribute 'tarin'; it has Config, "):
        _ = plainres.tarin  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_plainres_waits_for_neither_torch_nor_hydra() -> None:
    script = (
        "import sys, plainres; plainres.__version__; plainres.InputError\n"
        "print([m for m in ('torch', 'hydra', 'lightning', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["model.depth=8", "model.width=4", "optim.epochs=1", "data=synthetic", "data.shape=[1,8,8]", "study=mine"]
    (config,) = plainres.compose([*small, "model/shortcut=plain"])
    assert isinstance(config, plainres.Config)
    network = plainres.build_network(config)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)

    run = plainres.train(config)
    assert isinstance(run, plainres.Run)
    assert plainres.train(config).result == run.result  # finished already
    again = replace(config, report=ReportOptions({"model/shortcut": "identity"}))
    assert plainres.train(again).config.report == again.report
    assert plainres.Run.read(run.folder).config == again
    configs = plainres.compose([*small, "-m", "model/shortcut=plain,identity", "seed=0,1"])
    assert plainres.sweep(configs) == 0

    grid = ["sweep.tune.option=optim.lr", "sweep.tune.values=[0.1,0.2,0.4]", "sweep.tune.seeds=[1]"]
    tuned = plainres.compose([*small, *grid, "data.validation_per_class=5"])
    with pytest.raises(plainres.InputError, match=r"sweep.tune; use sweep_tuned\(configs\)"):
        plainres.sweep(tuned)
    with pytest.raises(plainres.InputError, match=r"sweep.tune; use sweep_tuned\(\[config\]\)"):
        plainres.train(tuned[0])

    trained = plainres.load(str(run.folder))
    assert trained(torch.zeros(3, 8, 8, 1, dtype=torch.uint8)).shape == (3, 10)
    assert plainres.load_network(run)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    predictions = plainres.predict(str(run.folder))
    assert 100 * predictions.wrong.double().mean().item() == run.result["test_error"]

    results = plainres.results("runs/mine")
    assert isinstance(results, pd.DataFrame)
    assert sorted(zip(results["family"], results["seed"], strict=True)) == [
        *(("identity", 0), ("identity", 1), ("plain", 0), ("plain", 1))
    ]
    assert results.set_index("folder").loc[run.name, "test_error"] == run.result["test_error"]
    curves = plainres.curves("runs/mine")
    assert list(curves["run"].unique()) == list(results["folder"])
    assert {"family", "depth", "seed", "epoch", "step", "train/error", "test/error"} <= set(curves.columns)
    assert len(plainres.read_study("runs/mine").families) == 2
    assert "Training error, plain minus identity" in plainres.write_report("runs/mine")
    assert Path("runs/mine/report/index.html").exists()
