"""Each probe against a direct computation on a network of a few layers, and in trainings."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import SGD

from kills import ending
from plainres.config.instantiate import check, network_of, probes_of, source_of
from plainres.config.schema import Config
from plainres.data.sources import Images, Split, Synthetic
from plainres.errors import InputError
from plainres.files import csv_text, read_rows
from plainres.models.networks import CifarNet
from plainres.models.probes import OURS, GradientCorrelation, Gradients, Responses, Signals, a_copy, blocks, layers
from plainres.models.shortcuts import Identity, ProjectionAll
from plainres.reporting.figures import observations, save_figures
from plainres.runs.record import Run
from plainres.training.train import train
from support.places import CONF

Make = Callable[..., Config]
NAMES = {
    "responses": "Responses",
    "gradients": "Gradients",
    "gradient_correlation": "GradientCorrelation",
    "signals": "Signals",
}


def nodes(every_n_steps: int | None = None) -> dict[str, Any]:
    options = {"images": 30, "every_n_steps": every_n_steps}
    return {name: {"_target_": f"plainres.models.{target}", **options} for name, target in NAMES.items()}


class ThreeLayers(nn.Module):
    """Convolution, convolution with normalisation, linear layer."""

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
def setting() -> tuple[ThreeLayers, Tensor, Tensor, SGD]:
    generator = torch.Generator().manual_seed(0)
    network = ThreeLayers()
    images = torch.randn(6, 1, 8, 8, generator=generator)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    return network, images, targets, SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)


def test_responses_are_those_before_the_activation(setting: Any) -> None:
    network, images, _, _ = setting
    rows = Responses(6, None).measure(a_copy(network), *setting[1:])
    first = F.conv2d(images, network.first.conv1.weight)
    second = F.conv2d(first.relu(), network.first.conv2.weight)
    mean, variance = second.mean((0, 2, 3), keepdim=True), second.var((0, 2, 3), unbiased=False, keepdim=True)
    normalised = (second - mean) / (variance + 1e-5).sqrt()
    logits = network.head.linear(normalised.relu().flatten(1))
    assert [row["name"] for row in rows] == ["first.conv1", "first.conv2", "head.linear"]
    for row, response in zip(rows, (first, normalised, logits), strict=True):
        assert row["std"] == pytest.approx(response.std().item(), rel=1e-5)


def test_gradients_and_updates(setting: Any) -> None:
    network, images, targets, optimizer = setting
    weights = [network.first.conv1.weight, network.first.conv2.weight, network.head.linear.weight]

    def compare(update: Callable[[nn.Parameter, Tensor], Tensor]) -> None:
        rows = Gradients(6, None).measure(a_copy(network), images, targets, optimizer)
        copied = a_copy(network)
        gradients = torch.autograd.grad(
            F.cross_entropy(copied(images), targets), [layer.weight for _, layer, _ in layers(copied)]
        )
        for row, weight, gradient in zip(rows, weights, gradients, strict=True):
            assert row["weight"] == pytest.approx(weight.norm().item(), rel=1e-5)
            assert row["gradient"] == pytest.approx(gradient.norm().item(), rel=1e-4)
            expected = update(weight, gradient).norm() / weight.norm()
            assert row["update_to_weight"] == pytest.approx(expected.item(), rel=1e-4)

    compare(lambda weight, gradient: 0.1 * (gradient + 1e-2 * weight))
    before = [weight.detach().clone() for weight in weights]
    F.cross_entropy(network(images), targets).backward()
    optimizer.step()
    moved = {id(weight): weight.detach() - old for weight, old in zip(weights, before, strict=True)}
    compare(lambda weight, gradient: moved[id(weight)])

    (group,) = optimizer.param_groups
    group["lr"] = torch.tensor(0.1)  # as a captured step has it
    compare(lambda weight, gradient: moved[id(weight)])
    assert all(
        type(row["update_to_weight"]) is float for row in Gradients(6, None).measure(a_copy(network), *setting[1:])
    )


def test_an_update_of_weights_that_are_0_is_infinite(setting: Any) -> None:
    network, images, targets, optimizer = setting
    with torch.no_grad():
        network.head.linear.weight.zero_()
    rows = {row["name"]: row for row in Gradients(6, None).measure(a_copy(network), images, targets, optimizer)}
    assert rows["head.linear"]["weight"] == 0
    assert rows["head.linear"]["gradient"] != 0
    assert rows["head.linear"]["update_to_weight"] == math.inf
    first = rows["first.conv1"]  # which gets no gradient through the zeros behind it
    assert first["gradient"] == 0
    assert first["update_to_weight"] == pytest.approx(0.1 * 1e-2)  # what weight decay does
    with torch.no_grad():
        network.first.conv1.weight.zero_()
    first, *_ = Gradients(6, None).measure(a_copy(network), images, targets, optimizer)
    assert math.isnan(float(first["update_to_weight"]))
    (row,) = GradientCorrelation(6, None).measure(a_copy(network), images, targets, optimizer)
    assert math.isnan(float(row["correlation"]))
    assert math.isnan(float(row["absolute_correlation"]))


@pytest.mark.parametrize("scale", [1.0, 1e-30])  # of gradients, which may be small without being alike the less
def test_a_pair_with_a_gradient_of_0_has_no_correlation(setting: Any, scale: float) -> None:
    network, images, targets, optimizer = setting

    class Some(nn.Module):
        """Gives the first image no gradient."""

        def forward(self, pixels: Tensor) -> Tensor:
            logits = network.eval()(pixels) * scale
            return torch.cat([logits[:1].detach(), logits[1:]])

    (row,) = GradientCorrelation(6, None).measure(Some(), images, targets, optimizer)
    pixels = images.double().requires_grad_()
    (gradient,) = torch.autograd.grad(
        F.cross_entropy(a_copy(network).double().eval()(pixels) * scale, targets, reduction="sum"), pixels
    )
    matrix = torch.corrcoef(gradient[1:].flatten(1))
    pairs = [matrix[i, j].item() for i in range(5) for j in range(i)]
    assert row["correlation"] == pytest.approx(sum(pairs) / 10, rel=1e-4)
    assert row["absolute_correlation"] == pytest.approx(sum(map(abs, pairs)) / 10, rel=1e-4)


def test_an_update_has_the_rate_of_its_step(make_config: Make) -> None:
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
    for step in (0, 1):  # the first step's update is seen before it and after it
        cold, warm = ratios["cold"][step], ratios["warm"][step]
        weights = pytest.approx([value / rates["cold"] for value in cold], rel=0.2)  # which the step has changed a bit
        assert [value / rates["warm"] for value in warm] == weights


def test_the_correlation_of_the_gradients_of_images(setting: Any) -> None:
    network, images, targets, optimizer = setting
    (row,) = GradientCorrelation(6, None).measure(a_copy(network), images, targets, optimizer)
    copied = a_copy(network)
    pixels = images.clone().requires_grad_()
    losses = F.cross_entropy(copied(pixels), targets, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), pixels)
    matrix = torch.corrcoef(gradient.flatten(1).double())
    pairs = [matrix[i, j].item() for i in range(6) for j in range(i)]
    assert row["correlation"] == pytest.approx(sum(pairs) / 15, rel=1e-5)
    assert row["absolute_correlation"] == pytest.approx(sum(map(abs, pairs)) / 15, rel=1e-5)


def test_signals_at_each_block() -> None:
    network = CifarNet(1, 3, 8, 4, Identity)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 0, 1])
    optimizer = SGD(network.parameters(), 0.1)
    rows = Signals(5, None).measure(a_copy(network), images, targets, optimizer)
    assert [row["name"] for row in rows] == ["stages.0.0", "stages.1.0", "stages.2.0"]
    copied = a_copy(network)
    x = copied.stem(images)  # pyright: ignore[reportCallIssue]
    outputs = []
    for _, block in blocks(copied):
        x = block(x)
        outputs.append(x)
    loss = F.cross_entropy(copied.head(x), targets, reduction="sum")  # pyright: ignore[reportCallIssue]
    for row, output, gradient in zip(rows, outputs, torch.autograd.grad(loss, outputs), strict=True):
        assert row["mean"] == pytest.approx(output.mean().item(), rel=1e-5)
        assert row["variance"] == pytest.approx(output.var().item(), rel=1e-5)
        assert row["gradient_variance"] == pytest.approx(gradient.var().item(), rel=1e-4)


def test_layers_are_those_of_the_backbone_in_order() -> None:
    named = [name for name, _, _ in layers(CifarNet(1, 3, 8, 4, ProjectionAll))]
    branches = [f"stages.{stage}.0.residual.conv{number}" for stage in range(3) for number in (1, 2)]
    assert named == ["stem.conv", *branches, "head.linear"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_no_probe_changes_a_bit_of_the_training(make_config: Make, tmp_path: Path, precision: str) -> None:
    options = {"precision": precision, "shortcut": "stochastic_depth"}
    alone = Run.of(make_config(runs=str(tmp_path / "alone"), **options))
    observed = Run.of(make_config(runs=str(tmp_path / "observed"), probes=nodes(2), **options))
    assert alone.name == observed.name
    for run in (alone, observed):
        train(run)
    assert ending(alone) == ending(observed)
    for name in NAMES:
        rows = read_rows(observed.folder / "probes" / f"{name}.csv")
        assert sorted({int(row["step"]) for row in rows}) == [0, 2, 4, 6]
    assert len(read_rows(observed.folder / "probes" / "responses.csv")) == 4 * 8


def test_after_a_resume_no_row_is_doubled_or_missing(make_config: Make, tmp_path: Path) -> None:
    config = make_config(probes=nodes(1))
    config.checkpoint.every_n_steps = 1
    run = Run.of(config)
    train(run)
    found = {name: (run.folder / "probes" / f"{name}.csv").read_text() for name in NAMES}
    (run.folder / "result.json").unlink()
    (run.checkpoints / "step-000000006.ckpt").unlink()  # what was found after step 5 is found again
    train(run)
    for name in NAMES:
        assert (run.folder / "probes" / f"{name}.csv").read_text() == found[name]


def test_rows_of_another_sample_are_not_continued(make_config: Make, capfd: pytest.CaptureFixture[str]) -> None:
    config = make_config(probes={"responses": nodes(1)["responses"]})
    config.checkpoint.every_n_steps = 1
    run = Run.of(config)
    train(run)
    file = run.folder / "probes" / "responses.csv"
    whole = read_rows(file)
    assert {row["images"] for row in whole} == {"30 of 100"}
    columns = [column for column in whole[0] if column != "images"]  # as an older version has it, of the first images
    file.write_text(csv_text([{column: row[column] for column in columns} for row in whole]))
    (run.folder / "result.json").unlink()
    (run.checkpoints / "step-000000006.ckpt").unlink()
    capfd.readouterr()
    train(run)
    assert read_rows(file) == [row for row in whole if row["step"] == "6"]
    assert f"{file}: 48 rows of another sample of images are removed" in capfd.readouterr().err


def test_a_probe_looks_at_every_class(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def measure(probe: Responses, network: nn.Module, images: Tensor, targets: Tensor, optimizer: SGD) -> list[Any]:
        seen.append(torch.bincount(targets, minlength=10).tolist())
        return []

    monkeypatch.setattr(Responses, "measure", measure)
    monkeypatch.setattr(Synthetic, "load", lambda source: Images(split, split))
    split = Split(torch.zeros(100, 8, 8, 1, dtype=torch.uint8), torch.arange(10).repeat_interleave(10))
    train(Run.of(make_config(probes={"responses": nodes()["responses"]})))
    assert seen == [[3] * 10] * 2


def test_a_run_killed_before_its_first_checkpoint_looks_at_its_beginning_once(make_config: Make) -> None:
    run = Run.of(make_config(probes=nodes(1)))
    train(run)
    found = {name: (run.folder / "probes" / f"{name}.csv").read_text() for name in NAMES}
    (run.folder / "result.json").unlink()
    for file in run.checkpoints.iterdir():
        file.unlink()
    train(run)
    for name in NAMES:
        assert (run.folder / "probes" / f"{name}.csv").read_text() == found[name]


def test_the_figures_of_probes(make_config: Make, tmp_path: Path) -> None:
    families: dict[str, dict[int, dict[int, Run]]] = {}
    for shortcut in ("plain", "identity"):
        for depth in (8, 14):
            run = Run.of(make_config(shortcut=shortcut, depth=depth, probes=nodes()))
            train(run)
            families.setdefault(shortcut, {})[depth] = {0: run}
    save_figures(families, tmp_path)
    for name in NAMES:
        drawn = (tmp_path / f"{name}.svg").read_text()
        assert "identity" in drawn
    assert "identity, 14 layers" in (tmp_path / "responses.svg").read_text()
    observed, unusable = observations("responses", families)
    assert not unusable
    (one,) = observed["plain"][8]
    assert len(one.layers) == len(one.values[True]["std"]) == 7  # not the head, as in the paper


def test_a_run_that_begins_with_weights_of_0_is_drawn_with_gaps(make_config: Make, tmp_path: Path) -> None:
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
    at_first = {row["name"]: row["update_to_weight"] for row in rows if row["step"] == "0"}
    assert at_first["head.linear"] == "inf"
    families = {"fixup": {8: {0: run}}}
    observed, unusable = observations("gradients", families)
    assert not unusable
    (one,) = observed["fixup"][8]
    by_name = dict(zip(one.layers, one.values[False]["update_to_weight"], strict=True))
    assert math.isnan(by_name["head.linear"])
    assert by_name["stem.conv"] == float(at_first["stem.conv"])
    save_figures(families, tmp_path)
    (row, _) = read_rows(run.folder / "probes" / "gradient_correlation.csv")
    assert row["correlation"] == "nan"


class Unused(nn.Module):
    """As ThreeLayers, but a layer of a Sequential and a block are never called, or only for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        self.spare = nn.Sequential(nn.Linear(2, 2))
        self.constant = nn.Identity()
        self.constant.residual, self.constant.shortcut = nn.Identity(), nn.Identity()  # a block

    def forward(self, images: Tensor) -> Tensor:
        self.constant(images)
        return self.head(images)


def test_what_the_loss_does_not_depend_on_has_no_gradient() -> None:
    network, generator = Unused(), torch.Generator().manual_seed(0)
    setting = torch.randn(6, 1, 8, 8, generator=generator), torch.arange(6) % 3, SGD(network.parameters(), 0.1)
    gradients = {row["name"]: row["gradient"] for row in Gradients(6, None).measure(a_copy(network), *setting)}
    assert gradients["head.1"] != 0
    assert gradients["spare.0"] == 0
    (row,) = Signals(6, None).measure(a_copy(network), *setting)
    assert row["gradient_variance"] == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "responses",
            r"probes.responses looks at layers \(convolutions .*\), of which Linear has none; probes ",
        ),
        ("gradients", r"probes.gradients looks at layers"),
        ("signals", r"probes.signals looks at blocks \(modules with .*, of which Linear has none"),
        ("gradient_correlation", None),
    ],
)
def test_a_network_without_what_a_probe_looks_at_is_refused(make_config: Make, name: str, message: str | None) -> None:
    config = make_config(probes={name: nodes()[name]})
    check(config)
    config.model["_target_"] = "support.linear.Linear"
    if message is not None:
        with pytest.raises(InputError, match=message + ".*suit it: gradient_correlation$"):
            check(config)
        return
    check(config)
    run = Run.of(config)
    train(run)
    assert len(read_rows(run.folder / "probes" / f"{name}.csv")) == 2


def test_the_probes_that_are_advised_are_those_of_the_configuration() -> None:
    assert OURS.keys() == NAMES.keys() == {file.stem for file in (CONF / "probes").glob("*.yaml")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 1}, "a probe looks at 1 images; it must be at least 2"),
        ({"every_n_steps": 0}, "a probe's every_n_steps is 0; it must be at least 1, or null"),
        ({"every": 3}, "probes.signals has no option 'every'; Signals takes images, every_n_steps"),
    ],
)
def test_mistakes(make_config: Make, changes: dict[str, Any], message: str) -> None:
    config = make_config(probes={"signals": nodes()["signals"] | changes})
    with pytest.raises(InputError, match=message):
        probes_of(config)
    assert network_of(config, source_of(config))
