"""Arithmetic of torch in this process: the same on every device, and as precise as the run's precision says."""

import torch


def set_arithmetic(threads: int) -> None:
    """Set the number of threads on the CPU, and let float32 be IEEE's float32 on GPUs.

    By default cuDNN rounds the inputs of float32 convolutions to TensorFloat-32, whose 10 bits of mantissa give about
    three digits. Deterministic runs do not fill uninitialised memory, which takes time and which no layer reads.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")  # torch's default, unless other code in this process changed it
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def has_bfloat16(device_type: str) -> bool:
    """Whether a device multiplies in bfloat16; others emulate it, slowly. On x86 this takes AVX512_BF16 or AMX."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device_type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
