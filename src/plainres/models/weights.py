"""Import and export of weights.

Keys may follow one of three naming schemes:
- plainres;
- torchvision's ResNets (conv1, layer1.0.bn2, downsample, fc);
- akamaster/pytorch_resnet_cifar10, which is torchvision's scheme with `linear` for `fc` and the prefix `module.`.
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
# plainres's names -> torchvision's; \1 is the stage (1-based in torchvision), \2 the block, \3 the layer
TORCHVISION = (
    (re.compile(r"stem\.conv\."), r"conv1."),
    (re.compile(r"stem\.norm\."), r"bn1."),
    (re.compile(r"stages\.(\d+)\.(\d+)\.residual\.conv(\d+)\."), r"layer\1.\2.conv\3."),
    (re.compile(r"stages\.(\d+)\.(\d+)\.residual\.norm(\d+)\."), r"layer\1.\2.bn\3."),
    (re.compile(r"stages\.(\d+)\.(\d+)\.shortcut\.conv\."), r"layer\1.\2.downsample.0."),
    (re.compile(r"stages\.(\d+)\.(\d+)\.shortcut\.norm\."), r"layer\1.\2.downsample.1."),
    (re.compile(r"head\.linear\."), r"fc."),
)
STATISTICS = ("channel_mean", "channel_std")  # metadata keys of exported files
COUNTER = "num_batches_tracked"  # missing in files from before PyTorch 0.4.1; not needed for evaluation


def torchvision_name(key: str) -> str | None:
    """Return torchvision's name of a plainres weight, or None if torchvision's ResNets have no such weight."""
    for pattern, template in TORCHVISION:
        if match := pattern.match(key):
            name = match.expand(template)
            if name.startswith("layer"):
                stage, rest = name.removeprefix("layer").split(".", 1)
                name = f"layer{int(stage) + 1}.{rest}"
            return name + key[match.end() :]
    return None


def weights_file(path: Path) -> Path:
    """Resolve a path to a weights file: the newest checkpoint if it is a run's folder, else the path itself."""
    checkpoints = sorted((path / "checkpoints").glob("step-*.ckpt")) if path.is_dir() else []
    return checkpoints[-1] if checkpoints else path


def load_weights(network: nn.Module, file: Path) -> None:
    """Load the weights in a file into a network.

    Raises:
        InputError: as `weights_for`.
    """
    network.load_state_dict(weights_for(network, file))


def weights_for(network: nn.Module, file: Path) -> dict[str, Tensor]:
    """Read the weights in a file as a state dict for a network, which may be on the meta device.

    Objects other than tensors are never unpickled.

    Raises:
        InputError: the file cannot be read as weights, or its names or shapes do not match the network.
    """
    weights = _read(weights_file(file))
    expected = network.state_dict()
    if not weights.keys() & expected.keys():  # not plainres's names
        plainres_names = {torchvision_name(key): key for key in expected}
        renamed = {re.sub(r"^linear\.", "fc.", key): value for key, value in weights.items()}
        weights = {plainres_names.get(key) or key: value for key, value in renamed.items()}
    weights |= {key: value for key, value in expected.items() if key.endswith(COUNTER) and key not in weights}
    mismatched = {
        "missing keys": expected.keys() - weights.keys(),
        "unexpected keys": weights.keys() - expected.keys(),
    }
    reasons = [f"{kind}: {_abbreviated(keys)}" for kind, keys in mismatched.items() if keys]
    reasons += [
        f"{key} has shape {list(weights[key].shape)}, the network's has {list(expected[key].shape)}"
        for key in [key for key in expected if key in weights and weights[key].shape != expected[key].shape][:1]
    ]
    if reasons:
        raise InputError(
            f"{file} does not match the network ({'; '.join(reasons)}); set model, model.depth, model.width, "
            "model/block and model/shortcut as in its training, and data with the same number of classes"
        )
    return weights


def save_weights(network: nn.Module, model: Mapping[str, Any], statistics: tuple[Tensor, Tensor], file: Path) -> str:
    """Write a network's weights as safetensors, under torchvision's names if it matches one of its ResNets.

    Args:
        network: the network.
        model: its configuration, which is written to the file's metadata.
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
    metadata = {"format": "pt", "plainres": json.dumps(model)}
    metadata |= {key: json.dumps(values.tolist()) for key, values in zip(STATISTICS, statistics, strict=True)}
    try:
        with atomically(file) as out:
            out.write(safetensors.torch.save(tensors, metadata=metadata))
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from error
    return "torchvision's" if torchvisions else "plainres's"


def statistics_in(file: Path) -> tuple[Tensor, Tensor] | None:
    """Read the channel statistics that `save_weights` wrote to a file; None if it has none."""
    if file.suffix != ".safetensors":
        return None
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    if not metadata.keys() >= set(STATISTICS):
        return None
    mean, std = (torch.tensor(json.loads(metadata[key])) for key in STATISTICS)
    return mean, std


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


def _read(file: Path) -> dict[str, Tensor]:
    """Read the tensors in a file, unwrapped and without prefixes in their names."""
    if not file.is_file():
        raise InputError(f"model.weights={file}: there is no such file")
    if file.suffix not in SUFFIXES:
        raise InputError(
            f"model.weights={file}: the suffix is {file.suffix!r}; it must be one of {', '.join(SUFFIXES)}"
        )
    try:
        content: Any = (
            safetensors.torch.load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, weights_only=True, map_location="cpu")
        )
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise InputError(
            f"cannot read weights from {file}: {first_line(error) or 'the file is empty or truncated'}"
        ) from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise InputError(
            f"cannot read weights from {file}: it is damaged, or contains objects other than tensors, which are never "
            f"unpickled ({type(error).__name__})"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    is_state_dict = isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )
    if not content or not is_state_dict:
        raise InputError(f"{file} contains no weights; it must be a state dict, or a dict with one as 'state_dict'")
    # the prefixes of DataParallel and of plainres's LightningModule
    return {re.sub(r"^(module|network)\.", "", key): value for key, value in content.items()}


def _abbreviated(keys: Iterable[str]) -> str:
    first, *others = sorted(keys)
    return f"{first} and {len(others)} more" if others else first
