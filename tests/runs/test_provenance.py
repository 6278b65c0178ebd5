"""Conditions of an attempt."""

from collections.abc import Callable

from plainres.config.schema import Config
from plainres.runs import provenance


def test_conditions_contain_hardware_and_software(make_config: Callable[..., Config]) -> None:
    config = make_config(trainer={"threads": 3, "sync_batch_norm": True})
    conditions = provenance.conditions(config, 2)
    assert conditions["device"].startswith("cpu ")
    assert (conditions["devices"], conditions["threads"], conditions["sync_batch_norm"]) == (2, 3, True)
    assert conditions["versions"]["torch"]
    assert conditions["source_sha256"] == provenance.SOURCE_SHA256
