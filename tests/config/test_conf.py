"""Every file of conf/ can be composed, and its objects can be made."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from plainres.config.compose import compose, compose_jobs
from plainres.config.instantiate import architecture_of, probes_of, source_of
from plainres.config.schema import Config
from plainres.reporting.families import labelled, reference
from plainres.reporting.published import published, table
from plainres.runs.identity import matches, run_name
from plainres.runs.record import Run
from support.images import write_folders
from support.places import ROOT
from support.shipped import CONNECTIONS

CONF = ROOT / "conf"
SPLITS = ("train", "test")
SHIPPED = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.rglob("*.yaml"))
EXPERIMENTS = [path.name for path in SHIPPED if path.parent.name == "experiment"]


def make(config: Config) -> None:
    source = source_of(config)
    with torch.device("meta"):
        logits = architecture_of(config, source)(torch.zeros(2, *source.shape))
    assert logits.shape == (2, source.classes)
    assert config.optim.length(100) > 0


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.parent.name not in ("", "experiment")], ids=str)
def test_an_option_is_composed_and_made(path: Path, tmp_path: Path) -> None:
    chosen = f"[{path.name}]" if str(path.parent) == "probes" else path.name
    words = [f"{path.parent}={chosen}"]
    if path.parent.name == "shortcut" and path.name in CONNECTIONS:
        words.append("model=preactivation")
    if words == ["data=images"]:
        pixels = np.zeros((8, 8, 3), dtype=np.uint8)
        write_folders(tmp_path / "mine", {f"{split}/{name}/{split}.png": pixels for split in SPLITS for name in "ab"})
        words += [f"data.path={tmp_path / 'mine'}", f"data.cache={tmp_path / 'cache'}"]
    jobs = compose_jobs(words)
    (config,) = jobs.configs
    if str(path.parent) == "probes":
        assert list(probes_of(config)) == [path.name]
        return
    assert (config.options | {"hydra/launcher": jobs.launcher})[str(path.parent)] == path.name
    make(config)


def test_composing_changes_nothing_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["notebook", "--option"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = dict(os.environ)
    compose(["model.depth=20"])
    assert sys.argv == ["notebook", "--option"]
    assert dict(os.environ) == before


def test_the_default() -> None:
    (config,) = compose([])
    assert (config.shortcut, config.model["depth"], config.study) == ("identity", 20, "default")
    make(config)


# number of runs with one seed, their depths, and the number of their families
AXES = {
    "digits": (10, [8, 20, 32, 44, 56], 2),
    "cifar10_degradation": (8, [20, 32, 44, 56], 2),
    "cifar10_quick": (6, [8, 20, 56], 2),
    "cifar10_short": (8, [20, 32, 44, 56], 2),
    "cifar10_shortcuts": (8, [20, 56], 4),
    "cifar10_identity_mappings": (7, [110], 7),
    "cifar10_activation": (6, [110], 6),
    "cifar10_span": (8, [38, 110], 4),
    "cifar10_width": (16, [20, 56], 8),
    "digits_shortcuts": (12, [8, 20, 56], 4),
    "digits_identity_mappings": (14, [20, 56], 7),
    "digits_activation": (12, [20, 56], 6),
    "digits_span": (8, [38, 74], 4),
    "digits_probes": (4, [20, 56], 2),
    "digits_learning_rate": (10, [8, 20, 32, 44, 56], 2),
    "cifar10_learning_rate": (6, [8, 20, 56], 2),
    "digits_initialisation": (16, [8, 56], 8),
    "digits_normalisation": (12, [8, 56], 6),
    "digits_clipping": (12, [8, 56], 6),
    "digits_warmup": (8, [8, 56], 4),
    "digits_decay": (16, [8, 56], 8),
    "digits_leaky": (8, [8, 56], 4),
    "digits_tailored": (6, [20, 56], 3),
    "digits_budget": (12, [8, 56], 6),
    "digits_sharpness": (4, [8, 56], 2),
    "digits_streams": (42, [20, 56, 110], 14),
    "cifar10_streams": (28, [20, 56], 14),
    "digits_mlp": (8, [10, 32, 100, 1000], 2),
    "cifar10_gradients": (16, [8, 56], 8),
    "cifar10_tailored": (2, [56], 2),
    "imagenet_degradation": (4, [18, 34], 2),
}
SMALL = (
    "cifar10_quick",
    "cifar10_learning_rate",
    "cifar10_streams",
    "cifar10_gradients",
    "cifar10_tailored",
)  # narrower networks than the paper's


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_has_its_axes_and_its_reference(experiment: str) -> None:
    count, depths, families = AXES[experiment]
    configs = compose([f"experiment={experiment}", "seed=0"])
    assert len({run_name(config) for config in configs}) == len(configs) == count
    assert sorted({config.model["depth"] for config in configs}) == depths
    assert {config.study for config in configs} == {experiment}
    labels = {label for label, _ in labelled([Run.of(config) for config in configs]).values()}
    assert len(labels) == families
    assert 0 < sum(matches(config, reference(config)) for config in configs) < count
    for config in configs[:: max(1, count // 4)]:
        make(config)
    paper = experiment.startswith(("cifar10_", "imagenet_")) and experiment not in SMALL
    assert any(published(config) for config in configs) == paper


def test_every_published_error_belongs_to_a_run_that_can_be_composed() -> None:
    for result in table():
        overrides = [f"{key}={json.dumps(value)}" for key, value in result.settings.items()]
        (config,) = compose([f"optim={result.recipe}", *overrides, "seed=3", "precision=bf16-mixed"])
        shown = published(config)
        assert shown is not None
        assert shown == result or config.model["depth"] == 110  # with several sources, of which the first is shown


@pytest.mark.parametrize(
    "changed",
    [
        *("optim.gamma=0.5", "optim.batch_size=64", "optim.lr=0.2", "optim.momentum=0", "optim.warmup_lr=0.001"),
        *("model.block.stride_in=2", "model.block.bias=true", "model.block.order.post_add=[]", "model.stem_width=64"),
        *("+model.norm.eps=0.1", "model.init._target_=plainres.models.orthogonal", "model/norm=none", "model.width=8"),
        *("model/activation=leaky", "model/activation=tailored", "optim.decay=weights", "optim.nesterov=true"),
        *("optim.milestones=[0.5]", "data.train_per_class=10", "data.mean=[0,0,0]", "data.name=mine"),
    ],
)
def test_a_different_run_has_no_published_error(changed: str) -> None:
    run = ["data=cifar10", "optim=he2015", "model.depth=20"]
    (config,) = compose(run)
    assert (result := published(config)) is not None
    assert result.test_error == "8.75"
    required = ["data.std=[1,1,1]"] if "mean" in changed else []
    (other,) = compose([*run, changed, *required])
    assert published(other) is None


@pytest.mark.parametrize(
    ("changes", "unlike"),
    [
        ([], ""),
        (["optim.steps=8000"], "64,000 steps"),
        (["optim.steps=null", "optim.epochs=10"], "64,000 steps"),
        (["data.pad=0"], "random crops, padded by 4"),
        (["optim.steps=1", "data.pad=0", "data.flip=false"], "64,000 steps, random crops, padded by 4, mirrored"),
    ],
)
def test_a_different_length_or_augmentation_is_named_beside_the_published_error(
    changes: list[str], unlike: str
) -> None:
    (config,) = compose(["data=cifar10", "optim=he2015", "model.depth=20", *changes])
    assert (result := published(config)) is not None
    assert (result.test_error, result.unlike) == ("8.75", unlike)


def test_an_equal_network_has_the_published_error_whatever_option_it_is_of() -> None:
    deep = ["data=cifar10", "optim=he2015", "optim.warmup_lr=0.01", "model=preactivation"]
    wide = [*deep, "model.depth=164", "model/block=bottleneck", "model/shortcut=wide"]
    for overrides, error in (
        ([*deep, "model.depth=110"], "6.37"),
        ([*wide, "model.block.stride_in=1"], "5.46"),
        (wide, None),  # the stride is in the 3x3 convolution, unlike in the paper
    ):
        (config,) = compose(overrides)
        result = published(config)
        assert (result.test_error if result else None) == error


def test_published_errors_are_looked_up_by_the_settings_of_a_run() -> None:
    table = ["experiment=cifar10_identity_mappings", "seed=0", "model/shortcut=shortcut_gating"]
    for changed in ("model.width=8", "data=digits", "model/block/order=fixup", "model/shortcut=highway"):
        assert published(compose(["experiment=cifar10_degradation", "seed=0", changed, "model.depth=20"])[0]) is None
    for bias, error in ((0, "12.86"), (-6, "6.91"), ("-6.0", "6.91"), (-3, None)):
        (config,) = compose([*table, f"model.shortcut.bias={bias}"])
        result = published(config)
        assert (result.test_error if result else None) == error


def test_the_digits_study_has_the_settings_of_its_evidence() -> None:
    config = compose(["experiment=digits"])[0]
    optim = config.optim
    assert (optim.batch_size, optim.epochs, optim.lr, optim.weight_decay) == (64, 10, 0.05, 1e-4)
    assert (optim.milestones, optim.gamma, config.model["width"]) == ([0.5, 0.75], 0.1, 8)
    assert (config.data["pad"], config.data["flip"], config.trainer.threads) == (0, False, 1)


@pytest.mark.parametrize("experiment", ["digits", "cifar10_quick"])
def test_runs_have_the_names_in_their_evidence(experiment: str) -> None:
    with (ROOT / "experiments" / experiment / "results.csv").open() as file:
        names = {row["folder"] for row in csv.DictReader(file) if row["seed"] == "0"}
    assert names == {run_name(config) for config in compose([f"experiment={experiment}", "seed=0"])}


def test_he2015_is_the_recipe_of_the_paper() -> None:
    (config,) = compose(["optim=he2015", "data=cifar10", "optim.warmup_lr=0.01"])
    optim = config.optim
    assert (optim.batch_size, optim.steps, optim.lr, optim.momentum) == (128, 64000, 0.1, 0.9)
    assert optim.weight_decay == 1e-4
    assert (optim.warmup_lr, optim.warmup_until) == (0.01, 80)
    assert (config.data["pad"], config.data["flip"]) == (4, True)


def test_an_axis_of_an_experiment_can_be_overridden() -> None:
    configs = compose(["experiment=digits", "model.depth=8,14", "seed=7"])
    assert sorted({config.model["depth"] for config in configs}) == [8, 14]
    assert {config.seed for config in configs} == {7}


def test_a_configuration_is_read_back_from_its_file(tmp_path: Path) -> None:
    for config in compose(["-m", "optim=he2015,digits", "data=cifar100,digits", f"runs={tmp_path}"]):
        run = Run.of(config)
        run.prepare()
        assert Run.read(run.folder).config == config
