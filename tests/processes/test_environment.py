"""Environment variables that must not change a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plainres.errors import InputError
from plainres.processes.environment import environment_of_workers, influencing, isolate

INFLUENCING = ["ATEN_CPU_CAPABILITY", "LT_PRECISION", "MKL_CBWR", "NVIDIA_TF32_OVERRIDE", "OMP_THREAD_LIMIT"]
INFLUENCING += ["ONEDNN_DEFAULT_FPMATH_MODE", "PL_TRAINER_MAX_STEPS", "TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_FREEZING"]
INFLUENCING += ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"]
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
