"""Parts of gpu.py. Each measures one thing on a GPU, or with tiny networks on the CPU, and returns it for JSON."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plainres.arithmetic import set_arithmetic
from plainres.benchmark.bench import bench
from plainres.benchmark.loops import BareLoop, wait_for
from plainres.benchmark.measurement import OURS
from plainres.benchmark.side_by_side import side_by_side
from plainres.config.compose import compose
from plainres.config.instantiate import description_of, source_of
from plainres.config.schema import Config
from plainres.data.batches import TrainingBatch
from plainres.runs.provenance import device_name, versions
from plainres.runs.record import Run
from plainres.training.classifier import count, full_precision
from plainres.training.epoch_loop import EAGER_STEPS, AnyBatch, Replay, cuda_graph

PLAINRES = [sys.executable, "-m", "plainres"]
SYNTHETIC = {"data": "synthetic", "data.train": 50_000, "data.test": 10_000}  # as many as CIFAR-10 has
TINY = {"model.depth": 8, "model.width": 4, "data.train": 64, "data.test": 32, "optim.batch_size": 16}
ROUNDS = 5
PROFILED_STEPS = 10

Part = Callable[["Setting"], Any]


@dataclass(frozen=True)
class Setting:
    """Folder of the results, the user's overrides, and whether tiny networks run on the CPU instead of a GPU."""

    folder: Path
    overrides: Mapping[str, str]
    dry: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    def steps(self, number: int) -> int:
        return min(number, 3) if self.dry else number

    def arguments(self, more: Mapping[str, Any] | None = None) -> list[str]:
        """Return the overrides for ResNet-20 with the published recipe, and `more` of them."""
        chosen: dict[str, Any] = {"optim": "he2015", "model.depth": 20, "trainer": "cpu" if self.dry else "gpu"}
        chosen |= {} if "data" in self.overrides else SYNTHETIC
        chosen |= {"precision": "bf16-mixed", "trainer.compile": "false", **self.overrides, **(more or {})}
        if self.dry:
            chosen = {key: value for key, value in chosen.items() if key != "trainer.cuda_graph"} | TINY
        return [f"{key}={value}" for key, value in chosen.items()]

    def config(self, more: Mapping[str, Any] | None = None) -> Config:
        (config,) = compose(self.arguments(more))
        set_arithmetic(config.trainer.threads)
        torch.backends.cudnn.benchmark = True  # as in training
        return config


class Loop(BareLoop):
    """Bare loop that counts errors, and whose network or whole forward pass may be compiled.

    Args:
        setting: the setting.
        config: the run.
        device: the device.
        captured: launch each step as one CUDA graph.
        compiled: network, whole (augmentation, network, loss and counting as one function), or nothing.
        inductor: options of the compiler.
    """

    def __init__(
        self,
        setting: Setting,
        config: Config,
        device: torch.device,
        *,
        captured: bool = True,
        compiled: str = "",
        inductor: Mapping[str, Any] | None = None,
    ) -> None:
        source = source_of(config)
        stand_in: Callable[[Replay], Replay] = lambda launch: launch  # noqa: E731
        capture = (cuda_graph if device.type == "cuda" else stand_in) if captured else None
        super().__init__(config, source.load(), source, device, capture)
        self.counted = torch.zeros(4, dtype=torch.float64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)  # of the last step
        options: dict[str, Any] = {"backend": "aot_eager"} if setting.dry else {"options": dict(inductor or {})}
        self.forward = self._forward
        if compiled == "network":
            self.logits_of = torch.compile(self.logits_of, dynamic=False, **options)
        elif compiled:
            self.forward = torch.compile(self._forward, dynamic=False, **options)

    def _forward(self, batch: AnyBatch) -> Tensor:
        images, targets = self._batch(batch) if isinstance(batch, TrainingBatch) else batch
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            logits = full_precision(self.logits_of(images))
        loss = F.cross_entropy(logits, targets)
        self.counted[3] += count(self.counted, loss.detach(), logits.detach().argmax(1) != targets)
        return loss

    def _step(self, batch: AnyBatch, done: Callable[[str], None] = lambda part: None) -> None:
        loss = self.forward(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss.copy_(loss.detach())


def seconds(device: torch.device, launch: Callable[[], object]) -> float:
    """Return the time in seconds of a function that launches work on a device."""
    wait_for(device)
    started = time.perf_counter()
    launch()
    wait_for(device)
    return time.perf_counter() - started


def ceilings(setting: Setting) -> dict[str, Any]:
    """Measure the bytes/s of a copy within the device's memory, and the FLOP/s of a large matrix product."""
    size, side = (2**20, 256) if setting.dry else (2**30, 8192)
    source = torch.empty(size, dtype=torch.uint8, device=setting.device)
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=setting.device) for _ in range(2))
    copies = [seconds(setting.device, source.clone) for _ in range(20)]
    products = [seconds(setting.device, lambda: a @ b) for _ in range(20)]
    return {
        "bytes_per_s": 2 * size / median(copies),
        "flop_per_s": 2 * side**3 / median(products),
        "device": device_name("cpu" if setting.dry else "gpu"),
        "versions": versions(),
    }


def command(setting: Setting, name: str, *arguments: str, until: Callable[[], bool] | None = None) -> dict[str, Any]:
    """Run plainres, and return its exit code, its time and the end of its output, which is in <name>.log.

    `until` asks whether to stop it by SIGTERM.
    """
    log = setting.folder / f"{name}.log"
    started = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen([*PLAINRES, *arguments], stdout=out, stderr=subprocess.STDOUT)
        try:
            while until is not None and process.poll() is None and not until():
                time.sleep(0.02)
            if until is not None:
                process.terminate()
            process.wait()
        finally:
            process.kill()
    tail = log.read_text(errors="replace")[-2000:]
    return {"exit_code": process.returncode, "seconds": time.perf_counter() - started, "output": tail}


def training(setting: Setting) -> dict[str, Any]:
    """Train eager and captured steps, stop and resume the latter, and let a run diverge."""
    steps = 60 if setting.dry else 2000
    every = steps // 4

    def arguments(name: str, more: Mapping[str, Any]) -> list[str]:
        own = {"runs": setting.folder / "runs" / name, "checkpoint.every_n_steps": every}
        return setting.arguments({**own, "optim.steps": steps, **more})

    whole, stopped = (arguments(name, {}) for name in ("whole", "stopped"))
    run, resumed = (Run.of(compose(each)[0]) for each in (whole, stopped))
    eager, diverged = {"optim.steps": 60, "trainer.cuda_graph": "false"}, {"optim.lr": 1e9}
    results = {
        "eager": command(setting, "eager", "train", *arguments("eager", eager)),
        "captured": command(setting, "captured", "train", *whole),
        "stopped": command(setting, "stopped", "train", *stopped, until=lambda: resumed.step >= every),
        "resumed": command(setting, "resumed", "train", *stopped),
        "diverged": command(setting, "diverged", "train", *arguments("diverged", diverged)),
    }
    equal = {key: run.result[key] == resumed.result[key] for key in ("weights_sha256", "test_error")}
    return results | {"equal_after_resuming": equal, "wall_time_s": run.result["wall_time_s"]}


def agreement(setting: Setting) -> dict[str, Any]:
    """Return the losses of the first steps on the CPU and on the GPU, by precision and way of launching."""
    results: dict[str, Any] = {}
    cpu = torch.device("cpu")
    ways: dict[str, tuple[torch.device, str, bool, str]] = {
        "cpu": (cpu, "32-true", False, ""),
        "eager": (setting.device, "32-true", False, ""),
        "captured": (setting.device, "32-true", True, ""),
        "bf16": (setting.device, "bf16-mixed", True, ""),
        "compiled": (setting.device, "bf16-mixed", True, "network"),
        "whole": (setting.device, "bf16-mixed", True, "whole"),
    }
    for name, (device, precision, captured, compiled) in ways.items():
        config = setting.config({"precision": precision})
        torch.set_num_threads(torch.get_num_threads() if setting.dry else 8)
        loop = Loop(setting, config, device, captured=captured, compiled=compiled)
        losses = []
        for _ in range(setting.steps(20)):
            loop.run(1)
            losses.append(loop.loss.item())
        results[name] = losses
    return results


def timed(
    more: Mapping[str, Any] | None = None,
    *,
    compiled: str = "",
    inductor: Mapping[str, Any] | None = None,
    captured: bool = True,
) -> Part:
    """Return the part that times the steps of a network, counts its kernels, and takes its peak memory."""

    def part(setting: Setting) -> dict[str, Any]:
        config, device = setting.config(more), setting.device
        started = time.perf_counter()
        loop = Loop(setting, config, device, captured=captured, compiled=compiled, inductor=inductor)
        loop.run(EAGER_STEPS + 2)  # compiles and captures
        wait_for(device)
        start, steps = time.perf_counter() - started, setting.steps(300)
        windows = [seconds(device, lambda: loop.run(steps)) / steps for _ in range(ROUNDS)]
        return {
            "ms_per_step": 1000 * median(windows),
            "windows_ms": [1000 * window for window in windows],
            "start_s": start,
            "peak_memory_mib": None if setting.dry else torch.cuda.max_memory_allocated() / 2**20,
            "loss": loop.loss.item(),
            "least_bytes": least_bytes(config),
            "flop": 6 * description_of(config, source_of(config)).multiply_adds * config.optim.batch_size,
            **profiled(loop, device),
        }

    return part


def profiled(loop: Loop, device: torch.device) -> dict[str, Any]:
    """Return the kernels of a step: their number, their time in us, and the most expensive ones."""
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CUDA] if device.type == "cuda" else [activity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        loop.run(PROFILED_STEPS)
        wait_for(device)
    rows = []
    for event in profile.key_averages():
        time_us = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        rows.append({"kernel": event.key[:120], "calls": event.count / PROFILED_STEPS, "us": time_us / PROFILED_STEPS})
    rows = sorted((row for row in rows if row["us"]), key=lambda row: -row["us"])
    totals = {"kernels": sum(row["calls"] for row in rows), "kernels_us": sum(row["us"] for row in rows)}
    return totals | {"most_expensive": rows[:25]}


def least_bytes(config: Config) -> int:
    """Return the minimal memory traffic of a step in bytes, if every layer is one pass.

    Each convolution's output is in bfloat16. In the forward pass it is written, read for its mean and variance, read
    and written by the normalisation, and read by the next layer. The backward pass does the same with its gradient, and
    reads the saved output twice.
    """
    layers = description_of(config, source_of(config)).layers
    elements = sum(torch.Size(layer.output).numel() for layer in layers if layer.kind == "Conv2d")
    return 2 * (5 + 5 + 2) * elements * config.optim.batch_size


def variety(setting: Setting) -> dict[str, Any]:
    """Take captured steps of other shortcuts and precisions, and use a probe and the sharpness of a run."""
    results: dict[str, Any] = {}
    for shortcut in ("dropout", "stochastic_depth", "projection", "highway"):
        for precision in ("bf16-mixed", "64-true"):
            config = setting.config({"precision": precision, "model/shortcut": shortcut})
            loop = Loop(setting, config, setting.device)
            loop.run(setting.steps(20))
            results[f"{shortcut} {precision}"] = loop.loss.item()
    more = {"runs": setting.folder / "runs" / "probed", "optim.steps": 40, "precision": "32-true"}
    arguments = setting.arguments(more)
    results["probed"] = command(setting, "probed", "train", *arguments, "probes=[signals,gradients]")
    folder = Run.of(compose(arguments)[0]).folder
    results["sharpness"] = command(
        setting, "sharpness", "sharpness", str(folder), f"--images={setting.steps(2000)}", "--iterations=3"
    )
    return results


def evaluated(setting: Setting) -> dict[int, dict[int, float]]:
    """Measure the median evaluation time per image in ms, by depth and batch size."""
    from cpu_options import evaluation

    sizes = (8, 16) if setting.dry else (1000, 2500, 5000)
    return {
        depth: {
            size: median(times)
            for size, times in evaluation(setting.config({"model.depth": depth}), 5, sizes, setting.device).items()
        }
        for depth in (20, 56)
    }


def streams(setting: Setting) -> dict[int, float]:
    """Measure the total steps/s of several loops in one process, each with its own seed, graph and stream."""
    config, device, steps = setting.config(), setting.device, setting.steps(300)
    results = {}
    for number in (1, 2, 4, 8):
        loops = [Loop(setting, replace(config, seed=seed), device) for seed in range(number)]
        lanes = [None if setting.dry else torch.cuda.Stream() for _ in loops]
        for loop in loops:
            loop.run(EAGER_STEPS + 2)

        def run(loops: list[Loop] = loops, lanes: list[Any] = lanes) -> None:
            for _ in range(steps):
                for loop, lane in zip(loops, lanes, strict=True):
                    with torch.cuda.stream(lane):
                        loop.run(1)

        results[number] = number * steps / seconds(device, run)
    return results


def packing(setting: Setting) -> dict[int, list[float]]:
    """Measure the throughput of concurrent processes, each with its own seed of ResNet-20, relative to one."""
    return {number: side_by_side(setting.config(), number, 3, setting.steps(400)) for number in (2, 4)}


def benchmark(setting: Setting) -> dict[str, Any]:
    """Compare plainres, compiled, with the bare loop and DataLoader loops, and advise."""
    (result,), estimate = bench([setting.config({"trainer.compile": "true"})], 3, 0.1 if setting.dry else 2.0)
    return asdict(result) | {"ms_per_step": 1000 * result.step(OURS), "estimate": estimate}


def complete(shortcut: str) -> Part:
    """Return the part that trains a complete run of the published recipe. It resumes when it is measured again."""

    def part(setting: Setting) -> dict[str, Any]:
        more = {"model/shortcut": shortcut, "runs": setting.folder / "runs", "study": "complete"}
        more |= {"checkpoint.every_minutes": 0.3} | ({"optim.steps": 8} if setting.dry else {})
        arguments = setting.arguments(more)
        outcome = command(setting, f"complete-{shortcut}", "train", *arguments)
        return outcome | {"result": Run.of(compose(arguments)[0]).result}

    return part
