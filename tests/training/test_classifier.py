from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from plainres.config.schema import Recipe
from plainres.data.datamodule import ImageBatches
from plainres.data.sources import Synthetic
from plainres.errors import InputError
from plainres.models.networks import CifarNet, misclassified
from plainres.models.shortcuts import Identity
from plainres.training.classifier import WARMUP_WINDOW, Classifier, LossAndError, count
from support.training import Rows, bare_trainer, recipe


def fit(recipe: Recipe, train: int = 70) -> tuple[Classifier, list[dict[str, float]]]:
    source = Synthetic([1, 8, 8], 10, train, 30, 0, False)
    data = ImageBatches(source.load(), source, recipe.batch_size, 0)
    steps = recipe.length(data.steps_per_epoch)
    torch.manual_seed(0)
    classifier = Classifier(CifarNet(1, 10, 8, 4, Identity), recipe, steps, data.steps_per_epoch)
    rows = Rows()
    trainer = bare_trainer(steps, data.steps_per_epoch, rows)
    trainer.fit(classifier, datamodule=data)
    return classifier, rows.rows


def test_rows_cover_each_epoch_and_a_partial_last_one() -> None:
    _, rows = fit(recipe())
    assert [row["step"] for row in rows] == [4, 8, 10]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.01, 0.001])
    assert all(
        set(row) == {"epoch", "step", "lr", "train/loss", "train/error", "test/loss", "test/error"} for row in rows
    )


def test_length_in_epochs() -> None:
    _, rows = fit(recipe(epochs=3, steps=None))
    assert [row["step"] for row in rows] == [4, 8, 12]


def test_a_partial_last_epoch_is_averaged_with_the_previous_epoch() -> None:
    classifier, _ = fit(recipe())
    assert classifier.running.sums[2] == (4 + 2) * 16


@pytest.mark.parametrize(("steps", "averaged"), [(10, 6), (8, 4), (3, 3), (4, 4), (5, 5), (7, 7)])
def test_number_of_steps_that_the_last_training_error_averages(steps: int, averaged: int) -> None:
    classifier, _ = fit(recipe(steps=steps))
    assert classifier.averaged_steps == averaged
    assert classifier.running.sums[2] == averaged * 16


@given(st.integers(4, 100000), st.lists(st.floats(0.01, 0.99), max_size=4).map(sorted))
def test_the_learning_rate_drops_at_each_milestone(steps: int, milestones: list[float]) -> None:
    schedule = recipe(steps=steps, milestones=milestones)
    drops = [round(fraction * steps) for fraction in milestones]
    for step in {0, steps // 3, steps // 2, steps - 1, *drops}:
        assert schedule.lr_factor(step, steps) == pytest.approx(0.1 ** sum(step >= drop for drop in drops))


def test_he2015_drops_at_32k_and_48k() -> None:
    schedule = recipe(steps=64000)
    assert [schedule.lr_factor(step, 64000) for step in (0, 31999, 32000, 47999, 48000, 63999)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_warmup_lasts_until_the_error_is_low_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plainres.training.classifier.WARMUP_WINDOW", 4)
    # every error is below 101 %, so the warm-up ends after its first window
    _, rows = fit(recipe(steps=8, warmup_lr=0.01, warmup_until=101, milestones=[]))
    assert [row["lr"] for row in rows] == pytest.approx([0.01, 0.1])
    classifier, rows = fit(recipe(steps=8, warmup_lr=0.01, warmup_until=0, milestones=[]))
    assert [row["lr"] for row in rows] == pytest.approx([0.01, 0.01])
    assert classifier.warming_up


def test_warmup_measures_the_error_of_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plainres.training.classifier.WARMUP_WINDOW", 4)
    reference, rows = fit(recipe(steps=4, lr=0.01, milestones=[]))
    error = rows[0]["train/error"]
    assert not reference.warming_up
    for threshold, warming_up in ((error, True), (error + 0.01, False)):
        classifier, _ = fit(recipe(steps=5, warmup_lr=0.01, warmup_until=threshold, milestones=[]))
        assert classifier.warming_up is warming_up
    assert WARMUP_WINDOW == 100


def test_the_warmup_is_part_of_a_checkpoint() -> None:
    classifier = Classifier(CifarNet(1, 10, 8, 4, Identity), recipe(warmup_lr=0.01), 10, 4)
    classifier.counted[3] = 7
    count(classifier.counted, torch.tensor(2.0), torch.tensor([False, False, True]))
    checkpoint: dict[str, Any] = {}
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(classifier)
    classifier.trainer = trainer
    classifier.on_save_checkpoint(checkpoint)
    assert checkpoint["warming_up"]
    assert checkpoint["measured"] == {"loss": 6.0, "wrong": 1, "images": 3, "warmup_wrong": 7}
    other = Classifier(CifarNet(1, 10, 8, 4, Identity), recipe(), 10, 4)
    other.trainer = trainer
    other.on_load_checkpoint(checkpoint)
    assert other.warming_up
    assert other.counted.tolist() == [6.0, 1, 3, 7]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 1000))
def test_loss_and_error_over_batches_equal_those_over_all_images(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(sum(sizes), 4, generator=generator)
    targets = torch.randint(4, (sum(sizes),), generator=generator)
    measure = LossAndError()
    for batch_logits, batch_targets in zip(logits.split(sizes), targets.split(sizes), strict=True):
        sums = torch.zeros(3, dtype=torch.float64)
        count(sums, F.cross_entropy(batch_logits, batch_targets), misclassified(batch_logits, batch_targets))
        measure.update(sums)
    values = measure.values("x")
    assert values["x/loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    assert values["x/error"] == 100 * (logits.argmax(1) != targets).sum().item() / len(targets)


def test_a_step_is_sgd_with_weight_decay_on_all_parameters() -> None:
    classifier, _ = fit(recipe(steps=1, milestones=[]), train=16)
    trained = dict(classifier.network.named_parameters())
    torch.manual_seed(0)
    network = CifarNet(1, 10, 8, 4, Identity)
    data = _data()
    images, targets = data.training.materialize(next(iter(data.train_dataloader())))
    F.cross_entropy(network(images), targets).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        expected = parameter - 0.1 * (parameter.grad + 1e-4 * parameter)
        torch.testing.assert_close(trained[name], expected)


def test_the_final_evaluation_reuses_the_images_on_the_device() -> None:
    data = _data()
    training, evaluated = data.training, data.evaluated
    data.setup("validate")
    assert data.training is training
    assert data.evaluated is evaluated


def _data() -> ImageBatches:
    source = Synthetic([1, 8, 8], 10, 16, 30, 0, False)
    data = ImageBatches(source.load(), source, 16, 0)
    data.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "optim.batch_size is 0; it must be at least 1"),
        ({"epochs": 3}, "give the length in one of the two"),
        ({"steps": None}, "give the length in one of the two"),
        ({"steps": 0}, "optim.steps is 0"),
        ({"lr": 0.0}, "optim.lr is 0.0; it must be above 0"),
        ({"lr": float("nan")}, "optim.lr is nan"),
        ({"momentum": -0.1}, "optim.momentum is -0.1"),
        ({"decay": "biases"}, "optim.decay is 'biases'; it must be all, or weights"),
        ({"nesterov": True, "momentum": 0}, "optim.nesterov is true, but optim.momentum is 0"),
        ({"clip_norm": 0.0}, "optim.clip_norm is 0.0; it must be above 0, or null"),
        ({"clip_norm": float("nan")}, "optim.clip_norm is nan"),
        ({"milestones": [0.75, 0.5]}, "ascending"),
        ({"milestones": [32000.0]}, "fractions of the steps"),
    ],
)
def test_recipe_values_out_of_range_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(**changes)
