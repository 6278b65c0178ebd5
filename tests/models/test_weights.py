"""Weights of others, from files as they have them, and ours for them."""

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
from plainres.models.weights import is_torchvisions, load_weights, save_weights, statistics_in, torchvision_name
from support.references import CifarResNet, ImageNetResNet, scrambled

BOTTLENECK = BlockSpec(kernels=[1, 3, 1], expansion=4, stride_in=2)
STATISTICS = torch.tensor([125.3, 122.95, 113.87]), torch.tensor([62.99, 62.09, 66.7])
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def imagenet(depth: int, classes: int = 1000) -> ImageNet:
    return ImageNet(3, classes, depth, 64, Projection, block=BlockSpec() if depth < 50 else BOTTLENECK)


def assert_equal_outputs(ours: nn.Module, theirs: nn.Module, size: int) -> None:
    """In float64: in float32 fifty layers of random weights make 1e-4 of the rounding alone."""
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.double()(x), theirs.double()(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_torchvisions_weights_give_the_outputs_of_a_network_written_out(
    depth: int, suffix: str, tmp_path: Path
) -> None:
    theirs = scrambled(ImageNetResNet(BLOCKS[depth], bottleneck=depth == 50), 96)
    file = tmp_path / f"resnet.{suffix}"
    if suffix == "pth":
        torch.save(theirs.state_dict(), file)
    else:
        safetensors.torch.save_file(theirs.state_dict(), file)
    ours = imagenet(depth).eval()
    load_weights(ours, file)
    assert_equal_outputs(ours, theirs, 96)


def test_akamasters_weights_give_the_outputs_of_a_network_written_out(tmp_path: Path) -> None:
    theirs = scrambled(CifarResNet(3))
    state = {f"module.{key}": value for key, value in theirs.state_dict().items() if "num_batches" not in key}
    torch.save({"state_dict": state, "best_prec1": 91.73}, tmp_path / "resnet20.th")
    ours = CifarNet(3, 10, 20, 16, Identity).eval()
    load_weights(ours, tmp_path / "resnet20.th")
    assert_equal_outputs(ours, theirs, 32)


@pytest.mark.parametrize("depth", BLOCKS)
def test_every_name_of_torchvisions_has_its_place(depth: int) -> None:
    with torch.device("meta"):
        theirs = ImageNetResNet(BLOCKS[depth], bottleneck=depth >= 50).state_dict()
        ours = imagenet(depth).state_dict()
    assert {torchvision_name(key): value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


@pytest.mark.parametrize("n", [3, 200])
def test_every_name_of_akamasters_has_its_place(n: int) -> None:
    with torch.device("meta"):
        theirs = {key.replace("linear.", "fc.") for key in CifarResNet(n).state_dict()}
        ours = CifarNet(3, 10, 6 * n + 2, 16, Identity).state_dict()
    assert {torchvision_name(key) for key in ours} == theirs


def test_what_we_write_is_torchvisions_and_we_read_it_back(tmp_path: Path) -> None:
    ours = scrambled(imagenet(18, classes=7), 64)
    file = tmp_path / "ours.safetensors"
    assert save_weights(ours, {"depth": 18}, STATISTICS, file) == "torchvision's"
    theirs = ImageNetResNet(BLOCKS[18], bottleneck=False, classes=7).eval()
    theirs.load_state_dict(safetensors.torch.load_file(file), strict=True)
    again = imagenet(18, classes=7).eval()
    load_weights(again, file)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())
    assert_equal_outputs(ours, theirs, 64)
    statistics = statistics_in(file)
    assert statistics is not None
    assert all(map(torch.equal, statistics, STATISTICS))  # to the last bit
    safetensors.torch.save_file(theirs.state_dict(), file)
    assert statistics_in(file) is None
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    assert statistics_in(tmp_path / "theirs.pth") is None


def test_a_network_that_torchvision_has_no_names_for_keeps_its_own(tmp_path: Path) -> None:
    ours = scrambled(CifarNet(1, 10, 8, 4, ExclusiveGating))
    file = tmp_path / "ours.safetensors"
    assert save_weights(ours, {"depth": 8}, STATISTICS, file) == "plainres's"
    again = CifarNet(1, 10, 8, 4, ExclusiveGating)
    load_weights(again, file)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())
    with pytest.raises(InputError, match="cannot write"):
        save_weights(ours, {}, STATISTICS, tmp_path / "nowhere" / "ours.safetensors")


@pytest.mark.parametrize(
    ("changes", "torchvisions"),
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
def test_what_computes_something_else_is_none_of_torchvisions(changes: dict[str, Any], torchvisions: bool) -> None:
    options: dict[str, Any] = {"in_channels": 3, "classes": 9, "depth": 18, "width": 64, "shortcut": Projection}
    with torch.device("meta"):
        assert is_torchvisions(ImageNet(**(options | changes))) == torchvisions
        assert not is_torchvisions(CifarNet(3, 10, 20, 16, Projection))


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {os.environ['HOSTILE']}",)


def saved(held: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(held, buffer)
    return buffer.getvalue()


def test_a_file_with_code_is_refused_and_its_code_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTILE", str(tmp_path / "harm"))
    file = tmp_path / "hostile.pth"
    file.write_bytes(saved({"conv1.weight": torch.zeros(1), "hostile": Hostile()}))
    with pytest.raises(InputError, match="holds more than weights, which is not executed"):
        load_weights(CifarNet(3, 10, 8, 4, Identity), file)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, "there is no such file"),
        ("weights.bin", b"", "the name of a file of weights ends with .pth, .th, "),
        ("torn.pth", saved({"a": torch.zeros(9)})[:-40], "cannot be read as weights"),
        ("empty.th", b"", "cannot be read as weights"),
        ("torn.safetensors", b"\x00" * 20, "cannot be read as weights"),
        ("list.pth", saved([torch.zeros(1)]), "holds no weights: it must be a state dict"),
        ("none.pth", saved({}), "holds no weights"),
        ("settings.pth", saved({"lr": 0.1}), "holds no weights"),
        ("numbered.pth", saved({0: torch.zeros(1)}), "holds no weights"),
    ],
)
def test_what_is_no_file_of_weights_is_said(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_weights(CifarNet(3, 10, 8, 4, Identity), tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (CifarNet(3, 10, 14, 16, Identity), r"it lacks stages.0.1.residual.conv1.weight and 29 more; choose model"),
        (CifarNet(3, 10, 8, 8, Identity), r"it has stem.conv.weight of shape \[16, 3, 3, 3\], the network of \[8, 3,"),
        (CifarNet(3, 5, 8, 16, Identity), r"it has head.linear.weight of shape \[10, 64\], the network of \[5, 64\]"),
        (CifarNet(3, 10, 8, 16, Projection), r"it lacks stages.1.0.shortcut.conv.weight and 9 more"),
        (CifarNet(3, 10, 8, 16, Identity, norm=nn.Identity), r"it has, and the network has not, bn1.bias and 34 more"),
    ],
)
def test_weights_of_another_network_are_named(network: nn.Module, message: str, tmp_path: Path) -> None:
    file = tmp_path / "resnet8.pth"
    torch.save(CifarResNet(1).state_dict(), file)
    with pytest.raises(InputError, match=message):
        load_weights(network, file)
