"""Instantiation of the objects that a configuration describes, after a check of their arguments."""

import inspect
import os
import pkgutil
import shutil
import threading
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import hydra.utils
import torch
from hydra.errors import HydraException
from torch import Generator, nn

from plainres.config.schema import MODEL_DEFAULTS, Config, in_words
from plainres.console import quantity
from plainres.data.sources import Source
from plainres.errors import InputError, first_line, in_own_code
from plainres.models.initialisation import Scheme
from plainres.models.probes import Probe, check_probes
from plainres.models.summary import Description, describe
from plainres.models.weights import load_weights, weights_for
from plainres.randomness import mix, seed_noise

_GLOBAL_STREAM = threading.Lock()  # held while a network draws from torch's global stream of random numbers


def source_of(config: Config) -> Source:
    """Return the source of the images.

    Raises:
        InputError: `config.data` does not match the signature of its class, or the source rejects a value.
    """
    return _instantiate(config.data, "data")


def architecture_of(config: Config, source: Source) -> nn.Module:
    """Return the network for the images of `source`, with the default initial weights of its layers.

    Raises:
        InputError: `config.model` does not match the signature of its class, or the network rejects a value.
    """
    node = {key: value for key, value in config.model.items() if key not in MODEL_DEFAULTS}
    factory = _instantiate(node, "model")
    channels: dict[str, Any] = {"in_channels": source.shape[0]}
    if "image_shape" in inspect.signature(factory).parameters:
        channels = {"image_shape": source.shape}
    try:
        return factory(**channels, classes=source.classes)
    except InputError:
        raise
    except Exception as error:  # from a user's own class, too
        raise InputError(f"model: {in_own_code(error)} (--debug shows where)") from error


def description_of(config: Config, source: Source) -> Description:
    """Return the layers, parameters and multiply-adds of the network for the images of `source`.

    The network is made on the meta device, so that it takes no memory.

    Raises:
        InputError: as `architecture_of`.
    """
    with torch.device("meta"):
        return describe(architecture_of(config, source), source.shape)


def probes_of(config: Config) -> dict[str, Probe]:
    """Return the probes of a run by name.

    Raises:
        InputError: an option of a probe is invalid.
    """
    return {name: _instantiate(node, f"probes.{name}") for name, node in config.probes.items()}


def check_devices(config: Config) -> None:
    """Check that this machine has the devices of a run, and the compiler if the run needs one.

    Raises:
        InputError: something is missing.
    """
    trainer = config.trainer
    compiler = os.environ.get("CXX", "g++")
    available = shutil.which(compiler) or shutil.which("clang++")
    if trainer.compile is True and trainer.accelerator == "cpu" and not available:
        raise InputError(
            f"trainer.compile=true needs a C++ compiler on the CPU, but there is no {compiler}; "
            "install one, name it in the environment variable CXX, or set trainer.compile=false"
        )
    if trainer.accelerator == "mps" and not torch.backends.mps.is_available():
        raise InputError("trainer.accelerator is mps, but torch finds no GPU by Apple here; use trainer=cpu")
    gpus = torch.cuda.device_count()
    if trainer.accelerator == "gpu" and gpus < trainer.devices:
        if gpus:
            raise InputError(
                f"trainer.devices is {trainer.devices}, but torch finds {quantity(gpus, 'GPU')} here; "
                f"set it to at most {gpus}, or use trainer=cpu"
            )
        parallel = f", or add trainer.accelerator=cpu for {trainer.devices} processes on the CPU"
        raise InputError(
            "trainer.accelerator is gpu, but torch finds no GPU here; use trainer=cpu"
            f"{parallel if trainer.devices > 1 else ''}"
        )


def check(config: Config, *, devices: bool = True) -> None:
    """Check that a run can be trained, without allocating memory for its images or its network.

    Args:
        config: the run.
        devices: check this machine's devices as well.

    Raises:
        InputError: as `check_devices`, `source_of` and `architecture_of`; or the network does not accept the images or
            the initialisation, has no layers that a probe observes, or does not match its file of weights.
    """
    if devices:
        check_devices(config)
    probes = probes_of(config)
    source = source_of(config)
    with torch.device("meta"):
        network = architecture_of(config, source)
        try:
            logits = network(torch.zeros(2, *source.shape))
        except Exception as error:  # from a user's own class, too
            raise InputError(
                f"model fails on images of shape {list(source.shape)}: {in_own_code(error)} (--debug shows where)"
            ) from error
        _scheme(config)(network, Generator())  # draws nothing on the meta device, but rejects unsuitable networks
    check_probes(probes, network)
    if file := _initial_weights(config):
        weights_for(network, file, new_head=config.model.get("head") is not None)
    if logits.shape != (2, source.classes):
        raise InputError(
            f"model returns an output of shape {list(logits.shape[1:])} for an image; "
            f"it must return {source.classes} logits"
        )


def build_network(config: Config) -> nn.Module:
    """Return the network of a configuration, with its initial weights.

    Raises:
        InputError: the configuration describes none.
    """
    return network_of(config, source_of(config))


def network_of(config: Config, source: Source) -> nn.Module:
    """Return the network with its initial weights, drawn from the seed or read from the file model.weights.

    The shortcuts and the backbone draw from separate streams of random numbers, so that all shortcuts start from the
    same backbone. The global stream, from which layers of torch draw, is restored.

    Raises:
        InputError: as `architecture_of`; or the network does not match the initialisation or the file.
    """
    with _GLOBAL_STREAM, torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix("shortcut", config.seed))
        network = architecture_of(config, source)
    _scheme(config)(network, Generator().manual_seed(mix("backbone", config.seed)))
    seed_noise(network, config.seed)
    if file := _initial_weights(config):
        if config.precision == "64-true":
            network.double()  # before reading weights, which may be in float64
        load_weights(network, file, new_head=config.model.get("head") is not None, sha256=config.weights_sha256)
    return network


def _initial_weights(config: Config) -> Path | None:
    """Return the file of the initial weights, None if they are drawn.

    Raises:
        InputError: model.head has an invalid value, or is set without a file.
    """
    file, head = config.model.get("weights"), config.model.get("head")
    if head not in (None, "new"):
        raise InputError(f"model.head is {head!r}; it must be null, or new for weights without their head")
    if head and not file:
        raise InputError(
            "model.head=new takes the weights of a file without their head; set model.weights=FILE as well"
        )
    return Path(file) if file else None


def _scheme(config: Config) -> Scheme:
    node = config.model.get("init", MODEL_DEFAULTS["init"])
    if not isinstance(node, Mapping):
        raise InputError(f"model.init is {node!r}; choose an option with a slash, model/init={node}")
    return _instantiate(node, "model.init")


def _instantiate(node: Mapping[str, Any], key: str) -> Any:
    _check(node, key)
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except HydraException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        reason = in_own_code(error.__cause__) if error.__cause__ else first_line(error)
        raise InputError(f"{key}: {reason}") from error


def _check(node: Mapping[str, Any], key: str) -> None:
    """Compare the values of a node and of its nested nodes with the signature of its `_target_`.

    Raises:
        InputError: an argument is unknown, missing, or does not have the type of its annotation.
    """
    if "_target_" not in node:
        keys = f"only {', '.join(node)}" if node else "no key at all"
        raise InputError(f"{key} has {keys}; it needs _target_, the path of its class")
    target = _resolved(node["_target_"], f"{key}._target_={node['_target_']}")
    if not callable(target):
        raise InputError(f"{key}._target_={node['_target_']} is not a class or function")
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
            raise InputError(f"{key}.{name} is {value!r}; choose an option with a slash, {group}={value}")
        elif not _is_a(value, hints.get(name, Any)):
            raise InputError(f"{key}.{name} is {value!r}; it must be {in_words(hints[name])}")
    if not node.get("_partial_"):
        required = [name for name, p in parameters.items() if p.default is p.empty]
        if missing := [name for name in required if name not in node]:
            raise InputError(
                f"{key} lacks {', '.join(missing)}, which {target.__name__} needs; add the value, "
                "or _partial_: true if the arguments follow later"
            )


def _resolved(path: str, setting: str) -> Any:
    """Return the class or function at an import path.

    Raises:
        InputError: there is none, or its module cannot be imported.
    """
    try:
        return pkgutil.resolve_name(path)
    except (ModuleNotFoundError, ValueError) as error:
        raise InputError(f"{setting}: {error}; add its folder to PYTHONPATH if it is your own") from error
    except AttributeError as error:
        raise InputError(f"{setting}: {in_own_code(error)}{_has(error.obj)}") from error
    except Exception as error:  # from a module of the user's own
        raise InputError(f"{setting}: {in_own_code(error)}") from error


def _has(module: Any) -> str:
    """List the classes and functions that a module defines, as the end of a message; "" for anything but a module."""
    if not isinstance(module, ModuleType):
        return ""
    defined = (name for name, each in vars(module).items() if getattr(each, "__module__", None) == module.__name__)
    names = getattr(module, "__all__", None) or list(defined)
    return f"; it has {', '.join(names) or 'none'}"


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value from YAML has the type of an annotation. Only plain types and their unions are checked."""
    if get_origin(hint) in (Union, UnionType):
        return any(_is_a(value, option) for option in get_args(hint))
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return not isinstance(hint, type) or hint not in (str, bool, type(None)) or isinstance(value, hint)
