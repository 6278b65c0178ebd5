"""Composition of a command line's overrides into configurations, by Hydra."""

import argparse
import copy
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from plainres.config.messages import RESUME, one_line, unknown_option, value_of
from plainres.config.options import Options
from plainres.config.overrides import as_typed, check_choice, check_hydra, check_list, check_word, parse
from plainres.config.schema import Config
from plainres.config.suggestions import keys_of, suggestion
from plainres.console import bar
from plainres.errors import InputError
from plainres.files import file_sha256

LISTS = ("experiment", "logger", "probes")  # groups of which several options can be chosen
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
CHANGED = ("HYDRA_FULL_ERROR", "PLAINRES_SCRATCH")  # environment variables while Hydra composes
ASSIGNED = ("options", "weights_sha256")  # keys that `typed` sets

ConfigStore.instance().store(name="schema", node=Config)

# conf/hydra/launcher/ray.yaml replaces the settings that Ray's plugin stores under the same name
warnings.filterwarnings(
    "ignore", message=r"\s*.*is validated against ConfigStore schema with the same name", category=UserWarning
)

# Hydra composes every job of a sweep twice, to validate it and to launch it. The collector below does it once.
Sweeper.validate_batch_is_legal = lambda self, batch: None


@dataclass
class Jobs:
    """The configurations of a command line and, for a sweep, the launcher to start them with."""

    configs: list[Config] = field(default_factory=list)
    overrides: list[list[str]] = field(default_factory=list)  # of each job of a sweep
    launcher: str = "basic"  # option chosen from hydra/launcher
    composed: DictConfig | None = None  # configuration shared by the jobs of a sweep
    context: HydraContext | None = None

    def check_installed(self) -> None:
        """Check that the launcher is installed.

        Raises:
            InputError: it is not.
        """
        assert self.composed is not None
        if self.composed.hydra.launcher["_target_"] not in Plugins.instance().class_name_to_class:
            raise InputError(
                f"hydra/launcher={self.launcher} is not installed: pip install 'plainres[{self.launcher}]'"
            )

    def launch(self, overrides: Sequence[Sequence[str]], task: TaskFunction) -> Sequence[JobReturn]:
        """Start `task` through the launcher, once for each list of overrides, and wait for all of them."""
        assert self.context is not None
        assert self.composed is not None
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=task, config=self.composed
        )
        return launcher.launch(overrides, initial_job_idx=0)


class _Collector(Launcher):
    """Launcher that composes the jobs of a sweep and keeps them instead of starting them."""

    def __init__(self, jobs: Jobs, progress: Callable[[], Any]) -> None:
        self.jobs, self.progress = jobs, progress

    def instantiate(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> Launcher:
        """Return this launcher, as a substitute for `Plugins.instantiate_launcher`."""
        self.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        return self

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the objects that composing and launching need."""
        self.jobs.context, self.jobs.composed = hydra_context, config
        self.jobs.launcher = config.hydra.runtime.choices["hydra/launcher"]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose the jobs of a sweep without launching them."""
        context, common = self.jobs.context, self.jobs.composed
        assert context is not None
        assert common is not None
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            composed = context.config_loader.load_sweep_config(common, list(overrides))
            with open_dict(composed):  # as the launchers of Hydra do
                composed.hydra.job.num, composed.hydra.job.id = number, f"{composed.hydra.job.name}_{number}"
            HydraConfig.instance().set_config(composed)
            _check_axes(composed, common, overrides)
            self.jobs.configs.append(typed(composed, chosen_options(), overrides))
            self.jobs.overrides.append(list(overrides))
            self.progress()
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=None) for _ in job_overrides]


def _check_axes(composed: DictConfig, common: DictConfig, overrides: Sequence[str]) -> None:
    """Check that a job has no axes that the sweep lacks, because the job itself chose the study that has them.

    Raises:
        InputError: it has, as with -m experiment=A,B. Hydra would ignore the axes.
    """
    axes, swept = (set(each.hydra.sweeper.get("params") or ()) for each in (composed, common))
    if own := sorted(axes - swept):
        chosen = next((word for word in overrides if word.startswith("experiment=")), "its experiment")
        raise InputError(
            f"{chosen} has axes of its own ({', '.join(own)}), which a sweep over studies would ignore; train each "
            "study with a command of its own"
        )


def compose(arguments: Sequence[str]) -> list[Config]:
    """Return the configurations of a command line: one, or one for each job of a sweep.

    The list is empty if Hydra was only asked to print something, as by --cfg.

    Raises:
        InputError: as `compose_jobs`.
    """
    return compose_jobs(arguments).configs


_HYDRA = threading.RLock()  # held while Hydra composes, which it does with settings of the whole process


def compose_jobs(arguments: Sequence[str]) -> Jobs:
    """Compose the configurations of a command line without launching anything.

    Hydra parses the command line, including `-m`, `--cfg`, `--info` and `--config-dir`. All jobs are composed before
    the first one trains, so that an error in any of them is reported first.

    Raises:
        InputError: an override, an option or a YAML file is invalid.
    """
    with _HYDRA:
        return _composed_jobs(arguments)


def _composed_jobs(arguments: Sequence[str]) -> Jobs:
    flags = _parse_flags(arguments)
    jobs = Jobs()
    composing = bar("composing the runs", "run", leave=False, delay=1, disable=None)
    collector = _Collector(jobs, composing.update)

    @hydra.main(version_base="1.3", config_path="pkg://plainres.conf", config_name="config")
    def collect(composed: DictConfig) -> None:
        jobs.launcher = chosen_options()["hydra/launcher"]
        # checked and converted below, because Hydra prints errors raised here
        collected.append((composed, chosen_options(), list(HydraConfig.get().overrides.task)))
        axes.extend(map(str, HydraConfig.get().sweeper.get("params") or ()))

    collected: list[tuple[DictConfig, dict[str, str], list[str]]] = []
    axes: list[str] = []
    command, environment = list(sys.argv), {name: os.environ.get(name) for name in CHANGED}
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints its errors itself, and exits
    plugins: Any = Plugins.instance()
    instantiate_launcher, plugins.instantiate_launcher = plugins.instantiate_launcher, collector.instantiate
    # not the class that can be imported, because Hydra loads its plugins a second time
    plugins.class_name_to_class[SWEEPER]._parse_config = _axes
    try:
        with tempfile.TemporaryDirectory() as scratch:  # Hydra writes a multirun.yaml for every sweep
            os.environ["PLAINRES_SCRATCH"] = scratch
            sys.argv[1:] = _flags_first(list(map(as_typed, arguments)))
            collect()
        if axes and not any(word.startswith("hydra.mode=") for word in arguments):
            raise InputError(
                f"hydra.sweeper.params has axes ({', '.join(axes)}), but hydra.mode is not MULTIRUN; write `mode: "
                "MULTIRUN` beside `sweeper:` in the study's file, or set hydra.mode=RUN for one run without them"
            )
        jobs.configs += [typed(*job) for job in collected]
    except (InputError, BrokenPipeError):
        raise
    except Exception as error:  # raised by Hydra, OmegaConf or YAML
        message = one_line(error, arguments, Options(flags.config_dir), _default_keys)
        for word in arguments:
            message = message.replace(as_typed(word), word)
        raise InputError(message) from error
    finally:
        composing.close()
        sys.argv[:] = command
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        plugins.instantiate_launcher = instantiate_launcher
    options = Options(flags.config_dir)
    for name, study in {(str(each.options.get("experiment")), each.study) for each in jobs.configs}:
        options.check_study(f"experiment/{name}", study)
    shortcuts = [(each.shortcut, each.model.get("shortcut")) for each in jobs.configs]
    for name, target in {(name, str(node.get("_target_"))) for name, node in shortcuts if isinstance(node, dict)}:
        options.check_shortcut(name, target)
    return jobs


def _flags_first(words: Sequence[str]) -> list[str]:
    """Return flags with their values, then overrides, since Hydra's parser accepts none on both sides of a flag."""
    flags, overrides, previous = [], [], ""
    for word in words:
        is_override = "=" in word or word.startswith("~")
        of_flag = previous in ("--config-dir", "-cd") or (previous.startswith("-") and not is_override)
        (flags if word.startswith("-") or of_flag else overrides).append(word)
        previous = word
    return flags + overrides


def _axes(sweeper: Any) -> list[str]:
    """Return the axes of a study's file as overrides, with the texts among them as they were written."""
    return [as_typed(f"{key}={value}") for key, value in sweeper.params.items()]


def _parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Check Hydra's flags before Hydra does, because it would print its usage and exit.

    Raises:
        InputError: a flag does not exist, or a word is not an override.
    """
    parser = get_args_parser()
    parser.allow_abbrev = False  # --experiment is not --experimental-rerun

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; --hydra-help shows Hydra's own options")

    parser.error = refuse
    flags, unknown = parser.parse_known_args(list(arguments))
    if invalid := [word for word in unknown if word.startswith("-")]:
        flag, _, value = invalid[0].partition("=")
        following = list(arguments)[list(arguments).index(invalid[0]) + 1 :]
        if not value and following and "=" not in following[0] and not following[0].startswith("-"):
            value = following[0]
        message = f"there is no option {flag}"
        if guess := _suggest_for_flag(flag.lstrip("-"), value or None, flags.config_dir):
            raise InputError(f"{message}{guess}")
        refuse(message)
    words = [*flags.overrides, *unknown]
    for previous, word, following in zip(["", *words], words, [*words[1:], ""], strict=False):
        check_word(word, previous, following)
    for word in words:
        override = parse(as_typed(word))
        check_hydra(override)
        check_choice(override)
        if isinstance(override.value(), list):
            check_list(override, list(Options(flags.config_dir).groups()), LISTS)
    if flags.multirun and (flags.cfg or flags.info):
        raise InputError("--cfg and --info show one configuration: leave out -m, and give each option one value")
    return flags


def _suggest_for_flag(name: str, value: str | None, config_dir: str | None) -> str:
    """Return a suggestion for a flag that was meant as an override, such as --depth 20."""
    if name == "resume":
        return RESUME
    return suggestion(name.replace("-", "_"), value, _default_keys(), list(Options(config_dir).groups()))


def _default_keys() -> list[str]:
    """Return the keys of the default configuration."""
    return keys_of(OmegaConf.structured(compose([])[0]))


def chosen_options() -> dict[str, str]:
    """Return the option chosen from each group in the job that Hydra is composing."""
    return {group: name for group, name in HydraConfig.get().runtime.choices.items() if name is not None}


def typed(composed: DictConfig, options: dict[str, str], overrides: Sequence[str] = ()) -> Config:
    """Convert a job that Hydra composed to a `Config`.

    Args:
        composed: the job, resolved or not.
        options: the option chosen from each group.
        overrides: the overrides of the job, for error messages.

    Raises:
        InputError: a value is missing or invalid, or there is no such option.
    """
    if (sweeper := options["hydra/sweeper"]) != "basic":
        raise InputError(f"hydra/sweeper={sweeper} is not supported; sweep over listed values with hydra/sweeper=basic")
    task = copy.deepcopy(composed)
    with open_dict(task):
        task.pop("hydra", None)
    _check_keys(task, overrides)
    OmegaConf.resolve(task)
    deleted = {each.name for each in fields(Config) if each.default == MISSING and each.name not in task}
    if missing := deleted | OmegaConf.missing_keys(task):
        raise InputError(f"{', '.join(sorted(missing))} must be set, as in {min(missing)}=VALUE")
    _check_length(task, overrides)
    config = OmegaConf.to_object(task)
    assert isinstance(config, Config)
    _check_probes(config)
    if "model/shortcut" not in options:
        raise InputError("model/shortcut takes one option, as in model/shortcut=identity")
    config.options = {group: name for group, name in options.items() if not group.startswith("hydra/")}
    if weights := config.model.get("weights"):
        config.weights_sha256 = _sha256(weights)
    return config


def _check_keys(task: DictConfig, overrides: Sequence[str], parent: str = "") -> None:
    """Check that no key was added to a node with a schema, and that no value was given to an internal one.

    Raises:
        InputError: it was. The key would be ignored.
    """
    root = task._get_root()
    assert isinstance(root, DictConfig)
    kind = OmegaConf.get_type(task)
    for name in map(str, task):
        key = f"{parent}.{name}".lstrip(".")
        child = task._get_node(name)
        assigned = not parent and name in ASSIGNED and bool(task[name])
        if assigned or (is_dataclass(kind) and name not in {each.name for each in fields(kind)}):
            raise InputError(unknown_option(key, value_of(key, overrides), keys_of(root), Options()))
        if isinstance(child, DictConfig) and is_dataclass(OmegaConf.get_type(child)):
            _check_keys(child, overrides, key)


def _check_probes(config: Config) -> None:
    """Check that every probe is a node.

    Raises:
        InputError: one is a value, as if the probe in a YAML file had no name.
    """
    for name, node in config.probes.items():
        if not isinstance(node, dict):
            raise InputError(
                f"probes.{name} is {node!r}; it must be a node with _target_, as in conf/probes/gradients.yaml"
            )


def _check_length(task: DictConfig, overrides: Sequence[str]) -> None:
    """Check that a recipe does not have both epochs and steps, and say which override sets the other one to null.

    Raises:
        InputError: it has both, and exactly one of them was overridden.
    """
    length = {key: task.optim.get(key) for key in ("epochs", "steps")}
    overridden = [word for word in overrides if word.partition("=")[0].lstrip("+") in ("optim.epochs", "optim.steps")]
    if None not in length.values() and len(overridden) == 1:
        word = overridden[0].lstrip("+")
        other = "epochs" if word.startswith("optim.steps") else "steps"
        raise InputError(
            f"optim.{other} is {length[other]} in this recipe, and a run's length is either epochs or steps; "
            f"use {word} optim.{other}=null"
        )


def _sha256(file: Any) -> str:
    """Return the digest of a file of weights, by whose content, not name, a run is identified."""
    from plainres.models.weights import weights_file  # with torch

    try:
        return file_sha256(weights_file(Path(file)))
    except (OSError, TypeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else "it cannot be read"
        raise InputError(f"model.weights={file}: {reason}") from error
