"""The typed root of the configuration of one run.

A node is either declared here, or instantiated, and then the signature of its class is its schema. Hydra composes a
`Config` from conf/ (see `plainres.config.compose`), which holds plain Python objects and no DictConfig.
"""

import inspect
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from omegaconf import MISSING

from plainres.errors import InputError

ACCELERATORS = {"cpu": "cpu", "gpu": "cuda", "mps": "mps"}  # torch's type of device for each
PRECISIONS = ("32-true", "bf16-mixed", "64-true")
AUTO = "auto"
DECAYS = ("all", "weights")  # weights: tensors of two or more dimensions, those of convolutions and linear layers
# keys of `model` that are not in the signature of its network, because they set the initial weights
MODEL_DEFAULTS: dict[str, Any] = {
    "init": {"_target_": "plainres.models.he_fan_out", "_partial_": True},
    "weights": None,
    "head": None,
}
WANDB_TAG, WANDB_PROJECT = 64, 128  # characters that W&B allows
WANDB_ARTIFACTS = ("model", "predictions")
WANDB_FORBIDDEN = set("/\\#?%:")  # in the name of a project
WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    list: "a list",
    NoneType: "null",
}


def in_words(hint: Any) -> str:
    """Describe the values that an annotation allows, for messages."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(in_words, get_args(hint)))
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return " or ".join(hint.__members__)
    return WORDS.get(get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))


def _at_least(least: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value >= least:
            raise InputError(f"{name.replace('__', '.')} is {value}; it must be at least {least}")


@dataclass
class Recipe:
    """Training recipe: SGD with momentum, weight decay, and a learning rate that drops in steps.

    The warm-up is that of He et al. 2015, section 4.2, for 110 layers: 0.01 until the training error is below 80 %.

    Raises:
        InputError: a value is out of range, or not exactly one of `epochs` and `steps` is given.
    """

    batch_size: int = MISSING  # images per step, over all devices
    epochs: int | None = None
    steps: int | None = None
    lr: float = MISSING
    momentum: float = MISSING
    weight_decay: float = MISSING
    milestones: list[float] = MISSING  # fractions of all steps, in (0, 1), ascending
    gamma: float = MISSING
    warmup_lr: float | None = None  # learning rate of the warm-up; None: no warm-up
    warmup_until: float = 80.0  # training error in percent at which the warm-up ends
    decay: str = "all"  # parameters that weight decay applies to, of DECAYS
    nesterov: bool = False  # Nesterov's momentum instead of Polyak's
    clip_norm: float | None = None  # largest norm of the gradient over all parameters; None: no clipping

    def __post_init__(self) -> None:
        _at_least(1, optim__batch_size=self.batch_size, optim__epochs=self.epochs, optim__steps=self.steps)
        _at_least(
            0,
            optim__momentum=self.momentum,
            optim__weight_decay=self.weight_decay,
            optim__gamma=self.gamma,
            optim__warmup_lr=self.warmup_lr,
            optim__warmup_until=self.warmup_until,
        )
        if self.momentum >= 1:
            raise InputError(f"optim.momentum is {self.momentum}; it must be at least 0 and below 1")
        if not 0 < self.lr < math.inf:
            raise InputError(f"optim.lr is {self.lr}; it must be above 0 and finite")
        if self.decay not in DECAYS:
            raise InputError(
                f"optim.decay is {self.decay!r}; it must be all, or weights, which leaves out biases, normalisations "
                "and scalars"
            )
        if self.nesterov and not self.momentum:
            raise InputError("optim.nesterov is true, but optim.momentum is 0; set optim.momentum=0.9, for example")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"optim.clip_norm is {self.clip_norm}; it must be above 0, or null for no clipping")
        if self.epochs is None and self.steps is None:
            raise InputError(
                "optim.epochs and optim.steps are both null; give the length in one of the two, such as optim.epochs=10"
            )
        if self.epochs is not None and self.steps is not None:
            raise InputError(
                f"optim.epochs is {self.epochs} and optim.steps is {self.steps}; give the length in one of the two: "
                f"optim.epochs={self.epochs} optim.steps=null, or optim.steps={self.steps} optim.epochs=null"
            )
        if sorted(self.milestones) != self.milestones or not all(0 < m < 1 for m in self.milestones):
            raise InputError(
                f"optim.milestones is {self.milestones}; it must be fractions of the steps between 0 and 1, ascending"
            )

    def length(self, steps_per_epoch: int) -> int:
        """Return the number of optimizer steps of the whole run."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch

    def lr_factor(self, step: int, length: int) -> float:
        """Return the factor on `lr` in optimizer step `step` (0-based) of `length`, without the warm-up."""
        return self.gamma ** sum(step >= round(fraction * length) for fraction in self.milestones)


@dataclass
class Devices:
    """Hardware of a run and its use. Not part of a run's identity."""

    accelerator: str = MISSING  # cpu, gpu (NVIDIA) or mps (Apple)
    devices: int = MISSING  # per machine, with one process each
    threads: int = MISSING  # CPU threads per process
    num_nodes: int = 1  # machines
    sync_batch_norm: bool = False  # batch statistics over the whole batch instead of each device's share
    compile: Any = AUTO  # compile the network with torch.compile; auto: in runs long enough to benefit
    cuda_graph: bool = False  # launch each step as one CUDA graph; needs a single GPU
    workers: int | None = None  # processes per device that decode streamed images; None: as many as cores are free
    deterministic: bool = False  # bit-identical repetitions on a GPU, with slower kernels

    @property
    def device_type(self) -> str:
        """torch's name of the type of device: cpu, cuda or mps."""
        return ACCELERATORS[self.accelerator]

    @property
    def processes(self) -> int:
        """Number of processes on all machines."""
        return self.devices * self.num_nodes

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            raise InputError(f"trainer.accelerator is {self.accelerator!r}; it must be cpu, gpu or mps")
        if self.cuda_graph and (self.accelerator != "gpu" or self.processes > 1):
            raise InputError("trainer.cuda_graph=true is for one GPU only; set trainer.cuda_graph=false")
        if self.accelerator == "mps" and self.processes > 1:
            raise InputError(
                f"trainer.accelerator=mps is a single device, but there are {self.processes} processes; set "
                "trainer.devices=1 trainer.num_nodes=1"
            )
        if not isinstance(self.compile, bool) and self.compile != AUTO:
            raise InputError(f"trainer.compile is {self.compile!r}; it must be true, false or auto")
        _at_least(1, trainer__devices=self.devices, trainer__threads=self.threads, trainer__num_nodes=self.num_nodes)
        _at_least(0, trainer__workers=self.workers)


@dataclass
class CheckpointTimes:
    """Times at which a run is saved, besides the end of training.

    A run is saved at the end of a step, as soon as either interval has passed.
    """

    every_minutes: float = MISSING
    every_n_steps: int | None = None

    def __post_init__(self) -> None:
        _at_least(0, checkpoint__every_minutes=self.every_minutes)
        _at_least(1, checkpoint__every_n_steps=self.every_n_steps)


@dataclass
class Loggers:
    """Loggers of the curves besides metrics.csv. Not part of a run's identity."""

    wandb: bool = False
    tensorboard: bool = False
    mode: str = "offline"  # mode of W&B, offline or online
    project: str = "plainres"
    entity: str | None = None  # owner of the project; None: the account's default
    tags: list[str] = field(default_factory=list)  # additional to shortcut, depth and data
    artifacts: list[str] = field(default_factory=list)  # files of a finished run for W&B, of WANDB_ARTIFACTS
    alert: bool = False  # send an alert of W&B when a run of a sweep fails

    def __post_init__(self) -> None:
        if self.mode not in ("offline", "online"):
            raise InputError(f"logger.mode is {self.mode!r}; it must be offline or online")
        chosen = {"logger.mode is online": self.mode == "online", "logger.artifacts is given": bool(self.artifacts)}
        for option in [option for option, given in (chosen | {"logger.alert is true": self.alert}).items() if given]:
            if not self.wandb:
                raise InputError(f"{option}, but W&B is not chosen: add logger=wandb")
        if self.alert and self.mode == "offline":
            raise InputError("logger.alert is true, but an alert is sent while the sweep runs: add logger.mode=online")
        for artifact in self.artifacts:
            if artifact not in WANDB_ARTIFACTS:
                raise InputError(f"logger.artifacts has {artifact!r}; it may have {' and '.join(WANDB_ARTIFACTS)}")
        for tag in self.tags:
            if not 1 <= len(tag) <= WANDB_TAG:
                raise InputError(f"logger.tags has {tag!r}, of {len(tag)} characters; W&B allows 1 to {WANDB_TAG}")
        if (forbidden := set(self.project) & WANDB_FORBIDDEN) or not 1 <= len(self.project) <= WANDB_PROJECT:
            raise InputError(
                f"logger.project is {self.project!r}; W&B allows 1 to {WANDB_PROJECT} characters without "
                f"{' '.join(sorted(forbidden or WANDB_FORBIDDEN))}"
            )


@dataclass
class Tuning:
    """Choice of the value of an option for each network of a sweep, on the validation set.

    Each network is trained with each value and each of `seeds`. The value with the lowest mean validation error is
    chosen, and then the seeds of the sweep are trained with it, and with `equal`, if that is given. If the best value
    is the smallest or the largest one, the grid is extended on that side by the ratio of its two outermost values.
    """

    option: str = ""  # a numerical option, such as optim.lr; "": nothing is chosen
    values: list[float] = field(default_factory=list)  # ascending
    seeds: list[int] = field(default_factory=list)  # seeds of the runs among which is chosen; the sweep has others
    equal: float | None = None  # a value with which all networks are compared as well
    extensions: int = 4  # largest number of values that are added to each side of the grid

    def __post_init__(self) -> None:
        if not self.option:
            if self.values or self.seeds or self.equal is not None:
                raise InputError("sweep.tune has values, seeds or equal, but no option; set sweep.tune.option=optim.lr")
            return
        if len(self.values) < 3 or sorted(set(self.values)) != list(self.values) or self.values[0] <= 0:
            raise InputError(
                f"sweep.tune.values is {self.values}; it must be at least three positive numbers, ascending"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"sweep.tune.seeds is {self.seeds}; it must be a list of different seeds")
        _at_least(0, sweep__tune__extensions=self.extensions)


@dataclass
class SweepOptions:
    """Scheduling of the runs of a sweep. Not part of a run's identity."""

    retry_failed: bool = False  # train failed runs again, instead of reporting and skipping them
    runs_per_device: Any = AUTO  # concurrent runs; auto: as many as the CPU's cores allow, or one per GPU
    # settings of runs (see `plainres.runs.identity.settings`), most urgent first; ties by cost, most expensive first
    priority: list[dict[str, Any]] = field(default_factory=list)
    tune: Tuning = field(default_factory=Tuning)  # chooses a value for each network before its seeds are trained

    def __post_init__(self) -> None:
        if self.runs_per_device != AUTO and not (type(self.runs_per_device) is int and self.runs_per_device >= 1):
            raise InputError(f"sweep.runs_per_device is {self.runs_per_device!r}; it must be an integer >= 1, or auto")


@dataclass
class ReportOptions:
    """Comparisons in the report of a study. Not part of a run's identity."""

    # settings of the runs to compare the others with (see `plainres.runs.identity.settings`); empty: plain nets
    reference: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config:
    """Configuration of one run.

    `model` describes a network factory `(in_channels, classes) -> nn.Module`, or `(image_shape, classes) -> nn.Module`,
    with the keys depth, width and shortcut.
    `data` describes a `plainres.data.sources.Source`. Both are plain dictionaries for `hydra.utils.instantiate`.
    """

    model: Any = MISSING
    data: Any = MISSING
    optim: Recipe = MISSING
    trainer: Devices = MISSING
    checkpoint: CheckpointTimes = MISSING
    logger: Loggers = field(default_factory=Loggers)
    study: str = MISSING
    runs: str = MISSING
    seed: int = MISSING
    precision: str = MISSING
    sweep: SweepOptions = field(default_factory=SweepOptions)
    report: ReportOptions = field(default_factory=ReportOptions)
    probes: dict[str, Any] = field(default_factory=dict)  # probes that observe the training, by name
    weights_sha256: str | None = None  # digest of the file model.weights
    options: dict[str, str] = field(default_factory=dict)  # option chosen from each group, such as {"data": "digits"}

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}")
        if self.trainer.accelerator == "mps" and (self.precision == "64-true" or self.probes):
            reason = "precision is 64-true" if self.precision == "64-true" else "probes compute in float64"
            raise InputError(
                f"{reason}, which trainer.accelerator=mps does not support; leave it out, or use trainer=cpu"
            )
        _at_least(0, seed=self.seed)
        if self.study in ("", "..") or Path(self.study).name != self.study:
            raise InputError(f"study is {self.study!r}; it must be the name of a folder, without a slash")
        if self.study == "report" or self.study.startswith("."):  # skipped by what looks for studies
            raise InputError(f"study is {self.study!r}, the name of a report or of a hidden folder; choose another")
        if not self.runs:
            raise InputError("runs is empty; it must name a folder")
        if missing := [key for key in ("depth", "width", "shortcut") if key not in self.model]:
            raise InputError(f"model lacks {', '.join(missing)}")
        devices = self.trainer.processes
        if self.optim.batch_size % devices:
            raise InputError(
                f"optim.batch_size is {self.optim.batch_size}; it must be a multiple of {devices}, "
                f"because it is divided evenly among {devices} devices"
            )

    @property
    def tuning(self) -> Tuning | None:
        """The choice of a value before the seeds are trained, None without one."""
        return self.sweep.tune if self.sweep.tune.option else None

    @property
    def shortcut(self) -> str:
        """Name of the shortcut in conf/model/shortcut."""
        return self.options["model/shortcut"]
