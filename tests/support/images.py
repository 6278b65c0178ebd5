"""Data sets of images that tests write."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from plainres.data.hub import HubImages


def encode(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """Return an encoded image of pixels (H, W) or (H, W, C)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write_table(file: Path, columns: Mapping[str, Any], class_names: Sequence[str] | None = None) -> None:
    """Write a Parquet file; `class_names` are those of the column `label`, as the datasets library writes them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns))
    if class_names is not None:
        features = {"label": {"names": list(class_names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file)


def rows_of(images: Sequence[bytes | None]) -> pa.Array:
    """Return a column of encoded images in the Hub's type."""
    rows = [None if image is None else {"bytes": image, "path": None} for image in images]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def write_parquet(folder: Path, pixels: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[Any]]) -> None:
    """Write a folder in the Hub's layout: <split>-00000-of-00001.parquet with the columns img and label."""
    for split, images in pixels.items():
        columns = {"img": rows_of([encode(image) for image in images]), "label": pa.array(labels[split])}
        write_table(folder / f"{split}-00000-of-00001.parquet", columns)


def write_folders(folder: Path, files: Mapping[str, bytes | np.ndarray]) -> Path:
    """Write files by their path below a folder, and return the folder. Arrays are encoded as PNG."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(content) if isinstance(content, np.ndarray) else content)
    return folder


def images_in(path: Path | str, cache: Path, **options: Any) -> HubImages:
    """Return the source of data=images for a data set."""
    return HubImages(**{"path": str(path), "cache": str(cache), "pad": 0, "flip": False} | options)
