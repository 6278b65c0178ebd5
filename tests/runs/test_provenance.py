"""Conditions of an attempt."""

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


def test_versions_name_the_build_of_torch_with_its_cuda_and_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata of a package lacks the build, such as +cu130."""
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    versions = provenance.versions.__wrapped__()  # without its cache
    assert (versions["torch"], versions["cuda"], versions["cudnn"]) == ("2.11.0+cu130", "13.0", "91900")
