"""The elastic agent of a run on several devices."""

from collections.abc import Iterable
from dataclasses import Field, fields
from typing import Any

import pytest
from torch.distributed.launcher.api import LaunchConfig

from plainres.launch import agent


def test_workers_get_ten_minutes_to_save() -> None:
    config = agent.launch_config(3)
    assert (config.nproc_per_node, config.max_restarts) == (3, 0)
    if "shutdown_timeout" in {field.name for field in fields(LaunchConfig)}:
        assert config.shutdown_timeout == 600


def test_the_shutdown_timeout_is_omitted_where_torch_does_not_support_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 has no such option."""

    def fields_without_timeout(kind: Any) -> Iterable[Field[Any]]:
        return [field for field in fields(LaunchConfig) if field.name != "shutdown_timeout"]

    received: dict[str, Any] = {}
    monkeypatch.setattr(agent, "fields", fields_without_timeout)
    monkeypatch.setattr(agent, "LaunchConfig", lambda **options: received.update(options))
    agent.launch_config(2)
    assert received["nproc_per_node"] == 2
    assert "shutdown_timeout" not in received
