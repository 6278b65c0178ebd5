"""Kill runs at random moments, resume them, and check that their results are bit-identical to an undisturbed run.

python tests/kills.py 100                  # runs in one process: SIGKILL, SIGTERM, SIGHUP, or a closed terminal
python tests/kills.py 20 --devices 2       # runs in two processes: kill one or both, or send SIGHUP to the command
"""

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, repeat
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from plainres.config.schema import CheckpointTimes
from plainres.errors import RunFailedError
from plainres.launch.devices import launch
from plainres.launch.sweep import PRELOADED, PRELOADED_FOR_WANDB
from plainres.runs.record import Run

CLOSED = "a closed terminal"
ENDS = ("SIGKILL", "SIGTERM", "SIGHUP", CLOSED)  # of a process
ALWAYS = repeat("SIGKILL")
IGNORED = ("wall_time_s", "peak_memory_mib", "attempts")  # keys of a result that may differ


def digits(runs: Path, every_n_steps: int, *more: str, devices: int = 1, seed: int = 0) -> Run:
    """Return a run of three epochs on the digits in batches of 60, which has 75 steps, with `more` overrides."""
    from plainres.config.compose import compose

    options = ["model.depth=8", "model.width=4", "optim.epochs=3", "optim.batch_size=60", f"runs={runs}"]
    options += [f"seed={seed}", f"checkpoint.every_n_steps={every_n_steps}", f"trainer.devices={devices}"]
    return Run.of(compose([*options, *more])[0])


def final_state(run: Run) -> tuple[Any, ...]:
    """Return the curves and the result of a run, and the final state of its network and optimizer."""
    run = Run(run.config, run.folder)  # without a cached result
    result = {key: value for key, value in run.result.items() if key not in IGNORED}
    state = torch.load(run.checkpoints / f"step-{result['steps']:09d}.ckpt", weights_only=True)
    momenta = state["optimizer_states"][0]["state"]
    return (
        (run.folder / "metrics.csv").read_text(),
        result,
        {key: tensor.numpy().tobytes() for key, tensor in state["state_dict"].items()},
        {key: buffers["momentum_buffer"].numpy().tobytes() for key, buffers in momenta.items()},
        state["lr_schedulers"],
    )


def elsewhere(run: Run, folder: Path, every_n_steps: int) -> Run:
    """Return the same run with another folder and other checkpoints."""
    checkpoint = CheckpointTimes(every_minutes=5, every_n_steps=every_n_steps)
    return Run.of(replace(run.config, runs=str(folder), checkpoint=checkpoint))


def launch_with(run: Run, environment: dict[str, str], terminal: str | None = None) -> None:
    """Train a run with additional environment variables, and with a terminal if one is given."""
    if terminal:
        os.setsid()
        try:
            os.dup2(os.open(terminal, os.O_RDWR), 0)  # becomes the terminal of the new session
        except OSError:  # closed already
            sys.exit(128 + signal.SIGHUP)
    # Python's default, as in a script: tqdm's semaphore of another start method outlives a process that is killed
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    os.environ.update(environment)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is ignored under nohup
    launch(run)


def started(run: Run, environment: dict[str, str] | None = None, terminal: str | None = None) -> ForkServerProcess:
    """Start a process that trains a run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *PRELOADED_FOR_WANDB])
    process = context.Process(target=launch_with, args=(run, environment or {}, terminal))
    process.start()
    return process


def kill_in_one_process(
    run: Run,
    moments: Iterator[float],
    environment: dict[str, str] | None = None,
    ends: Iterator[str] = ALWAYS,
) -> int:
    """Train a run until it finishes, ending its process after each of `moments` (seconds); return their number.

    Args:
        run: the run.
        moments: seconds from the start of each process to its end.
        environment: additional environment variables.
        ends: how each process ends: the name of a signal, or CLOSED.
    """
    kills = 0
    while not run.finished:
        end, (screen, terminal) = next(ends), os.openpty()
        process = started(run, environment, os.ttyname(terminal) if end == CLOSED else None)
        process.join(next(moments, None))
        codes = [0]
        if process.is_alive():
            kills += 1
            number = signal.SIGHUP if end == CLOSED else signal.Signals[end]
            codes += [-number, 128 + number]
            if end != CLOSED:
                os.kill(process.pid or 0, number)
            else:
                os.close(screen)
        process.join()
        os.close(terminal)
        if end != CLOSED or len(codes) == 1:
            os.close(screen)
        if process.exitcode not in codes:
            raise RunFailedError(f"{run.folder}: exit code {process.exitcode} after {end}")
    return kills


def when(condition: Callable[[], bool]) -> Iterator[float]:
    """Wait until a condition holds, then yield 0.0, the moment to kill."""
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end, "timed out waiting for the condition"
        time.sleep(0.005)
    yield 0.0


def processes_of(run: Run) -> dict[int, str]:
    """Return the processes of a run on several devices: the module of each process ID."""
    modules = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(run.folder) in words and "-m" in words:
            module = [word for word in words if word.startswith("plainres.")][-1]
            modules[int(process.name)] = module
    return modules


def kill_processes(
    run: Run,
    choose: random.Random,
    within_s: float,
    start: Callable[..., "subprocess.Popen[Any]"] = subprocess.Popen,
    ends: Sequence[str] = ("one", "all"),
) -> str:
    """Start a run on several devices, and kill one or all of its processes, or send SIGHUP; return which."""
    program = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL);"
    program += "from pathlib import Path; from plainres.launch.devices import launch;"
    program += "from plainres.runs.record import Run; launch(Run.read(Path(sys.argv[1])))"
    run.prepare()
    starter = start([sys.executable, "-c", program, str(run.folder)], stderr=subprocess.DEVNULL)
    first = run.step
    while run.step == first and not run.finished and starter.poll() is None:
        time.sleep(0.02)  # until it trains
    time.sleep(choose.uniform(0, within_s))
    processes = processes_of(run)
    ranks = sorted(number for number, module in processes.items() if module == "plainres.launch.worker")
    choice = choose.choice(ends) if len(ranks) > 1 else "none"
    one = [choose.choice(ranks)] if ranks else []
    victims = {"one": one, "all": [*processes, starter.pid], "SIGHUP": [starter.pid], "none": []}[choice]
    for victim in victims:
        try:
            os.kill(victim, signal.SIGHUP if choice == "SIGHUP" else signal.SIGKILL)
        except ProcessLookupError:
            choice += ", exited before"
    starter.wait(timeout=60)
    end = time.monotonic() + 20
    while processes_of(run):
        if time.monotonic() > end:
            raise RunFailedError(f"{run.folder}: {processes_of(run)} outlive their run")
        time.sleep(0.05)
    return choice


def counted(count: int, noun: str) -> str:
    """Format a count with its noun: '1 time', '2 times'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def main() -> int:
    """Kill runs as often as requested; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, help="number of kills")
    parser.add_argument("--devices", type=int, default=1, help="processes of each run (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))  # removes the temporary folder
    choose = random.Random(options.seed)
    ends = cycle(ENDS)
    torch.set_num_threads(1)
    # a process that outlives a stop may still write
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        undisturbed = digits(Path(scratch) / "undisturbed", 10**6, devices=options.devices)
        launch(undisturbed)
        expected, kills, identical, trials = final_state(undisturbed), 0, 0, 0
        while kills < options.kills:
            every = choose.choice([1, 2, 7, 30] if options.devices == 1 else [1, 5])
            trials += 1
            run = elsewhere(undisturbed, Path(scratch) / str(trials), every)
            if options.devices == 1:
                moments = iter([choose.uniform(0, 1.2) for _ in range(min(4, options.kills - kills))])
                count = kill_in_one_process(run, moments, ends=ends)
            else:
                devices = ("one", "all", "SIGHUP")
                count = int(kill_processes(run, choose, 1.5, ends=devices) in devices)
                launch(run) if not run.finished else None
            kills += count
            same = final_state(run) == expected
            identical += same
            print(
                f"run {trials}: saved every {counted(every, 'step')}, killed {counted(count, 'time')}: "
                f"{'equal' if same else 'DIFFERENT'}",
                flush=True,
            )
    print(f"{counted(kills, 'kill')}; {identical} of {counted(trials, 'run')} bit-identical to the undisturbed run")
    return int(identical != trials)


if __name__ == "__main__":
    sys.exit(main())
