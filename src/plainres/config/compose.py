"""What a command line asks for: Hydra composes, this module collects."""

import argparse
import copy
import difflib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import MarkedYAMLError

from plainres.config.options import Options
from plainres.config.schema import Config, in_words
from plainres.console import bar
from plainres.errors import InputError, first_line

ConfigStore.instance().store(name="schema", node=Config)

# Hydra composes every job of a sweep twice, to check it and to launch it. Once is enough.
Sweeper.validate_batch_is_legal = lambda self, batch: None


@dataclass
class Jobs:
    """What a command line asks for: configurations, and for a sweep the launcher that is to start them."""

    configs: list[Config] = field(default_factory=list)
    overrides: list[list[str]] = field(default_factory=list)  # of each job of a sweep
    launcher: str = "basic"  # the option chosen from hydra/launcher
    composed: DictConfig | None = None  # what the jobs of a sweep have in common
    context: HydraContext | None = None

    def launch(self, overrides: Sequence[Sequence[str]], task: TaskFunction) -> Sequence[JobReturn]:
        """Have the launcher start `task` for each of some jobs, wherever it does; wait for all of them."""
        assert self.context is not None
        assert self.composed is not None
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=task, config=self.composed
        )
        return launcher.launch(overrides, initial_job_idx=0)


class _Collector(Launcher):
    """Stands where a sweep has its launcher: composes the jobs and keeps them."""

    def __init__(self, jobs: Jobs, progress: Callable[[], Any]) -> None:
        self.jobs, self.progress = jobs, progress

    def instantiate(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> Launcher:
        """Take the place of `Plugins.instantiate_launcher`."""
        self.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        return self

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Note what composing and launching need."""
        self.jobs.context, self.jobs.composed = hydra_context, config
        self.jobs.launcher = config.hydra.runtime.choices["hydra/launcher"]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose the jobs of a sweep, and launch none."""
        context, common = self.jobs.context, self.jobs.composed
        assert context is not None
        assert common is not None
        for overrides in job_overrides:
            composed = context.config_loader.load_sweep_config(common, list(overrides))
            HydraConfig.instance().set_config(composed)
            self.jobs.configs.append(typed(composed, chosen_options()))
            self.jobs.overrides.append(list(overrides))
            self.progress()
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=None) for _ in job_overrides]


def compose(arguments: Sequence[str]) -> list[Config]:
    """One configuration, or, for a sweep, one for each of its jobs; none if Hydra was only asked to show something.

    Raises:
        InputError: as `compose_jobs`.
    """
    return compose_jobs(arguments).configs


def compose_jobs(arguments: Sequence[str]) -> Jobs:
    """What a command line asks for.

    Hydra's own command line is at work here: groups, overrides, `-m`, `--cfg`, `--info`, `--config-dir`. But nothing is
    launched yet, so a mistake in any of the jobs shows before the first one trains.

    Raises:
        InputError: an override, an option or a YAML file is wrong.
    """
    flags = _flags(arguments)
    jobs = Jobs()
    if flags.help:
        print(Options(flags.config_dir).help(), end="")
        return jobs
    composing = bar("composing the runs", "run", leave=False, delay=1, disable=None)
    collector = _Collector(jobs, composing.update)

    @hydra.main(version_base="1.3", config_path="pkg://plainres.conf", config_name="config")
    def collect(composed: DictConfig) -> None:
        jobs.launcher = chosen_options()["hydra/launcher"]
        collected.append((composed, chosen_options()))  # what is wrong with it Hydra would report in its own way

    collected: list[tuple[DictConfig, dict[str, str]]] = []
    wanted = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its errors itself, and exits
    plugins: Any = Plugins.instance()
    instantiate_launcher, plugins.instantiate_launcher = plugins.instantiate_launcher, collector.instantiate
    try:
        with tempfile.TemporaryDirectory() as scratch:  # a sweep leaves a multirun.yaml behind
            os.environ["PLAINRES_SCRATCH"] = scratch
            # Hydra's parser takes no override after a flag that follows one
            sys.argv[1:] = sorted(arguments, key=lambda word: word not in ("-m", "--multirun"))
            collect()
        jobs.configs += [typed(composed, made) for composed, made in collected]
    except InputError:
        raise
    except Exception as error:  # nothing runs here but Hydra on what it was given
        if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
            raise InputError(f"{error.problem_mark.name}, {first_line(error)}") from error
        if isinstance(error, MissingConfigException) and not error.options:  # in a list of options
            error.options = Options(flags.config_dir).of(str(error.missing_cfg_file).rpartition("/")[0])
        known = isinstance(error, HydraException | OmegaConfBaseException)
        raise InputError(_one_line(error) if known else f"{' '.join(arguments)}: {_first_lines(error)}") from error
    finally:
        composing.close()
        os.environ["HYDRA_FULL_ERROR"] = wanted
        plugins.instantiate_launcher = instantiate_launcher
    return jobs


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Look at Hydra's flags before Hydra does, which would print its usage and exit."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; --hydra-help shows Hydra's own options")

    parser.error = refuse
    flags, unknown = parser.parse_known_args(list(arguments))
    if wrong := [word for word in unknown if word.startswith("-")]:
        refuse(f"there is no option {wrong[0]}")
    if flags.multirun and (flags.cfg or flags.info):
        raise InputError("--cfg and --info show one configuration: leave out -m, and give each option one value")
    return flags


def chosen_options() -> dict[str, str]:
    """Return the option chosen from each group in the job that Hydra is composing."""
    return {group: name for group, name in HydraConfig.get().runtime.choices.items() if name is not None}


def typed(composed: DictConfig, options: dict[str, str]) -> Config:
    """What Hydra composed for a job, and the options chosen for it, as a `Config`.

    Raises:
        InputError: a value is wrong.
    """
    if (sweeper := options["hydra/sweeper"]) != "basic":
        raise InputError(f"hydra/sweeper={sweeper}: plainres sweeps over the values given, with hydra/sweeper=basic")
    task = copy.deepcopy(composed)
    with open_dict(task):
        task.pop("hydra", None)
    OmegaConf.resolve(task)
    config = OmegaConf.to_object(task)
    assert isinstance(config, Config)
    config.options = {group: name for group, name in options.items() if not group.startswith("hydra/")}
    if weights := config.model.get("weights"):
        config.weights_sha256 = _sha256(weights)
    return config


def _sha256(file: Any) -> str:
    """The digest of a file: which weights a run begins with is what it holds, not what it is called."""
    from plainres.models.weights import weights_file  # with torch

    try:
        with weights_file(Path(file)).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except (OSError, TypeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else "it cannot be read"
        raise InputError(f"model.weights={file}: {reason}") from error


def _one_line(error: Exception) -> str:
    """What Hydra or OmegaConf say over several lines, in one, with what would have been right."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher":
            return (
                f"{group}={option}: there is no such launcher; there are {', '.join(error.options)}; others come with "
                "their plugins, slurm with pip install 'plainres[slurm]'"
            )
        return f"{group}={option}: there is no such option; there are {', '.join(error.options)}"
    if "Ambiguous value" in str(error):
        return f"{str(error).splitlines()[0]}: to train each of several values, add -m"
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        keys = [str(key) for key in cause.parent_node]
        others = f"{_suggestion(str(cause.key), keys)}; there are {', '.join(keys)}" if keys else ""
        return f"there is no option {cause.full_key}{others}"
    said = [_first_lines(error).removeprefix("Error merging override ")]
    if isinstance(cause, ValidationError) and cause.object_type is not None:
        element = cause.object_type is list
        hint = get_args(cause.ref_type)[0] if element else get_type_hints(cause.object_type)[str(cause.key)]
        said.append(f"{cause.full_key} must be {in_words(hint)}")
    elif isinstance(cause, OmegaConfBaseException):
        said.append(_first_lines(cause))
    return ": ".join(part for part in said if part)


def _suggestion(key: str, keys: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(keys), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _first_lines(error: Any) -> str:
    """The sentences of a message, without its advice and its indented details."""
    advice = (" ", "\t", "To append", "See http", "Set the env", "Config search path")
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(advice))
