"""The page experiments/why, whose numbers are computed from committed results."""

import importlib.util
from types import ModuleType

import pytest

from support.places import ROOT

FOLDER = ROOT / "experiments" / "why"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("why", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_rebuilt_from_the_committed_results(build: ModuleType) -> None:
    assert build.page() == (FOLDER / "README.md").read_text(encoding="utf-8")


def test_every_remedy_has_a_verdict_from_paired_seeds(build: ModuleType) -> None:
    for name, without, with_ in (remedy for of_data in build.REMEDIES.values() for remedy in of_data.values()):
        plain = (name, without.format("plain"), 56), (name, with_.format("plain"), 56)
        found = build.difference(*plain)
        assert len(found.by_seed) >= 3 or build.error(*plain[1]) == "diverges"
