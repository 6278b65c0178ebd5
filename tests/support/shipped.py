"""What conf/model ships, made as Hydra makes it."""

from typing import Any

import hydra.utils
from omegaconf import OmegaConf

from plainres.models.blocks import BlockSpec
from support.places import CONF


def shipped(group: str) -> dict[str, Any]:
    """What the YAML files of a group of conf/model name, made as Hydra makes it."""
    nodes = {}
    for file in sorted((CONF / "model" / group).glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(node, dict)
        nodes[file.stem] = node
    made = {}
    for name, node in nodes.items():
        for base in node.pop("defaults", []):
            if isinstance(base, str) and base != "_self_":
                node = {key: value for key, value in nodes[base].items() if key != "defaults"} | node  # noqa: PLW2901
        node.pop("norm", None)  # the network's
        made[name] = hydra.utils.instantiate(node, _convert_="all")
    return made


SHORTCUTS, BLOCKS, ORDERS, NORMS = (shipped(group) for group in ("shortcut", "block", "block/order", "norm"))
BLOCKS |= {f"B{kernels}": BlockSpec(kernels) for kernels in ([3], [3, 3, 3], [3, 3, 3, 3], [3, 1], [1, 3], [3, 1, 3])}
