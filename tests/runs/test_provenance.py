"""Tests of the digest of the code and of the conditions of an attempt."""

from pathlib import Path

import pytest

from plainres.config.schema import Devices
from plainres.runs import provenance

CODE = '"""A module."""\n\n\ndef double(x):\n    """Double it."""\n    return 2 * x  # why\n'


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a package with the layout of plainres and one function in `models`."""
    for folder in ("runs", "models", "reporting", "config"):
        (tmp_path / folder).mkdir()
    for part in provenance.TRAINING_CODE:
        if part.endswith(".py"):
            (tmp_path / part).write_text("")
    (tmp_path / "models" / "twice.py").write_text(CODE)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "runs" / "provenance.py"))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "same"),
    [
        ("models/twice.py", CODE.replace("Double it.", "Return twice the value.").replace("# why", "# because"), True),
        ("models/twice.py", CODE.replace("2 * x", "3 * x"), False),
        ("models/twice.py", CODE.replace('    """Double it."""\n', ""), True),
        ("models/another.py", "x = 1\n", False),
        ("reporting/table.py", "x = 1\n", True),
        ("randomness.py", "x = 1\n", False),
        ("config/schema.py", "x = 1\n", False),
        ("config/options.py", "x = 1\n", True),
    ],
)
def test_the_digest_depends_on_the_code_that_trains(package: Path, file: str, text: str, same: bool) -> None:
    before = provenance._source_sha256()
    (package / file).write_text(text)
    assert (provenance._source_sha256() == before) == same


def test_all_parts_of_the_digest_exist() -> None:
    package = Path(provenance.__file__).parent.parent
    assert all((package / part).exists() for part in provenance.TRAINING_CODE)


def test_conditions_contain_hardware_and_software() -> None:
    conditions = provenance.conditions(Devices(accelerator="cpu", devices=2, threads=3, sync_batch_norm=True), 2)
    assert conditions["device"].startswith("cpu ")
    assert (conditions["devices"], conditions["threads"], conditions["sync_batch_norm"]) == (2, 3, True)
    assert conditions["versions"]["torch"]
    assert conditions["source_sha256"] == provenance.SOURCE_SHA256
