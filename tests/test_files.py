import json
from pathlib import Path
from typing import Any

import pytest

from plainres.files import checkpoint_name, checkpoints_in, unfinished_checkpoints_in, write_atomically


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.json"
    write_atomically(file, json.dumps({"old": 1}))

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, json.dumps({"new": 1}))
    assert json.loads(file.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [file]


FOREIGN = (
    "step-best.ckpt",
    "step-20.ckpt",
    "step-0000000020.ckpt",
    "step-000000020 (copy).ckpt",
    "step-000000020 (1).ckpt",
    "step-000000020.sync-conflict-20260102-030405-ABCDEFG.ckpt",
    "step-000000020.ckpt.bak",
    "._step-000000020.ckpt",
    ".syncthing.step-000000020.ckpt.tmp",
    "step-٠٠٠٠٠٠٠٢٠.ckpt",
    "notes.tmp-1",
    "step-000000020.ckpt.tmp-mine",
    "Thumbs.db",
    ".DS_Store",
)


def test_checkpoints_and_their_temporary_files_are_known_by_their_whole_name(tmp_path: Path) -> None:
    ours, unfinished = ["step-000000009.ckpt", "step-000000020.ckpt"], "step-000000030.ckpt.tmp-123"
    for name in (*FOREIGN, *ours, unfinished):
        (tmp_path / name).touch()
    (tmp_path / "step-000000050.ckpt").mkdir()
    assert [path.name for path in checkpoints_in(tmp_path)] == ours
    assert [path.name for path in unfinished_checkpoints_in(tmp_path)] == [unfinished]
    assert checkpoint_name(20) == ours[1]
    assert checkpoints_in(tmp_path / "nowhere") == checkpoints_in(tmp_path / "notes.tmp-1") == []
