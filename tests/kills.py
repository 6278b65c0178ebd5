"""Kill runs at random moments, again and again, and let them go on: do they end as if nothing had happened?

python tests/kills.py 100                  # of digits runs, in one process
python tests/kills.py 20 --devices 2       # one process of two, or all of them
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
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from plainres.config.schema import CheckpointTimes
from plainres.errors import RunFailedError
from plainres.launch.devices import launch
from plainres.launch.sweep import PRELOADED, PRELOADED_FOR_WANDB
from plainres.runs.record import Run

ASIDE = ("wall_time_s", "peak_memory_mib", "attempts")  # of a result: what it cost, and in how many parts


def digits(runs: Path, every_n_steps: int, devices: int = 1, seed: int = 0, shortcut: str = "identity") -> Run:
    """Three epochs of the digits, in batches of 60: 75 steps."""
    from plainres.config.compose import compose

    options = ["model.depth=8", "model.width=4", "optim.epochs=3", "optim.batch_size=60", f"runs={runs}"]
    options += [f"seed={seed}", f"checkpoint.every_n_steps={every_n_steps}", f"trainer.devices={devices}"]
    options += [f"model/shortcut={shortcut}"]
    return Run.of(compose(options)[0])


def ending(run: Run) -> tuple[Any, ...]:
    """All that a run leaves: its curves, its result, the final state of network and optimizer."""
    run = Run(run.config, run.folder)  # whose result is read anew
    result = {key: value for key, value in run.result.items() if key not in ASIDE}
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
    """The same run, kept in another folder and saved at other times."""
    checkpoint = CheckpointTimes(every_minutes=5, every_n_steps=every_n_steps)
    return Run.of(replace(run.config, runs=str(folder), checkpoint=checkpoint))


def launch_with(run: Run, environment: dict[str, str]) -> None:
    """Train a run in an environment of its own."""
    os.environ.update(environment)
    launch(run)


def started(run: Run, environment: dict[str, str] | None = None) -> ForkServerProcess:
    """A process that trains a run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *PRELOADED_FOR_WANDB])
    process = context.Process(target=launch_with, args=(run, environment or {}))
    process.start()
    return process


def kill_in_one_process(run: Run, moments: Iterator[float], environment: dict[str, str] | None = None) -> int:
    """Train a run to its end, killing its process after each of `moments` (seconds); return how often it was."""
    kills = 0
    while not run.finished:
        process = started(run, environment)
        process.join(next(moments, None))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        elif process.exitcode:
            raise RunFailedError(f"{run.folder}: exit code {process.exitcode}")
    return kills


def when(condition: Callable[[], bool]) -> Iterator[float]:
    """The moment at which a condition holds: no time after it has been waited for."""
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
    yield 0.0


def processes_of(run: Run) -> dict[int, str]:
    """The processes of a run on several devices: number -> module."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(run.folder) in words and "-m" in words:
            module = [word for word in words if word.startswith("plainres.")][-1]
            found[int(process.name)] = module
    return found


def kill_processes(
    run: Run, choose: random.Random, within_s: float, start: Callable[..., "subprocess.Popen[Any]"] = subprocess.Popen
) -> str:
    """Start a run on several devices and kill one of its processes, or all of them; return which."""
    program = "import sys; from pathlib import Path; from plainres.launch.devices import launch;"
    program += "from plainres.runs.record import Run; launch(Run.read(Path(sys.argv[1])))"
    run.prepare()
    starter = start([sys.executable, "-c", program, str(run.folder)], stderr=subprocess.DEVNULL)
    before = run.step
    while run.step == before and not run.finished and starter.poll() is None:
        time.sleep(0.02)  # until it trains
    time.sleep(choose.uniform(0, within_s))
    found = processes_of(run)
    ranks = sorted(number for number, module in found.items() if module == "plainres.launch.worker")
    what = choose.choice(["one", "all"]) if len(ranks) > 1 else "none"
    victims = {"one": [choose.choice(ranks)] if ranks else [], "all": [*found, starter.pid], "none": []}[what]
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            what += ", ended before"
    starter.wait(timeout=60)
    end = time.monotonic() + 20
    while processes_of(run):
        if time.monotonic() > end:
            raise RunFailedError(f"{run.folder}: {processes_of(run)} outlive their run")
        time.sleep(0.05)
    return what


def main() -> int:
    """Kill as often as asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    choose = random.Random(options.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        whole = digits(Path(scratch) / "whole", 10**6, options.devices)
        launch(whole)
        wanted, kills, alike, trials = ending(whole), 0, 0, 0
        while kills < options.kills:
            every = choose.choice([1, 2, 7, 30] if options.devices == 1 else [1, 5])
            trials += 1
            run = elsewhere(whole, Path(scratch) / str(trials), every)
            if options.devices == 1:
                moments = iter([choose.uniform(0, 1.2) for _ in range(min(4, options.kills - kills))])
                these = kill_in_one_process(run, moments)
            else:
                these = int(kill_processes(run, choose, 1.5) in ("one", "all"))
                launch(run) if not run.finished else None
            kills += these
            same = ending(run) == wanted
            alike += same
            print(f"run {trials}: saved every {every} steps, killed {these} times: {'equal' if same else 'DIFFERENT'}")
    print(f"{kills} kills, {alike} of {trials} runs ended bit-identical to the one that was not killed")
    return int(alike != trials)


if __name__ == "__main__":
    sys.exit(main())
