"""Images before decoding: the same in every process, read by several threads, and named in messages."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from plainres.data.encoded import Arrays, DamagedImageError, Encoded, Files, Rows, Subset
from plainres.errors import InputError
from support.images import encode, images_in, rows_of, write_folders

PIXELS = [np.full((2, 2, 3), index, dtype=np.uint8) for index in range(10)]
IMAGES = [encode(each) for each in PIXELS]
TARGETS = torch.arange(10) % 2


def made(kind: str, folder: Path) -> Encoded:
    if kind == "files":
        write_folders(folder, {f"{index}.png": image for index, image in enumerate(IMAGES)})
        return Files(folder, [f"{index}.png" for index in range(10)], TARGETS)
    if kind == "rows":
        for file, part in (("a.parquet", slice(0, 4)), ("b.parquet", slice(4, 10))):
            pq.write_table(pa.table({"image": rows_of(IMAGES[part])}), folder / file, row_group_size=3)
        return Rows(folder, ["a.parquet", "b.parquet"], "image", TARGETS)
    return Arrays("x.npz", np.stack(PIXELS), TARGETS)


@pytest.mark.parametrize("kind", ["files", "rows", "arrays"])
def test_every_image_is_read_in_any_order_by_any_process(kind: str, tmp_path: Path) -> None:
    images = pickle.loads(pickle.dumps(made(kind, tmp_path)))
    order = [7, 0, 3, 9, 4, 1, 8, 2, 6, 5]
    expected = PIXELS if kind == "arrays" else IMAGES
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(images.read, order))
    for index, content in zip(order, read, strict=True):
        np.testing.assert_array_equal(content, expected[index])
    assert len(images) == len(images.targets) == 10
    part = Subset(images, torch.tensor([8, 3]))
    assert part.targets.tolist() == [0, 1]
    np.testing.assert_array_equal(part.read(1), expected[3])
    assert part.name(0) == images.name(8)


def test_images_are_named_by_file_and_row(tmp_path: Path) -> None:
    rows = made("rows", tmp_path)
    assert [rows.name(index) for index in (0, 3, 4, 9)] == [
        "row 0 of a.parquet",
        "row 3 of a.parquet",
        "row 0 of b.parquet",
        "row 5 of b.parquet",
    ]
    assert made("files", tmp_path).name(2) == "2.png"
    assert made("arrays", tmp_path).name(2) == "image 2 of x.npz"


@pytest.mark.parametrize("kind", ["files", "rows"])
def test_a_file_that_vanishes_is_damage(kind: str, tmp_path: Path) -> None:
    images = made(kind, tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(DamagedImageError, match="cannot be read"):
        images.read(5)


def test_rows_of_a_file_that_has_changed_are_not_read(tmp_path: Path) -> None:
    images = made("rows", tmp_path)
    pq.write_table(pa.table({"image": rows_of(IMAGES[::-1])}), tmp_path / "a.parquet")
    with pytest.raises(DamagedImageError, match="cannot be read: it has changed since its rows were listed"):
        images.read(1)
    assert images.read(4) == IMAGES[4]


def test_a_missing_column_is_found_without_reading_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": rows_of(IMAGES), "label": TARGETS.numpy()}), tmp_path / f"{split}.parquet")
    monkeypatch.setattr(pq, "read_table", lambda *_, **__: pytest.fail("a column was read"))
    for column in ("image_column", "label_column"):
        with pytest.raises(InputError, match=r"no column 'x'; available columns: image, label"):
            images_in(tmp_path, tmp_path / "cache", **{column: "x"})
