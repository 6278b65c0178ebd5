"""From the configuration to objects: what conf/ names is called, after its arguments have been checked."""

import inspect
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import hydra.utils
import torch
from hydra.errors import HydraException
from torch import Generator, nn

from plainres.config import Config
from plainres.data import Source
from plainres.errors import InputError
from plainres.networks import initialise
from plainres.randomness import mix


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
    factory = _instantiate(config.model, "model")
    try:
        return factory(in_channels=source.shape[0], classes=source.classes)
    except TypeError as error:
        raise InputError(f"model: {error}") from error


def check(config: Config) -> None:
    """Make the source and the network, without memory for its weights, to see whether they can be made.

    Raises:
        InputError: as `source_of` and `architecture_of`.
    """
    with torch.device("meta"):
        architecture_of(config, source_of(config))


def network_of(config: Config, source: Source) -> nn.Module:
    """The network with its initial weights, a function of the seed.

    What a shortcut draws when it is made comes from one stream of random numbers, the backbone's weights from another;
    the global stream is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix("shortcut", config.seed))
        network = architecture_of(config, source)
    initialise(network, Generator().manual_seed(mix("backbone", config.seed)))
    return network


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
    try:
        target = hydra.utils.get_object(node["_target_"])
    except Exception as error:
        raise InputError(f"{key}._target_={node.get('_target_')}: there is no such class or function") from error
    parameters = inspect.signature(target).parameters
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters:
            raise InputError(f"{key} has no option {name!r}; {target.__name__} takes {', '.join(parameters)}")
        if isinstance(value, Mapping) and "_target_" in value:
            _check(value, f"{key}.{name}")
        elif not _is_a(value, hints.get(name, Any)):
            wanted = inspect.formatannotation(hints[name])
            raise InputError(f"{key}.{name} is {value!r}; it must be {wanted.replace(' | None', ' or null')}")
    if not node.get("_partial_"):
        required = [name for name, p in parameters.items() if p.default is p.empty]
        if missing := [name for name in required if name not in node]:
            raise InputError(f"{key} lacks {', '.join(missing)}, which {target.__name__} needs")


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value from YAML fits an annotation; annotations other than plain types and their unions fit all."""
    if get_origin(hint) in (Union, UnionType):
        return any(_is_a(value, option) for option in get_args(hint))
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return not isinstance(hint, type) or hint not in (str, bool, type(None)) or isinstance(value, hint)
