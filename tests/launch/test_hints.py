"""Hints about new runs."""

from pathlib import Path

import pytest
import torch

from plainres.config.compose import compose
from plainres.launch.hints import hints, unmeasured
from plainres.runs.record import Run
from support.study import finish

RUN = ["model.depth=8", "model.width=4", "data=synthetic", "data.shape=[1,8,8]"]


def runs(folder: Path, *overrides: str) -> list[Run]:
    return [Run.of(config) for config in compose([*RUN, *overrides, f"runs={folder}"])]


def test_a_deep_net_without_warm_up_gives_a_hint(tmp_path: Path) -> None:
    deep = runs(tmp_path, "-m", "model.depth=8,110,164")
    assert hints(deep) == ["hint: 110, 164 layers without warm-up; He et al. 2015 warm up with optim.warmup_lr=0.01"]
    assert hints(runs(tmp_path, "model.depth=110", "optim.warmup_lr=0.01")) == []
    assert hints(runs(tmp_path, "model.depth=98")) == []


@pytest.mark.parametrize("bfloat16", [False, True])
def test_bfloat16_on_a_cpu_without_its_arithmetic_gives_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bfloat16: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": bfloat16})
    expected = [
        "hint: this CPU has no bfloat16 arithmetic, so precision=bf16-mixed is probably slower than 32-true; "
        "plainres bench measures it"
    ]
    assert hints(runs(tmp_path, "precision=bf16-mixed")) == ([] if bfloat16 else expected)
    assert hints(runs(tmp_path)) == []
    assert hints(runs(tmp_path, "precision=bf16-mixed", "trainer=gpu")) == []


def test_a_probe_of_a_finished_run_gives_a_hint(tmp_path: Path) -> None:
    finished = runs(tmp_path, "-m", "seed=0,1", "probes=signals")
    for run in finished:
        run.prepare()
        finish(run, 5)
        (run.folder / "probes").mkdir()
        (run.folder / "probes" / "signals.csv").write_text("step,layer\n0,0\n")
    assert unmeasured(finished) == []
    (finished[0].folder / "probes" / "signals.csv").write_text("")  # of a network without blocks
    assert unmeasured(finished) == []
    again = runs(tmp_path, "-m", "seed=0,1", "probes=[signals,responses]")
    assert unmeasured(again) == [
        f"hint: {finished[0].name} (and 1 more) finished without the probe responses; a new study measures it, as in "
        "study=default_responses"
    ]
    others = runs(tmp_path, "seed=0", "probes=signals", "probes.signals.images=64")
    assert unmeasured(others) == [
        f"hint: {finished[0].name} finished with other settings of the probe signals; a new study measures it, as in "
        "study=default_signals"
    ]


def test_a_changed_length_gives_a_hint(tmp_path: Path) -> None:
    (first,) = runs(tmp_path, "optim.epochs=6")
    first.prepare()
    finish(first, 5)
    assert hints([first]) == []
    (longer,) = runs(tmp_path, "optim.epochs=null", "optim.steps=4000")
    assert hints([longer]) == [
        f"hint: {longer.name} differs from {first.name} only in length (4,000 steps; previously 6 epochs); "
        "a run of another length starts from step 0"
    ]
    several = runs(tmp_path, "-m", "optim.epochs=7,8")
    (hint,) = hints(several)
    assert f"{several[0].name} (and 1 more) differ from {first.name} only in length" in hint
    assert hints(runs(tmp_path, "optim.epochs=7", "seed=1")) == []


@pytest.mark.parametrize("damage", ["", "seed: ["])
def test_folders_without_a_run_give_no_hint(tmp_path: Path, damage: str) -> None:
    (run,) = runs(tmp_path)
    other = run.folder.parent / "notes"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text(damage)
    assert hints([run]) == []
