"""Files of weights: safetensors and the files of torch.save, recognised by their content, whatever their names.

No code in a file is run: classes other than those of plain data are refused.
"""

import argparse
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from plainres.errors import InputError, first_line

# first bytes of files that often are taken for weights, and what to do about them
FOREIGN = (
    (rb"version https://git-lfs", "it is a pointer of Git LFS, not the file itself; fetch that with git lfs pull"),
    (rb"\s*<", "it is a web page, not the file itself; download the file that the page shows"),
    (rb"\s*\{.*\"weight_map\"", "it is the index of weights in several files; join them in one file of safetensors"),
    (rb"\s*[{\[]", "it is JSON; give the file of weights beside it"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|.{257}ustar", "it is an archive; unpack it and give the file inside"),
    (rb"\x89HDF", "it is HDF5, as Keras writes it; save the weights as safetensors"),
    (rb"\x08[\x01-\x20]\x12", "it looks like ONNX; save the state dict of the network instead"),
    (
        rb"[\x01-\x08]\0\0\0|[1-8]\n",
        "it looks like a file of Lua Torch, whose weights have to be converted",
    ),
)
PICKLE, ZIP = b"\x80", b"PK"
DIGEST = "sha256"  # metadata key of exported files
# values that training scripts store beside the weights
PLAIN_DATA: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def read_content(file: Path) -> Any:
    """Read a file of weights: a mapping of names to tensors, or whatever else torch.save stored.

    Raises:
        InputError: the file is absent, damaged or of another kind, or contains objects other than plain data.
    """
    if not file.is_file():
        raise InputError(f"model.weights={file}: there is no such file")
    try:
        with file.open("rb") as opened:
            head = opened.read(1000)
        if is_safetensors(head):
            return _read_safetensors(file)
        if head.startswith(ZIP):
            _check_zip(file)
        elif not head.startswith(PICKLE):
            raise InputError(f"cannot read weights from {file}: {_kind(head)}")
        # opened here, because torch.load goes by the ending of a name
        with file.open("rb") as opened, torch.serialization.safe_globals(PLAIN_DATA):
            return torch.load(opened, weights_only=True, map_location="cpu")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read weights from {file}: {error.strerror or first_line(error)}") from error
    except (SafetensorError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        reason = first_line(error) or "the file is truncated"
        raise InputError(f"cannot read weights from {file}: it is damaged ({reason}); fetch it again") from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        if name := re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error)):
            raise InputError(
                f"{file} contains objects other than tensors, which are never unpickled ({name[1]}); where its code is "
                "at hand and trusted, save the network's state_dict() with torch.save"
            ) from error
        raise InputError(
            f"cannot read weights from {file}: it is damaged, or contains objects other than tensors, which are never "
            f"unpickled ({type(error).__name__}); fetch it again, or save the network's state_dict() with torch.save"
        ) from error


def is_safetensors(head: bytes) -> bool:
    """Whether the first bytes of a file are those of safetensors: the length of a JSON header, and the header."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27


def metadata_of(file: Path) -> dict[str, str]:
    """Return the metadata of a readable file of weights, {} if its format has none."""
    with file.open("rb") as opened:
        if not is_safetensors(opened.read(9)):
            return {}
    with safetensors.safe_open(file, "pt") as reader:
        return reader.metadata() or {}


def state_dicts(content: Any, path: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors of each mapping inside the content of a file, with the keys that lead to it, such as `net`."""
    if isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if tensors:
            yield path, tensors
        for key, value in content.items():
            yield from state_dicts(value, f"{path}.{key}".lstrip("."))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Compute a digest of named tensors on the CPU, which exported files record: safetensors has no checksums."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    tensors = safetensors.torch.load_file(file)
    recorded = metadata_of(file).get(DIGEST)
    if recorded is not None and recorded != digest_of(tensors):
        raise InputError(f"cannot read weights from {file}: it is damaged (its checksum differs); export it again")
    return tensors


def _check_zip(file: Path) -> None:
    """Verify the checksums of a zip archive, which torch.load ignores.

    Raises:
        InputError: a checksum differs, or torch.save did not write the archive.
        BadZipFile: the archive is incomplete.
    """
    with zipfile.ZipFile(file) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names:
            raise InputError(
                f"cannot read weights from {file}: it is TorchScript; save the network's state_dict() with torch.save"
            )
        if "data.pkl" not in names:
            raise InputError(
                f"cannot read weights from {file}: it is a zip archive that torch.save did not write; unpack it and "
                "give the file inside"
            )
        if damaged := archive.testzip():
            raise InputError(
                f"cannot read weights from {file}: it is damaged, or was saved without checksums ({damaged} does not "
                "match its own); fetch or save it again"
            )


def _kind(head: bytes) -> str:
    """Explain by its first bytes why a file is no file of weights."""
    if not head:
        return "the file is empty or truncated; fetch it again"
    kinds = (kind for pattern, kind in FOREIGN if re.match(pattern, head, re.DOTALL))
    return next(kinds, "it is neither safetensors nor a file of torch.save; save the network's state_dict() as one")
