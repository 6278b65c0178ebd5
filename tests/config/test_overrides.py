"""Words of the command line: names that look like numbers, and words that Hydra's grammar rejects."""

import sys
from pathlib import Path

import pytest

from plainres.cli.main import main
from plainres.config.compose import compose
from plainres.config.overrides import as_typed, check_word, parse
from plainres.errors import InputError


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("study=2024_01_15", "study='2024_01_15'"),
        ("study=1e3,007,digits", "study='1e3',007,digits"),
        ("study=null, true", "study='null','true'"),
        ("+study=+1", "+study='+1'"),
        ("study='1e3'", "study='1e3'"),
        ("study='a,b',c", "study='a,b',c"),
        ("study=${seed}", "study=${seed}"),
        ("study=choice(1,2)", "study=choice(1,2)"),
        ("runs=1_000", "runs='1_000'"),
        ("data.path=null", "data.path=null"),
        ("data.path=2024_01_15", "data.path='2024_01_15'"),
        ("seed=1_000", "seed=1_000"),
        ("-m", "-m"),
    ],
)
def test_texts_that_look_like_numbers_are_quoted(word: str, quoted: str) -> None:
    assert as_typed(word) == quoted


TYPED = ["2024_01_15", "1e3", "007", "null", "true", "1.0", "0.5", "+1", "inf", "2024-01-15", "0x10", "no", "a b"]


def test_a_sweep_over_studies_with_axes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["plainres"])
    with pytest.raises(InputError, match=r"^experiment=digits has axes of its own \(model.depth, model"):
        compose(["-m", "experiment=digits,digits_warmup"])
    assert len(compose(["-m", "experiment=digits", "seed=7,8", "model.depth=8"])) == 4


@pytest.mark.parametrize("word", ["hydra.sweep.dir=/scratch", "hydra.run.dir=/scratch", "hydra.output_subdir=x"])
def test_folders_of_hydra_are_refused(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["plainres"])
    with pytest.raises(InputError, match=rf"^{word.partition('=')[0]} has no effect; runs are kept in runs=FOLDER"):
        compose([word])


@pytest.mark.parametrize("study", ["report", ".hidden"])
def test_a_study_that_would_not_be_listed_is_refused(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["plainres"])
    with pytest.raises(InputError, match="the name of a report or of a hidden folder"):
        compose([f"study={study}"])


@pytest.mark.parametrize("typed", [*TYPED, "'1e3'"])
def test_the_name_of_a_study_is_what_was_typed(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["plainres"])
    (config,) = compose([f"study={typed}"])
    assert config.study == typed.strip("'")


def test_the_names_of_studies_in_a_sweep_are_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["plainres"])
    assert [config.study for config in compose(["-m", f"study={','.join(TYPED)}"])] == TYPED
    with pytest.raises(InputError, match=r"^study=2024_01_15,1e3 lists several values: add -m "):
        compose(["study=2024_01_15,1e3"])


def test_a_choice_between_studies_that_are_read_as_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["plainres"])
    assert [config.study for config in compose(["-m", "study=choice(a,b)"])] == ["a", "b"]
    with pytest.raises(
        InputError, match=r"^study=choice\(b,2024_01_15\): 20240115 is read as a number; list the values"
    ):
        compose(["-m", "study=choice(b,2024_01_15)"])
    with pytest.raises(InputError, match="2024_01_15 is read as a number"):
        compose(["-m", "study=choice('2024_01_15',b)"])


def test_studies_among_the_axes_of_a_file_are_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["plainres"])
    file = tmp_path / "experiment" / "own.yaml"
    file.parent.mkdir()
    axes = "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      study: "
    file.write_text(f"{G}{axes}'1e3'\n")
    assert [config.study for config in compose([f"--config-dir={tmp_path}", "experiment=own"])] == ["1e3"]
    file.write_text(f"{G}{axes}1e3,2024_01_15\n")
    studies = [config.study for config in compose([f"--config-dir={tmp_path}", "experiment=own"])]
    assert studies == ["1e3", "2024_01_15"]
    file.write_text(f"{G}{axes}1e3\n")
    with pytest.raises(InputError, match=r"own\.yaml: YAML reads the name of the study as 1000\.0; write it in quotes"):
        compose([f"--config-dir={tmp_path}", "experiment=own"])


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        *((f"study=a{each}b", f"{each} must be quoted, as in 'study=\"a{each}b\"'") for each in "~#&;!<>^`"),
        ("study=ünïcode", "ü must be quoted, as in 'study=\"ünïcode\"'"),
        (
            'study=a"b',
            "the value cannot be read (token recognition error at: '\"b'); quote it, as in 'study='\"'\"'a\"b",
        ),
        ("runs=~/x", "~ is not expanded here; write runs=$HOME/x"),
        ("study=\u201ca\u201d", "\u201c is a typographic quote; write straight ones, as in 'study=\"a\"'"),
        ("study=\u2018a\u2019", "\u2018 is a typographic quote; write straight ones, as in 'study=\"a\"'"),
        (
            "optim.lr=1e\u20133",
            "\u2013 is an en dash (U+2013), not a hyphen; write optim.lr=1e-3, or quote it, as in 'optim",
        ),
        (
            "study=a\u00a0b",
            "it contains a no-break space (U+00A0); type a space instead, or quote the value, as in 'study=\"a\u00a0b",
        ),
        ("study=a\u200bb", "it contains a zero width space (U+200B); type a space"),
        ("séed=1", "the name of no option contains é"),
        ("seed\u00a0=1", "there must be no space around the name; write seed=1"),
        ("seed =1", "there must be no space around the name; write seed=1"),
        ("optim.milestones=[0.5", "[ has no partner; add it, or quote the value, as in 'optim.milestones=\"[0.5\"'"),
        ("study=a)", ") has no partner"),
        ("model/shortcut=plain,", "it ends with a comma; write model/shortcut=plain"),
        (
            "study=a=b",
            "the value cannot be read (mismatched input '=' expecting <EOF>); quote it, as in 'study=\"a=b\"'",
        ),
        ("study=a(b)", "quote it, as in 'study=\"a(b)\"'"),
    ],
)
def test_a_word_outside_the_grammar_is_explained(word: str, problem: str) -> None:
    with pytest.raises(InputError) as error:
        parse(word)
    assert str(error.value).startswith(f"{word}: ")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["a~b", "a#b", "ünïcode", "a=b", "a(b)", "\u201ca\u201d", "a\u00a0b", "it's"])
def test_the_advice_to_quote_is_right(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["plainres"])
    (config,) = compose([f'study="{value}"'])
    assert config.study == value


@pytest.mark.parametrize(
    ("previous", "word", "following", "message"),
    [
        ("", "\u2013m", "seed=0,1", "'\u2013m' begins with an en dash (U+2013), not with a hyphen; write -m"),
        (
            "",
            "\u2014multirun",
            "",
            "'\u2014multirun' begins with an em dash (U+2014), not with a hyphen; write --multirun",
        ),
        ("seed=0,", "1", "", "'seed=0,' and '1' are separate words; write seed=0,1 without spaces"),
        ("seed=0", ",1", "", "'seed=0' and ',1' are separate words; write seed=0,1 without spaces"),
        ("seed=", "1", "", "'seed=' and '1' are separate words; write seed=1 without spaces"),
        ("", "seed", "=1", "'seed' and '=1' are separate words; write seed=VALUE without spaces"),
        ("seed=0", "depth", "", "'depth' is not an override; write group=option or path.to.key=value, as in "),
    ],
)
def test_a_word_that_is_no_override_is_explained(previous: str, word: str, following: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        check_word(word, previous, following)
    assert str(error.value).startswith(message)


G = "# @package _global_\n"
MULTIRUN = f"{G}hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      "


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("experiment", "study: x\n", "{file} must begin with the line `# @package _global_`"),
        ("experiment", "# Mine.\n" + G, "{file} must begin with the line `# @package _global_`"),
        ("experiment", "", "{file} must begin with the line `# @package _global_`"),
        (
            "experiment",
            "\ufeff" + G,
            "{file} must begin with the line `# @package _global_`, but begins with a byte order mark; save it as "
            "UTF-8 without one",
        ),
        (
            "experiment",
            "defaults:\n  - override /data: digits\nstudy: x\n",
            "{file} must begin with the line `# @package _global_`",
        ),
        (
            "experiment",
            f"{G}defaults:\n  - data: digits\nstudy: x\n",
            "{file}: Could not find 'experiment/data/digits'; `override /data: digits` chooses an option of ",
        ),
        (
            "experiment",
            f"{G}defaults:\n  - /data: digits\nstudy: x\n",
            "data appears more than once in the final defaults list; in defaults, `override /GROUP: OPTION` chooses ",
        ),
        ("experiment", f"{G}hydra: {{mode: MULTI}}\n", "{file}: hydra.mode must be RUN or MULTIRUN or null"),
        (
            "experiment",
            f"{MULTIRUN}model.depth: 8,14\n".replace("  mode: MULTIRUN\n", ""),
            "hydra.sweeper.params has axes (model.depth), but hydra.mode is not MULTIRUN; write `mode: ",
        ),
        ("experiment", f"{G}study: [x\n", "{file}, line 3: expected ',' or ']', but got '<stream end>'"),
        ("experiment", f"{G}seed: 1\nseed: 2\n", "{file}, line 3: found duplicate key seed"),
        (
            "experiment",
            f"{G}model:\n\tdepth: 8\n",
            "{file}, line 3: found character '\\t' that cannot start any token; indent with spaces, not with tabs",
        ),
        ("experiment", f"{G}study: \x01\n", "{file}: special characters are not allowed (at character 27)"),
        ("experiment", f"{G}- a\n", "{file} must contain keys and values"),
        ("experiment", f"{G}study: null\n", "{file}: study must be a string"),
        (
            "experiment",
            f"{G}study: 2024_01_15\n",
            "{file}: YAML reads the name of the study as 20240115; write it in quotes",
        ),
        ("experiment", f"{G}study: 1e3\n", "{file}: YAML reads the name of the study as 1000.0; write it in quotes"),
        ("experiment", f"{G}lr: 3\n", "{file}: there is no option lr; did you mean optim.lr?"),
        (
            "experiment",
            f"{G}optim:\n  learning_rate: 3\n",
            "{file}: there is no option optim.learning_rate; did you mean optim.lr?",
        ),
        (
            "experiment",
            f"{G}checkpoint:\n  foo: 3\n",
            "{file}: there is no option checkpoint.foo; there are every_minutes, every_n_steps",
        ),
        ("experiment", f"{G}model:\n  foo: 3\n", "model has no option 'foo'; CifarNet takes in_channels, "),
        ("experiment", f"{G}model:\n  shortcut:\n    foo: 3\n", "model.shortcut has no option 'foo'; Identity takes "),
        (
            "experiment",
            f"{G}model:\n  shortcut:\n    _target_: plainres.models.ReZero\n",
            "model.shortcut._target_ is plainres.models.ReZero, but that of model/shortcut=identity is ",
        ),
        ("experiment", f"{G}data:\n  foo: 3\n", "data has no option 'foo'; Digits takes pad, flip, "),
        ("experiment", f"{MULTIRUN}lr: 1,2\n", "there is no option lr; did you mean optim.lr?"),
        ("experiment", f"{MULTIRUN}+optim.foo: 1,2\n", "there is no option optim.foo; there are batch_size, epochs, "),
        ("experiment", f"{MULTIRUN}+model.foo: 1,2\n", "model has no option 'foo'; CifarNet takes "),
        ("experiment", f"{MULTIRUN}study: a~b,c\n", "study=a~b,c: ~ must be quoted, as in 'study=\"a~b,c\"'"),
        ("optim", "learning_rate: 1\n", "{file}: there is no option optim.learning_rate; did you mean optim.lr?"),
        ("trainer", "max_time: 1\n", "{file}: there is no option trainer.max_time; there are accelerator, devices, "),
        ("logger", "wand: true\n", "{file}: there is no option logger.wand; did you mean logger.wandb?"),
        ("data", "defaults: [digits, _self_]\nfoo: 1\n", "data has no option 'foo'; Digits takes pad, flip, "),
        ("model/shortcut", "defaults: [identity, _self_]\nfoo: 1\n", "model.shortcut has no option 'foo'; Identity "),
        (
            "probes",
            "_target_: plainres.models.Responses\n",
            "probes._target_ is 'plainres.models.Responses'; it must be",
        ),
        ("probes", "mine:\n  _target_: plainres.models.Responses\n  foo: 1\n", "probes.mine has no option 'foo'; Resp"),
    ],
)
def test_a_mistake_in_a_yaml_file_is_one_line(
    name: str, text: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    option = f"{name}=[mine]" if name == "probes" else f"{name}=mine"
    assert main(["train", "--dry-run", "--config-dir", str(tmp_path), option]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith(f"plainres: {message.format(file=file)}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_yaml_file_in_another_encoding_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    for encoding in ("latin-1", "utf-16"):
        file = tmp_path / "experiment" / f"{encoding}.yaml"
        file.write_text(f"{G}study: café\n", encoding=encoding)
        assert main(["train", "--config-dir", str(tmp_path), f"experiment={encoding}"]) == 2
        assert capfd.readouterr().err == f"plainres: {file} is not UTF-8; save it in this encoding\n"
