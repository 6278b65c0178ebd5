"""Tests of evaluating files of weights, and of the configuration in exported files."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from plainres.analysis.evaluation import compose_one, evaluate
from plainres.analysis.exchange import RECORDED, TRUSTED, config_of_file, predict_with_file, training_images
from plainres.analysis.training_images import TrainingImages
from plainres.config.instantiate import build_network, check
from plainres.config.schema import Config
from plainres.errors import InputError
from plainres.models import weights
from plainres.models.weights import save_weights
from plainres.runs.identity import run_name
from support.places import CONF
from support.references import CifarResNet, scrambled

STATISTICS = torch.tensor([100.0, 120.0, 140.0]), torch.tensor([50.0, 60.0, 70.0])
RESNET8 = ["model.depth=8", "data=synthetic", "data.shape=[3,8,8]", "data.test=20"]


@pytest.fixture
def config() -> Config:
    return compose_one([*RESNET8, "model/shortcut=plain"])


def exported(config: Config, file: Path, **changes: Any) -> nn.Module:
    """Export the network of a configuration, with changes of what is recorded, and return the network."""
    network = scrambled(build_network(config))
    save_weights(network, {key: getattr(config, key) for key in RECORDED} | changes, STATISTICS, file)
    return network


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Return a file of weights with the names of akamaster's."""
    file = tmp_path / "theirs.th"
    torch.save({"state_dict": CifarResNet(1).state_dict()}, file)
    return file


def test_an_exported_file_describes_its_network_and_its_data(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    network = exported(config, file)
    evaluated, predictions = predict_with_file(file)
    assert (evaluated.shortcut, evaluated.data) == ("plain", config.data)
    assert torch.equal(predictions.logits, evaluate(network, config, STATISTICS).logits)
    assert len(predict_with_file(file, ["data.test=7"])[1].targets) == 7
    with pytest.raises(InputError, match="missing keys"):
        predict_with_file(file, [*RESNET8, "model.depth=14"])  # overrides of the model describe all


@pytest.mark.parametrize("file", sorted((CONF / "model").rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_option_of_the_network_is_read_from_an_exported_file(file: Path) -> None:
    assert set(re.findall(r"_target_: (\S+)", file.read_text())) <= TRUSTED


@pytest.mark.parametrize("images", [3, {"data_sha256": 5, "class_names": "abc"}, {}])
def test_a_damaged_record_of_the_images_counts_as_none(images: Any, config: Config, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    exported(config, file, images=images)
    assert training_images(file, config) == TrainingImages(file, "as it records", config.data, config, None, None)


def test_an_exported_file_finds_the_images_of_this_machine(tmp_path: Path) -> None:
    config = compose_one(["data=cifar10", "model.depth=8"])
    file = tmp_path / "mine.safetensors"
    data = {key: value for key, value in config.data.items() if key not in ("path", "cache")}
    exported(config, file, data=data)
    assert config_of_file(file, []).data == config.data
    assert config_of_file(file, ["data.path=/images"]).data == {**config.data, "path": "/images"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"_target_": "os.system", "command": "touch executed"}},
            "a network with os.system, which is not",
        ),
        (
            {"model": {"init": [{"_target_": "plainres.models.weights.torch.os.system"}]}},
            "torch.os.system, which is",
        ),
        ({"data": {"_target_": "plainres.data.HubImages", "name": "${oc.env:HOME}"}}, "a network with interpolations"),
        ({"options": {"model/shortcut": "plain"}}, "has damaged metadata"),
        ({"options": []}, "has damaged metadata"),
        ({"model": 3}, "has damaged metadata"),
    ],
)
def test_a_file_cannot_choose_code_to_run(
    changes: dict[str, Any], message: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.safetensors"
    exported(config, file, **changes)
    with pytest.raises(InputError, match=message):
        config_of_file(file, [])
    assert not Path("executed").exists()
    assert config_of_file(file, RESNET8).model["depth"] == 8  # the overrides describe the network


def test_metadata_that_is_not_json_is_reported(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(build_network(config).state_dict(), file, {"plainres": "{"})
    with pytest.raises(InputError, match="has damaged metadata"):
        config_of_file(file, [])


def published(file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Publish a file as akamaster's, and return the statistics of its training."""
    monkeypatch.setattr(weights, "AKAMASTERS", (hashlib.sha256(file.read_bytes()).hexdigest()[:8],))
    return 255 * torch.tensor([0.485, 0.456, 0.406]), 255 * torch.tensor([0.229, 0.224, 0.225])


def test_akamasters_files_are_normalised_as_in_their_training(
    theirs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, by_data = predict_with_file(theirs, RESNET8)
    assert "does not record the channel means and deviations of its training" in capsys.readouterr().err
    statistics = published(theirs, monkeypatch)
    config, predictions = predict_with_file(theirs, RESNET8)
    assert capsys.readouterr().err == f"{theirs} is akamaster's; images are normalised as in its training\n"
    assert torch.equal(predictions.logits, evaluate(build_network(config), config, statistics).logits)
    assert not torch.allclose(predictions.logits, by_data.logits)


def test_another_normalisation_is_noticed(
    theirs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    published(theirs, monkeypatch)
    monkeypatch.setattr("plainres.analysis.exchange.evaluate", lambda *_, **__: None)  # reads no images
    chosen = ["model.depth=8", "data=cifar10", "data.std=[0.229,0.224,0.225]"]
    predict_with_file(theirs, [*chosen, "data.mean=[0.485,0.456,0.406]"])
    assert capsys.readouterr().err == ""
    predict_with_file(theirs, [*chosen, "data.mean=[0.491,0.482,0.447]"])
    assert capsys.readouterr().err == (
        f"{theirs} was trained with data.mean=[0.485,0.456,0.406] data.std=[0.229,0.224,0.225], but data.mean and "
        "data.std normalise images otherwise; leave them out to normalise as in training\n"
    )


def test_a_new_head_is_for_training(theirs: Path) -> None:
    with pytest.raises(InputError, match=r"use it to train, not to evaluate"):
        predict_with_file(theirs, [*RESNET8, "model.head=new"])
    with pytest.raises(InputError, match=r"set model.weights=FILE as well"):
        check(compose_one([*RESNET8, "model.head=new"]))
    with pytest.raises(InputError, match=r"model.head is 'old'; it must be null, or new"):
        build_network(compose_one([*RESNET8, f"model.weights={theirs}", "model.head=old"]))
    config = compose_one([*RESNET8, f"model.weights={theirs}", "model.head=new", "data.classes=3"])
    check(config)
    drawn = build_network(compose_one([*RESNET8, "data.classes=3"])).state_dict()
    network = build_network(config).state_dict()
    assert torch.equal(network["head.linear.weight"], drawn["head.linear.weight"])
    assert not torch.equal(network["stem.conv.weight"], drawn["stem.conv.weight"])


def test_a_head_changes_the_name_of_a_run_only_if_it_is_new(theirs: Path) -> None:
    config = compose_one([*RESNET8, f"model.weights={theirs}"])
    without = replace(config, model={key: value for key, value in config.model.items() if key != "head"})
    new = replace(config, model={**config.model, "head": "new"})
    assert run_name(without) == run_name(config) != run_name(new)
