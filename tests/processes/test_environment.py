"""Environment variables that must not change a run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from plainres import train
from plainres.errors import InputError
from plainres.processes.environment import environment_of_workers, influencing, isolate

INFLUENCING = ["ATEN_CPU_CAPABILITY", "LT_PRECISION", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE", "OMP_THREAD_LIMIT"]
INFLUENCING += ["ONEDNN_DEFAULT_FPMATH_MODE", "PL_TRAINER_MAX_STEPS", "TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_FREEZING"]
INFLUENCING += ["INTEL_ISA_DISABLE", "MKL_DEBUG_CPU_TYPE", "MKL_VML_DEBUG_CPU_TYPE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"]
INFLUENCING += ["CUBLASLT_WORKSPACE_SIZE", "DISABLE_ADDMM_CUDA_LT", "NCCL_ALGO", "NCCL_PROTO"]
HARMLESS = ["CUDA_VISIBLE_DEVICES", "HOME", "KMP_DUPLICATE_LIB_OK", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "PATH"]
HARMLESS += ["PYTORCH_CUDA_ALLOC_CONF", "TORCHELASTIC_RUN_ID", "TORCHINDUCTOR_CACHE_DIR", "TORCH_HOME", "TORCH_LOGS"]
HARMLESS += ["TORCH_NCCL_ASYNC_ERROR_HANDLING"]


def test_variables_that_influence_a_run_are_told_from_harmless_ones() -> None:
    assert influencing([*INFLUENCING, *HARMLESS]) == sorted(INFLUENCING)


def test_influences_are_removed_and_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "1")
    monkeypatch.setenv("RANK", "1")
    isolate()
    assert not {"PL_TRAINER_MAX_STEPS", "RANK"} & os.environ.keys()
    assert capsys.readouterr().err == (
        "ignored in the environment: PL_TRAINER_MAX_STEPS; a run depends on its configuration only\n"
    )
    isolate()
    assert capsys.readouterr().err == ""


def test_what_torch_may_have_read_at_import_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch" in sys.modules
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    with pytest.raises(InputError, match="start Python with `env -u ONEDNN_DEFAULT_FPMATH_MODE`"):
        isolate()


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        ("torch.set_default_dtype(torch.float64)", "torch.set_default_dtype(torch.float32)"),
        ("torch.set_default_device('meta')", "torch.set_default_device(None)"),
        ("torch.set_float32_matmul_precision('medium')", "torch.set_float32_matmul_precision('highest')"),
        ("torch.backends.mkldnn.conv.fp32_precision = 'bf16'", "torch.backends.mkldnn.conv.fp32_precision = 'none'"),
        ("torch.backends.mkldnn.enabled = False", "torch.backends.mkldnn.enabled = True"),
        ("torch.set_autocast_enabled('cpu', True)", "torch.set_autocast_enabled('cpu', False)"),
        ("torch.set_flush_denormal(True)", "torch.set_flush_denormal(False)"),
    ],
)
def test_a_setting_of_torch_that_would_change_a_run_is_refused_until_it_is_undone(change: str, undo: str) -> None:
    isolate()
    exec(change)
    try:
        with pytest.raises(InputError, match=re.escape(f"undo this first: {undo}")):
            isolate()
    finally:
        exec(undo)
    isolate()


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(InputError, match=r"undo this first: leave torch\.inference_mode\(\)"):
        isolate()


@pytest.mark.parametrize("setting", ["torch.set_grad_enabled({})", "torch.use_deterministic_algorithms(not {})"])
def test_a_setting_of_torch_that_changes_no_run_is_accepted(setting: str, make_config: Any) -> None:
    undisturbed = train(make_config(study="undisturbed")).result
    exec(setting.format(False))
    try:
        disturbed = train(make_config(study="disturbed")).result
    finally:
        exec(setting.format(True))
    assert disturbed["weights_sha256"] == undisturbed["weights_sha256"]


def test_ranks_of_a_group_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    isolate()
    assert os.environ["RANK"] == "1"
    assert not {"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"} & environment_of_workers(threads=1).keys()


def test_workers_import_what_this_process_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    program = "import sys; print(sys.path)"
    shown = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment_of_workers(1), capture_output=True, text=True, check=True
    )
    folders = list(dict.fromkeys(folder or str(Path.cwd()) for folder in sys.path))
    assert eval(shown.stdout)[: len(folders)] == folders
