"""Tests of the advice of `plainres bench`."""

from collections.abc import Callable
from statistics import median

import pytest
import torch

from plainres import arithmetic
from plainres.benchmark import advice
from plainres.benchmark.advice import Advice, Speedup, advise
from plainres.benchmark.loops import Windows
from plainres.config.schema import Config
from support.compiler import needs_compiler

Make = Callable[..., Config]
BOTH = ["precision=bf16-mixed", "trainer.threads=2"]


def example(steps: int) -> Advice:
    """Return an advice in which bf16 doubles the speed, compilation gains as much again, and a thread harms."""
    return Advice(
        steps,
        given=Speedup([], False, [1.0, 1.0, 1.0], step=0.4, first=0.5),
        others=[
            Speedup(["trainer.threads=2"], False, [0.4, 0.5, 0.6], step=0.8, first=0.9),
            Speedup(BOTH, False, [1.9, 2.0, 2.1], step=0.2, first=0.3),
            Speedup([*BOTH, "trainer.compile=true"], True, [3.8, 4.0, 4.2], step=0.1, first=40.3),
        ],
        notes=["a note"],
    )


def test_a_long_run_is_advised_to_compile() -> None:
    text = str(example(64_000))
    assert text.splitlines() == [
        "  options of one run that trains alone, by images/s relative to the given ones:",
        "    precision=bf16-mixed trainer.threads=2 trainer.compile=true  4.00 (3.80 .. 4.20)",
        "    precision=bf16-mixed trainer.threads=2                       2.00 (1.90 .. 2.10)",
        "    trainer.threads=2                                            0.50 (0.40 .. 0.60)",
        "  compilation took 40 s (longer if torch has not cached it), and pays from 400 steps",
        "  advice: add precision=bf16-mixed trainer.threads=2 trainer.compile=true",
        "  another precision makes it another run; docs/speed.md says when bf16-mixed is safe",
        "  a note",
    ]


def test_a_short_run_is_not_advised_to_compile() -> None:
    assert example(300).fastest.overrides == BOTH
    assert example(2).fastest.overrides == BOTH
    assert "advice: add precision=bf16-mixed trainer.threads=2\n" in str(example(300))


def test_options_without_a_noticeable_gain_are_not_advised() -> None:
    given = Speedup([], False, [1.0], step=0.102, first=9.0)
    other = Speedup(["trainer.threads=2"], False, [1.02], step=0.1, first=9.0)
    text = str(Advice(1000, given, [other]))
    assert "advice: keep the given options" in text
    assert "another precision" not in text


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # from torch.compile itself
@pytest.mark.parametrize("bfloat16", [False, True])
def test_combinations_of_precision_and_threads_are_measured_and_the_fastest_is_compiled(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, bfloat16: bool
) -> None:
    monkeypatch.setattr(advice, "has_bfloat16", lambda device: bfloat16)
    config = make_config(trainer={"compile": False})
    found = advise(config, Windows(2, 0.05), 2)
    assert torch.get_num_threads() in (1, 2)
    assert found.notes == ([] if bfloat16 else ["this CPU lacks bfloat16 arithmetic; bf16-mixed is left out"])
    precisions = [[], ["precision=bf16-mixed"]] if bfloat16 else [[]]
    eager = [[*precision, *threads] for precision in precisions for threads in ([], ["trainer.threads=2"])]
    *others, compiled = found.others
    assert [each.overrides for each in others] == eager[1:]
    assert compiled.overrides[-1] == "trainer.compile=true"
    assert compiled.compile
    assert min(compiled.first, compiled.step) > 0
    assert compiled.overrides[:-1] in eager
    # its steps are of a later comparison, in which the machine may have another speed
    assert compiled.step == pytest.approx(found.given.step / median(compiled.ratios))
    assert all(len(each.ratios) == 2 for each in found.others)
    assert found.given.ratios == [1.0, 1.0]
    assert found.notes == ([] if bfloat16 else ["this CPU lacks bfloat16 arithmetic; bf16-mixed is left out"])


def test_a_missing_compiler_is_a_note(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", failing)
    found = advise(make_config(precision="64-true", trainer={"compile": False}), Windows(1, 0.02), 1)
    assert found.others == []
    assert found.notes == ["torch.compile failed (RuntimeError: No working C++ compiler found)"]


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"avx2": True, "avx512_bf16": False}, False), ({"bf16": True}, True), ({}, False)],
)
def test_a_cpu_without_bfloat16_is_recognised(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert arithmetic.has_bfloat16("cpu") is expected
    assert not arithmetic.has_bfloat16("mps")
