"""Everything that is to be known about a GPU that is at hand for half an hour.

    python experiments/throughput/gpu.py FOLDER [--minutes 9] [--only PARTS] [--pack FILE.tar.gz] [--dry-run]
                                             [OVERRIDES]

Run it twice. Each part has a process of its own and a time limit. Its result, or the traceback of its failure, is in
FOLDER/<part>.json as soon as it is known, and a part with a result is not measured again. --pack puts the results and
logs into one file. Images are synthetic, unless an override such as data=cifar10 names others. --dry-run tries all of
it on the CPU with tiny networks.

In order, with the first run's parts first:

    ceilings     bytes/s of a copy, FLOP/s of a large matrix product, versions
    training     60 eager steps; 2,000 captured ones; the same stopped by SIGTERM and resumed; a run that diverges
    agreement    losses of the first steps: CPU, GPU, captured, bf16-mixed, compiled
    step-*       ms per step, kernels, memory: by precision, with the network compiled, with the augmentation, loss and
                 counting compiled as well, and with options of the compiler
    variety      other shortcuts and precisions, a probe, sharpness
    complete-*   ResNet-20 with 64,000 steps, identity and plain
    streams, evaluation, packing
    bench        plainres with the whole step compiled and captured, beside a bare loop and DataLoader loops
    depth-*      ResNet-56 and ResNet-110: ms per step and memory
"""

import argparse
import json
import os
import signal
import tarfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from gpu_parts import (
    Part,
    Setting,
    agreement,
    benchmark,
    ceilings,
    complete,
    evaluated,
    packing,
    streams,
    timed,
    training,
    variety,
)

from plainres.files import write_atomically
from plainres.processes.forkserver import attach_to_command, forkserver

COMBO, FEW = {"combo_kernels": True}, {"split_reductions": False}
PARTS: dict[str, tuple[Part, float]] = {  # with their time limits in seconds
    "ceilings": (ceilings, 40),
    "training": (training, 120),
    "step-captured": (timed(), 60),
    "agreement": (agreement, 90),
    "step-32-true": (timed({"precision": "32-true"}), 60),
    "step-network": (timed(compiled="network"), 90),
    "step-whole": (timed(compiled="whole"), 120),
    "step-combo": (timed(compiled="whole", inductor=COMBO), 120),
    "step-few-reductions": (timed(compiled="whole", inductor=COMBO | FEW), 120),
    "step-pdl": (timed(compiled="whole", inductor=COMBO | {"triton.enable_pdl": True}), 120),
    "step-eager": (timed(captured=False), 60),
    "variety": (variety, 120),
    "complete-identity": (complete("identity"), 240),
    "complete-plain": (complete("plain"), 240),
    "streams": (streams, 60),
    "evaluation": (evaluated, 40),
    "depth-56": (timed({"model.depth": 56}), 60),
    "depth-110": (timed({"model.depth": 110}), 90),
    "packing": (packing, 90),
    "bench": (benchmark, 150),
}
PACKING_S = 10  # time that is left for packing
DRY_PATIENCE = 5  # factor on the limits on a CPU, which other programs may keep busy


def measure(name: str, setting: Setting) -> None:
    """Measure a part in this process, and write its result or its failure."""
    os.setsid()  # so that `finish` can kill what it has started, too
    attach_to_command()
    part, _ = PARTS[name]
    started = time.perf_counter()
    try:
        outcome: dict[str, Any] = {"result": part(setting)}
    except BaseException:
        outcome = {"failure": traceback.format_exc()}
    write(setting, name, outcome | {"seconds": time.perf_counter() - started})


def write(setting: Setting, name: str, outcome: dict[str, Any]) -> None:
    write_atomically(setting.folder / f"{name}.json", json.dumps(outcome, indent=1) + "\n")


def known(setting: Setting, name: str) -> bool:
    file = setting.folder / f"{name}.json"
    return file.exists() and "result" in json.loads(file.read_text())


def pack(setting: Setting, file: Path) -> None:
    """Put all results and logs into an archive, without checkpoints."""
    with tarfile.open(file, "w:gz") as archive:
        for path in sorted(setting.folder.rglob("*")):
            if path.suffix in (".json", ".log", ".csv", ".yaml"):
                archive.add(path, path.relative_to(setting.folder))


def main() -> None:
    """Measure the missing parts until the time is up, then pack the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    given, overrides = parser.parse_known_args()
    if not given.dry_run and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU; run this script on a machine with one, or try it with --dry-run")
    deadline = time.monotonic() + 60 * given.minutes - PACKING_S
    given.folder.mkdir(parents=True, exist_ok=True)
    chosen = dict(override.split("=", 1) for override in overrides)
    setting = Setting(given.folder.resolve(), chosen, given.dry_run)
    context = forkserver(["gpu_parts"])
    for name in given.only.split(","):
        limit, left = PARTS[name][1] * (DRY_PATIENCE if given.dry_run else 1), deadline - time.monotonic()
        if known(setting, name) or left < PACKING_S:
            continue
        started = time.monotonic()
        process = context.Process(target=measure, args=(name, setting))
        process.start()
        process.join(min(limit, left))
        if process.is_alive() and process.pid:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            write(setting, name, {"failure": f"killed after {time.monotonic() - started:.0f} s"})
        elif process.exitcode:
            write(setting, name, {"failure": f"its process exited with code {process.exitcode}"})
        outcome = "" if known(setting, name) else " FAILED"
        print(
            f"{name}:{outcome} {time.monotonic() - started:.0f} s; {deadline - time.monotonic():.0f} s left", flush=True
        )
    if given.pack:
        pack(setting, given.pack)


if __name__ == "__main__":
    main()
