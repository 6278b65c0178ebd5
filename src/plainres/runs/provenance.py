"""Provenance of a result: versions, code, device and weights."""

import hashlib
import platform
import resource
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plainres.config.schema import Config
from plainres.runs.code import git_commit, own_classes, source_sha256


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that affect a result, and of CUDA and cuDNN if torch has them."""
    packages = ("plainres", "lightning", "torchmetrics", "hydra-core", "numpy", "scikit-learn")
    cudnn = torch.backends.cudnn.version()  # 91900 is 9.19
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "torch": str(torch.__version__),
        **({"cuda": torch.version.cuda} if torch.version.cuda else {}),
        **({"cudnn": str(cudnn)} if cudnn else {}),
    }


# computed at import, because the files may change while the imported code trains
GIT_COMMIT = git_commit()
SOURCE_SHA256 = source_sha256()


def conditions(config: Config, devices: int) -> dict[str, Any]:
    """Return the conditions of an attempt that may affect the result, beside the identity.

    Args:
        config: the configuration of the run.
        devices: number of processes, one for each device.
    """
    trainer = config.trainer
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
        "classes": own_classes(config),
    }


def device_name(accelerator: str) -> str:
    """Return the model of the GPU or CPU that this process trains on. Different models round differently."""
    if accelerator == "mps":
        return f"mps {torch.backends.mps.get_name()}"
    return torch.cuda.get_device_name() if accelerator == "gpu" else f"cpu {cpu_name()}"


@cache
def cpu_name() -> str:
    """Return the CPU's name, family and model according to Linux, and the vector instructions that torch uses."""
    properties = {}
    with suppress(OSError):
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
        properties = {
            key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())
        }
    name = properties.get("model name", platform.machine())
    if "model" in properties:
        name += f" (family {properties.get('cpu family')}, model {properties['model']})"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def peak_memory_mib(accelerator: str) -> float | None:
    """Return the peak memory of this process in MiB: GPU memory if it trains on a GPU, otherwise resident memory.

    None on Apple's GPUs, of which torch reports no peak.
    """
    if accelerator == "mps":
        return None
    if accelerator == "gpu":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 2**10  # getrusage returns bytes on macOS, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def weights_sha256(network: nn.Module) -> str:
    """Return a digest of all parameters and buffers.

    For each entry of the state dict, sorted by name, it covers name, dtype, shape, and the values in C order of
    (out, in, height, width). It is independent of the memory format.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
