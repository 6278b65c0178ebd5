"""Digests of the code that trains a run: that of plainres, and the user's own classes."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from plainres.analysis.evaluation import load_network
from plainres.config.schema import Config
from plainres.data.sources import Images, Synthetic
from plainres.errors import InputError
from plainres.launch.hints import hints
from plainres.launch.preflight import check_unchanged
from plainres.runs import code
from plainres.runs.record import Run
from plainres.training.train import train

Make = Callable[..., Config]

CODE = '"""A module."""\n\n\ndef double(x):\n    """Double it."""\n    return 2 * x  # why\n'


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a package with the layout of plainres and one function in `models`."""
    for folder in ("runs", "models", "reporting", "config"):
        (tmp_path / folder).mkdir()
    for part in code.TRAINING_CODE:
        if part.endswith(".py"):
            (tmp_path / part).write_text("")
    (tmp_path / "models" / "twice.py").write_text(CODE)
    monkeypatch.setattr(code, "PACKAGE", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "same"),
    [
        ("models/twice.py", CODE.replace("Double it.", "Return twice the value.").replace("# why", "# because"), True),
        ("models/twice.py", CODE.replace("2 * x", "3 * x"), False),
        ("models/twice.py", CODE.replace('    """Double it."""\n', ""), True),
        ("models/another.py", "x = 1\n", False),
        ("reporting/table.py", "x = 1\n", True),
        ("randomness.py", "x = 1\n", False),
        ("config/schema.py", "x = 1\n", False),
        ("arithmetic.py", "x = 1\n", False),
        ("config/options.py", "x = 1\n", True),
    ],
)
def test_the_digest_depends_on_the_code_that_trains(package: Path, file: str, text: str, same: bool) -> None:
    before = code.source_sha256.__wrapped__()
    (package / file).write_text(text)
    assert (code.source_sha256.__wrapped__() == before) == same


def test_all_parts_of_the_digest_exist() -> None:
    assert all((code.PACKAGE / part).exists() for part in code.TRAINING_CODE)


OWN = """
from helpers.scales import SCALE
from torch import nn

class Own(nn.Module):
    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.align = nn.Conv2d(in_channels, out_channels, 1, stride)

    def forward(self, x, fx):
        return fx + SCALE * self.align(x)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_config: Make) -> tuple[Path, Config]:
    """Return the folder of a shortcut of one's own, which imports another module, and a configuration with it."""
    folder = tmp_path / "own"
    (folder / "helpers").mkdir(parents=True)
    (folder / "own_shortcut.py").write_text(OWN)
    (folder / "helpers" / "__init__.py").write_text("")
    (folder / "helpers" / "scales.py").write_text("SCALE = 0.5\n")
    monkeypatch.syspath_prepend(folder)
    for name in ("own_shortcut", "helpers", "helpers.scales"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    config = make_config(optim={"steps": 1, "epochs": None})
    config.model["shortcut"] = {"_target_": "own_shortcut.Own", "_partial_": True}
    return folder, config


@pytest.mark.parametrize(
    ("file", "old", "new", "same"),
    [
        ("own_shortcut.py", "fx + SCALE", "fx - SCALE", False),
        ("own_shortcut.py", "return fx + SCALE", "# scaled\n        return fx+SCALE", True),
        ("own_shortcut.py", "def forward(self, x, fx):", 'def forward(self, x, fx):\n        """Add."""', True),
        ("helpers/scales.py", "0.5", "0.25", False),
        ("helpers/__init__.py", "", "import sys\n", False),
        ("another.py", "", "x = 1\n", True),
    ],
)
def test_the_digest_of_a_class_of_ones_own(own: tuple[Path, Config], file: str, old: str, new: str, same: bool) -> None:
    folder, config = own
    before = code.own_classes(config)
    assert list(before) == ["own_shortcut.Own"]
    path = folder / file
    path.write_text(path.read_text().replace(old, new, 1) if path.exists() else new)
    assert (code.own_classes(config) == before) == same


def test_classes_of_plainres_and_torch_need_no_digest(make_config: Make) -> None:
    config = make_config()
    config.model["norm"] = {"_target_": "torch.nn.BatchNorm2d", "_partial_": True}
    assert code.own_classes(config) == {}


def test_an_edited_class_is_neither_trained_nor_evaluated_under_the_same_name(own: tuple[Path, Config]) -> None:
    folder, config = own
    run = Run.of(config)
    train(run)
    assert run.code["classes"] == run.result["attempts"][0]["classes"] == code.own_classes(config)
    check_unchanged([run])
    file = folder / "own_shortcut.py"
    file.write_text(file.read_text().replace("fx + SCALE", "fx - SCALE"))
    message = f"{run.folder} was trained with another source of own_shortcut.Own"
    for refused in (lambda: check_unchanged([run]), lambda: train(run), lambda: load_network(run)):
        with pytest.raises(InputError, match=message):
            refused()
    file.write_text(OWN)
    check_unchanged([run])


def test_a_class_that_is_edited_after_its_import_is_not_trained(own: tuple[Path, Config]) -> None:
    """Else the imported one would train under the digest of the edited one, as in a notebook."""
    folder, config = own
    train(Run.of(config))
    file = folder / "own_shortcut.py"
    file.write_text(OWN.replace("fx + SCALE", "fx - SCALE"))
    edited = Run.of(replace(config, study="edited"))
    with pytest.raises(
        InputError, match=r"of own_shortcut has changed since this process imported it .*; start Python"
    ):
        train(edited)
    assert not edited.finished
    del sys.modules["own_shortcut"]  # as if Python had been started again
    train(edited)
    first, second = (run.result["weights_sha256"] for run in (Run.of(config), edited))
    assert first != second


def test_a_helper_that_is_edited_must_be_imported_again_too(own: tuple[Path, Config]) -> None:
    folder, config = own
    train(Run.of(config))
    (folder / "helpers" / "scales.py").write_text("SCALE = 0.25\n")
    importlib.reload(sys.modules["own_shortcut"])
    with pytest.raises(InputError, match=r"the source of helpers\.scales has changed since this process imported it"):
        train(Run.of(replace(config, study="edited")))
    importlib.reload(sys.modules["helpers.scales"])
    importlib.reload(sys.modules["own_shortcut"])
    train(Run.of(replace(config, study="edited")))


def test_a_module_that_is_found_only_after_the_import_is_no_edit(own: tuple[Path, Config]) -> None:
    """Found in a folder that the class's module adds to the path."""
    folder, config = own
    (folder / "more").mkdir()
    (folder / "more" / "parts.py").write_text("PART = 1\n")
    file = folder / "own_shortcut.py"
    file.write_text(f"import sys\nsys.path.append({str(folder / 'more')!r})\nfrom parts import PART\n{OWN}")
    train(Run.of(config))
    assert Run.of(config).finished


def test_a_class_that_is_edited_while_a_run_reads_its_images_is_not_trained(
    own: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = own
    load = Synthetic.load

    def slowly(source: Synthetic) -> Images:
        assert "own_shortcut" in sys.modules
        (folder / "own_shortcut.py").write_text(OWN.replace("fx + SCALE", "fx - SCALE"))
        return load(source)

    monkeypatch.setattr(Synthetic, "load", slowly)
    with pytest.raises(InputError, match=r"of own_shortcut has changed since this process imported it"):
        train(Run.of(config))
    assert Run.of(config).step == 0


def test_a_run_that_resumes_with_other_code_of_plainres_says_so(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.of(make_config())
    run.prepare()
    run.begin("digest of the images")
    (run.checkpoints / "step-000000001.ckpt").touch()
    assert hints([run]) == []
    commit = "0123456789abcdef0123456789abcdef01234567"
    (run.folder / "code.json").write_text(f'{{"plainres": "0.1.0", "git_commit": "{commit}", "source_sha256": "x"}}')
    (hint,) = hints([run])
    assert hint.startswith(
        f"hint: {run.name} began with plainres 0.1.0 at commit 01234567, whose training code differs"
    )


def test_the_commit_is_that_of_plainres_in_a_hook_of_another_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = code.git_commit.__wrapped__()
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert code.git_commit.__wrapped__() == expected
