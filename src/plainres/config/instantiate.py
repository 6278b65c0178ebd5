"""From the configuration to objects: what conf/ names is called, after its arguments have been checked."""

import inspect
import os
import pkgutil
import shutil
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import hydra.utils
import torch
from hydra.errors import HydraException
from torch import Generator, nn

from plainres.config.schema import MODEL_DEFAULTS, Config, in_words
from plainres.data.sources import Source
from plainres.errors import InputError, first_line
from plainres.models.initialisation import Scheme
from plainres.models.probes import Probe, check_probes
from plainres.models.summary import Description, describe
from plainres.models.weights import load_weights, weights_for
from plainres.randomness import mix, seed_noise


def source_of(config: Config) -> Source:
    """The source of the images.

    Raises:
        InputError: `config.data` does not fit the signature it names, or the source refuses it.
    """
    return _instantiate(config.data, "data")


def architecture_of(config: Config, source: Source) -> nn.Module:
    """The network for the images of `source`, with whatever weights its layers come with.

    Raises:
        InputError: `config.model` does not fit the signature it names, or the network refuses it.
    """
    node = {key: value for key, value in config.model.items() if key not in MODEL_DEFAULTS}
    factory = _instantiate(node, "model")
    try:
        return factory(in_channels=source.shape[0], classes=source.classes)
    except InputError:
        raise
    except Exception as error:  # the class may be the user's own
        raise InputError(f"model: {type(error).__name__}: {first_line(error)}") from error


def description_of(config: Config, source: Source) -> Description:
    """The layers, parameters and multiply-adds of the network for the images of `source`, found without memory.

    Raises:
        InputError: as `architecture_of`.
    """
    with torch.device("meta"):
        return describe(architecture_of(config, source), source.shape)


def probes_of(config: Config) -> dict[str, Probe]:
    """The probes of a run, by name.

    Raises:
        InputError: an option of one is wrong.
    """
    return {name: _instantiate(node, f"probes.{name}") for name, node in config.probes.items()}


def check_devices(config: Config) -> None:
    """See whether the devices that a run asks for, and what they need, are here.

    Raises:
        InputError: they are not.
    """
    trainer = config.trainer
    compiler = os.environ.get("CXX", "g++")
    there = shutil.which(compiler) or shutil.which("clang++")
    if trainer.compile is True and trainer.accelerator == "cpu" and not there:
        raise InputError(f"trainer.compile=true needs a C++ compiler on the CPU; there is no {compiler} (CXX names it)")
    if trainer.accelerator == "gpu" and torch.cuda.device_count() < trainer.devices:
        raise InputError(
            f"the trainer is to use {trainer.devices} GPUs, but torch finds {torch.cuda.device_count()}; "
            "trainer=cpu needs none"
        )


def check(config: Config, *, devices: bool = True) -> None:
    """See whether there are `devices` here for a run; make its source and its network, and show it images, all without
    memory.

    Raises:
        InputError: as `check_devices`, `source_of` and `architecture_of`; the network does not take the images or the
            initialisation, has nothing that a probe could look at, or the weights in its file do not fit.
    """
    if devices:
        check_devices(config)
    probes = probes_of(config)
    source = source_of(config)
    with torch.device("meta"):
        network = architecture_of(config, source)
        try:
            logits = network(torch.zeros(2, *source.shape))
        except Exception as error:  # the class may be the user's own
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"model: fails on images of shape {list(source.shape)}: {reason}") from error
        _scheme(config)(network, Generator())  # the meta device draws nothing, but a scheme may not suit the network
    check_probes(probes, network)
    if file := config.model.get("weights"):
        weights_for(network, Path(file))
    if logits.shape != (2, source.classes):
        raise InputError(f"model: gives {list(logits.shape[1:])} for an image; it must give {source.classes} logits")


def build_network(config: Config) -> nn.Module:
    """Return the network of a configuration, with its initial weights.

    Raises:
        InputError: the configuration describes none.
    """
    return network_of(config, source_of(config))


def network_of(config: Config, source: Source) -> nn.Module:
    """The network with its initial weights, a function of the seed, or, if it is given one, of a file.

    What a shortcut draws when it is made comes from one stream of random numbers, the backbone's weights from another;
    the global stream is left as it was.

    Raises:
        InputError: as `architecture_of`; the initialisation does not suit the network, or the file does not fit it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix("shortcut", config.seed))
        network = architecture_of(config, source)
    _scheme(config)(network, Generator().manual_seed(mix("backbone", config.seed)))
    seed_noise(network, config.seed)
    if file := config.model.get("weights"):
        load_weights(network, Path(file))
    return network


def _scheme(config: Config) -> Scheme:
    node = config.model.get("init", MODEL_DEFAULTS["init"])
    if not isinstance(node, Mapping):
        raise InputError(f"model.init is {node!r}; it is chosen with a slash, model/init={node}")
    return _instantiate(node, "model.init")


def _instantiate(node: Mapping[str, Any], key: str) -> Any:
    _check(node, key)
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except HydraException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise InputError(f"{key}: {str(error.__cause__ or error).splitlines()[0]}") from error


def _check(node: Mapping[str, Any], key: str) -> None:
    """Compare the values of a node, and of the nodes in it, with the signature that `_target_` names.

    Raises:
        InputError: an argument is unknown, missing or of another type than its annotation says.
    """
    if "_target_" not in node:
        raise InputError(f"{key} has no _target_, which names its class; it has {', '.join(node) or 'nothing'}")
    try:
        target = pkgutil.resolve_name(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{key}._target_={node['_target_']}: {error}; is its folder on PYTHONPATH?") from error
    if not callable(target):
        raise InputError(f"{key}._target_={node['_target_']} is no class or function")
    parameters = inspect.signature(target).parameters
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters:
            raise InputError(f"{key} has no option {name!r}; {target.__name__} takes {', '.join(parameters)}")
        if isinstance(value, Mapping):
            _check(value, f"{key}.{name}")
        elif getattr(hints.get(name), "_is_protocol", False) or is_dataclass(hints.get(name)):
            group = "model/norm" if name == "norm" else f"{key}.{name}".replace(".", "/")
            raise InputError(f"{key}.{name} is {value!r}; it is chosen with a slash, {group}={value}")
        elif not _is_a(value, hints.get(name, Any)):
            raise InputError(f"{key}.{name} is {value!r}; it must be {in_words(hints[name])}")
    if not node.get("_partial_"):
        required = [name for name, p in parameters.items() if p.default is p.empty]
        if missing := [name for name in required if name not in node]:
            raise InputError(
                f"{key} lacks {', '.join(missing)}, which {target.__name__} needs; "
                "if they are given later, it lacks _partial_: true"
            )


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value from YAML fits an annotation; annotations other than plain types and their unions fit all."""
    if get_origin(hint) in (Union, UnionType):
        return any(_is_a(value, option) for option in get_args(hint))
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return not isinstance(hint, type) or hint not in (str, bool, type(None)) or isinstance(value, hint)
