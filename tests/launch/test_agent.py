"""The agent that starts the processes of a run on several devices."""

from collections.abc import Iterable
from dataclasses import Field, fields
from typing import Any

import pytest
from torch.distributed.launcher.api import LaunchConfig

from plainres.launch import agent


def test_processes_have_ten_minutes_to_save() -> None:
    config = agent.launch_config(3)
    assert (config.nproc_per_node, config.max_restarts) == (3, 0)
    if "shutdown_timeout" in {each.name for each in fields(LaunchConfig)}:
        assert config.shutdown_timeout == 600


def test_a_torch_whose_configuration_knows_no_such_time_is_not_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.11."""

    def without(kind: Any) -> Iterable[Field[Any]]:
        return [each for each in fields(LaunchConfig) if each.name != "shutdown_timeout"]

    given: dict[str, Any] = {}
    monkeypatch.setattr(agent, "fields", without)
    monkeypatch.setattr(agent, "LaunchConfig", lambda **options: given.update(options))
    agent.launch_config(2)
    assert given["nproc_per_node"] == 2
    assert "shutdown_timeout" not in given
