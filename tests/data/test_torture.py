"""Every data set of the torture set is read as a direct decoding reads it, or refused by one line that says why."""

import re
from pathlib import Path

import numpy as np
import pytest

from data.torture import CASES, Case
from plainres.errors import InputError
from support.images import images_in

MEGABYTES = 4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_read_right_or_refused(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, cache = tmp_path / "data", tmp_path / "cache"
    case.write(folder)
    path = folder / case.inside if case.inside else folder
    if case.message:
        with pytest.raises(InputError, match=case.message) as refused:
            images_in(path, cache, **case.options).load()
        assert "\n" not in str(refused.value)
        assert not [left for left in cache.glob("*") if left.is_dir()]
        assert not Path("executed").exists()
        return
    images = images_in(path, cache, **case.options).load()
    printed = capsys.readouterr().err
    assert re.search(case.notes, printed), printed
    if case.train:
        assert images.train.targets.tolist() == list(case.labels)
        np.testing.assert_array_equal(images.train.images, np.stack(case.train))
    if case.test_labels is not None:
        assert images.test.targets.tolist() == list(case.test_labels)


def test_there_are_many_small_cases(tmp_path: Path) -> None:
    for case in CASES:
        case.write(tmp_path / case.name)
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    assert sum(file.lstat().st_size for file in tmp_path.rglob("*") if file.is_file()) < MEGABYTES * 1e6
