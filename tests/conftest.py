import copy
import os
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from plainres.config.schema import CheckpointTimes, Config, Devices, Recipe
from plainres.processes.environment import influencing
from support import forking
from support.places import CONF, ROOT

for variable in influencing(os.environ):  # plainres refuses to train in a process that imported torch with these
    del os.environ[variable]
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # ignored in background jobs, but tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
forking.preload_everything()
os.environ.setdefault("COVERAGE_FILE", str(ROOT / ".coverage"))  # for processes that tests start in other folders

# the slowest tests, slowest first; those with SLURM are consecutive because they share a cluster
SLOW = (
    "test_a_sweep_on_slurm",
    "test_a_sweep_of_runs_on_several_devices",
    "test_srun_starts_a_run_on_two_nodes",
    "test_a_compiled_run_is_the_run",
    "test_every_command_of_the_documentation",
    "test_a_study_is_measured_network_by_network",
    "test_torchrun_on_two_machines",
    "test_one_of_two_processes_is_killed_then_both",
    "test_a_sweep_killed_five_times",
    "test_a_signal_saves_the_run",
    "test_an_outage_during_training",
    "test_on_two_then_one",
    "test_the_documented_shortcut",
    "test_killed_at_random_moments",
    "test_a_sweep_that_is_stopped",
    "test_networks_compile_and_export",
    "test_a_killed_and_interrupted_landscape",
    "test_akamasters_file",
    "test_real_cifar10",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the slowest tests first in each pytest-xdist worker, whose first tests are a slice of the list."""

    def rank(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(SLOW) if item.name.startswith(name)), len(SLOW))

    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = sorted((item for item in items if rank(item) < len(SLOW)), key=rank)
    cluster = [item for item in slow if "cluster" in item.fixturenames or "[slurm]" in item.name]  # pyright: ignore[reportAttributeAccessIssue]
    others = [item for item in slow if item not in cluster]
    quick = [item for item in items if rank(item) == len(SLOW)]
    first = [cluster, *([] for _ in range(workers - 1))]
    for i, item in enumerate(others):
        first[-1 - i % workers].append(item)
    left = len(items)
    items.clear()
    for i, part in enumerate(first):
        size = left // (workers - i)
        left -= size
        items += part + [quick.pop(0) for _ in range(min(len(quick), size - len(part)))]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail skipped tests in CI, where .ci/run installs everything except a GPU and the images of CIFAR-10."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr)
        if not any(requirement in reason for requirement in ("GPU", "CIFAR-10")):
            report.outcome, report.longrepr = "failed", f"skipped in CI, where it must run: {reason}"
    return report


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """Return a factory of small configurations: `make_config(depth=14, shortcut="plain", optim={"steps": 5})`."""

    def make(
        *,
        shortcut: str = "identity",
        depth: int = 8,
        width: int = 4,
        seed: int = 0,
        data: dict[str, Any] | None = None,
        optim: dict[str, Any] | None = None,
        devices: int = 1,
        trainer: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Config:
        factory = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "shortcut" / f"{shortcut}.yaml"))
        assert isinstance(factory, dict)
        factory.pop("norm", None)  # the default of the network
        recipe: dict[str, Any] = {
            "batch_size": 32,
            "epochs": 2,
            "steps": None,
            "lr": 0.05,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "milestones": [0.5, 0.75],
            "gamma": 0.1,
            "warmup_lr": None,
            "warmup_until": 80.0,
        }
        synthetic: dict[str, Any] = {
            "_target_": "plainres.data.Synthetic",
            "shape": [1, 8, 8],
            "classes": 10,
            "train": 100,
            "test": 30,
            "pad": 2,
            "flip": True,
        }
        values: dict[str, Any] = {
            "model": {
                "_target_": "plainres.models.CifarNet",
                "_partial_": True,
                "depth": depth,
                "width": width,
                "shortcut": factory,
            },
            "data": copy.deepcopy(data) if data is not None else synthetic,
            "optim": Recipe(**(recipe | (optim or {}))),
            "trainer": Devices(**({"accelerator": "cpu", "devices": devices, "threads": 1} | (trainer or {}))),
            "checkpoint": CheckpointTimes(every_minutes=5),
            "study": "test",
            "runs": str(tmp_path / "runs"),
            "seed": seed,
            "precision": "32-true",
            "options": {"model/shortcut": shortcut, "data": "synthetic"},
        }
        return Config(**(values | changes))

    return make
