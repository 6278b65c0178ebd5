"""The commands eval and export, from the command line, and the functions behind them."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from plainres.analysis.evaluation import (
    compose_one,
    evaluate,
    load,
    load_network,
    predict,
    training_statistics,
    with_overrides,
)
from plainres.cli.main import main
from plainres.config.instantiate import build_network, source_of
from plainres.config.schema import CheckpointTimes, Config
from plainres.data.hub import HubImages
from plainres.data.sources import Digits, Images, Synthetic
from plainres.errors import InputError
from plainres.models.weights import statistics_in
from plainres.runs.record import Run
from plainres.training.train import train
from support.places import AKAMASTER, CIFAR10
from support.references import CifarResNet, ImageNetResNet, scrambled

SMALL = ["model.depth=8", "model.width=4", "optim.epochs=1", "data=synthetic", "data.train=128", "data.shape=[1,8,8]"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Finished run in runs/default of the current folder."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "data.pad=0"]) == 0
    (folder,) = Path("runs/default").iterdir()
    return Run.read(folder)


def test_eval_reproduces_the_result_of_a_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(run.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{run.name} on the test set of data=synthetic"
    assert lines[1] == f"loss {run.result['test_loss']:.4f}"
    assert lines[2] == f"error {run.result['test_error']:.2f} % of 256 images"
    file = run.folder / "predictions-synthetic.parquet"
    assert lines[-1] == f"predictions of each image: {file}"
    rows = pq.read_table(file).to_pylist()
    assert [row["image"] for row in rows] == list(range(256))
    wrong = [row["prediction"] != row["target"] for row in rows]
    assert 100 * sum(wrong) / 256 == run.result["test_error"]
    for row in rows[:9]:
        logits = torch.tensor(row["logits"])
        assert row["prediction"] == logits.argmax().item()
        assert row["loss"] == pytest.approx(F.cross_entropy(logits, torch.tensor(row["target"])).item(), rel=1e-5)
    per_class = {int(line.split()[0]): line.split()[1:] for line in lines[5:-2]}
    for target, (images, error) in per_class.items():
        wrong_of_class = [w for w, row in zip(wrong, rows, strict=True) if row["target"] == target]
        assert int(images) == len(wrong_of_class)
        assert float(error) == pytest.approx(100 * sum(wrong_of_class) / len(wrong_of_class), abs=0.005)


@pytest.mark.parametrize("finished", [True, False])
def test_images_are_loaded_once(finished: bool, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = predict(run).logits
    if not finished:
        (run.folder / "result.json").unlink()
    loaded: list[Synthetic] = []
    load_images = Synthetic.load

    def load(source: Synthetic) -> Images:
        loaded.append(source)
        return load_images(source)

    monkeypatch.setattr(Synthetic, "load", load)
    assert torch.equal(predict(Run.read(run.folder)).logits, expected)
    assert len(loaded) == 1


def test_a_run_on_other_data(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(run.folder), "data=digits"]) == 0
    assert "of 297 images" in capsys.readouterr().out
    assert predictions_of(run, "digits").exists()
    assert main(["eval", str(run.folder), "data.test=50", "precision=64-true"]) == 0
    assert "of 50 images" in capsys.readouterr().out
    config = with_overrides(run.config, ["data.test=50"])
    assert config.data == {**run.config.data, "test": 50}
    assert config.model == run.config.model


def predictions_of(run: Run, data: str) -> Path:
    """Return the only file of predictions of a run on other images than its own."""
    (file,) = run.folder.glob(f"predictions-{data}-*.parquet")
    return file


def test_predictions_of_one_kind_do_not_replace_others(run: Run) -> None:
    files: dict[Path, list[str]] = {}
    for overrides in (
        [],
        ["data.test=50"],
        ["data.test=60"],
        ["precision=64-true"],
        ["data=digits"],
        ["trainer.threads=1"],
    ):
        before = {file: file.read_bytes() for file in run.folder.glob("predictions-*")}
        assert main(["eval", str(run.folder), *overrides]) == 0
        assert {file: file.read_bytes() for file in before} == before  # the last one writes the same as the first
        new = set(run.folder.glob("predictions-*")) - before.keys()
        files |= dict.fromkeys(new, overrides)
    assert len(files) == 5
    for file, overrides in files.items():
        origin = json.loads(pq.read_schema(file).metadata[b"plainres"])
        assert (origin["network"], origin["step"]) == (run.name, run.result["steps"])
        assert origin["own"] == (overrides == []) == (file.name == "predictions-synthetic.parquet")
        assert origin["precision"] == ("64-true" if overrides == ["precision=64-true"] else "32-true")
        assert (origin["data_sha256"] == run.result["data_sha256"]) == (not overrides or "precision" in overrides[0])


def test_settings_of_torch_that_would_change_a_number_are_named(run: Run) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        for refused in (lambda: load(run), lambda: predict(run)):
            with pytest.raises(InputError, match=r"undo this first: torch\.set_default_dtype\(torch\.float32\)"):
                refused()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        assert predict(run).evaluation.error == run.result["test_error"]


def test_the_step_is_that_of_the_weights(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.folder / "result.json").unlink()
    (run.checkpoints / "step-000000999.ckpt").write_bytes(b"damaged")
    capsys.readouterr()
    assert main(["eval", str(run.folder), "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out)
    (file,) = run.folder.glob("step-*.parquet")
    assert evaluation["step"] < 999
    assert file.name == f"step-{evaluation['step']}-predictions-synthetic.parquet"


def test_a_loaded_network_takes_raw_images(run: Run) -> None:
    images = source_of(run.config).load().test.images
    network = load(str(run.folder))
    assert not network.training
    with torch.inference_mode():
        logits = network(images)
        assert torch.equal(network(images.numpy()), logits)
        assert torch.equal(network(F.pad(images, (0, 0, 2, 2, 1, 1))), logits)  # crops the centre
    expected = predict(run.folder).logits
    torch.testing.assert_close(logits, expected)
    assert 100 * (logits.argmax(1) != predict(run).targets).double().mean().item() == run.result["test_error"]


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images.float(),
        lambda images: images[0],
        lambda images: images.permute(0, 3, 1, 2),
        lambda images: images[:, :7],
        lambda images: images.expand(-1, -1, -1, 3),
    ],
)
def test_a_loaded_network_rejects_invalid_images(run: Run, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    images = source_of(run.config).load().test.images[:4]
    with pytest.raises(InputError, match=r"takes torch.uint8 \[N, 8, 8, 1\]"):
        load(run)(change(images))


def expected_logits(run: Run, images: torch.Tensor, statistics: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the logits of a run's network for images (N, H, W, C), normalised by mean and standard deviation."""
    mean, std = statistics
    with torch.no_grad():
        return load_network(run).eval()(((images.float() - mean) / std).permute(0, 3, 1, 2))


def logits_in(file: Path) -> torch.Tensor:
    return torch.tensor(pq.read_table(file)["logits"].to_pylist())


def forget_statistics(run: Run) -> None:
    """Remove the channel statistics from a run's result, which an older version did not record."""
    file = run.folder / "result.json"
    record = {key: value for key, value in json.loads(file.read_text()).items() if not key.startswith("channel_")}
    file.write_text(json.dumps(record))


def test_images_of_any_data_set_are_normalised_as_in_training(run: Run) -> None:
    synthetic, digits = source_of(run.config).load(), Digits(0, False).load()
    own = synthetic.channel_statistics
    assert [torch.tensor(run.result[f"channel_{name}"]) for name in ("mean", "std")] == list(own)
    expected = expected_logits(run, digits.test.images, own)
    assert not torch.allclose(expected, expected_logits(run, digits.test.images, digits.channel_statistics), atol=0.1)
    assert main(["export", str(run.folder), "mine.safetensors"]) == 0
    assert main(["eval", str(run.folder), "data=digits"]) == 0
    assert main(["eval", "mine.safetensors", *SMALL[:2], "data=digits"]) == 0
    files = [predictions_of(run, "digits"), *Path().glob("mine-predictions-digits-*.parquet")]
    assert len(files) == 2
    for file in files:
        torch.testing.assert_close(logits_in(file), expected, rtol=1e-4, atol=1e-5)
    logits = logits_in(files[0])
    forget_statistics(run)
    assert main(["eval", str(run.folder), "data=digits"]) == 0
    assert torch.equal(logits_in(files[0]), logits)
    (run.folder / "result.json").unlink()  # the same must hold for an unfinished run
    assert main(["eval", str(run.folder), "data=digits"]) == 0
    (unfinished,) = run.folder.glob("step-*-predictions-digits-*.parquet")
    assert torch.equal(logits_in(unfinished), logits)
    assert main(["export", str(run.folder), "again.safetensors"]) == 0
    for file in (Path("mine.safetensors"), Path("again.safetensors")):
        statistics = statistics_in(file)
        assert statistics is not None
        assert all(map(torch.equal, statistics, own))


def test_a_subset_of_the_runs_own_data_is_normalised_as_the_whole(run: Run) -> None:
    synthetic = source_of(run.config).load()
    assert main(["eval", str(run.folder), "data.train=9"]) == 0  # changes the test images, too
    images = Synthetic([1, 8, 8], 10, 9, 256, 0, False).load().test.images
    expected = expected_logits(run, images, synthetic.channel_statistics)
    logits = logits_in(predictions_of(run, "synthetic"))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_eval_warns_if_a_file_does_not_record_its_statistics(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(load_network(run).state_dict(), "mine.pth")
    capsys.readouterr()
    assert main(["eval", "mine.pth", *SMALL]) == 0
    captured = capsys.readouterr()
    assert captured.err == (
        "mine.pth does not record the channel means and deviations of its training; those of the training images of "
        "synthetic normalise images\n"
    )
    assert f"error {run.result['test_error']:.2f} % of 256 images" in captured.out


def test_an_older_run_whose_images_are_missing_is_rejected(
    make_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"name": "a/b", "image_column": "image", "label_column": "label", "cache": str(tmp_path), "path": "/gone"}
    shown = {"shape": [1, 8, 8], "classes": 10, "pad": 0, "flip": False}
    hub = {"_target_": "plainres.data.HubImages", "train_per_class": None, "test_per_class": None, **names, **shown}
    options = {"data": "cifar10", "model/shortcut": "identity"}
    run = Run.of(make_config(data=hub, options=options))
    images = Synthetic([1, 8, 8], 10, 100, 30, 0, False).load()

    def load(source: HubImages) -> Images:
        loaded.append(source.path)
        return replace(images, mean=source.mean, std=source.std)

    loaded: list[str | None] = []
    with monkeypatch.context() as patch:
        patch.setattr(HubImages, "load", load)
        train(run)
        assert main(["eval", str(run.folder), "data.mean=[0.5]", "data.std=[0.25]"]) == 0  # replaces the statistics
        expected = expected_logits(run, images.test.images, (torch.tensor([127.5]), torch.tensor([63.75])))
        logits = logits_in(predictions_of(run, "cifar10"))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        forget_statistics(run)
        run = Run.read(run.folder)
        moved = replace(run.config, data=run.config.data | {"path": "/moved", "train_per_class": 3})
        assert all(map(torch.equal, training_statistics(run, moved), images.channel_statistics))
        assert loaded == ["/gone", "/gone", "/moved"]
    for command in (
        ["export", str(run.folder), str(tmp_path / "x.safetensors")],
        ["eval", str(run.folder), "data=digits"],
    ):
        capsys.readouterr()
        assert main(command) == 2
        assert capsys.readouterr().err == (
            f"plainres: {run.folder} does not record its channel means, and the training images to compute them from "
            "cannot be read: data.path=/gone: there is no such folder\n"
        )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.depth=14"],
            "model.depth=14: cannot be overridden for a trained run; override only data, trainer, precision",
        ),
        (["data=cifar11"], "data=cifar11: there is no such option"),
        (["data.classes=7"], "the network has 10 output classes, but the data set has 7"),
        (["data.shape=[3,8,8]"], "the network cannot process images of shape [3, 8, 8]"),
        (["data.shape=[2,8,8]"], "images of shape [2, 8, 8]: it was trained on images with 1 channel"),
        (["trainer=gpu"], "trainer.accelerator is gpu, but torch finds no GPU here; use trainer=cpu"),
        (["data.shape=many"], "it must be [channels, height, width]"),
    ],
)
def test_invalid_overrides_of_a_run(
    overrides: list[str], message: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["eval", str(run.folder), *overrides]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_fault_of_the_gpu_is_not_blamed_on_the_images(run: Run) -> None:
    class Faulty(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        evaluate(Faulty(1, 1), run.config)


def test_exported_weights_can_be_evaluated_and_initialise_another_run(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["export", str(run.folder), "mine.safetensors"]) == 0
    assert capsys.readouterr().out == (
        f"wrote mine.safetensors: the weights of {run.name} under plainres's names; its configuration is in the "
        "metadata\nevaluate it: plainres eval mine.safetensors\n"
    )
    for overrides in ([], SMALL):  # the file describes its network and data, or the overrides do
        assert main(["eval", "mine.safetensors", *overrides]) == 0
        captured = capsys.readouterr()
        assert f"error {run.result['test_error']:.2f} % of 256 images" in captured.out
        name = r"mine-predictions-synthetic\.parquet" if not overrides else r"mine-predictions-synthetic-\w{8}\.parquet"
        assert re.fullmatch(f"predictions of each image: {name}", captured.out.splitlines()[-1])
        assert captured.err == ""
    assert main(["eval", "mine.safetensors", "data.test=50"]) == 0
    assert "of 50 images" in capsys.readouterr().out
    own = Path("mine-predictions-synthetic.parquet").read_bytes()
    assert main(["eval", "mine.safetensors", "precision=64-true"]) == 0
    assert Path("mine-predictions-synthetic.parquet").read_bytes() == own
    assert main(["train", *SMALL, "model.weights=mine.safetensors", "optim.lr=1e-9", "study=more"]) == 0
    (folder,) = Path("runs/more").iterdir()
    assert Run.read(folder).result["test_error"] == pytest.approx(run.result["test_error"], abs=3)
    assert run.result["weights_sha256"] != Run.read(folder).result["weights_sha256"]
    Path("mine.safetensors").rename("moved.safetensors")
    capsys.readouterr()
    assert main(["train", *SMALL, "model.weights=moved.safetensors", "optim.lr=1e-9", "study=more"]) == 0
    assert "is finished already" in capsys.readouterr().err  # the same weights, under another name
    Path("moved.safetensors").unlink()
    assert main(["eval", str(folder)]) == 0  # does not need the initial weights again


def test_weights_that_have_changed_since_they_were_chosen_are_refused(run: Run) -> None:
    assert main(["export", str(run.folder), "mine.safetensors"]) == 0
    config = compose_one([*SMALL, "model.weights=mine.safetensors", "study=more"])
    build_network(config)
    tensors = load_file("mine.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, "mine.safetensors")
    with pytest.raises(InputError, match=r"mine.safetensors has changed since it was chosen \(digest "):
        build_network(config)


def test_a_run_can_be_initialised_from_the_folder_of_another(run: Run) -> None:
    options = ["optim.lr=1e-30", "optim.weight_decay=0", "study=more"]
    assert main(["train", *SMALL, f"model.weights={run.folder}", *options]) == 0
    (folder,) = Path("runs/more").iterdir()
    trained, initial = load_network(folder).state_dict(), load_network(run).state_dict()
    assert all(torch.equal(trained[key], initial[key]) for key in initial if key.endswith("weight"))


def test_a_run_with_a_new_head_has_other_classes(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["data.classes=7", f"model.weights={run.folder}", "study=more"]
    assert main(["train", *SMALL, *changes]) == 2
    assert "train a new head on the other weights with model.head=new" in capsys.readouterr().err
    assert main(["train", *SMALL, *changes, "model.head=new", "optim.lr=1e-30", "optim.weight_decay=0"]) == 0
    (folder,) = Path("runs/more").iterdir()
    trained, initial = load_network(folder).state_dict(), load_network(run).state_dict()
    assert torch.equal(trained["stem.conv.weight"], initial["stem.conv.weight"])
    assert trained["head.linear.weight"].shape == (7, 16)
    assert main(["eval", str(folder)]) == 0  # needs neither the initial weights nor a new head


@pytest.mark.parametrize("command", [["eval"], ["export"]])
def test_the_checkpoint_of_a_finished_run_must_match_its_result(
    command: list[str], make_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.of(make_config(checkpoint=CheckpointTimes(every_minutes=5, every_n_steps=1)))
    train(run)
    previous, final = sorted(run.checkpoints.iterdir())
    arguments = [*command, str(run.folder), *([str(tmp_path / "x.safetensors")] if command == ["export"] else [])]
    final.write_bytes(final.read_bytes()[:1000])
    assert main(arguments) == 2
    assert "does not match its result.json; delete its result.json and train it again" in capsys.readouterr().err
    previous.unlink()
    assert main(arguments) == 2
    assert "has no readable checkpoint; delete its result.json and train it again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval"], "plainres eval needs the folder of a run or a file of weights first"),
        (["eval", "data=digits"], "plainres eval needs the folder of a run or a file of weights first"),
        (["eval", "nowhere"], "nowhere: there is no such file of weights, and no such folder of a run"),
        (["eval", "."], ". is not the folder of a run: it has no config.yaml"),
        (["eval", "begun"], "begun has no checkpoint yet; train it first"),
        (["export", "nowhere", "x.safetensors"], "nowhere is not the folder of a run: there is no such folder"),
        (["export", "begun", "x.safetensors"], "begun has no checkpoint yet; train it first"),
        (["export", "begun", "x.pth"], "x.pth: the name of the file must end with .safetensors"),
    ],
)
def test_invalid_arguments(
    arguments: list[str], message: str, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Run(run.config, tmp_path / "begun").prepare()
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_eval_warns_about_the_weights_of_an_unfinished_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.folder / "result.json").unlink()
    capsys.readouterr()
    assert main(["eval", str(run.folder)]) == 0
    assert f"{run.name} is not finished; using its weights after step 2" in capsys.readouterr().err


def test_paths_are_not_interpolated(run: Run) -> None:
    run.config.data["path"] = "/tmp/ü $x"
    assert with_overrides(run.config, ["data.test=9"]).data["path"] == "/tmp/ü $x"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["eval", "--help"])
    assert "plainres eval RUN|WEIGHTS [OVERRIDES]" in capsys.readouterr().out


def test_torchvisions_file_on_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate weights in torchvision's format with model=imagenet on images larger than the crop."""
    monkeypatch.chdir(tmp_path)
    torch.save(scrambled(ImageNetResNet((2, 2, 2, 2), bottleneck=False), 64).state_dict(), "resnet18.pth")
    data = ["data=synthetic", "data.shape=[3,64,64]", "data.classes=1000", "data.test=3"]
    assert main(["eval", "resnet18.pth", "model=imagenet", *data]) == 0
    (file,) = Path().glob("resnet18-predictions-synthetic-*.parquet")
    assert len(pq.read_table(file)) == 3


@pytest.mark.skipif(not CIFAR10.exists(), reason=f"no CIFAR-10 at {CIFAR10}; PLAINRES_CIFAR10 names a folder")
def test_akamasters_file_on_real_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": scrambled(CifarResNet(3)).state_dict()}, "resnet20.th")
    data = ["data=cifar10", f"data.path={CIFAR10}", "data.mean=[0.485,0.456,0.406]", "data.std=[0.229,0.224,0.225]"]
    assert main(["eval", "resnet20.th", *data, "data.test_per_class=20"]) == 0
    assert "of 200 images" in capsys.readouterr().out
    assert main(["eval", "resnet20.th", *data[:3]]) == 2
    assert "only one of data.mean and data.std is set" in capsys.readouterr().err


@pytest.mark.skipif(
    not (CIFAR10.exists() and AKAMASTER), reason="no CIFAR-10, or PLAINRES_AKAMASTER names no folder of his files"
)
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("resnet20-12fca82f.th", "8.27"),
        ("resnet32-d509ac18.th", "7.37"),
        ("resnet44-014dd654.th", "6.90"),
        ("resnet56-4bfd9763.th", "6.61"),
    ],
)
def test_akamasters_published_errors(
    name: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(AKAMASTER) / name
    depth = name[len("resnet") :].partition("-")[0]
    assert main(["eval", str(file), f"model.depth={depth}", "data=cifar10", f"data.path={CIFAR10}"]) == 0
    captured = capsys.readouterr()
    assert f"error {error} % of 10,000 images" in captured.out
    assert f"{file} is akamaster's; images are normalised as in its training" in captured.err
