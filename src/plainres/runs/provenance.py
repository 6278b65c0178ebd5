"""Provenance of a result: versions, code, device and weights."""

import gc
import hashlib
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plainres.config.schema import Config
from plainres.processes.memory import return_freed_memory
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


@cache
def decoder_versions() -> dict[str, str]:
    """Return the versions of the packages that decode images while a run trains."""
    return {package: version(package) for package in ("pillow", "simplejpeg")}


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
        "versions": versions() | (decoder_versions() if config.data.get("stream") else {}),
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


def reset_peak_memory() -> None:
    """Forget the peak memory of this process before a run, such as that of an earlier run in the same process."""
    gc.collect()  # of an earlier run in reference cycles
    return_freed_memory()  # which an earlier run keeps
    with suppress(OSError):  # a system may lack the file, or forbid to write it; a fresh process has no earlier peak
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mib(accelerator: str) -> float | None:
    """Return the peak memory of this process in MiB since its start or `reset_peak_memory`.

    On a GPU it is the memory of torch's tensors there. On the CPU it is resident memory: allocated pages, and pages of
    files that are mapped into memory, which are libraries (some 100 MiB) and decoded copies of images as far as they
    have been read. Neither the processes that decode images nor the other ranks of a run count.

    None on Apple's GPUs, of which torch reports no peak, and where there is no /proc/self/status.
    """
    if accelerator == "mps":
        return None
    if accelerator == "gpu":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    if sys.platform == "darwin":
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
    # Linux's ru_maxrss survives exec: a process starts with the peak of the one that has started it. VmHWM does not.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 2**10, 1)  # from KiB
    return None


def peak_memory_of(attempts: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the peak memory of a run in MiB, which is the largest of its attempts.

    None if that of an attempt is not known, as in older versions, or if only some attempts trained on the CPU.
    """
    peaks = [peak for attempt in attempts if (peak := attempt.get("peak_memory_mib")) is not None]
    on_cpu = {str(attempt.get("device")).startswith("cpu ") for attempt in attempts}
    return max(peaks) if len(peaks) == len(attempts) and len(on_cpu) == 1 else None


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
