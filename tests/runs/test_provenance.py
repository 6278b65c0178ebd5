"""Conditions of an attempt."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from plainres.config.schema import Config
from plainres.runs import provenance


def test_conditions_contain_hardware_and_software(make_config: Callable[..., Config]) -> None:
    config = make_config(trainer={"threads": 3, "sync_batch_norm": True})
    conditions = provenance.conditions(config, 2)
    assert conditions["device"].startswith("cpu ")
    assert (conditions["devices"], conditions["threads"], conditions["sync_batch_norm"]) == (2, 3, True)
    assert conditions["versions"]["torch"]
    assert conditions["source_sha256"] == provenance.SOURCE_SHA256
    assert "pillow" not in conditions["versions"]
    config.data["stream"] = True  # so that the images are decoded in training
    assert provenance.conditions(config, 1)["versions"].keys() >= {"torch", "pillow", "simplejpeg"}


def test_versions_name_the_build_of_torch_with_its_cuda_and_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata of a package lacks the build, such as +cu130."""
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    versions = provenance.versions.__wrapped__()  # without its cache
    assert (versions["torch"], versions["cuda"], versions["cudnn"]) == ("2.11.0+cu130", "13.0", "91900")


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/self/status")
PRINT_PEAKS = """
import resource
from plainres.runs.provenance import peak_memory_mib
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, peak_memory_mib("cpu"))
"""


@needs_proc
def test_the_peak_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    ballast = b"\1" * (900 << 20)
    inherited, own = map(float, subprocess.check_output([sys.executable, "-c", PRINT_PEAKS], text=True).split())
    assert inherited > len(ballast) / 2**20
    assert 100 < own < 800


@needs_proc
def test_the_peak_memory_of_an_earlier_run_is_forgotten() -> None:
    ballast = b"\1" * (500 << 20)
    before = provenance.peak_memory_mib("cpu")
    del ballast
    provenance.reset_peak_memory()
    after = provenance.peak_memory_mib("cpu")
    assert before is not None
    assert after is not None
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert after < before - 400


def test_the_peak_memory_of_a_run_is_the_largest_of_its_attempts() -> None:
    def peak_of(*attempts: tuple[str, float | None]) -> float | None:
        return provenance.peak_memory_of([{"device": device, "peak_memory_mib": peak} for device, peak in attempts])

    assert peak_of(("cpu A", 300.0)) == 300
    assert peak_of(("cpu A", 300.0), ("cpu B", 700.5), ("cpu A", 200.0)) == 700.5
    assert peak_of(("cpu A", 300.0), ("cpu A", None)) is None
    assert peak_of(("cpu A", 300.0), ("NVIDIA H100", 700.0)) is None
    assert provenance.peak_memory_of([{"device": "cpu A"}, {"device": "cpu A", "peak_memory_mib": 300.0}]) is None
