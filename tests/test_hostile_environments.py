"""A run depends on its configuration only: the same weights, curves and exit code in hostile environments.

Environments are variables, folders, terminals, limits, clocks and other users. In each of them one short run is
trained, in one process or on two devices, and compared with an undisturbed one.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from plainres.runs.record import Run
from support import forking
from support.places import PLAINRES

TRAIN = ["train", "model.depth=8", "model.width=4", "data=synthetic", "data.train=128", "data.shape=[1,8,8]"]
TRAIN += ["optim.epochs=2", "optim.batch_size=64"]


@dataclass(frozen=True)
class Hostile:
    """An environment of a run.

    Attributes:
        name: its name.
        variables: environment variables; None: unset.
        prepare: prepares the working directory.
        before: is called in the child process before the command.
        prefix: words before the command.
        redirections: what a shell appends to the command.
        options: further options of the command.
        devices: number of devices.
        fresh: whether the command needs a fresh interpreter, because the imports of a forked one are done already.
    """

    name: str
    variables: Mapping[str, str | None] = field(default_factory=dict)
    prepare: Callable[[Path], Any] = lambda folder: None
    before: Callable[[], Any] | None = None
    prefix: Sequence[str] = ()
    redirections: str = ""
    options: Sequence[str] = ()
    devices: int = 1
    fresh: bool = False


def files(*names: str, text: str = "raise RuntimeError('imported from the working directory')\n") -> Any:
    """Return a function that writes files with a text into the working directory."""

    def write(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    return write


def limit(which: int, value: int) -> Callable[[], None]:
    """Return a function that limits a resource of this process."""
    return lambda: resource.setrlimit(which, (value, value))


def jumping_clock(folder: Path) -> None:
    files("clock/sitecustomize.py", text=JUMPING_CLOCK)(folder)
    os.environ["PYTHONPATH"] = str(folder / "clock")


SHADOWS = ("random.py", "lightning.py", "socket.py", "selectors.py", "signal.py", "torch.py", "numpy/__init__.py")
JUMPING_CLOCK = """
import itertools, time
_real, _jumps = time.time, itertools.cycle([0, -86400 * 400, 3600, -5])
time.time = lambda: _real() + next(_jumps)
"""
UNRESOLVED = ["unshare", "--uts", "sh", "-c", 'hostname no.such.host && exec "$0" "$@"']
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
NAMELESS = ["setpriv", "--reuid=54321", "--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
CHARACTERS = "räuber & söhne's [x] {y} $z =1, #2"

ENVIRONMENTS = [
    # variables that Lightning reads
    Hostile("limited training batches", {"PL_TRAINER_LIMIT_TRAIN_BATCHES": "1"}),
    Hostile("limited validation batches", {"PL_TRAINER_LIMIT_VAL_BATCHES": "1"}, devices=2),
    Hostile("a time limit", {"PL_TRAINER_MAX_TIME": "00:00:00:01", "PL_TRAINER_MAX_STEPS": "1"}),
    Hostile("another precision", {"PL_TRAINER_PRECISION": "bf16-mixed", "LT_PRECISION": "16"}),
    Hostile("a fast run", {"PL_TRAINER_FAST_DEV_RUN": "1", "PL_TRAINER_OVERFIT_BATCHES": "1"}),
    Hostile("values that are not numbers", {"PL_TRAINER_MAX_EPOCHS": "many", "PL_TRAINER_DEVICES": "x"}),
    Hostile("another seed", {"PL_GLOBAL_SEED": "7", "PL_SEED_WORKERS": "1", "PYTHONHASHSEED": "1"}),
    # variables of ranks, left over
    Hostile("a rank", {"RANK": "1"}),
    Hostile("a local rank", {"LOCAL_RANK": "1", "NODE_RANK": "2", "GROUP_RANK": "1"}, devices=2),
    Hostile("a world", {"WORLD_SIZE": "4", "MASTER_ADDR": "nowhere", "MASTER_PORT": "x"}, devices=2),
    Hostile("ranks of LSF", {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2", "LSB_JOBID": "5"}),
    Hostile("a shell of a SLURM job", {"SLURM_JOB_ID": "5", "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}),
    Hostile("a job of SLURM, two devices", {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}, devices=2),
    # variables that torch and its libraries read
    Hostile("bfloat16 instead of float32", {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}, fresh=True),
    Hostile(
        "another instruction set",
        {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
        fresh=True,
    ),
    Hostile("numbers of threads", {"OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "3", "OMP_DYNAMIC": "true"}, fresh=True),
    Hostile("a limit of threads", {"OMP_THREAD_LIMIT": "1"}, options=["trainer.threads=2"], fresh=True),
    Hostile(
        "logs of torch",
        {"TORCH_LOGS": "+all", "LOGLEVEL": "DEBUG", "TORCH_DISTRIBUTED_DEBUG": "INFO"},
        fresh=True,
    ),
    Hostile("a network interface", {"GLOO_SOCKET_IFNAME": "eth9", "NCCL_SOCKET_IFNAME": "eth9"}, devices=2),
    # variables that Python reads
    Hostile("optimised Python", {"PYTHONOPTIMIZE": "2"}, fresh=True),
    Hostile(
        "an ASCII terminal", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LANG": None}, fresh=True
    ),
    Hostile("warnings as errors", {"PYTHONWARNINGS": "error"}, fresh=True),
    Hostile("another language", {"LC_ALL": "tr_TR.UTF-8", "LANGUAGE": "tr"}, fresh=True),
    Hostile("another time zone", {"TZ": "Pacific/Kiritimati"}),
    # variables that other libraries read
    Hostile("settings of libraries", {"MPLBACKEND": "bogus", "TQDM_DISABLE": "x", "TQDM_MININTERVAL": "0"}, fresh=True),
    Hostile("settings of Hydra", {"HYDRA_FULL_ERROR": "1", "HYDRA_HOME": "/nonexistent"}, fresh=True),
    Hostile("a repository", {"GIT_DIR": "/nonexistent", "GIT_WORK_TREE": "/"}),
    Hostile("settings of W&B", {"WANDB_MODE": "bogus", "WANDB_SWEEP_ID": "", "WANDB_PROJECT": "a/b"}),
    Hostile("no GPU of that name", {"CUDA_VISIBLE_DEVICES": "GPU-none"}),
    # folders
    Hostile("no home", {"HOME": "/nonexistent", "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": "/nonexistent"}, fresh=True),
    Hostile("no temporary folder", {"TMPDIR": "/nonexistent"}, fresh=True),
    Hostile("modules in the working directory", prepare=files(*SHADOWS), devices=2, fresh=True),
    Hostile("modules in the working directory of a sweep", prepare=files(*SHADOWS), options=["-m"], fresh=True),
    Hostile("configurations in the working directory", prepare=files("conf/config.yaml", "config.yaml", ".env")),
    Hostile("a folder with all kinds of characters", options=[f'runs="{CHARACTERS}"']),
    Hostile(
        "a folder that cannot be written",
        prepare=lambda folder: folder.chmod(0o555),
        prefix=UNPRIVILEGED,
        options=["runs=../runs"],
    ),
    # terminals
    Hostile("no standard error", redirections="2>&-"),
    Hostile("no standard streams", redirections="<&- >&- 2>&-", devices=2),
    Hostile("a reader that leaves", redirections="2>&1 | head -c 1"),
    Hostile("a full disk for the output", redirections="> /dev/full 2>&1"),
    # limits, clocks and other users
    Hostile("few files", before=limit(resource.RLIMIT_NOFILE, 64)),
    Hostile("a clock that jumps", prepare=jumping_clock, fresh=True),
    Hostile("children that are not waited for", before=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)),
    Hostile("a name of the machine that does not resolve", prefix=UNRESOLVED, devices=2),
    Hostile("no network", prefix=["unshare", "--net"]),
    Hostile("a single core", prefix=["taskset", "1"], devices=2),
    Hostile("a user without a name", {"HOME": None}, prepare=lambda folder: folder.chmod(0o777), prefix=NAMELESS),
]

UNDISTURBED: dict[tuple[int, tuple[str, ...]], Run] = {}


def train(folder: Path, hostile: Hostile) -> tuple[Run, int, str]:
    """Train in an environment; return the run, the exit code and what was printed."""
    environment = dict(os.environ)
    for name, value in hostile.variables.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    command = [PLAINRES, *TRAIN, f"trainer.devices={hostile.devices}", *hostile.options]
    if hostile.fresh or hostile.prefix or hostile.redirections or hostile.before:
        shell = ["bash", "-o", "pipefail", "-c", f'"$0" "$@" {hostile.redirections}']
        done: Any = subprocess.run(
            [*hostile.prefix, *shell, *command],
            cwd=folder,
            env=environment,
            preexec_fn=hostile.before,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=200,
            check=False,
        )
        output = (done.stdout + done.stderr).decode(errors="replace")
    else:
        done = forking.run(command, cwd=folder, env=environment, timeout=200)
        output = done.stdout + done.stderr
    found = [path.parent for path in sorted(folder.parent.rglob("config.yaml")) if (path.parent / "lock").exists()]
    assert len(found) == 1, output
    return Run.read(found[0]), done.returncode, output


@pytest.mark.parametrize("hostile", ENVIRONMENTS, ids=lambda hostile: hostile.name)
def test_a_run_is_the_same_in(
    hostile: Hostile, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hostile.prefix and (sys.platform != "linux" or os.geteuid() != 0 or not shutil.which(hostile.prefix[0])):
        pytest.skip(f"{hostile.prefix[0]} needs Linux and root")
    key = hostile.devices, tuple(option for option in hostile.options if option.startswith("trainer."))
    if key not in UNDISTURBED:
        calm = Hostile("", options=key[1], devices=hostile.devices)
        folder = tmp_path_factory.mktemp("undisturbed") / "work"
        folder.mkdir()
        UNDISTURBED[key], code, output = train(folder, calm)
        assert code == 0, output
    expected = UNDISTURBED[key]
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", "")  # restored after the test, as `prepare` may change it
    hostile.prepare(folder)
    run, code, output = train(folder, hostile)
    assert code == 0, output
    assert run.result["weights_sha256"] == expected.result["weights_sha256"], output
    assert run.curve() == expected.curve()
    assert run.result["train_error_eval"] == expected.result["train_error_eval"]
    assert "Traceback" not in output
