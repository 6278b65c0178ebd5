"""Tests of probes, by direct computation on small networks and in training runs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from kills import final_state
from plainres.config.instantiate import check, network_of, probes_of, source_of
from plainres.config.schema import Config
from plainres.data.sources import Images, Split, Synthetic
from plainres.errors import InputError
from plainres.files import csv_text, read_rows
from plainres.models.initialisation import named_blocks
from plainres.models.networks import CifarNet
from plainres.models.probes import (
    PROBES,
    GradientCorrelation,
    Gradients,
    Responses,
    Sharpness,
    Signals,
    copy_for_probing,
    weighted_layers,
)
from plainres.models.shortcuts import Identity, ProjectionAll
from plainres.reporting.observations import observations, readings
from plainres.reporting.study_figures import save_figures
from plainres.runs.record import Run
from plainres.training.train import train
from support.places import CONF

Make = Callable[..., Config]
NAMES = {
    "responses": "Responses",
    "gradients": "Gradients",
    "gradient_correlation": "GradientCorrelation",
    "signals": "Signals",
    "sharpness": "Sharpness",
}
OWN = {"sharpness": {"tolerance": 0.01, "max_iterations": 40}}  # options of single probes


def nodes(every_n_steps: int | None = None) -> dict[str, Any]:
    options = {"images": 30, "every_n_steps": every_n_steps}
    return {
        name: {"_target_": f"plainres.models.{target}", **options, **OWN.get(name, {})}
        for name, target in NAMES.items()
    }


class ThreeLayers(nn.Module):
    """Network of a convolution, a convolution with normalisation, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential()
        self.first.add_module("conv1", nn.Conv2d(1, 4, 3, bias=False))
        self.first.add_module("activation", nn.ReLU())
        self.first.add_module("conv2", nn.Conv2d(4, 5, 3, bias=False))
        self.first.add_module("norm2", nn.BatchNorm2d(5))
        self.head = nn.Sequential()
        self.head.add_module("flatten", nn.Flatten())
        self.head.add_module("linear", nn.Linear(80, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.first(images).relu())


@pytest.fixture
def setting(request: pytest.FixtureRequest) -> tuple[ThreeLayers, Tensor, Tensor, SGD]:
    generator = torch.Generator().manual_seed(0)
    network = ThreeLayers()
    images = torch.randn(6, 1, 8, 8, generator=generator)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    options: dict[str, Any] = {"momentum": 0.9} | getattr(request, "param", {})
    optimizer = SGD(network.named_parameters(), 0.1, weight_decay=1e-2, **options)
    return network, images, targets, optimizer


def test_responses_are_measured_before_the_activation(setting: Any) -> None:
    network, images, _, _ = setting
    rows = Responses(6, None).measure(copy_for_probing(network), *setting[1:])
    first = F.conv2d(images, network.first.conv1.weight)
    second = F.conv2d(first.relu(), network.first.conv2.weight)
    mean, variance = second.mean((0, 2, 3), keepdim=True), second.var((0, 2, 3), unbiased=False, keepdim=True)
    normalised = (second - mean) / (variance + 1e-5).sqrt()
    logits = network.head.linear(normalised.relu().flatten(1))
    assert [row["name"] for row in rows] == ["first.conv1", "first.conv2", "head.linear"]
    for row, response in zip(rows, (first, normalised, logits), strict=True):
        assert row["std"] == pytest.approx(response.std().item(), rel=1e-5)


@pytest.mark.parametrize("setting", [{}, {"nesterov": True}, {"momentum": 0}], indirect=True, ids=str)
def test_gradients_and_updates(setting: Any) -> None:
    network, images, targets, optimizer = setting
    weights = [network.first.conv1.weight, network.first.conv2.weight, network.head.linear.weight]

    def compare(update: Callable[[nn.Parameter, Tensor], Tensor]) -> None:
        rows = Gradients(6, None).measure(copy_for_probing(network), images, targets, optimizer)
        copied = copy_for_probing(network)
        gradients = torch.autograd.grad(
            F.cross_entropy(copied(images), targets), [layer.weight for _, layer, _ in weighted_layers(copied)]
        )
        for row, weight, gradient in zip(rows, weights, gradients, strict=True):
            assert row["weight"] == pytest.approx(weight.norm().item(), rel=1e-5)
            assert row["gradient"] == pytest.approx(gradient.norm().item(), rel=1e-4)
            expected = update(weight, gradient).norm() / weight.norm()
            assert row["update_to_weight"] == pytest.approx(expected.item(), rel=1e-4)

    (group,) = optimizer.param_groups
    factor = 1.9 if group["nesterov"] else 1
    compare(lambda weight, gradient: factor * 0.1 * (gradient + 1e-2 * weight))
    updates: dict[int, Tensor] = {}
    for _ in range(2):
        before = [weight.detach().clone() for weight in weights]
        optimizer.zero_grad()
        F.cross_entropy(network(images), targets).backward()
        optimizer.step()
        updates.update((id(weight), weight.detach() - old) for weight, old in zip(weights, before, strict=True))
        compare(lambda weight, gradient: updates[id(weight)])

    group["lr"] = torch.tensor(0.1)  # as in a CUDA graph
    compare(lambda weight, gradient: updates[id(weight)])
    assert all(
        type(row["update_to_weight"]) is float
        for row in Gradients(6, None).measure(copy_for_probing(network), *setting[1:])
    )


def test_relative_update_of_zero_weights_is_infinite(setting: Any) -> None:
    network, images, targets, optimizer = setting
    with torch.no_grad():
        network.head.linear.weight.zero_()
    rows = {
        row["name"]: row for row in Gradients(6, None).measure(copy_for_probing(network), images, targets, optimizer)
    }
    assert rows["head.linear"]["weight"] == 0
    assert rows["head.linear"]["gradient"] != 0
    assert rows["head.linear"]["update_to_weight"] == math.inf
    first = rows["first.conv1"]  # the zero weights of the head block its gradient
    assert first["gradient"] == 0
    assert first["update_to_weight"] == pytest.approx(0.1 * 1e-2)  # weight decay
    with torch.no_grad():
        network.first.conv1.weight.zero_()
    first, *_ = Gradients(6, None).measure(copy_for_probing(network), images, targets, optimizer)
    assert math.isnan(float(first["update_to_weight"]))
    (row,) = GradientCorrelation(6, None).measure(copy_for_probing(network), images, targets, optimizer)
    assert math.isnan(float(row["correlation"]))
    assert math.isnan(float(row["absolute_correlation"]))


@pytest.mark.parametrize("scale", [1.0, 1e-30])  # correlations do not depend on the scale of gradients
def test_correlation_excludes_pairs_with_a_zero_gradient(setting: Any, scale: float) -> None:
    network, images, targets, optimizer = setting

    class FirstDetached(nn.Module):
        """Network in which the first image receives no gradient."""

        def forward(self, pixels: Tensor) -> Tensor:
            logits = network.eval()(pixels) * scale
            return torch.cat([logits[:1].detach(), logits[1:]])

    (row,) = GradientCorrelation(6, None).measure(FirstDetached(), images, targets, optimizer)
    pixels = images.double().requires_grad_()
    (gradient,) = torch.autograd.grad(
        F.cross_entropy(copy_for_probing(network).double().eval()(pixels) * scale, targets, reduction="sum"), pixels
    )
    matrix = torch.corrcoef(gradient[1:].flatten(1))
    pairs = [matrix[i, j].item() for i in range(5) for j in range(i)]
    assert row["correlation"] == pytest.approx(sum(pairs) / 10, rel=1e-4)
    assert row["absolute_correlation"] == pytest.approx(sum(map(abs, pairs)) / 10, rel=1e-4)


def test_update_uses_the_learning_rate_of_its_step(make_config: Make) -> None:
    ratios, rates = {}, {"cold": 0.05, "warm": 0.01}
    for name, warmup_lr in {"cold": None, "warm": 0.01}.items():
        run = Run.of(
            make_config(
                optim={"warmup_lr": warmup_lr, "weight_decay": 0.0},
                probes={"gradients": nodes()["gradients"] | {"every_n_steps": 1}},
            )
        )
        train(run)
        rows = read_rows(run.folder / "probes" / "gradients.csv")
        ratios[name] = [[float(row["update_to_weight"]) for row in rows if row["step"] == step] for step in ("0", "1")]
    for step in (0, 1):  # before and after the first step
        cold, warm = ratios["cold"][step], ratios["warm"][step]
        # the first step changes the weights slightly
        expected = pytest.approx([value / rates["cold"] for value in cold], rel=0.2)
        assert [value / rates["warm"] for value in warm] == expected


def test_updates_of_groups_with_different_weight_decay(make_config: Make) -> None:
    """The same numbers as of one group, up to the weight decay of biases and normalisations."""
    rows = {}
    for decay in ("all", "weights"):
        optim = {"decay": decay, "warmup_lr": 0.01}
        run = Run.of(make_config(optim=optim, probes={"gradients": nodes(1)["gradients"]}))
        train(run)
        rows[decay] = read_rows(run.folder / "probes" / "gradients.csv")
    assert rows["all"] != rows["weights"]
    for one, two in zip(rows["all"], rows["weights"], strict=True):
        assert one["name"] == two["name"]
        for column in ("weight", "gradient", "update_to_weight"):
            assert float(one[column]) == pytest.approx(float(two[column]), rel=0.05)


def test_gradient_correlation(setting: Any) -> None:
    network, images, targets, optimizer = setting
    (row,) = GradientCorrelation(6, None).measure(copy_for_probing(network), images, targets, optimizer)
    copied = copy_for_probing(network)
    pixels = images.clone().requires_grad_()
    losses = F.cross_entropy(copied(pixels), targets, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), pixels)
    matrix = torch.corrcoef(gradient.flatten(1).double())
    pairs = [matrix[i, j].item() for i in range(6) for j in range(i)]
    assert row["correlation"] == pytest.approx(sum(pairs) / 15, rel=1e-5)
    assert row["absolute_correlation"] == pytest.approx(sum(map(abs, pairs)) / 15, rel=1e-5)


def test_signals() -> None:
    network = CifarNet(1, 3, 8, 4, Identity)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 0, 1])
    optimizer = SGD(network.named_parameters(), 0.1)
    rows = Signals(5, None).measure(copy_for_probing(network), images, targets, optimizer)
    assert [row["name"] for row in rows] == ["stages.0.0", "stages.1.0", "stages.2.0"]
    copied = copy_for_probing(network)
    x = copied.stem(images)  # pyright: ignore[reportCallIssue]
    outputs = []
    for _, block in named_blocks(copied):
        x = block(x)
        outputs.append(x)
    loss = F.cross_entropy(copied.head(x), targets, reduction="sum")  # pyright: ignore[reportCallIssue]
    for row, output, gradient in zip(rows, outputs, torch.autograd.grad(loss, outputs), strict=True):
        assert row["mean"] == pytest.approx(output.mean().item(), rel=1e-5)
        assert row["variance"] == pytest.approx(output.var().item(), rel=1e-5)
        assert row["gradient_variance"] == pytest.approx(gradient.var().item(), rel=1e-4)


def test_weighted_layers_are_those_of_the_backbone_in_order() -> None:
    names = [name for name, _, _ in weighted_layers(CifarNet(1, 3, 8, 4, ProjectionAll))]
    branches = [f"stages.{stage}.0.residual.conv{number}" for stage in range(3) for number in (1, 2)]
    assert names == ["stem.conv", *branches, "head.linear"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_probes_do_not_change_the_training(make_config: Make, tmp_path: Path, precision: str) -> None:
    options = {"precision": precision, "shortcut": "stochastic_depth"}
    unobserved = Run.of(make_config(runs=str(tmp_path / "unobserved"), **options))
    observed = Run.of(make_config(runs=str(tmp_path / "observed"), probes=nodes(2), **options))
    assert unobserved.name == observed.name
    for run in (unobserved, observed):
        train(run)
    assert final_state(unobserved) == final_state(observed)
    for name in NAMES:
        rows = read_rows(observed.folder / "probes" / f"{name}.csv")
        assert sorted({int(row["step"]) for row in rows}) == [0, 2, 4, 6]
    assert len(read_rows(observed.folder / "probes" / "responses.csv")) == 4 * 8


def test_resume_neither_repeats_nor_omits_rows(make_config: Make, tmp_path: Path) -> None:
    config = make_config(probes=nodes(1))
    config.checkpoint.every_n_steps = 1
    run = Run.of(config)
    train(run)
    expected = {name: (run.folder / "probes" / f"{name}.csv").read_text() for name in NAMES}
    (run.folder / "result.json").unlink()
    (run.checkpoints / "step-000000006.ckpt").unlink()  # the rows after step 5 are measured again
    train(run)
    for name in NAMES:
        assert (run.folder / "probes" / f"{name}.csv").read_text() == expected[name]


def test_resume_discards_rows_of_another_sample(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    config = make_config(probes={"responses": nodes(1)["responses"]})
    config.checkpoint.every_n_steps = 1
    run = Run.of(config)
    train(run)
    file = run.folder / "probes" / "responses.csv"
    original = read_rows(file)
    assert {row["images"] for row in original} == {"30 of 100"}
    # files of older versions have no such column, and are of the first images
    columns = [column for column in original[0] if column != "images"]
    file.write_text(csv_text([{column: row[column] for column in columns} for row in original]))
    (run.folder / "result.json").unlink()
    (run.checkpoints / "step-000000006.ckpt").unlink()
    capfd.readouterr()
    train(run)
    assert read_rows(file) == [row for row in original if row["step"] == "6"]
    assert f"{file}: removed 48 rows of a different sample of images" in capfd.readouterr().err


def test_resume_discards_rows_of_other_settings(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """They would be compared with those that follow, although the eigenvalue may be less exact."""
    config = make_config(probes={"sharpness": nodes(1)["sharpness"], "responses": nodes(1)["responses"]})
    config.checkpoint.every_n_steps = 1
    run = Run.of(config)
    train(run)
    files = [run.folder / "probes" / f"{name}.csv" for name in ("sharpness", "responses")]
    original = [read_rows(file) for file in files]

    def resume_from_step_5() -> str:
        (run.folder / "result.json").unlink()
        (run.checkpoints / "step-000000006.ckpt").unlink()
        capfd.readouterr()
        train(Run.of(config))
        return capfd.readouterr().err

    config.probes["sharpness"]["every_n_steps"] = 2  # these values are the same ones
    assert "removed" not in resume_from_step_5()
    assert [read_rows(file) for file in files] == original
    del config.probes["sharpness"]  # an attempt without the probe leaves its rows
    resume_from_step_5()
    config.probes["sharpness"] = nodes(1)["sharpness"] | {"tolerance": 0.5}
    messages = resume_from_step_5()
    assert f"{files[0]}: removed 6 rows that were measured with other settings of the probe" in messages
    assert "responses" not in messages
    assert [int(row["step"]) for row in read_rows(files[0])] == [6]
    assert read_rows(files[1]) == original[1]
    (run.folder / "probes" / "settings.json").write_text("[")
    with pytest.raises(InputError, match=r"settings\.json is damaged .* delete the folder"):
        resume_from_step_5()


def test_resume_discards_rows_of_an_edited_probe(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first attempt had no such probe, so its class is not among those with which the run began."""
    monkeypatch.syspath_prepend(tmp_path)
    source = "from plainres.models import Responses\n\nclass Mine(Responses):\n    factor = 1\n"
    file = tmp_path / "edited_probe.py"
    file.write_text(source)
    config = make_config()
    run = Run.of(config)

    def measured_in_attempt(every_n_steps: int) -> list[int]:
        if run.finished:
            (run.folder / "result.json").unlink()
            (run.checkpoints / "step-000000006.ckpt").unlink()
        config.checkpoint.every_n_steps = every_n_steps
        train(Run.of(config))
        return sorted({int(row["step"]) for row in run.probe_rows("mine")})

    assert not measured_in_attempt(3)
    config.probes["mine"] = {"_target_": "edited_probe.Mine", "images": 30, "every_n_steps": 1}
    assert measured_in_attempt(1) == [4, 5, 6]
    file.write_text(source.replace("factor = 1", "factor = 2"))
    monkeypatch.setattr("plainres.training.train.check_imported", lambda config: None)  # as in a new process
    assert measured_in_attempt(1) == [6]
    assert "mine.csv: removed 16 rows that were measured with other settings" in capfd.readouterr().err


def test_seeds_measured_with_other_settings_are_not_drawn(make_config: Make, tmp_path: Path) -> None:
    runs = {}
    for seed, tolerance in ((0, 0.01), (1, 0.5)):
        probe = nodes()["sharpness"] | {"tolerance": tolerance}
        runs[seed] = Run.of(make_config(seed=seed, probes={"sharpness": probe}))
        train(runs[seed])
    drawn, unusable = save_figures({"identity": {8: runs}}, tmp_path)
    assert "sharpness" in drawn
    reason = "probes/sharpness.csv has tolerance 0.5 (another seed: 0.01) and is not drawn"
    assert unusable == [(runs[1].folder.name, reason)]


def test_probe_sample_is_stratified_by_class(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[list[int]] = []

    def measure(probe: Responses, network: nn.Module, images: Tensor, targets: Tensor, optimizer: SGD) -> list[Any]:
        counts.append(torch.bincount(targets, minlength=10).tolist())
        return []

    monkeypatch.setattr(Responses, "measure", measure)
    monkeypatch.setattr(Synthetic, "load", lambda source: Images(split, split))
    split = Split(torch.zeros(100, 8, 8, 1, dtype=torch.uint8), torch.arange(10).repeat_interleave(10))
    train(Run.of(make_config(probes={"responses": nodes()["responses"]})))
    assert counts == [[3] * 10] * 2


def test_run_killed_before_its_first_checkpoint_is_measured_once_at_step_0(make_config: Make) -> None:
    run = Run.of(make_config(probes=nodes(1)))
    train(run)
    expected = {name: (run.folder / "probes" / f"{name}.csv").read_text() for name in NAMES}
    (run.folder / "result.json").unlink()
    for file in run.checkpoints.iterdir():
        file.unlink()
    train(run)
    for name in NAMES:
        assert (run.folder / "probes" / f"{name}.csv").read_text() == expected[name]


def test_figures(make_config: Make, tmp_path: Path) -> None:
    families: dict[str, dict[int, dict[int, Run]]] = {}
    for shortcut in ("plain", "identity"):
        for depth in (8, 14):
            run = Run.of(make_config(shortcut=shortcut, depth=depth, probes=nodes()))
            train(run)
            families.setdefault(shortcut, {})[depth] = {0: run}
    save_figures(families, tmp_path)
    for name in NAMES:
        assert "identity" in (tmp_path / f"{name}.svg").read_text()
    assert "identity, 14 layers" in (tmp_path / "responses.svg").read_text()
    observed, unusable = observations("responses", families)
    assert not unusable
    (observation,) = observed["plain"][8]
    responses = observation.values[observation.steps]["std"]
    assert len(observation.layers) == len(responses) == 7  # without the head, as in the paper


def test_figures_of_connections(make_config: Make, tmp_path: Path) -> None:
    order = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "block" / "order" / "full_preactivation.yaml"))
    families: dict[str, dict[int, dict[int, Run]]] = {}
    for name, shortcut in (
        ("static", "HyperConnections"),
        ("attention", "AttentionResiduals"),
        ("identity", "Identity"),
    ):
        for seed in (0, 1):
            probe = {"_target_": "plainres.models.Connections", "images": 20, "every_n_steps": None}
            config = make_config(seed=seed, depth=14, probes={"connections": probe})
            config.model["block"] = {"_target_": "plainres.models.BlockSpec", "order": order}
            config.model["shortcut"] = {"_target_": f"plainres.models.{shortcut}", "_partial_": True}
            run = Run.of(config)
            train(run)
            families.setdefault(name, {}).setdefault(14, {})[seed] = run
    drawn, unusable = save_figures(families, tmp_path)
    assert (drawn, unusable) == (["connections", "reading"], [])
    gains, reading = ((tmp_path / f"{name}.svg").read_text() for name in drawn)
    assert "static, 14 layers" in gains
    assert "attention, 14 layers" not in gains  # which has no streams
    assert "attention, 14 layers" in reading
    assert "identity" not in gains + reading
    weights, left_out = readings(families)
    assert not left_out
    assert list(weights) == ["static", "attention"]
    assert [len(block) for block in weights["attention"].blocks] == [1, 2] * 3
    rows = [row for run in families["attention"][14].values() for row in run.probe_rows("connections")]
    shares = [float(row["reads"].split()[1]) for row in rows if row["name"] == "stages.0.1" and row["step"] != "0"]
    assert weights["attention"].blocks[1][1] == pytest.approx(sum(shares) / 2)
    damaged = families["attention"][14][1].folder / "probes" / "connections.csv"
    text = damaged.read_text()
    for before, after in (("0.", "zero."), ("20 of 100", "30 of 100"), (text, "")):
        damaged.write_text(text.replace(before, after))
        weights, left_out = readings(families)
        assert list(weights) == ["static"]
        ((name, reason),) = left_out
        assert name == families["attention"][14][1].folder.name
        assert "the figure of what blocks read is without attention" in reason
    _, unusable = save_figures(families, tmp_path)
    assert name in dict(unusable)


def test_figures_of_zero_initialised_weights_have_gaps(make_config: Make, tmp_path: Path) -> None:
    config = make_config(probes={name: nodes()[name] for name in ("gradients", "gradient_correlation")})
    order = OmegaConf.to_container(OmegaConf.load(CONF / "model" / "block" / "order" / "fixup.yaml"))
    config.model |= {
        "norm": {"_target_": "torch.nn.Identity", "_partial_": True},
        "block": {"_target_": "plainres.models.BlockSpec", "order": order},
        "init": {"_target_": "plainres.models.fixup", "_partial_": True},
    }
    run = Run.of(config)
    train(run)
    rows = read_rows(run.folder / "probes" / "gradients.csv")
    initial = {row["name"]: row["update_to_weight"] for row in rows if row["step"] == "0"}
    assert initial["head.linear"] == "inf"
    families = {"fixup": {8: {0: run}}}
    observed, unusable = observations("gradients", families)
    assert not unusable
    (observation,) = observed["fixup"][8]
    by_name = dict(zip(observation.layers, observation.values[0]["update_to_weight"], strict=True))
    assert math.isnan(by_name["head.linear"])
    assert by_name["stem.conv"] == float(initial["stem.conv"])
    save_figures(families, tmp_path)
    (row, _) = read_rows(run.folder / "probes" / "gradient_correlation.csv")
    assert row["correlation"] == "nan"


@pytest.mark.parametrize("setting", [{}, {"nesterov": True}], indirect=True, ids=str)
def test_sharpness_is_the_largest_eigenvalue_of_the_whole_hessian(setting: Any) -> None:
    network, images, targets, optimizer = setting
    network, images = network.double(), images.double()
    (row,) = Sharpness(6, None, 1e-6, 200).measure(copy_for_probing(network), images, targets, optimizer)
    copied = copy_for_probing(network)
    shapes = {name: weight.shape for name, weight in copied.named_parameters()}

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return F.cross_entropy(functional_call(copied, weights, (images,)), targets)

    hessian = torch.autograd.functional.hessian(loss, torch.cat([w.detach().flatten() for w in copied.parameters()]))
    assert isinstance(hessian, Tensor)
    expected = torch.linalg.eigvalsh(hessian)[-1].item()
    assert row["sharpness"] == pytest.approx(expected, rel=1e-5)
    # Cohen et al. 2021, appendix B, with lr 0.1 and momentum 0.9
    stable = 3.8 / 0.1 / (2.8 if optimizer.param_groups[0]["nesterov"] else 1)
    assert row["to_stable"] == pytest.approx(expected / stable, rel=1e-5)
    assert row["lr"] == 0.1


def test_sharpness_that_has_not_converged_is_no_number(setting: Any) -> None:
    network, images, targets, optimizer = setting
    (row,) = Sharpness(6, None, 1e-6, 1).measure(copy_for_probing(network), images, targets, optimizer)
    assert math.isnan(float(row["sharpness"]))
    assert math.isnan(float(row["to_stable"]))


def test_gradient_descent_diverges_where_the_sharpness_exceeds_the_bound() -> None:
    """On a quadratic, heavy ball and Nesterov's momentum converge only for `to_stable` below 1."""
    for nesterov in (False, True):
        for factor, converges in ((0.98, True), (1.02, False)):
            weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
            lr = factor * 3.8 / (2.8 if nesterov else 1)  # for c = 1
            optimizer = SGD([weight], lr, momentum=0.9, nesterov=nesterov)
            for _ in range(2000):
                weight.grad = weight.detach().clone()
                optimizer.step()
            assert (weight.abs().item() < 1e-3) == converges


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"max_iterations": 0}])
def test_invalid_options_of_sharpness_are_reported(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="tolerance must be between 0 and 1, and max_iterations at least 1"):
        Sharpness(6, None, **{"tolerance": 0.1, "max_iterations": 5} | options)


def test_sharpness_is_drawn_over_training(make_config: Make, tmp_path: Path) -> None:
    config = make_config(probes={"sharpness": nodes(every_n_steps=2)["sharpness"]})
    run = Run.of(config)
    train(run)
    rows = read_rows(run.folder / "probes" / "sharpness.csv")
    assert [int(row["step"]) for row in rows[:3]] == [0, 2, 4]
    drawn, unusable = save_figures({"identity": {8: {0: run}}}, tmp_path)
    assert "sharpness" in drawn
    assert not unusable
    assert "relative to the largest stable one" in (tmp_path / "sharpness.svg").read_text()
    (run.folder / "probes" / "sharpness.csv").write_text("step,name\nx,y\n")
    drawn, unusable = save_figures({"identity": {8: {0: run}}}, tmp_path)
    assert "sharpness" not in drawn
    assert "damaged" in unusable[0][1]


class Unused(nn.Module):
    """Network with a layer that is never called, and with a block whose output is discarded."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        self.spare = nn.Sequential(nn.Linear(2, 2))
        self.constant = nn.Identity()
        self.constant.residual, self.constant.shortcut = nn.Identity(), nn.Identity()  # marks it as a block

    def forward(self, images: Tensor) -> Tensor:
        self.constant(images)
        return self.head(images)


def test_gradient_of_unused_modules_is_0() -> None:
    network, generator = Unused(), torch.Generator().manual_seed(0)
    setting = torch.randn(6, 1, 8, 8, generator=generator), torch.arange(6) % 3, SGD(network.named_parameters(), 0.1)
    rows = {row["name"]: row for row in Gradients(6, None).measure(copy_for_probing(network), *setting)}
    gradients = {name: row["gradient"] for name, row in rows.items()}
    (curvature,) = Sharpness(6, None, 0.1, 50).measure(copy_for_probing(network), *setting)
    assert math.isfinite(float(curvature["sharpness"]))
    assert gradients["head.1"] != 0
    assert gradients["spare.0"] == 0
    assert rows["spare.0"]["update_to_weight"] == 0  # without weight decay, too: SGD skips them
    (row,) = Signals(6, None).measure(copy_for_probing(network), *setting)
    assert row["gradient_variance"] == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "responses",
            r"probes.responses needs layers \(convolutions .*\), but Linear has none; probes ",
        ),
        ("gradients", r"probes.gradients needs layers"),
        ("signals", r"probes.signals needs blocks \(modules with .*, but Linear has none"),
        ("gradient_correlation", None),
        ("sharpness", None),
    ],
)
def test_network_without_the_required_modules_is_rejected(make_config: Make, name: str, message: str | None) -> None:
    config = make_config(probes={name: nodes()[name]})
    check(config)
    config.model["_target_"] = "support.linear.Linear"
    if message is not None:
        with pytest.raises(InputError, match=message + ".*for this network: gradient_correlation, sharpness$"):
            check(config)
        return
    check(config)
    run = Run.of(config)
    train(run)
    assert len(read_rows(run.folder / "probes" / f"{name}.csv")) == 2


def test_suggested_probes_are_those_of_the_configuration() -> None:
    assert PROBES.keys() == NAMES.keys() | {"connections"} == {file.stem for file in (CONF / "probes").glob("*.yaml")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 1}, "a probe has images=1; it must be at least 2"),
        ({"every_n_steps": 0}, "a probe has every_n_steps=0; it must be at least 1, or null"),
        ({"every": 3}, "probes.signals has no option 'every'; Signals takes images, every_n_steps"),
    ],
)
def test_invalid_options_are_reported(make_config: Make, changes: dict[str, Any], message: str) -> None:
    config = make_config(probes={"signals": nodes()["signals"] | changes})
    with pytest.raises(InputError, match=message):
        probes_of(config)
    assert network_of(config, source_of(config))
