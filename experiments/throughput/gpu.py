"""Everything that is to be measured on a GPU, in one command that can be stopped and goes on.

    python experiments/throughput/gpu.py FOLDER [--minutes 9] [data.path=FOLDER ...]

In this order, each part once: FOLDER/<part>.json is written when it is done, and a part that has one is not repeated,
so the command may be killed at any time.

    ceilings     what the device gives: bytes/s of a copy, FLOP/s of a large matrix product in bfloat16
    paths        operation by operation, compiled, captured, both, and deterministic: losses, equality of bits, ms/step;
                 the fastest does all that comes after
    <network>    `plainres bench` of each of the paper's ten, at least 2,000 steps of ours, beside the least that it
                 computes and moves, and how long its 64,000 steps would take
    evaluation   ms for each image by how many are evaluated at a time: ResNet-20 and ResNet-56
    packing      ResNet-20 trained by 2, 4 and 8 processes at a time: how much more than one they get done
    streams      ResNet-20 by 1, 2, 4 and 8 bare loops of one process, each on a stream of its own: steps/s together
    stacked      ResNet-20 with 1, 2, 4 and 8 seeds in one network
    runs         the published recipe to its end: depth 20, 56, then the others, identity and plain

What is left of the minutes goes into the last part, whose runs go on when the command is repeated.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cpu_options import evaluation

from plainres.benchmark.baselines import BareLoop
from plainres.benchmark.measure import OURS, PRELOADED, bench, measure, side_by_side
from plainres.config.compose import compose
from plainres.config.instantiate import description_of, source_of
from plainres.config.schema import Config
from plainres.processes.forkserver import call_in_processes, forkserver
from plainres.runs.provenance import versions
from plainres.runs.record import Run
from plainres.training.epoch_loop import EAGER_STEPS, cuda_graph

PLAINRES = Path(sys.executable).with_name("plainres")
NETWORK = ["data=cifar10", "optim=he2015", "trainer=gpu", "precision=bf16-mixed"]
PATHS = {
    "eager": ["trainer.compile=false", "trainer.cuda_graph=false"],
    "compiled": ["trainer.compile=true", "trainer.cuda_graph=false"],
    "captured": ["trainer.compile=false", "trainer.cuda_graph=true"],
    "both": ["trainer.compile=true", "trainer.cuda_graph=true"],
    "deterministic": ["trainer.compile=true", "trainer.cuda_graph=true", "trainer.deterministic=true"],
}
AUTOMATIC = ("eager", "compiled", "captured", "both")
GRID = [(depth, shortcut) for depth in (20, 56, 32, 44, 110) for shortcut in ("identity", "plain")]


def seconds(launch: Callable[[], object], repetitions: int = 20) -> float:
    """The median time of what is launched on the GPU."""
    times = []
    for _ in range(repetitions):
        torch.cuda.synchronize()
        started = time.perf_counter()
        launch()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times)


def ceilings(_: list[str], __: Path) -> dict[str, Any]:
    """Bytes/s of a copy within the device's memory, FLOP/s of a large matrix product."""
    one = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(one)
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return {
        "bytes_per_s": 2 * 2**30 / seconds(lambda: other.copy_(one)),
        "flop_per_s": 2 * 8192**3 / seconds(lambda: a @ b),
        "device": torch.cuda.get_device_name(),
        "versions": versions(),
    }


def paths(options: list[str], folder: Path) -> dict[str, Any]:
    """What each path of a step costs, and whether it computes the same: 400 steps of ResNet-20, twice each."""
    found: dict[str, Any] = {}
    for name, path in PATHS.items():
        runs = []
        for repetition in range(2):
            arguments = [*NETWORK, *options, *path, "model.depth=20", "optim.steps=400"]
            arguments += [f"runs={folder / 'paths' / name / str(repetition)}"]
            subprocess.run([PLAINRES, "train", *arguments], check=True, capture_output=True)
            runs.append(Run.of(compose(arguments)[0]).result)
        config = compose([*NETWORK, *options, *path, "model.depth=20"])[0]
        # elsewhere, for what a path sets, such as deterministic kernels, stays set
        (measured,) = call_in_processes(
            forkserver(PRELOADED), [(measure, config, name, 5, 1.0, torch.get_num_threads())]
        )
        found[name] = {
            "train_loss": [run["train_loss"] for run in runs],
            "equal_bits": runs[0]["weights_sha256"] == runs[1]["weights_sha256"],
            "ms_per_step": 1000 * measured.step(OURS),
        }
    return found


def fastest(folder: Path) -> list[str]:
    """The path with the fastest step, of those that may be on by default."""
    found = json.loads((folder / "paths.json").read_text())
    return PATHS[min(AUTOMATIC, key=lambda name: found[name]["ms_per_step"])]


def least_bytes(config: Config) -> int:
    """The least that a step moves to and from memory, in bytes, if every layer is one pass.

    Of each convolution's output, in bfloat16: forward, it is written, read for its mean and variance, read and written
    normalised, read by the next layer; backward, as much for its gradient, and twice what was kept of it is read.
    """
    source = source_of(config)
    layers = description_of(config, source).layers
    elements = sum(torch.Size(layer.output).numel() for layer in layers if layer.kind == "Conv2d")
    return 2 * (5 + 5 + 2) * elements * config.optim.batch_size


def network(depth: int, shortcut: str) -> Callable[[list[str], Path], dict[str, Any]]:
    """`plainres bench` of one of the ten."""

    def part(options: list[str], _: Path) -> dict[str, Any]:
        config = compose([*NETWORK, *options, f"model.depth={depth}", f"model/shortcut={shortcut}"])[0]
        (found,), estimate = bench([config], rounds=5, seconds=0.03 * depth + 0.5)  # of which each has 400 steps
        print(found, estimate, sep="\n\n", flush=True)
        return asdict(found) | {
            "ms_per_step": 1000 * found.step(OURS),
            "least_bytes": least_bytes(config),
            "flop": 6 * found.multiply_adds * found.batch_size,
            "estimate": estimate,
        }

    return part


def evaluated(options: list[str], _: Path) -> dict[str, Any]:
    """What an image takes in evaluation, by how many there are at a time; medians in ms."""
    found = {}
    for depth in (20, 56):
        config = compose([*NETWORK, *options, f"model.depth={depth}"])[0]
        times = evaluation(config, 11, (256, 512, 1024, 2048, 5000), torch.device("cuda"))
        found[depth] = {size: median(each) for size, each in times.items()}
    return found


def packing(options: list[str], _: Path) -> dict[int, list[float]]:
    """By how much more so many processes get done together than one, each with ResNet-20 and a seed of its own."""
    config = compose([*NETWORK, *options, "model.depth=20"])[0]
    return {count: side_by_side(config, count, 5, 400) for count in (2, 4, 8)}


def streams(options: list[str], _: Path) -> dict[str, Any]:
    """Steps/s of so many bare loops in one process, each with ResNet-20, a seed and a stream of its own."""
    config = compose([*NETWORK, *options, "model.depth=20"])[0]
    source, device = source_of(config), torch.device("cuda")
    images, steps = source.load(), 300
    capture = cuda_graph if config.trainer.cuda_graph else None
    found = {}
    for count in (1, 2, 4, 8):
        loops = [BareLoop(replace(config, seed=seed), images, source, device, capture) for seed in range(count)]
        lanes = [torch.cuda.Stream() for _ in loops]
        for loop in loops:
            loop.run(EAGER_STEPS + 2)  # captured
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _step in range(steps):
            for loop, lane in zip(loops, lanes, strict=True):
                with torch.cuda.stream(lane):
                    loop.run(1)
        torch.cuda.synchronize()
        found[count] = count * steps / (time.perf_counter() - started)
    return found


def stacked(options: list[str], _: Path) -> dict[str, Any]:
    """What stacked.py prints."""
    command = [sys.executable, Path(__file__).with_name("stacked.py"), *NETWORK, *options, "model.depth=20"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"said": done.stdout.splitlines()}


def runs(options: list[str], folder: Path, until: float) -> None:
    """The published recipe to its end, as far as the time goes."""
    for depth, shortcut in GRID:
        arguments = [
            *NETWORK,
            *options,
            f"model.depth={depth}",
            f"model/shortcut={shortcut}",
            f"runs={folder / 'runs'}",
        ]
        process = subprocess.Popen([PLAINRES, "train", *arguments, "study=cifar10_degradation"])
        try:
            process.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it is saved and goes on in the next call
            process.wait()
            return


def main() -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=9)
    given, options = parser.parse_known_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU; this measures one")
    until = time.monotonic() + 60 * given.minutes - 15
    given.folder.mkdir(parents=True, exist_ok=True)
    parts = {"ceilings": ceilings, "paths": paths}
    torch.backends.cudnn.benchmark = True  # as in a training
    parts |= {f"{shortcut}-{depth}": network(depth, shortcut) for depth, shortcut in GRID}
    parts |= {"evaluation": evaluated, "packing": packing, "streams": streams, "stacked": stacked}
    for name, part in parts.items():
        file = given.folder / f"{name}.json"
        if file.exists():
            continue
        if time.monotonic() > until:
            return
        started = time.monotonic()
        chosen = [] if name in ("ceilings", "paths") else fastest(given.folder)
        found = part([*chosen, *options], given.folder)
        file.write_text(json.dumps(found, indent=2) + "\n")
        print(f"{name}: {time.monotonic() - started:.0f} s; {until - time.monotonic():.0f} s are left", flush=True)
    runs([*fastest(given.folder), *options], given.folder, until)


if __name__ == "__main__":
    main()
