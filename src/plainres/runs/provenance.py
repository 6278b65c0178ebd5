"""Where a result comes from: versions, commit, source code, device, weights."""

import ast
import hashlib
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plainres.config.schema import Devices

TRAINS = ("config", "data", "models", "training", "randomness.py")  # the parts of plainres that compute a result


@cache
def versions() -> dict[str, str]:
    """Return the versions of what determines a result; torch's with its build, CUDA and cuDNN, where it has them."""
    packages = ("plainres", "lightning", "torchmetrics", "hydra-core", "numpy", "scikit-learn")
    cudnn = torch.backends.cudnn.version()  # 91900 is 9.19
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "torch": str(torch.__version__),
        **({"cuda": torch.version.cuda} if torch.version.cuda else {}),
        **({"cudnn": str(cudnn)} if cudnn else {}),
    }


def _git_commit() -> str | None:
    """The commit of the checkout that this code lies in, with "-dirty" if it was changed; None outside of one."""
    file = Path(__file__)
    git = ["git", "-C", str(file.parent)]
    try:
        # an installed copy may lie in a checkout of something else
        subprocess.run([*git, "ls-files", "--error-unmatch", file.name], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--match="]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _source_sha256() -> str:
    """Return a digest of the code that computes a result, comments and docstrings aside.

    It tells two commits, or two changed checkouts, that train alike from two that may not. Python's own version is part
    of it, for it writes the syntax trees that are digested.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for part in TRAINS:
        for file in sorted([package / part] if part.endswith(".py") else (package / part).rglob("*.py")):
            tree = ast.parse(file.read_bytes())
            for node in ast.walk(tree):
                documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                if documented and ast.get_docstring(node, clean=False) is not None:
                    del node.body[0]
            digest.update(f"{file.relative_to(package).as_posix()}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


# now, for the files may change while what was imported trains
GIT_COMMIT = _git_commit()
SOURCE_SHA256 = _source_sha256()


def conditions(trainer: Devices, devices: int) -> dict[str, Any]:
    """Return everything beside its identity that an attempt at a run may round by, and so its result depends on.

    Args:
        trainer: the options of the run.
        devices: the number of processes, one for each device.
    """
    return {
        "device": device_name(trainer.accelerator),
        "devices": devices,
        "threads": trainer.threads,
        "compile": False,  # until the network has been compiled
        "cuda_graph": trainer.cuda_graph,
        "deterministic": trainer.deterministic,
        "sync_batch_norm": trainer.sync_batch_norm,
        "versions": versions(),
        "git_commit": GIT_COMMIT,
        "source_sha256": SOURCE_SHA256,
    }


def device_name(accelerator: str) -> str:
    """Return the name of the GPU that this process trains on, or of the CPU: kinds of either round differently."""
    return torch.cuda.get_device_name() if accelerator == "gpu" else f"cpu {cpu_name()}"


@cache
def cpu_name() -> str:
    """Return the CPU's name, family and model as Linux has them, and the widest vectors that torch uses on it."""
    described = {}
    with suppress(OSError):
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
        described = {
            key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())
        }
    name = described.get("model name", platform.machine())
    if "model" in described:
        name += f" (family {described.get('cpu family')}, model {described['model']})"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def peak_memory_mib(accelerator: str) -> float:
    """The most memory this process has held: the GPU's if it trains on one, else resident memory."""
    if accelerator == "gpu":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def weights_sha256(network: nn.Module) -> str:
    """A digest of all parameters and buffers.

    In the order of their names in the state dict, sorted: name, type, shape, and the values in C order of
    (out, in, height, width), whatever their order in memory.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
