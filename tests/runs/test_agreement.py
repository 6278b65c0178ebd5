from collections.abc import Callable
from contextlib import nullcontext

import pytest

from plainres.config.schema import Config, SweepOptions
from plainres.errors import InputError
from plainres.runs.agreement import check_code, check_data
from plainres.runs.record import DIVERGED, Run

Make = Callable[..., Config]
HUB = {"_target_": "plainres.data.HubImages", "name": "tiny"}


def test_the_digest_of_the_images_is_recorded_from_the_start_and_checked(make_config: Make) -> None:
    run = Run.of(make_config(data=HUB | {"path": "A"}))
    assert run.data_sha256 is None
    check_data(run, "a" * 64)
    run.prepare()
    assert run.class_names is None
    run.begin("a" * 64, ["cat", "dog"])
    assert (run.data_sha256, run.class_names) == ("a" * 64, ["cat", "dog"])
    check_data(run, "a" * 64)
    check_data(run, "b" * 64)  # nothing is trained yet, and the run begins anew
    (run.checkpoints / "step-000000005.ckpt").touch()
    other = Run.of(make_config(data=HUB | {"path": "B"}))
    assert other.folder == run.folder
    with pytest.raises(InputError) as error:
        check_data(other, "b" * 64)
    assert str(error.value) == (
        f"{run.folder} was trained on other images (data=synthetic data.path=A, digest aaaaaaaa) than these "
        "(data=synthetic data.path=B, digest bbbbbbbb); to train on these as well, add study=NAME"
    )
    assert Run.read(run.folder).config.data["path"] == "A"


def test_a_class_can_be_mended_until_the_first_checkpoint(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run, source = Run.of(make_config()), {"mine.Halved": "0123456789"}
    monkeypatch.setattr("plainres.runs.agreement.own_classes", lambda _: source)
    monkeypatch.setattr("plainres.runs.record.code_of", lambda _: {"classes": dict(source)})
    run.prepare()
    run.begin("a" * 64)
    source["mine.Halved"] = "9876543210"
    check_code(run)
    run.begin("a" * 64)
    assert run.code == {"classes": source}
    (run.checkpoints / "step-000000005.ckpt").touch()
    source["mine.Halved"] = "0123456789"
    with pytest.raises(InputError, match=r"mine.Halved \(digest 98765432, now 01234567\)"):
        check_code(run)


@pytest.mark.parametrize("retry", [False, True])
def test_a_diverged_run_belongs_to_its_images_unless_it_is_retried(make_config: Make, retry: bool) -> None:
    run = Run.of(make_config(sweep=SweepOptions(retry_failed=retry)))
    run.prepare()
    run.begin("a" * 64)
    run.fail(f"{DIVERGED}: the loss is NaN")
    with nullcontext() if retry else pytest.raises(InputError, match="was trained on other images"):
        check_data(run, "b" * 64)
