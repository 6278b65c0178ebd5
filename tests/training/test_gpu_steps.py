"""Training steps on fake CUDA tensors: without a GPU, everything but the values is as on one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from plainres.config.schema import PRECISIONS
from support.places import TESTS
from support.shipped import CONNECTIONS, ORDERS, SHORTCUTS

SCRIPT = TESTS / "support" / "fake_cuda.py"
# kernels of a step of eight layers, augmentation and optimizer included, up to which nobody need ask why
KERNELS = dict.fromkeys([*SHORTCUTS, *CONNECTIONS, *ORDERS, "leaky", "tailored", "optimizer"], 225) | {
    "attention_residuals": 360,
    "dropout": 330,
    "exclusive_gating": 240,  # gates, in float32
    "highway": 240,
    "hyper_connections": 520,
    "mhc": 1770,  # 20 iterations in each block
    "orthogonal_update": 270,  # inner products, in float32
    "static_hyper_connections": 240,
    "stochastic_depth": 230,
}
DTYPES = {  # of a step's operations by precision
    "32-true": {"convolution": ["float32"], "convolution_backward": ["float32"]},
    "bf16-mixed": {"convolution": ["bfloat16"], "convolution_backward": ["bfloat16"]},
    "64-true": {"convolution": ["float64"], "convolution_backward": ["float64"]},
}
PRECISE = ("mean", "addmm", "mm", "_log_softmax", "_log_softmax_backward_data", "nll_loss_forward", "argmax")


@pytest.fixture
def steps(tmp_path: Path) -> dict[str, Any]:
    """Return what a step of each network does (see support/fake_cuda.py)."""
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    if torch.version.cuda:
        pytest.skip("needs torch's build without support for a GPU, which it replaces by a fake one")
    command = [sys.executable, SCRIPT, tmp_path]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def test_every_step_runs_on_the_gpu_without_waiting_for_it(steps: dict[str, Any]) -> None:
    """A captured step may neither wait for the device nor copy from the host."""
    assert steps["Waiting"]["waits"] == 3 * ["_local_scalar_dense"]  # in each of three blocks
    assert steps["OnHost"]["on_host"] == 3 * ["ones", "_to_copy"]
    for precision in PRECISIONS:
        precise = ["float64" if precision == "64-true" else "float32"]
        for name in KERNELS:
            step = steps[f"{name} {precision}"]
            assert (step["waits"], step["on_host"]) == ([], []), (name, precision)
            assert step["kernels"] <= KERNELS[name], (name, precision)
            dtypes = DTYPES[precision] | dict.fromkeys(PRECISE, precise)
            assert {operation: step["dtypes"][operation] for operation in dtypes} == dtypes, (name, precision)
            assert precise[0] in step["dtypes"]["_fused_sgd_"]
            assert "bfloat16" not in step["dtypes"]["_fused_sgd_"]
