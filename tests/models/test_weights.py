"""Tests of importing and exporting weights."""

import argparse
import io
import math
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from plainres.errors import InputError
from plainres.models.blocks import BlockSpec, LayerOrder
from plainres.models.networks import CifarNet, ImageNet
from plainres.models.normalisation import group_norm
from plainres.models.scaled_shortcuts import Scaling
from plainres.models.shortcuts import ExclusiveGating, Identity, Plain, Projection
from plainres.models.weights import load_weights, matches_torchvision, save_weights, statistics_in, torchvision_name
from support.references import CifarResNet, HuggingFaceResNet, ImageNetResNet, KuangliuResNet, scrambled

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


@pytest.mark.parametrize(
    ("blocks", "width", "bottleneck"),
    [((2, 2, 2, 2), 64, False), ((1, 1, 1, 1), 8, False), ((2, 2), 8, True)],
)
def test_kuangliu_weights_give_the_outputs_of_the_reference(
    blocks: tuple[int, ...], width: int, bottleneck: bool, tmp_path: Path
) -> None:
    """The first is the author's ResNet18: model.stages=4 model.width=64 model.depth=18 model/shortcut=projection."""
    reference = scrambled(KuangliuResNet(blocks, width, bottleneck=bottleneck))
    state = {f"module.{key}": value for key, value in reference.state_dict().items()}
    torch.save({"net": state, "acc": 95.47, "epoch": 199}, tmp_path / "ckpt.t7")
    block = BOTTLENECK if bottleneck else BlockSpec()
    depth = block.layers * sum(blocks) + 2
    network = CifarNet(3, 10, depth, width, Projection, block=block, stages=len(blocks)).eval()
    load_weights(network, tmp_path / "ckpt.t7")
    assert_equal_outputs(network, reference, 32)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_hugging_face_weights_give_the_outputs_of_the_reference(depth: int, name: str, tmp_path: Path) -> None:
    reference = scrambled(HuggingFaceResNet(BLOCKS[depth], bottleneck=depth == 50), 96)
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save(reference.state_dict(), tmp_path / name)
    network = imagenet(depth, classes=7).eval()
    load_weights(network, tmp_path / name)
    assert_equal_outputs(network, reference, 96)


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


def saved_resnet8(file: Path, content: Callable[[dict[str, torch.Tensor]], Any], **options: Any) -> nn.Module:
    """Save the weights of a network of 8 layers, wrapped in some way, and return the network."""
    reference = CifarResNet(1).eval()
    torch.save(content(reference.state_dict()), file, **options)
    return reference


def prefixed(prefix: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


WRAPPED: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "bare": lambda state: state,
    "beside a number": lambda state: {**state, "epoch": 3},
    "any key": lambda state: {"weights_of_the_net": state, "best": torch.tensor(91.7), "optimizer": {"state": {0: {}}}},
    "nested": lambda state: {"checkpoint": {"model": state}, "ema_decay": 0.9},
    "script": lambda state: {
        **{"state_dict": state, "args": argparse.Namespace(lr=0.1), "best_acc1": np.float64(91.7)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"params": [0], "lr": 0.1}]},
    },
    "head outside": lambda state: {
        (key if key.startswith("linear") else f"backbone.{key}"): value for key, value in state.items()
    },
    **{prefix: prefixed(prefix) for prefix in ("module.module.", "model.", "net.", "_orig_mod.", "module._orig_mod.")},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("old", [False, True])
def test_wrappers_and_prefixes_and_endings_do_not_matter(wrapped: str, old: bool, tmp_path: Path) -> None:
    for name in ("weights.pth.tar", "weights.bin", "weights.safetensors", "weights"):
        file = tmp_path / name
        reference = saved_resnet8(file, WRAPPED[wrapped], _use_new_zipfile_serialization=not old)
        network = CifarNet(3, 10, 8, 16, Identity).eval()
        load_weights(network, file)
        assert_equal_outputs(network, reference, 8)


def test_half_precision_is_read_exactly(tmp_path: Path) -> None:
    reference = saved_resnet8(tmp_path / "a.pt", lambda state: {key: value.bfloat16() for key, value in state.items()})
    network = CifarNet(3, 10, 8, 16, Identity).eval()
    load_weights(network, tmp_path / "a.pt")
    assert_equal_outputs(network, reference.bfloat16().float(), 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda s: {"state_dict": s, "state_dict_ema": s}, "several networks, under state_dict, state_dict_ema; save"),
        (lambda s: {**prefixed("model.")(s), **prefixed("module.")(s)}, "several tensors conv1.weight, with different"),
        (lambda s: {**s, "fc.weight": s["linear.weight"]}, "unexpected keys: linear.weight"),
        (lambda s: {**s, "ema.conv1.weight": s["conv1.weight"]}, "unexpected keys: ema.conv1.weight"),
        (
            lambda s: {key: value.mul(100).to(torch.int8) for key, value in s.items()},
            "stem.conv.weight is a tensor of torch.int8, not of floating-point weights",
        ),
        (
            lambda s: {key: value.to(torch.complex64) if value.ndim else value for key, value in s.items()},
            "stem.conv.weight is a tensor of torch.complex64, not of floating-point weights",
        ),
        (
            lambda s: s | {"layer2.0.bn1.running_var": torch.full((32,), math.nan)},
            "stages.1.0.residual.norm1.running_var has NaN or infinite values",
        ),
        (
            lambda s: s | {"linear.bias": torch.full((10,), 1e300, dtype=torch.float64)},
            "head.linear.bias has NaN or infinite values",
        ),
        (lambda s: s["conv1.weight"], "contains no weights; it must be a state dict, or a dict with one under any key"),
    ],
)
def test_doubtful_weights_are_refused(content: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    saved_resnet8(tmp_path / "weights.pth", content)
    with pytest.raises(InputError, match=message) as caught:
        load_weights(CifarNet(3, 10, 8, 16, Identity), tmp_path / "weights.pth")
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_refused_wherever_it_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    saved_resnet8(file, lambda state: state)
    intact = file.read_bytes()
    for position in range(len(intact) // 20, len(intact), len(intact) // 10):
        damaged = bytearray(intact)
        damaged[position] ^= 255
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="it is damaged"):
            load_weights(CifarNet(3, 10, 8, 16, Identity), file)


def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "exported.safetensors"
    save_weights(scrambled(CifarNet(3, 10, 8, 16, Identity)), {}, STATISTICS, file)
    damaged = bytearray(file.read_bytes())
    damaged[-100] ^= 255
    file.write_bytes(damaged)
    with pytest.raises(InputError, match=r"it is damaged \(its checksum differs\); export it again"):
        load_weights(CifarNet(3, 10, 8, 16, Identity), file)


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"content")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12",
            "a pointer of Git LFS, not the file",
        ),
        (b"<!DOCTYPE html>\n<html>", "a web page, not the file itself; download"),
        (b'{"metadata": {"total_size": 9}, "weight_map": {"a": "b"}}', "the index of weights in several files; join"),
        (b'{"architectures": ["ResNet"]}', "JSON; give the file of weights beside it"),
        (b"\x08\x07\x12\x07pytorch\x1a\x032.1", "looks like ONNX; save the state dict of the network instead"),
        (b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1", "looks like a file of Lua Torch"),
        (b"4\n1\n3\nV 1\n13\nnn.Sequential\n", "looks like a file of Lua Torch"),
        (b"\x89HDF\r\n\x1a\n", "is HDF5, as Keras writes it"),
        (b"\x1f\x8b\x08\0", "an archive; unpack it and give the file inside"),
        (zipped("weights.pth"), "a zip archive that torch.save did not write; unpack it"),
        (zipped("net/constants.pkl"), "TorchScript; save the network's state_dict"),
        (b"weights", "neither safetensors nor a file of torch.save"),
        (b"\x80\x02garbage", "it is damaged, or contains objects other than tensors"),
        (serialised(nn.Linear(2, 2)), r"never unpickled \(torch.nn.modules.linear.Linear\); where its code is at hand"),
        (safetensors.torch.save({"a": torch.zeros(9)})[:-4], "cannot read weights from .*: it is damaged"),
    ],
)
def test_files_of_another_kind_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.t7"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_weights(CifarNet(3, 10, 8, 4, Identity), file)
    assert "\n" not in str(caught.value)


def test_a_mismatch_describes_the_network_of_the_file(tmp_path: Path) -> None:
    torch.save(HuggingFaceResNet(BLOCKS[18], 8, bottleneck=False).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError) as caught:
        load_weights(CifarNet(3, 10, 20, 16, Identity), tmp_path / "weights.pth")
    assert str(caught.value).endswith(
        "the file's network has model.depth=18, model.width=8, a 7x7 stem, 7 classes, some weights on shortcuts"
    )


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("head", ["linear", "classifier.0", "head.linear"])
def test_a_new_head_takes_the_other_weights(headless: bool, head: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    reference = saved_resnet8(
        file,
        lambda state: {
            key.replace("linear", head): value for key, value in state.items() if not (headless and "linear" in key)
        },
    )
    network = CifarNet(3, 7, 8, 16, Identity)
    own = {key: value.clone() for key, value in network.state_dict().items()}
    load_weights(network, file, new_head=True)
    assert torch.equal(network.state_dict()["stem.conv.weight"], reference.state_dict()["conv1.weight"])
    for key in ("head.linear.weight", "head.linear.bias"):
        assert torch.equal(network.state_dict()[key], own[key])


def test_a_new_head_is_suggested_for_other_classes(tmp_path: Path) -> None:
    saved_resnet8(tmp_path / "weights.pth", lambda state: state)
    with pytest.raises(InputError, match=r"as many classes, or train a new head .* with model.head=new"):
        load_weights(CifarNet(3, 7, 8, 16, Identity), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"model.head=new needs a network with a linear layer"):
        load_weights(nn.Conv2d(3, 16, 3), tmp_path / "weights.pth", new_head=True)
