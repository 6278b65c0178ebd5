"""What a command line asks for: Hydra composes, this module collects."""

import difflib
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError

from plainres.config import Config
from plainres.errors import InputError
from plainres.progress import bar

ConfigStore.instance().store(name="schema", node=Config)

# Hydra composes every job of a sweep twice, to check it and to launch it. Here launching is but collecting.
Sweeper.validate_batch_is_legal = lambda self, batch: None


def compose(arguments: Sequence[str]) -> list[Config]:
    """One configuration, or, for a sweep, one for each of its jobs; none if Hydra was only asked to show something.

    Hydra's own command line is at work here: groups, overrides, `-m`, `--cfg`, `--info`, `--config-dir`. Only its jobs
    do nothing but hand over their configuration, so a mistake in any of them shows before the first one trains.

    Raises:
        InputError: an override, a choice or a YAML file is wrong.
    """
    collected: list[tuple[DictConfig, dict[str, str]]] = []
    composing = bar("composing the runs", "run", leave=False, delay=1, disable=None)

    @hydra.main(version_base="1.3", config_path="pkg://plainres.conf", config_name="config")
    def collect(composed: DictConfig) -> None:
        if (launcher := HydraConfig.get().runtime.choices.get("hydra/launcher")) != "basic":
            raise InputError(f"hydra/launcher={launcher}: sweeps run with hydra/launcher=basic only")
        choices = HydraConfig.get().runtime.choices.items()
        OmegaConf.resolve(composed)
        collected.append((composed, {k: v for k, v in choices if v is not None and not k.startswith("hydra/")}))
        composing.update()

    wanted = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its errors itself, and exits
    try:
        with tempfile.TemporaryDirectory() as scratch:  # a sweep leaves a multirun.yaml behind
            os.environ["PLAINRES_SCRATCH"] = scratch
            sys.argv[1:] = arguments
            collect()
        return [_typed(composed, choices) for composed, choices in collected]
    except InputError:
        raise
    except Exception as error:  # nothing runs here but Hydra on what it was given
        if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
            mark = error.problem_mark
            raise InputError(f"{mark.name}, line {mark.line + 1}: {error.problem}") from error
        known = isinstance(error, HydraException | OmegaConfBaseException)
        raise InputError(_one_line(error) if known else f"{' '.join(arguments)}: {_first_lines(error)}") from error
    finally:
        composing.close()
        os.environ["HYDRA_FULL_ERROR"] = wanted


def _typed(composed: DictConfig, choices: dict[str, str]) -> Config:
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    config.choices = choices
    return config


def _one_line(error: Exception) -> str:
    """What Hydra or OmegaConf say over several lines, in one, with what would have been right."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice}: there is no such choice; there are {', '.join(error.options)}"
    if "Ambiguous value" in str(error):
        return f"{str(error).splitlines()[0]}: to train each of several values, add -m"
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        keys = [str(key) for key in cause.parent_node]
        return f"there is no option {cause.full_key}{_suggestion(str(cause.key), keys)}; there are {', '.join(keys)}"
    said = [_first_lines(error)] + ([_first_lines(cause)] if isinstance(cause, OmegaConfBaseException) else [])
    return ": ".join(part for part in said if part)


def _suggestion(key: str, keys: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(keys), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _first_lines(error: Any) -> str:
    """The sentences of a message, without its advice and its indented details."""
    advice = (" ", "\t", "To append", "See http", "Set the env", "Config search path")
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(advice))
