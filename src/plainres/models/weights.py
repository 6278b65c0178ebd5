"""Weights in files: those of others are read, ours are written for others.

Three families of names are understood: plainres's own, torchvision's ResNets (conv1, layer1.0.bn2, downsample, fc), and
those of akamaster/pytorch_resnet_cifar10, which are torchvision's but for `linear` and a `module.` before each.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from plainres.errors import InputError, first_line
from plainres.files import atomically
from plainres.models.blocks import BlockSpec
from plainres.models.networks import ImageNet
from plainres.models.shortcuts import Projection

SUFFIXES = (".pth", ".th", ".pt", ".ckpt", ".safetensors")
# plainres's names -> torchvision's; \1 is the stage (torchvision counts from 1), \2 the block, \3 the layer
TORCHVISION = (
    (re.compile(r"stem\.conv\."), r"conv1."),
    (re.compile(r"stem\.norm\."), r"bn1."),
    (re.compile(r"stages\.(\d+)\.(\d+)\.residual\.conv(\d+)\."), r"layer\1.\2.conv\3."),
    (re.compile(r"stages\.(\d+)\.(\d+)\.residual\.norm(\d+)\."), r"layer\1.\2.bn\3."),
    (re.compile(r"stages\.(\d+)\.(\d+)\.shortcut\.conv\."), r"layer\1.\2.downsample.0."),
    (re.compile(r"stages\.(\d+)\.(\d+)\.shortcut\.norm\."), r"layer\1.\2.downsample.1."),
    (re.compile(r"head\.linear\."), r"fc."),
)
STATISTICS = ("channel_mean", "channel_std")  # in the metadata of our files
COUNTER = "num_batches_tracked"  # files from before PyTorch 0.4.1 lack it, and no evaluation needs it


def torchvision_name(key: str) -> str | None:
    """What torchvision calls a weight of ours, None if its ResNets have none such."""
    for pattern, theirs in TORCHVISION:
        if match := pattern.match(key):
            name = match.expand(theirs)
            if name.startswith("layer"):
                stage, rest = name.removeprefix("layer").split(".", 1)
                name = f"layer{int(stage) + 1}.{rest}"
            return name + key[match.end() :]
    return None


def weights_file(path: Path) -> Path:
    """Return the file of weights that a path names: a file itself, or the newest checkpoint in the folder of a run."""
    checkpoints = sorted((path / "checkpoints").glob("step-*.ckpt")) if path.is_dir() else []
    return checkpoints[-1] if checkpoints else path


def load_weights(network: nn.Module, file: Path) -> None:
    """Give a network the weights in a file.

    Raises:
        InputError: as `weights_for`.
    """
    network.load_state_dict(weights_for(network, file))


def weights_for(network: nn.Module, file: Path) -> dict[str, Tensor]:
    """The weights in a file under the names that they have in a network, which may be on the meta device.

    Raises:
        InputError: the file cannot be read as weights (nothing else in it is executed), or they do not fit the network.
    """
    found = _read(weights_file(file))
    wanted = network.state_dict()
    if not found.keys() & wanted.keys():  # not ours
        theirs = {torchvision_name(key): key for key in wanted}
        renamed = {re.sub(r"^linear\.", "fc.", key): value for key, value in found.items()}
        found = {theirs.get(key) or key: value for key, value in renamed.items()}
    found |= {key: value for key, value in wanted.items() if key.endswith(COUNTER) and key not in found}
    wrong = {
        "lacks": wanted.keys() - found.keys(),
        "has, and the network has not,": found.keys() - wanted.keys(),
    }
    parts = [f"{what} {_some(keys)}" for what, keys in wrong.items() if keys]
    parts += [
        f"has {key} of shape {list(found[key].shape)}, the network of {list(wanted[key].shape)}"
        for key in [key for key in wanted if key in found and found[key].shape != wanted[key].shape][:1]
    ]
    if parts:
        raise InputError(
            f"{file} does not fit the network: it {'; it '.join(parts)}; choose model, model.depth, model.width, "
            "model/block and model/shortcut as they were, and data with as many classes"
        )
    return found


def save_weights(network: nn.Module, model: Mapping[str, Any], statistics: tuple[Tensor, Tensor], file: Path) -> str:
    """Write a network's weights as safetensors, in torchvision's names if it has the like; return whose names.

    The file's metadata hold the network's configuration, `model`, and the mean and standard deviation (C,) by which
    each channel was normalised in its training, `statistics`, in units of pixel values.

    Raises:
        InputError: the file cannot be written.
    """
    theirs = is_torchvisions(network)
    tensors = {
        str(torchvision_name(key)) if theirs else key: value.contiguous() for key, value in network.state_dict().items()
    }
    metadata = {"format": "pt", "plainres": json.dumps(model)}
    metadata |= {key: json.dumps(values.tolist()) for key, values in zip(STATISTICS, statistics, strict=True)}
    try:
        with atomically(file) as out:
            out.write(safetensors.torch.save(tensors, metadata=metadata))
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from error
    return "torchvision's" if theirs else "plainres's"


def statistics_in(file: Path) -> tuple[Tensor, Tensor] | None:
    """Return the channel statistics that `save_weights` has written into a file; None if it has none."""
    if file.suffix != ".safetensors":
        return None
    with safetensors.safe_open(file, "pt") as held:
        metadata = held.metadata() or {}
    if not metadata.keys() >= set(STATISTICS):
        return None
    mean, std = (torch.tensor(json.loads(metadata[key])) for key in STATISTICS)
    return mean, std


def is_torchvisions(network: nn.Module) -> bool:
    """Whether a network computes what one of torchvision's ResNets does with weights of these names and shapes."""
    if not isinstance(network, ImageNet):
        return False
    stem, head = network.stem[0], network.head[-1]
    assert isinstance(stem, nn.Conv2d)
    assert isinstance(head, nn.Linear)
    channels, classes, width = stem.in_channels, head.out_features, stem.out_channels
    blocks = [len(list(stage.children())) for stage in network.stages]
    with torch.device("meta"):
        for block in (BlockSpec(), BlockSpec(kernels=[1, 3, 1], expansion=4, stride_in=2)):
            depth = block.layers * sum(blocks) + 2
            if repr(network) == repr(ImageNet(channels, classes, depth, width, Projection, block=block)):
                return True
    return False


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors in a file, without what was put around them or before their names."""
    if not file.is_file():
        raise InputError(f"model.weights={file}: there is no such file")
    if file.suffix not in SUFFIXES:
        raise InputError(f"model.weights={file}: the name of a file of weights ends with {', '.join(SUFFIXES)}")
    try:
        held: Any = (
            safetensors.torch.load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, weights_only=True, map_location="cpu")
        )
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise InputError(
            f"{file} cannot be read as weights: {first_line(error) or 'it is empty or cut off'}"
        ) from error
    except Exception as error:  # whatever a damaged file makes of the unpickler
        raise InputError(
            f"{file} cannot be read as weights, or holds more than weights, which is not executed "
            f"({type(error).__name__})"
        ) from error
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    tensors = isinstance(held, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in held.items())
    if not held or not tensors:
        raise InputError(f"{file} holds no weights: it must be a state dict, or have one as its state_dict")
    # what DataParallel and our own LightningModule put before each name
    return {re.sub(r"^(module|network)\.", "", key): value for key, value in held.items()}


def _some(keys: Iterable[str]) -> str:
    first, *others = sorted(keys)
    return f"{first} and {len(others)} more" if others else first
