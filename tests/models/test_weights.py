"""Tests of importing and exporting weights."""

import io
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from plainres.errors import InputError
from plainres.models.blocks import BlockSpec, LayerOrder
from plainres.models.networks import CifarNet, ImageNet
from plainres.models.normalisation import group_norm
from plainres.models.shortcuts import ExclusiveGating, Identity, Plain, Projection, Scaling
from plainres.models.weights import load_weights, matches_torchvision, save_weights, statistics_in, torchvision_name
from support.references import CifarResNet, ImageNetResNet, scrambled

BOTTLENECK = BlockSpec(kernels=[1, 3, 1], expansion=4, stride_in=2)
STATISTICS = torch.tensor([125.3, 122.95, 113.87]), torch.tensor([62.99, 62.09, 66.7])
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def imagenet(depth: int, classes: int = 1000) -> ImageNet:
    return ImageNet(3, classes, depth, 64, Projection, block=BlockSpec() if depth < 50 else BOTTLENECK)


def assert_equal_outputs(network: nn.Module, reference: nn.Module, size: int) -> None:
    """Compare outputs in float64, since float32 rounding adds up to 1e-4 over fifty layers of random weights."""
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network.double()(x), reference.double()(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvision_weights_give_the_outputs_of_the_reference(depth: int, suffix: str, tmp_path: Path) -> None:
    reference = scrambled(ImageNetResNet(BLOCKS[depth], bottleneck=depth == 50), 96)
    file = tmp_path / f"resnet.{suffix}"
    if suffix == "pth":
        torch.save(reference.state_dict(), file)
    else:
        safetensors.torch.save_file(reference.state_dict(), file)
    network = imagenet(depth).eval()
    load_weights(network, file)
    assert_equal_outputs(network, reference, 96)


def test_akamaster_weights_give_the_outputs_of_the_reference(tmp_path: Path) -> None:
    reference = scrambled(CifarResNet(3))
    state = {f"module.{key}": value for key, value in reference.state_dict().items() if "num_batches" not in key}
    torch.save({"state_dict": state, "best_prec1": 91.73}, tmp_path / "resnet20.th")
    network = CifarNet(3, 10, 20, 16, Identity).eval()
    load_weights(network, tmp_path / "resnet20.th")
    assert_equal_outputs(network, reference, 32)


@pytest.mark.parametrize("depth", BLOCKS)
def test_every_torchvision_name_is_mapped(depth: int) -> None:
    with torch.device("meta"):
        reference = ImageNetResNet(BLOCKS[depth], bottleneck=depth >= 50).state_dict()
        weights = imagenet(depth).state_dict()
    assert {torchvision_name(key): value.shape for key, value in weights.items()} == {
        key: value.shape for key, value in reference.items()
    }


@pytest.mark.parametrize("n", [3, 200])
def test_every_akamaster_name_is_mapped(n: int) -> None:
    with torch.device("meta"):
        reference = {key.replace("linear.", "fc.") for key in CifarResNet(n).state_dict()}
        weights = CifarNet(3, 10, 6 * n + 2, 16, Identity).state_dict()
    assert {torchvision_name(key) for key in weights} == reference


def test_exported_weights_load_in_torchvisions_networks_and_in_ours(tmp_path: Path) -> None:
    network = scrambled(imagenet(18, classes=7), 64)
    file = tmp_path / "exported.safetensors"
    assert save_weights(network, {"depth": 18}, STATISTICS, file) == "torchvision's"
    reference = ImageNetResNet(BLOCKS[18], bottleneck=False, classes=7).eval()
    reference.load_state_dict(safetensors.torch.load_file(file), strict=True)
    loaded = imagenet(18, classes=7).eval()
    load_weights(loaded, file)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in network.state_dict().items())
    assert_equal_outputs(network, reference, 64)
    statistics = statistics_in(file)
    assert statistics is not None
    assert all(map(torch.equal, statistics, STATISTICS))  # bit-identical
    safetensors.torch.save_file(reference.state_dict(), file)
    assert statistics_in(file) is None
    torch.save(reference.state_dict(), tmp_path / "reference.pth")
    assert statistics_in(tmp_path / "reference.pth") is None


def test_other_networks_are_exported_under_plainres_names(tmp_path: Path) -> None:
    network = scrambled(CifarNet(1, 10, 8, 4, ExclusiveGating))
    file = tmp_path / "exported.safetensors"
    assert save_weights(network, {"depth": 8}, STATISTICS, file) == "plainres's"
    loaded = CifarNet(1, 10, 8, 4, ExclusiveGating)
    load_weights(loaded, file)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in network.state_dict().items())
    with pytest.raises(InputError, match="cannot write"):
        save_weights(network, {}, STATISTICS, tmp_path / "nowhere" / "exported.safetensors")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"depth": 50, "block": BOTTLENECK}, True),
        ({"width": 8}, True),
        ({"shortcut": Identity}, False),
        ({"shortcut": Plain}, False),
        ({"norm": partial(group_norm, groups=4)}, False),
        ({"block": BlockSpec(order=LayerOrder(post=["norm", "relu"], post_add=[]))}, False),
        ({"block": BlockSpec(bias=True)}, False),
        ({"depth": 50, "block": BlockSpec([1, 3, 1], 4, 1)}, False),
        ({"shortcut": lambda i, o, stride: Scaling(i, o, stride) if i == o else Projection(i, o, stride)}, False),
    ],
)
def test_only_equivalent_networks_match_torchvision(changes: dict[str, Any], expected: bool) -> None:
    options: dict[str, Any] = {"in_channels": 3, "classes": 9, "depth": 18, "width": 64, "shortcut": Projection}
    with torch.device("meta"):
        assert matches_torchvision(ImageNet(**(options | changes))) == expected
        assert not matches_torchvision(CifarNet(3, 10, 20, 16, Projection))


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {os.environ['MARKER']}",)


def serialised(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_code_in_a_weights_file_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "executed"
    monkeypatch.setenv("MARKER", str(marker))
    file = tmp_path / "malicious.pth"
    file.write_bytes(serialised({"conv1.weight": torch.zeros(1), "malicious": Malicious()}))
    with pytest.raises(InputError, match="contains objects other than tensors, which are never unpickled"):
        load_weights(CifarNet(3, 10, 8, 4, Identity), file)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, "there is no such file"),
        ("weights.bin", b"", "the suffix is '.bin'; it must be one of .pth, .th, "),
        ("truncated.pth", serialised({"a": torch.zeros(9)})[:-40], "cannot read weights from"),
        ("empty.th", b"", "cannot read weights from .*: the file is empty or truncated"),
        ("truncated.safetensors", b"\x00" * 20, "cannot read weights from"),
        ("list.pth", serialised([torch.zeros(1)]), "contains no weights; it must be a state dict"),
        ("none.pth", serialised({}), "contains no weights"),
        ("settings.pth", serialised({"lr": 0.1}), "contains no weights"),
        ("numbered.pth", serialised({0: torch.zeros(1)}), "contains no weights"),
    ],
)
def test_invalid_weights_files_are_reported(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_weights(CifarNet(3, 10, 8, 4, Identity), tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            CifarNet(3, 10, 14, 16, Identity),
            r"\(missing keys: stages.0.1.residual.conv1.weight and 29 more\); set model",
        ),
        (CifarNet(3, 10, 8, 8, Identity), r"stem.conv.weight has shape \[16, 3, 3, 3\], the network's has \[8, 3,"),
        (CifarNet(3, 5, 8, 16, Identity), r"head.linear.weight has shape \[10, 64\], the network's has \[5, 64\]"),
        (CifarNet(3, 10, 8, 16, Projection), r"missing keys: stages.1.0.shortcut.conv.weight and 9 more"),
        (CifarNet(3, 10, 8, 16, Identity, norm=nn.Identity), r"unexpected keys: bn1.bias and 34 more"),
    ],
)
def test_weights_of_another_network_are_rejected(network: nn.Module, message: str, tmp_path: Path) -> None:
    file = tmp_path / "resnet8.pth"
    torch.save(CifarResNet(1).state_dict(), file)
    with pytest.raises(InputError, match=message):
        load_weights(network, file)
