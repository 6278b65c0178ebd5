"""Tests of the identity and the names of runs. Names must never change, because studies are stored under them."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra.utils
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import plainres.data
import plainres.models
from plainres.config.compose import compose
from plainres.config.schema import Config, Devices, Recipe
from plainres.reporting.families import labelled
from plainres.runs.identity import complete, flat, identity, public_path, run_name, settings
from plainres.runs.record import Run
from support.places import CONF

Make = Callable[..., Config]

HUB = {
    "_target_": "plainres.data.HubImages",
    "name": "uoft-cs/cifar10",
    "path": None,
    "cache": "~/.cache/plainres",
}

NAMES = {
    "": "identity-20-w16-s0-723264be",
    "model/shortcut=plain seed=3": "plain-20-w16-s3-8497b2e7",
    "data=cifar10 optim=he2015": "identity-20-w16-s0-7953f87b",
    "data=cifar10 optim=he2015 precision=bf16-mixed model.depth=56": "identity-56-w16-s0-a1f509ee",
    "data=cifar100 optim=he2015 optim.warmup_lr=0.01": "identity-20-w16-s0-eb78eab5",
    "data=imagenet model=imagenet optim=he2015_imagenet": "projection-18-w64-s0-0440782f",
    "data=synthetic": "identity-20-w16-s0-089699cc",
    "model=imagenet model.depth=50 model/block=bottleneck data=imagenet": "projection-50-w64-s0-0c3b45f4",
    "model=preactivation model/block=bottleneck model.depth=29": "identity-29-w16-s0-e6d415e4",
    "model=fixup": "identity-20-w16-s0-bb128a93",
    "model=skipinit": "skipinit-20-w16-s0-7f53d789",
    "model=resblk": "resblk-20-w16-s0-fff43326",
    "model=wide": "wide-14-w32-s0-8b863739",
    "model/shortcut=projection model/norm=group": "projection-20-w16-s0-36fccf4b",
    "model/shortcut=dropout model.shortcut.p=1": "dropout-20-w16-s0-c5cf2a8b",
    "model/shortcut=stochastic_depth model/init=zero_gamma": "stochastic_depth-20-w16-s0-045b53b7",
    "'model.block.kernels=[3]' model.stages=4 model.stem_width=8 model.depth=22": "identity-22-w16-s0-591ae9d4",
}
# values of options that a configuration does not contain: a changed default would rename runs
DEFAULTS: dict[str, dict[str, Any]] = {
    "BlockSpec": {
        "bias": False,
        "expansion": 1,
        "kernels": (3, 3),
        "order": "LayerOrder(pre=(), between=('norm', 'relu'), post=('norm',), "
        "post_add=('relu',), stem=('norm', 'relu'), tail=())",
        "stride_in": 1,
    },
    "CifarNet": {
        "block": "BlockSpec(kernels=(3, 3), expansion=1, stride_in=1, bias=False, "
        "order=LayerOrder(pre=(), between=('norm', 'relu'), post=('norm',), "
        "post_add=('relu',), stem=('norm', 'relu'), tail=()))",
        "activation": "torch.nn.ReLU",
        "norm": "torch.nn.BatchNorm2d",
        "stages": 3,
        "stem_width": None,
    },
    "Convolution": {"bias": False},
    "Digits": {"validation_per_class": None},
    "DecayedIdentity": {"last": 0.6},
    "DepthScaled": {"exponent": 0.5, "multiplier": 1.0},
    "Dropout": {"p": 0.5},
    "ExclusiveGating": {"bias": -6},
    "FracConnections": {"fractions": 4},
    "Highway": {"bias": -2},
    "HubImages": {
        "classes": None,
        "colour": 0.0,
        "crop": "scale",
        "damaged": "refuse",
        "image_column": None,
        "label_column": None,
        "mean": None,
        "name": None,
        "path": None,
        "scales": None,
        "shape": None,
        "std": None,
        "stored": None,
        "stream": None,
        "subset": None,
        "test_crops": 1,
        "test_per_class": None,
        "test_scale": None,
        "test_share": None,
        "test_split": "test",
        "train_per_class": None,
        "validation_per_class": None,
    },
    "HyperConnections": {"dynamic": True, "streams": 4},
    "ImageNet": {
        "block": "BlockSpec(kernels=(3, 3), expansion=1, stride_in=1, bias=False, "
        "order=LayerOrder(pre=(), between=('norm', 'relu'), post=('norm',), "
        "post_add=('relu',), stem=('norm', 'relu'), tail=()))",
        "activation": "torch.nn.ReLU",
        "norm": "torch.nn.BatchNorm2d",
    },
    "Images": {"validation": None, "mean": None, "std": None, "classes": None, "digest": None, "left_out": 0},
    "LayerOrder": {
        "between": ("norm", "relu"),
        "post": ("norm",),
        "post_add": ("relu",),
        "pre": (),
        "stem": ("norm", "relu"),
        "tail": (),
    },
    "LayerScale": {"initial": 0.1},
    "MLP": {
        "block": "BlockSpec(kernels=(1, 1), expansion=1, stride_in=1, bias=False, "
        "order=LayerOrder(pre=(), between=('norm', 'relu'), post=('norm',), "
        "post_add=('relu',), stem=('norm', 'relu'), tail=()))",
        "activation": "torch.nn.ReLU",
        "norm": "torch.nn.BatchNorm2d",
    },
    "ManifoldHyperConnections": {"streams": 4},
    "NormalizerFree": {"residual": 0.2},
    "OrthogonalUpdate": {"over": "channels"},
    "Projection": {"norm": "torch.nn.BatchNorm2d"},
    "ProjectionAll": {"bias": False, "norm": "torch.nn.BatchNorm2d"},
    "ReZero": {"initial": 0.0},
    "Recipe": {
        "clip_norm": None,
        "decay": "all",
        "epochs": None,
        "nesterov": False,
        "steps": None,
        "warmup_lr": None,
        "warmup_until": 80.0,
    },
    "ResBlk": {"norm": "torch.nn.BatchNorm2d"},
    "Scaling": {"residual": 0.5, "shortcut": 0.5},
    "ShortcutGating": {"bias": -6},
    "Split": {"histograms": None},
    "StochasticDepth": {"last": 0.5},
    "Synthetic": {"validation_per_class": None},
    "TailoredReLU": {"eta": 0.9, "inplace": False},
    "leaky_relu": {"inplace": False, "slope": 0.01},
}


@pytest.mark.parametrize("overrides", NAMES, ids=str)
def test_names_never_change(overrides: str) -> None:
    (config,) = compose([word.strip("'") for word in overrides.split()])
    assert run_name(config) == NAMES[overrides]


def declared(target: Any) -> dict[str, Any]:
    """Return the defaults that a class or function declares; objects as text."""
    if is_dataclass(target):
        instance = target() if target in (plainres.models.BlockSpec, plainres.models.LayerOrder) else None
        defaults = {field.name: getattr(instance, field.name, field.default) for field in fields(target)}
    else:
        defaults = {name: parameter.default for name, parameter in inspect.signature(target).parameters.items()}
    plain = (int, float, bool, str, tuple, type(None))
    return {
        name: default if isinstance(default, plain) else public_path(default) or repr(default)
        for name, default in defaults.items()
        if default is not inspect.Parameter.empty and "MISSING" not in repr(default) and default != "???"
    }


def test_defaults_never_change() -> None:
    packages: list[ModuleType] = [plainres.data, plainres.models]
    targets = {name: getattr(package, name) for package in packages for name in package.__all__} | {"Recipe": Recipe}
    actual = {name: declared(target) for name, target in targets.items() if callable(target)}
    assert {name: defaults for name, defaults in actual.items() if defaults} == DEFAULTS


def test_conf_names_public_paths() -> None:
    launchers = CONF / "hydra"  # their classes are Hydra's, and may not be installed
    for file in (file for file in CONF.rglob("*.yaml") if not file.is_relative_to(launchers)):
        for line in file.read_text().splitlines():
            if "_target_:" in line:
                path = line.rpartition(" ")[2]
                assert public_path(hydra.utils.get_object(path)) == path, file


def test_the_name_depends_on_everything_that_determines_the_result(make_config: Make) -> None:
    base = make_config()
    others = [
        make_config(seed=1),
        make_config(depth=14),
        make_config(shortcut="plain"),
        make_config(optim={"lr": 0.1}),
        make_config(optim={"decay": "weights"}),
        make_config(optim={"nesterov": True}),
        make_config(optim={"clip_norm": 1.0}),
        make_config(data=HUB),
        make_config(precision="bf16-mixed"),
    ]
    assert len({run_name(config) for config in (base, *others)}) == 10
    assert run_name(base) == run_name(make_config())
    assert run_name(base).startswith("identity-8-w4-s0-")


def test_the_identity_contains_nothing_else(make_config: Make) -> None:
    base = make_config(data=HUB)
    elsewhere = make_config(data=HUB | {"path": "/data/cifar10", "cache": "/scratch"})
    ddp = replace(base, trainer=Devices(accelerator="gpu", devices=2, threads=4), runs="elsewhere", study="other")
    assert identity(base) == identity(elsewhere) == identity(ddp)
    assert complete(base) == complete(elsewhere) == complete(ddp)


def test_a_class_is_identified_by_its_public_path(make_config: Make) -> None:
    moved = make_config()
    moved.model["_target_"] = "plainres.models.networks.CifarNet"
    moved.model["shortcut"]["_target_"] = "plainres.models.shortcuts.Identity"
    assert run_name(moved) == run_name(make_config())
    assert public_path(nn.BatchNorm2d) == "torch.nn.BatchNorm2d"
    assert public_path(3) is None


def test_the_identity_leaves_out_defaults(make_config: Make) -> None:
    (composed,) = compose(["model.depth=8", "model.width=4"])
    assert set(identity(composed)["model"]) == {"_target_", "_partial_", "depth", "width", "shortcut"}
    explicit, implicit = make_config(shortcut="dropout"), make_config(shortcut="dropout")
    del implicit.model["shortcut"]["p"]
    assert explicit.model["shortcut"]["p"] == 0.5
    for config in (explicit, implicit):
        config.model["block"] = {"_target_": "plainres.models.BlockSpec", "kernels": [3, 3]}
    assert identity(explicit) == identity(implicit) == identity(make_config(shortcut="dropout"))
    assert complete(explicit)["model"]["shortcut"]["p"] == complete(implicit)["model"]["shortcut"]["p"] == 0.5
    assert settings(implicit)["model.block.order.post"] == "['norm']"


def test_an_older_configuration_keeps_its_meaning(make_config: Make) -> None:
    """A config.yaml without the options that were added later has the same name, family and folder."""
    (config,) = compose(["model.depth=8", "model.width=4", "data=synthetic"])
    older = replace(
        config, model={k: v for k, v in config.model.items() if k not in ("stages", "init", "norm", "block")}
    )
    assert run_name(older) == run_name(config)
    assert settings(older) == settings(config)
    run = Run.of(older)
    run.prepare()
    Run.of(config).prepare()  # accepts the folder
    labels = labelled([run, Run.of(replace(config, seed=1))])
    assert {label for label, _ in labels.values()} == {"identity"}


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53))
def test_equal_numbers_have_equal_names(value: float) -> None:
    (config,) = CONFIGS
    names = {run_name(with_bias(config, number)) for number in {value, float(value)}}
    assert len(names) == 1
    assert flat(identity(with_bias(config, value)))["model.shortcut.bias"] == str(
        int(value) if float(value).is_integer() else value
    )


CONFIGS = compose(["model/shortcut=highway"])


def with_bias(config: Config, bias: float) -> Config:
    shortcut = {**config.model["shortcut"], "bias": bias, "mine": True}
    return replace(config, model={**config.model, "shortcut": shortcut})


def test_true_is_not_1(make_config: Make) -> None:
    assert run_name(with_bias(make_config(), True)) != run_name(with_bias(make_config(), 1))


def test_a_class_that_cannot_be_imported_is_part_of_the_identity(make_config: Make) -> None:
    """A report may be made on another machine. Training reports the missing class."""
    config = make_config()
    config.model["shortcut"] = {"_target_": "absent.Halved", "_partial_": True, "factor": 0.5}
    assert identity(config)["model"]["shortcut"] == config.model["shortcut"]


def test_all_values_of_a_foreign_class_are_part_of_the_identity(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its defaults may change, so a value that equals its default today may differ tomorrow."""
    source = "class Halved:\n    def __init__(self, in_channels, out_channels, stride, factor=Path('x')): ...\n"
    (tmp_path / "mine.py").write_text(f"from pathlib import Path\n{source}")
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config()
    node = {"_target_": "mine.Halved", "_partial_": True, "factor": "x"}
    config.model["shortcut"] = node
    assert identity(config)["model"]["shortcut"] == node
    assert complete(config)["model"]["shortcut"] == node
    name = run_name(config)
    config.model["shortcut"] = {**node, "factor": 2.0}
    assert run_name(config) != name
    assert "mine" not in sys.modules  # reading a record must not run foreign code
