"""Objects that the options of conf/model describe, instantiated by Hydra."""

from typing import Any

import hydra.utils
from omegaconf import OmegaConf

from plainres.models.blocks import BlockSpec
from plainres.models.connections import Connection
from support.places import CONF


def shipped(group: str) -> dict[str, Any]:
    """Return the instantiated options of a group of conf/model by name."""
    nodes = {}
    for file in sorted((CONF / "model" / group).glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(node, dict)
        nodes[file.stem] = node
    instances = {}
    for name, node in nodes.items():
        for base in node.pop("defaults", []):
            if isinstance(base, str) and base != "_self_":
                node = {key: value for key, value in nodes[base].items() if key != "defaults"} | node  # noqa: PLW2901
        node.pop("norm", None)  # same as in the network
        instances[name] = hydra.utils.instantiate(node, _convert_="all")
    return instances


EVERY_SHORTCUT, BLOCKS, ORDERS, NORMS, ACTIVATIONS = (
    shipped(group) for group in ("shortcut", "block", "block/order", "norm", "activation")
)
BLOCKS |= {f"B{kernels}": BlockSpec(kernels) for kernels in ([3], [3, 3, 3], [3, 3, 3, 3], [3, 1], [1, 3], [3, 1, 3])}
# shortcuts (x, fx) -> y, and those with a state, which need an order without layers after the addition
CONNECTIONS = {name: each for name, each in EVERY_SHORTCUT.items() if isinstance(each(4, 4, 1), Connection)}
SHORTCUTS = {name: each for name, each in EVERY_SHORTCUT.items() if name not in CONNECTIONS}
STATEFUL_ORDER = ORDERS["full_preactivation"]
