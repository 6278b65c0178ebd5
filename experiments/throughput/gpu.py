"""All measurements on a GPU, in one resumable command.

    python experiments/throughput/gpu.py FOLDER [--minutes 9] [data.path=FOLDER ...]

The parts are measured in this order. A finished part is recorded in FOLDER/<part>.json and not repeated, so the command
may be killed at any time.

    ceilings     limits of the device: bytes/s of a copy, FLOP/s of a large matrix product in bfloat16
    paths        eager, compiled, captured, compiled and captured, deterministic: losses, bit equality, ms/step; the
                 later parts use the fastest of the first four
    <network>    `plainres bench` of each of the paper's ten networks, with at least 2,000 steps of plainres: times, the
                 minimal computation and memory traffic of a step, and the time that 64,000 steps would take
    evaluation   ms per image by batch size: ResNet-20 and ResNet-56
    packing      ResNet-20 in 2, 4 and 8 concurrent processes: throughput relative to one
    streams      ResNet-20 in 1, 2, 4 and 8 bare loops of one process, each on its own stream: total steps/s
    stacked      ResNet-20 with 1, 2, 4 and 8 seeds in one network
    runs         complete runs of the published recipe: depths 20 and 56, then the others, identity and plain

The last part uses the remaining minutes. Run the same command again to resume its runs.
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
    """Return the median time in seconds of a function that launches work on the GPU."""
    times = []
    for _ in range(repetitions):
        torch.cuda.synchronize()
        started = time.perf_counter()
        launch()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times)


def ceilings(_: list[str], __: Path) -> dict[str, Any]:
    """Measure the bytes/s of a copy within the device's memory, and the FLOP/s of a large matrix product."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return {
        "bytes_per_s": 2 * 2**30 / seconds(lambda: target.copy_(source)),
        "flop_per_s": 2 * 8192**3 / seconds(lambda: a @ b),
        "device": torch.cuda.get_device_name(),
        "versions": versions(),
    }


def paths(options: list[str], folder: Path) -> dict[str, Any]:
    """Measure each path of a step, and check its reproducibility with two runs of 400 steps of ResNet-20."""
    results: dict[str, Any] = {}
    for name, path in PATHS.items():
        runs = []
        for repetition in range(2):
            arguments = [*NETWORK, *options, *path, "model.depth=20", "optim.steps=400"]
            arguments += [f"runs={folder / 'paths' / name / str(repetition)}"]
            subprocess.run([PLAINRES, "train", *arguments], check=True, capture_output=True)
            runs.append(Run.of(compose(arguments)[0]).result)
        config = compose([*NETWORK, *options, *path, "model.depth=20"])[0]
        # in another process, since global settings of a path, such as deterministic kernels, would persist
        (measured,) = call_in_processes(
            forkserver(PRELOADED), [(measure, config, name, 5, 1.0, torch.get_num_threads())]
        )
        results[name] = {
            "train_loss": [run["train_loss"] for run in runs],
            "equal_bits": runs[0]["weights_sha256"] == runs[1]["weights_sha256"],
            "ms_per_step": 1000 * measured.step(OURS),
        }
    return results


def fastest(folder: Path) -> list[str]:
    """Return the options of the fastest path among those that may be enabled by default."""
    results = json.loads((folder / "paths.json").read_text())
    return PATHS[min(AUTOMATIC, key=lambda name: results[name]["ms_per_step"])]


def least_bytes(config: Config) -> int:
    """Return the minimal memory traffic of a step in bytes, if every layer is one pass.

    Each convolution's output is in bfloat16. In the forward pass it is written, read for its mean and variance, read
    and written by the normalisation, and read by the next layer. The backward pass does the same with its gradient, and
    reads the saved output twice.
    """
    source = source_of(config)
    layers = description_of(config, source).layers
    elements = sum(torch.Size(layer.output).numel() for layer in layers if layer.kind == "Conv2d")
    return 2 * (5 + 5 + 2) * elements * config.optim.batch_size


def network(depth: int, shortcut: str) -> Callable[[list[str], Path], dict[str, Any]]:
    """Return the part that benchmarks one of the paper's ten networks."""

    def part(options: list[str], _: Path) -> dict[str, Any]:
        config = compose([*NETWORK, *options, f"model.depth={depth}", f"model/shortcut={shortcut}"])[0]
        (result,), estimate = bench([config], rounds=5, seconds=0.03 * depth + 0.5)  # 400 steps per round
        print(result, estimate, sep="\n\n", flush=True)
        return asdict(result) | {
            "ms_per_step": 1000 * result.step(OURS),
            "least_bytes": least_bytes(config),
            "flop": 6 * result.multiply_adds * result.batch_size,
            "estimate": estimate,
        }

    return part


def evaluated(options: list[str], _: Path) -> dict[str, Any]:
    """Measure the median evaluation time per image in ms, by depth and batch size."""
    results = {}
    for depth in (20, 56):
        config = compose([*NETWORK, *options, f"model.depth={depth}"])[0]
        times = evaluation(config, 11, (256, 512, 1024, 2048, 5000), torch.device("cuda"))
        results[depth] = {size: median(each) for size, each in times.items()}
    return results


def packing(options: list[str], _: Path) -> dict[int, list[float]]:
    """Measure the throughput of concurrent processes, each with its own seed of ResNet-20, relative to one."""
    config = compose([*NETWORK, *options, "model.depth=20"])[0]
    return {count: side_by_side(config, count, 5, 400) for count in (2, 4, 8)}


def streams(options: list[str], _: Path) -> dict[str, Any]:
    """Measure the total steps/s of several bare loops in one process, each with its own seed and stream."""
    config = compose([*NETWORK, *options, "model.depth=20"])[0]
    source, device = source_of(config), torch.device("cuda")
    images, steps = source.load(), 300
    capture = cuda_graph if config.trainer.cuda_graph else None
    results = {}
    for count in (1, 2, 4, 8):
        loops = [BareLoop(replace(config, seed=seed), images, source, device, capture) for seed in range(count)]
        lanes = [torch.cuda.Stream() for _ in loops]
        for loop in loops:
            loop.run(EAGER_STEPS + 2)  # captures the step
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _step in range(steps):
            for loop, lane in zip(loops, lanes, strict=True):
                with torch.cuda.stream(lane):
                    loop.run(1)
        torch.cuda.synchronize()
        results[count] = count * steps / (time.perf_counter() - started)
    return results


def stacked(options: list[str], _: Path) -> dict[str, Any]:
    """Return the output of stacked.py."""
    command = [sys.executable, Path(__file__).with_name("stacked.py"), *NETWORK, *options, "model.depth=20"]
    process = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"output": process.stdout.splitlines()}


def runs(options: list[str], folder: Path, deadline: float) -> None:
    """Train complete runs of the published recipe until the deadline."""
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
            process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # saves the run, which resumes in the next call
            process.wait()
            return


def main() -> None:
    """Measure the missing parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=9)
    given, options = parser.parse_known_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU; run this script on a machine with one")
    deadline = time.monotonic() + 60 * given.minutes - 15
    given.folder.mkdir(parents=True, exist_ok=True)
    parts = {"ceilings": ceilings, "paths": paths}
    torch.backends.cudnn.benchmark = True  # as in training
    parts |= {f"{shortcut}-{depth}": network(depth, shortcut) for depth, shortcut in GRID}
    parts |= {"evaluation": evaluated, "packing": packing, "streams": streams, "stacked": stacked}
    for name, part in parts.items():
        file = given.folder / f"{name}.json"
        if file.exists():
            continue
        if time.monotonic() > deadline:
            return
        started = time.monotonic()
        path = [] if name in ("ceilings", "paths") else fastest(given.folder)
        result = part([*path, *options], given.folder)
        file.write_text(json.dumps(result, indent=2) + "\n")
        print(f"{name}: {time.monotonic() - started:.0f} s; {deadline - time.monotonic():.0f} s left", flush=True)
    runs([*fastest(given.folder), *options], given.folder, deadline)


if __name__ == "__main__":
    main()
