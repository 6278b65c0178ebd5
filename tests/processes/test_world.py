"""Ranks, parent processes and the SLURM queue."""

import os
import signal
import subprocess
import sys

import pytest

from plainres.errors import InputError, StoppedError
from plainres.processes.world import World, requeue


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


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"TORCHELASTIC_RUN_ID": "x"}, "RANK is 'missing'; if it did not, .*`env -u TORCHELASTIC_RUN_ID`"),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID is 'missing'; .*`env -u SLURM_STEP_NUM_TASKS`"),
    ],
)
def test_half_of_a_launchers_environment_is_an_error(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        World.current()


def test_a_job_on_a_machine_without_scontrol_is_not_requeued_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    monkeypatch.setenv("PATH", "")
    requeue(StoppedError("stopped", signal.SIGUSR1))
    assert capsys.readouterr().err == ("plainres: SLURM job 7 could not be requeued; submit it again to resume\n")


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
