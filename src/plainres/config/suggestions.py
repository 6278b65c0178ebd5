"""Suggestions for overrides that name no key, no group or no option of the configuration."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

SHOWN = 3  # suggestions in one message
CUTOFF = 0.7  # similarity from which a name elsewhere in the configuration is suggested
MEANT = {  # names that other tools give to a key or group
    **dict.fromkeys(("learning_rate", "eta"), "optim.lr"),
    **dict.fromkeys(("max_epochs", "num_epochs", "n_epochs"), "optim.epochs"),
    **dict.fromkeys(("max_steps", "max_iter", "iterations"), "optim.steps"),
    **dict.fromkeys(("batch", "bs"), "optim.batch_size"),
    **dict.fromkeys(("wd", "l2"), "optim.weight_decay"),
    **dict.fromkeys(("grad_clip", "gradient_clip_val", "max_norm"), "optim.clip_norm"),
    **dict.fromkeys(("layers", "num_layers"), "model.depth"),
    **dict.fromkeys(("gpus", "num_gpus"), "trainer.devices"),
    **dict.fromkeys(("num_workers", "n_workers"), "trainer.workers"),
    **dict.fromkeys(("dataset", "data_set"), "data"),
    **dict.fromkeys(("optimizer", "recipe"), "optim"),
}


def keys_of(composed: DictConfig) -> list[str]:
    """Return the dotted paths of all keys of a configuration, except Hydra's and those that begin with `_`."""
    node = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(node, dict)
    return list(_paths({key: value for key, value in node.items() if key != "hydra"}))


def _paths(node: Mapping[Any, Any], parent: str = "") -> Iterator[str]:
    for key, value in node.items():
        if not str(key).startswith("_"):
            path = f"{parent}.{key}".lstrip(".")
            yield path
            if isinstance(value, Mapping):
                yield from _paths(value, path)


def suggestion(key: str, value: str | None, keys: Sequence[str], groups: Sequence[str]) -> str:
    """Return "; did you mean optim.lr=0.1?" for the key `lr`, or "" if nothing resembles it.

    Args:
        key: dotted path or group that does not exist.
        value: its value; None leaves it out of the suggestion.
        keys: dotted paths of the configuration.
        groups: groups of options.
    """
    suffix = "" if value is None else f"={value}"
    names = similar_names(key, keys, groups)
    return f"; did you mean {' or '.join(f'{name}{suffix}' for name in names)}?" if names else ""


def similar_options(name: str, options: Sequence[str]) -> list[str]:
    """Return the options of a group that a misspelt one may have meant, the most similar first."""
    return difflib.get_close_matches(name, options, n=SHOWN, cutoff=CUTOFF)


def similar_names(key: str, keys: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Return the keys and groups that a misspelt key may have meant, at most SHOWN.

    A group is preferred to a key, as `model/shortcut` to `model.shortcut`, and the only candidate if the key has a
    slash. Equal last parts are preferred to similar ones, and keys of the same parent to keys elsewhere.

    Args:
        key: dotted path or group that does not exist.
        keys: dotted paths of the configuration.
        groups: groups of options.
    """
    keys = [] if "/" in key else keys
    parent, _, last = key.replace("/", ".").rpartition(".")
    siblings = [path for path in [*groups, *keys] if path.replace("/", ".").rpartition(".")[0] == parent]
    names = (
        [name for name in dict.fromkeys([*groups, *keys]) if name in (MEANT.get(last), key.replace("-", "."))]
        or [group for group in groups if _last(group) == last]
        or [path for path in keys if _last(path) == last]
        or _similar(last, siblings, 0.6)
        or _similar(last, [*groups, *keys], CUTOFF)
    )
    return names[:SHOWN]


def _last(path: str) -> str:
    return path.replace("/", ".").rpartition(".")[2]


def _similar(name: str, paths: Sequence[str], cutoff: float) -> list[str]:
    """Return the path whose last part is most similar to a name, none if the similarity is below the cutoff."""
    by_name = {_last(path): path for path in reversed(paths)}
    return [by_name[close] for close in difflib.get_close_matches(name, by_name, n=1, cutoff=cutoff)]
