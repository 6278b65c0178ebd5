"""Import and export of the weights of networks.

The names of weights may follow any scheme in `ALIASES`, in any mixture, behind prefixes of wrappers.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from plainres.errors import InputError, first_line
from plainres.files import atomically, checkpoints_in, file_sha256
from plainres.models.blocks import BlockSpec
from plainres.models.networks import ImageNet
from plainres.models.shortcuts import Projection
from plainres.models.weight_files import DIGEST, digest_of, metadata_of, read_content, state_dicts

HUGGING_FACE = "encoder.stages.{stage_from_0}.layers.{block}"
# Names of plainres's layers elsewhere. The first is torchvision's and timm's. Then follow, where they differ, those of
# kuangliu/pytorch-cifar, which akamaster/pytorch_resnet_cifar10 shares, and of Hugging Face's ResNet.
ALIASES = {
    "stem.conv": ("conv1", "embedder.embedder.convolution"),
    "stem.norm": ("bn1", "embedder.embedder.normalization"),
    "residual.conv": ("layer{stage}.{block}.conv{layer}", f"{HUGGING_FACE}.layer.{{layer_from_0}}.convolution"),
    "residual.norm": ("layer{stage}.{block}.bn{layer}", f"{HUGGING_FACE}.layer.{{layer_from_0}}.normalization"),
    "shortcut.conv": (
        *("layer{stage}.{block}.downsample.0", "layer{stage}.{block}.shortcut.0"),
        f"{HUGGING_FACE}.shortcut.convolution",
    ),
    "shortcut.norm": (
        *("layer{stage}.{block}.downsample.1", "layer{stage}.{block}.shortcut.1"),
        f"{HUGGING_FACE}.shortcut.normalization",
    ),
    "head.linear": ("fc", "linear", "classifier.1"),
}
LAYER = re.compile(
    r"(?:stages\.(?P<stage>\d+)\.(?P<block>\d+)\.)?"
    r"(?P<kind>stem\.conv|stem\.norm|residual\.conv|residual\.norm|shortcut\.conv|shortcut\.norm|head\.linear)"
    r"(?P<layer>\d*)\.(?P<tensor>\w+)"
)
PREFIX = re.compile(r"(module|model|net|network|backbone|resnet|_orig_mod)\.")  # of wrappers
HEAD = re.compile(r"(fc|linear|classifier|head)\.")  # of networks elsewhere
CONFIG = "plainres"  # metadata keys of exported files
STATISTICS = ("channel_mean", "channel_std")
# First 8 digits of the SHA-256 of akamaster's files of 20, 32, 44, 56, 110 and 1202 layers, from their names. Their
# trainer.py normalises images by the usual statistics of ImageNet.
AKAMASTERS = ("12fca82f", "d509ac18", "014dd654", "4bfd9763", "1d1ed7c2", "f3b1deed")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COUNTER = "num_batches_tracked"  # missing in files from before PyTorch 0.4.1; not needed for evaluation


def names_of(key: str) -> tuple[str, ...]:
    """Return the names that a weight may have in a file: plainres's, torchvision's if it has one, and others."""
    match = LAYER.fullmatch(key)
    if match is None:
        return (key,)
    numbers = {name: int(match[name] or 0) for name in ("stage", "block", "layer")}
    places = {
        "stage": numbers["stage"] + 1,
        "stage_from_0": numbers["stage"],
        "block": numbers["block"],
        "layer": numbers["layer"],
        "layer_from_0": numbers["layer"] - 1,
    }
    return (key, *(f"{alias.format(**places)}.{match['tensor']}" for alias in ALIASES[match["kind"]]))


def torchvision_name(key: str) -> str | None:
    """Return torchvision's name of a plainres weight, or None if torchvision's ResNets have no such weight."""
    return next(iter(names_of(key)[1:]), None)


def weights_file(path: Path) -> Path:
    """Resolve a path to a weights file: the newest checkpoint if it is a run's folder, else the path itself."""
    checkpoints = checkpoints_in(path / "checkpoints")
    return checkpoints[-1] if checkpoints else path


def load_weights(network: nn.Module, file: Path, *, new_head: bool = False, sha256: str | None = None) -> None:
    """Load the weights in a file into a network.

    Args:
        network: the network.
        file: a file of weights, or the folder of a run.
        new_head: see `weights_for`.
        sha256: the digest that the file had when it was chosen, if that is to be compared.

    Raises:
        InputError: as `weights_for`; or the file has another digest.
    """
    weights = weights_for(network, file, new_head=new_head)
    if sha256 and (now := file_sha256(weights_file(file))) != sha256:
        raise InputError(
            f"model.weights={file} has changed since it was chosen (digest {sha256[:8]}, now {now[:8]}), as the folder "
            "of a run does while it trains; run the command again to begin with the weights of now, or give a file"
        )
    network.load_state_dict(weights)


def weights_for(network: nn.Module, file: Path, *, new_head: bool = False) -> dict[str, Tensor]:
    """Read the weights in a file as a state dict for a network, which may be on the meta device.

    Args:
        network: the network.
        file: a file of weights, or the folder of a run.
        new_head: keep the network's own last linear layer, and ignore the file's.

    Raises:
        InputError: the file cannot be read as weights, its names or shapes do not match the network, or a tensor does
            not hold finite floating-point numbers.
    """
    expected = network.state_dict()
    head = _head(network)
    if new_head and head is None:
        raise InputError("model.head=new needs a network with a linear layer")
    given = _network_in(weights_file(file), names_of(next(iter(expected))))
    weights, unused = {}, dict(given)
    for key, value in expected.items():
        name = next((name for name in names_of(key) if name in unused), None)
        if name is not None:
            weights[key] = unused.pop(name)
        elif key.endswith(COUNTER):
            weights[key] = value
    if new_head:
        weights |= {key: value for key, value in expected.items() if key.startswith(f"{head}.")}
        unused = {name: value for name, value in unused.items() if not HEAD.match(name)}
    missing = expected.keys() - weights.keys()
    reasons = [
        f"{kind} keys: {_abbreviated(keys)}" for kind, keys in (("missing", missing), ("unexpected", unused)) if keys
    ]
    misfits = [key for key in weights if weights[key].shape != expected[key].shape]
    reasons += [
        f"{key} has shape {list(weights[key].shape)}, the network's has {list(expected[key].shape)}"
        for key in misfits[:1]
    ]
    if reasons:
        other_classes = not missing and not unused and all(key.startswith(f"{head}.") for key in misfits)
        advice = (
            "choose data with as many classes, or train a new head on the other weights with model.head=new"
            if other_classes
            else "set model, model.depth, model.width, model/block and model/shortcut as in its training, and data "
            f"with the same number of classes{_described(given)}"
        )
        raise InputError(f"{file} does not match the network ({'; '.join(reasons)}); {advice}")
    for key, value in weights.items():
        _check_numbers(file, key, value, expected[key].dtype)
    return weights


def save_weights(network: nn.Module, config: Mapping[str, Any], statistics: tuple[Tensor, Tensor], file: Path) -> str:
    """Write a network's weights as safetensors, under torchvision's names if it matches one of its ResNets.

    Args:
        network: the network.
        config: its configuration, which is written to the file's metadata as JSON (see `config_in`).
        statistics: mean and standard deviation (C,) by which its inputs were normalised in training, in units of pixel
            values. They are written to the metadata as well.
        file: path of the file.

    Returns:
        Naming scheme of the keys, "torchvision's" or "plainres's".

    Raises:
        InputError: the file cannot be written.
    """
    torchvisions = matches_torchvision(network)
    tensors = {
        str(torchvision_name(key)) if torchvisions else key: value.contiguous()
        for key, value in network.state_dict().items()
    }
    metadata = {"format": "pt", CONFIG: json.dumps(config), DIGEST: digest_of(tensors)}
    metadata |= {key: json.dumps(values.tolist()) for key, values in zip(STATISTICS, statistics, strict=True)}
    try:
        with atomically(file) as out:
            out.write(safetensors.torch.save(tensors, metadata=metadata))
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from error
    return "torchvision's" if torchvisions else "plainres's"


def config_in(file: Path) -> dict[str, Any] | None:
    """Read the configuration that `save_weights` wrote to a file; None if it has none.

    Raises:
        InputError: it is damaged.
    """
    metadata = metadata_of(file)
    return _parsed(file, metadata[CONFIG], dict) if CONFIG in metadata else None


def statistics_in(file: Path) -> tuple[Tensor, Tensor] | None:
    """Read the channel statistics that `save_weights` wrote to a file; None if it has none.

    Raises:
        InputError: they are damaged.
    """
    metadata = metadata_of(file)
    if not metadata.keys() >= set(STATISTICS):
        return None
    mean, std = (torch.tensor(_parsed(file, metadata[key], list)) for key in STATISTICS)
    return mean, std


def published_statistics(file: Path) -> tuple[str, tuple[Tensor, Tensor]] | None:
    """Return the author of a published file of weights and the channel statistics of its training, None if unknown.

    The file is recognised by its digest, not by its name. The statistics are in units of pixel values.
    """
    if file_sha256(file)[:8] not in AKAMASTERS:
        return None
    return "akamaster", (255 * torch.tensor(IMAGENET_MEAN), 255 * torch.tensor(IMAGENET_STD))


def matches_torchvision(network: nn.Module) -> bool:
    """Whether a network computes the same function of its weights as one of torchvision's ResNets."""
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


def _network_in(file: Path, first: tuple[str, ...]) -> dict[str, Tensor]:
    """Read the state dict in a file, without prefixes in its names.

    It may stand under any key, beside any others. It is the one with the network's first weight, whose names are
    `first`.

    Raises:
        InputError: the file cannot be read, or it contains no state dict or several with such a weight.
    """
    every = {path: _without_prefixes(file, tensors, first) for path, tensors in state_dicts(read_content(file))}
    if not every:
        raise InputError(f"{file} contains no weights; it must be a state dict, or a dict with one under any key")
    fitting = {path: tensors for path, tensors in every.items() if not tensors.keys().isdisjoint(first)}
    if len(fitting) > 1:
        keys = ", ".join(sorted(fitting))
        raise InputError(f"{file} contains the weights of several networks, under {keys}; save one of them alone")
    return max((fitting or every).values(), key=len)


def _without_prefixes(file: Path, tensors: Mapping[str, Tensor], first: tuple[str, ...]) -> dict[str, Tensor]:
    """Remove one prefix after another from the names, until one of them is in `first`."""
    tensors = dict(tensors)
    while tensors.keys().isdisjoint(first) and any(map(PREFIX.match, tensors)):
        shorter = [PREFIX.sub("", name, count=1) for name in tensors]
        if len(set(shorter)) < len(shorter):
            twice = next(name for name in shorter if shorter.count(name) > 1)
            raise InputError(
                f"{file} contains several tensors {twice}, with different prefixes; save one network alone"
            )
        tensors = dict(zip(shorter, tensors.values(), strict=True))
    return tensors


def _head(network: nn.Module) -> str | None:
    """Return the name of a network's last linear layer, None if it has none."""
    return next(
        (name for name, module in reversed(list(network.named_modules())) if isinstance(module, nn.Linear)), None
    )


def _check_numbers(file: Path, key: str, value: Tensor, dtype: torch.dtype) -> None:
    """Check that a tensor of weights holds numbers that the network can compute with.

    Raises:
        InputError: it does not hold floating-point numbers, or not only finite ones.
    """
    if value.is_meta or key.endswith(COUNTER):
        return
    if dtype.is_floating_point and not (value.is_floating_point() and value.layout is torch.strided):
        raise InputError(
            f"{file}: {key} is a tensor of {value.dtype}, not of floating-point weights; save the network's weights "
            "before they are quantised"
        )
    if not value.to(dtype).isfinite().all():
        raise InputError(f"{file}: {key} has NaN or infinite values; the training diverged, or the file is damaged")


def _described(weights: Mapping[str, Tensor]) -> str:
    """Describe the network of a state dict by the options that fit it, as far as these follow from its tensors."""
    convolutions = [
        value for name, value in weights.items() if value.ndim == 4 and not re.search("downsample|shortcut", name)
    ]
    linear = [value for value in weights.values() if value.ndim == 2]
    if len(convolutions) < 2:
        return ""
    size = convolutions[0].shape[-1]
    parts = [f"model.depth={len(convolutions) + 1}", f"model.width={len(convolutions[1])}", f"a {size}x{size} stem"]
    parts += [f"{len(linear[-1])} classes"] if linear else []
    shortcuts = any(re.search("downsample|shortcut", name) for name in weights)
    parts.append(f"{'some' if shortcuts else 'no'} weights on shortcuts")
    return f"; the file's network has {', '.join(parts)}"


def _parsed(file: Path, text: str, kind: type) -> Any:
    """Parse a value in the metadata of an exported file."""
    try:
        value = json.loads(text)
        if not isinstance(value, kind):
            raise ValueError(f"not a {kind.__name__}")
    except ValueError as error:
        raise InputError(f"{file} has damaged metadata ({first_line(error)}); export it again") from error
    return value


def _abbreviated(keys: Iterable[str]) -> str:
    first, *others = sorted(keys)
    return f"{first} and {len(others)} more" if others else first
