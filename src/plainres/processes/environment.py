"""Environment variables and settings of torch that would change a run, a function of its configuration alone.

Lightning takes arguments of its Trainer from variables, and torch and its libraries take precisions, instruction sets
and compiler options. Variables of these families are removed before they are read. Those that concern speed, places,
logs and diagnosis remain, as do numbers of threads, which each run sets itself. Settings that a program has made in
torch, such as another default dtype in a notebook, are refused.
"""

import os
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from plainres.console import say
from plainres.errors import InputError
from plainres.processes.world import World

READ_WHEN_USED = ("PL_*", "LT_*")  # by Lightning
READ_AT_IMPORT = (
    *("AOT_*", "AOTI_*", "AOTINDUCTOR_*", "INDUCTOR_*", "PYTORCH_*", "TORCH_*", "TORCHDYNAMO_*", "TORCHINDUCTOR_*"),
    *("ATEN_*", "CUBLAS_*", "CUBLASLT_*", "CUDNN_*", "DISABLE_ADDMM_CUDA_LT", "NVIDIA_TF32_OVERRIDE"),
    *("NCCL_ALGO", "NCCL_PROTO"),  # the order of sums over ranks
    *("DNNL_*", "GOMP_*", "INTEL_ISA_*", "KMP_*", "MKL_*", "OMP_*", "ONEDNN_*", "OPENBLAS_*"),
)
INSTRUCTION_SETS = ("MKL_*DEBUG_CPU_TYPE",)  # chosen by variables that sound like HARMLESS ones
HARMLESS = (
    *("*DEBUG*", "*_LOG", "*_LOG_*", "*_LOGS*", "*VERBOSE*", "*_SHOW_*", "*_TRACE*", "OMP_DISPLAY_*"),
    *("*_ARCH_LIST", "*_BUILD_*", "*_CACHE_DIR", "*_DIR", "*_HOME", "*_INC_PATH", "*_PATH", "*_ROOT", "*_VERSION"),
    *("*_NUM_THREADS", "*_COMPILE_THREADS", "*_ALLOC_CONF", "TORCHINDUCTOR_*CACHE*"),
    *("GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_DUPLICATE_LIB_OK"),
    *("KMP_INIT_AT_FORK", "OMP_PLACES", "OMP_PROC_BIND", "OMP_WAIT_POLICY"),
    *("TORCH_DIST*", "TORCH_FR_*", "TORCH_GLOO_*", "TORCH_NCCL_*", "PYTORCH_NVML_BASED_CUDA_CHECK"),
    # set by torch's elastic agent for its workers
    *("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_ELASTIC_*"),
)
# variables of a process group
GROUP = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
GROUP_PREFIXES = ("TORCHELASTIC_", "MASTER_PORT", "SLURM_", "JSM_NAMESPACE_")

INFERENCE = "leave torch.inference_mode()"
IEEE = ("none", "ieee")  # settings that compute in float32, not in bfloat16 or TF32
# what undoes a setting of torch, and whether there is nothing to undo. Not here: gradients and deterministic
# algorithms, which Lightning sets itself.
TORCH_DEFAULTS: Mapping[str, Callable[[Any], bool]] = {
    "torch.set_default_dtype(torch.float32)": lambda torch: torch.get_default_dtype() == torch.float32,
    "torch.set_default_device(None)": lambda torch: torch.get_default_device().type == "cpu",
    "torch.set_float32_matmul_precision('highest')": lambda torch: (
        {torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision} <= {*IEEE}
    ),
    "torch.backends.mkldnn.conv.fp32_precision = 'none'": lambda torch: (
        torch.backends.mkldnn.conv.fp32_precision in IEEE
    ),
    "torch.backends.mkldnn.enabled = True": lambda torch: torch.backends.mkldnn.enabled,
    "torch.set_autocast_enabled('cpu', False)": lambda torch: not torch.is_autocast_enabled("cpu"),
    "torch.set_autocast_enabled('cuda', False)": lambda torch: not torch.is_autocast_enabled("cuda"),
    INFERENCE: lambda torch: not torch.is_inference_mode_enabled(),
    "torch.set_flush_denormal(False)": lambda torch: bool(
        torch.tensor(1e-40, dtype=torch.float32, device="cpu").mul(0.5)
    ),
}


def isolate() -> None:
    """Remove the variables from this process's environment that would change a run, and name them on the screen.

    In a process without a process group, the variables of one are leftovers and are removed as well, except those by
    which SLURM names the job.

    Raises:
        InputError: torch has been imported before, and may have read one of them, or has been set otherwise than by
            default.
    """
    influences = influencing(os.environ)
    early = [name for name in influences if not _in(name, READ_WHEN_USED)]
    torch: Any = sys.modules.get("torch")
    if early and torch is not None:
        raise InputError(
            f"the environment has {', '.join(early)}, which torch may have read when it was imported, but a run must "
            f"depend on its configuration only; start Python with `env -u {' -u '.join(early)}`"
        )
    if torch is not None:
        check_torch()
    for name in influences:
        del os.environ[name]
    if World.current().launcher is None:
        for name in [name for name in os.environ if name in GROUP or name.startswith("JSM_NAMESPACE_")]:
            del os.environ[name]
    if influences:
        say(f"ignored in the environment: {', '.join(influences)}; a run depends on its configuration only")


def check_torch(*, inference: bool = False) -> None:
    """Check that torch, which has been imported, has its default settings.

    Args:
        inference: accept torch.inference_mode(), in which predictions are the same.

    Raises:
        InputError: it has been set otherwise.
    """
    torch: Any = sys.modules["torch"]
    altered = [undo for undo, default in TORCH_DEFAULTS.items() if not default(torch)]
    if altered := [undo for undo in altered if not (inference and undo == INFERENCE)]:
        raise InputError(
            "torch's global settings have been changed, but a run must depend on its configuration only; undo "
            f"this first: {'; '.join(altered)}"
        )


@contextmanager
def unchanged(*names: str) -> Iterator[None]:
    """Restore environment variables at the end, which libraries set, such as Lightning for deterministic runs."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def influencing(names: Collection[str]) -> list[str]:
    """Return those of the names of variables that would change a run, sorted."""
    return sorted(
        name
        for name in names
        if _in(name, READ_WHEN_USED + READ_AT_IMPORT) and (_in(name, INSTRUCTION_SETS) or not _in(name, HARMLESS))
    )


def environment_of_workers(threads: int) -> dict[str, str]:
    """Return the environment of the workers of a run on several devices: this one, without its process group.

    They import what this process imports: modules are found in the same folders, in the same order.

    Args:
        threads: CPU threads of each worker.
    """
    kept = {
        name: value for name, value in os.environ.items() if name not in GROUP and not name.startswith(GROUP_PREFIXES)
    }
    return kept | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path),
        "GLOO_SOCKET_IFNAME": _loopback(),
    }


def _loopback() -> str:
    """Return the name of the loopback interface, on which the processes of one machine meet."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "")


def _in(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
