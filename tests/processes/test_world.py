"""Ranks, parent processes and the SLURM queue."""

import os
import subprocess
import sys

import pytest

from plainres.processes.world import World


def test_rank_and_world_size_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    assert World.current() == World()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert World.current() == World(3, 4, "srun")
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert World.current() == World(1, 2, "torchrun")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread polls, which needs the GIL")
def test_a_process_exits_with_its_parent_even_while_it_holds_the_gil() -> None:
    child = (
        "import ctypes, os, sys; from plainres.processes.world import exit_with_parent; exit_with_parent(os.getppid());"
    )
    child += "print(os.getpid(), flush=True); ctypes.PyDLL(None).sleep(100)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
        process.communicate(timeout=30)  # returns once the child has closed its output as well
