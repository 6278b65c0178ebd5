"""Torture set: small data sets with every mode, size, damage and name that plainres must read right or refuse.

`CASES` makes them. Run as a script, it writes them into a folder: python tests/data/torture.py FOLDER
"""

import io
import os
import pickle
import struct
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

from support.images import encode, rows_of, write_folders, write_table

RANDOM = np.random.default_rng(0)
H, W = 6, 5
RGB = RANDOM.integers(0, 256, (H, W, 3), dtype=np.uint8)
OTHER = RANDOM.integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = RANDOM.integers(0, 256, (H, W), dtype=np.uint8)
DEEP = RANDOM.integers(0, 1 << 16, (H, W), dtype=np.uint16)
DEEP_RGB = RANDOM.integers(0, 1 << 16, (H, W, 3), dtype=np.uint16)
OPAQUE = np.full((H, W, 1), 255, dtype=np.uint8)
HALF = np.full((H, W, 1), 128, dtype=np.uint8)

Pixels = Sequence[np.ndarray]


@dataclass(frozen=True)
class Case:
    """Data set, and the images and labels that must be read from it, or the message that must refuse it.

    `message` and `notes` are regular expressions, of the error and of what is printed.
    """

    name: str
    write: Callable[[Path], object]
    train: Pixels = ()
    labels: Sequence[int] = ()
    test_labels: Sequence[int] | None = None
    message: str = ""
    notes: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    inside: str = ""  # path of the data set below the folder


def three(pixels: np.ndarray) -> np.ndarray:
    """Return grey pixels as RGB."""
    return pixels if pixels.ndim == 3 and pixels.shape[2] == 3 else np.repeat(pixels.reshape(H, W, 1), 3, 2)


def opened(content: bytes) -> np.ndarray:
    """Decode directly, by Pillow."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # stored pixels -> upright pixels
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def turned(orientation: int) -> np.ndarray:
    """Return pixels that show `RGB`-sized images (H, W) after the orientation is applied."""
    return RGB if orientation < 5 else np.ascontiguousarray(RGB.transpose(1, 0, 2))


def png(header: tuple[int, int, int, int], rows: bytes, *, crc: int = 0, extra: bytes = b"") -> bytes:
    """Write a PNG by hand: width, height, bits and colour type, and filtered rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ crc)

    head = struct.pack(">IIBBBBB", *header, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def deep_png(pixels: np.ndarray) -> bytes:
    """Write RGB of 16 bits, which Pillow cannot."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png((W, H, 16, 2), rows)


def palette() -> Image.Image:
    return Image.fromarray(RGB).quantize(8)


def with_one(name: str, content: bytes | np.ndarray, extension: str = "png", **case: Any) -> Case:
    """Return a case with one special image, train/a/0, among plain ones."""
    plain = {"train/b/0.png": OTHER, "test/a/0.png": OTHER, "test/b/0.png": OTHER}

    def write(folder: Path) -> None:
        write_folders(folder, {f"train/a/0.{extension}": content, **plain})

    if "pixels" in case:
        case |= {"train": [three(case.pop("pixels")), OTHER], "labels": [0, 1]}
    if case.get("message"):
        case["message"] = rf"train/a/0\.{extension} {case['message']}"
    return Case(name, write, **case)


def folders(name: str, files: Mapping[str, Any], **case: Any) -> Case:
    """Return a case of files; a tuple is a link to its only element."""

    def write(folder: Path) -> None:
        write_folders(folder, {path: content for path, content in files.items() if not isinstance(content, tuple)})
        for path, content in files.items():
            if isinstance(content, tuple):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).symlink_to(content[0])

    return Case(name, write, **case)


def in_both(pixels: np.ndarray, *names: str) -> dict[str, np.ndarray]:
    """Return the files of one image in each class of both splits; the pixels tell the classes apart."""
    return {f"{split}/{name}/0.png": pixels + index for split in ("train", "test") for index, name in enumerate(names)}


def empty(*names: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in names:
            (folder / name).mkdir(parents=True)

    return write


def both(first: Callable[[Path], object], second: Callable[[Path], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        first(folder)
        second(folder)

    return write


def two(split: str = "", a: str = "a", b: str = "b") -> dict[str, np.ndarray]:
    """Return the files of one image in each of two classes."""
    return {f"{split}{a}/0.png": RGB, f"{split}{b}/0.png": OTHER}


TWO: dict[str, Any] = {"train": [RGB, OTHER], "labels": [0, 1]}
SPLIT = {**two("train/"), "test/a/1.png": encode(RGB), "test/b/1.png": encode(OTHER)}

TRANSPARENT = "has transparent pixels"
MODES = [
    with_one("png-rgb", RGB, pixels=RGB),
    with_one("png-grey", GREY, pixels=GREY),
    with_one(
        "png-1-bit",
        saved(Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE), "PNG"),
        pixels=(GREY > 127) * np.uint8(255),
    ),
    with_one("png-palette", saved(palette(), "PNG"), pixels=np.asarray(palette().convert("RGB"))),
    with_one("png-palette-transparent", saved(palette(), "PNG", transparency=0), message=TRANSPARENT),
    with_one(
        "png-palette-opaque-alpha",
        saved(palette(), "PNG", transparency=b"\xff" * 8),
        pixels=np.asarray(palette().convert("RGB")),
    ),
    with_one("png-rgba-opaque", np.concatenate([RGB, OPAQUE], 2), pixels=RGB),
    with_one("png-rgba-transparent", np.concatenate([RGB, HALF], 2), message=TRANSPARENT),
    with_one("png-grey-alpha-opaque", np.concatenate([GREY[..., None], OPAQUE], 2), pixels=GREY),
    with_one("png-grey-alpha-transparent", np.concatenate([GREY[..., None], HALF], 2), message=TRANSPARENT),
    with_one(
        "png-transparent-colour-used",
        saved(Image.fromarray(RGB), "PNG", transparency=tuple(RGB[0, 0].tolist())),
        message=TRANSPARENT,
    ),
    with_one(
        "png-transparent-grey-used",
        saved(Image.fromarray(GREY), "PNG", transparency=int(GREY[0, 0])),
        message=TRANSPARENT,
    ),
    with_one("png-grey-16-bits", DEEP, pixels=(DEEP >> 8).astype(np.uint8)),
    with_one("png-rgb-16-bits", deep_png(DEEP_RGB), pixels=(DEEP_RGB >> 8).astype(np.uint8)),
    with_one(
        "png-16-bits-transparent-grey-used",
        png(
            (W, H, 16, 0),
            b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP),
            extra=struct.pack(">I", 2)
            + b"tRNS"
            + struct.pack(">H", int(DEEP[0, 0]))
            + struct.pack(">I", zlib.crc32(b"tRNS" + struct.pack(">H", int(DEEP[0, 0])))),
        ),
        message=TRANSPARENT,
    ),
    with_one("png-icc-profile-ignored", saved(Image.fromarray(RGB), "PNG", icc_profile=b"no profile"), pixels=RGB),
    with_one("jpeg-rgb", (jpeg := encode(RGB, "JPEG", quality=95)), "jpg", pixels=opened(jpeg)),
    with_one("jpeg-grey", (jpeg := encode(GREY, "JPEG")), "JPEG", pixels=opened(jpeg)),
    with_one("jpeg-progressive", (jpeg := encode(RGB, "JPEG", progressive=True)), "jpg", pixels=opened(jpeg)),
    with_one("jpeg-cmyk", (jpeg := saved(Image.fromarray(RGB).convert("CMYK"), "JPEG")), "jpg", pixels=opened(jpeg)),
    with_one(
        "mpo-first-picture",
        saved(Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(OTHER)]),
        "jpg",
        pixels=opened(saved(Image.fromarray(RGB), "JPEG")),
    ),
    with_one("webp-lossless", encode(RGB, "WEBP", lossless=True), "webp", pixels=RGB),
    with_one("bmp", encode(RGB, "BMP"), "bmp", pixels=RGB),
    with_one("ppm", encode(RGB, "PPM"), "ppm", pixels=RGB),
    with_one("pgm", encode(GREY, "PPM"), "pgm", pixels=GREY),
    with_one("tga", encode(RGB, "TGA"), "tga", pixels=RGB),
    with_one("jpeg-2000-lossless", encode(RGB, "JPEG2000"), "jp2", pixels=RGB),
    with_one("gif", (gif := encode(RGB, "GIF")), "gif", pixels=opened(gif)),
    with_one("tiff-rgb", encode(RGB, "TIFF"), "tif", pixels=RGB),
    with_one("tiff-grey-16-bits", encode(DEEP, "TIFF"), "tiff", pixels=(DEEP >> 8).astype(np.uint8)),
    with_one("tiff-cmyk", (tiff := saved(Image.fromarray(RGB).convert("CMYK"), "TIFF")), "tif", pixels=opened(tiff)),
    with_one("tiff-ycbcr", (tiff := saved(Image.fromarray(RGB).convert("YCbCr"), "TIFF")), "tif", pixels=opened(tiff)),
    with_one("tiff-float", encode(RGB[..., 0].astype(np.float32), "TIFF"), "tif", message="is of type F"),
    with_one("tiff-32-bits", encode(RGB[..., 0].astype(np.int32), "TIFF"), "tif", message="is of type I"),
    with_one(
        "tiff-lab", saved(Image.merge("LAB", Image.fromarray(RGB).split()), "TIFF"), "tif", message="is of type LAB"
    ),
    with_one(
        "tiff-two-pages",
        saved(Image.fromarray(RGB), "TIFF", save_all=True, append_images=[Image.fromarray(OTHER)]),
        "tif",
        message="has 2 frames",
    ),
    with_one(
        "gif-animated",
        saved(Image.fromarray(RGB), "GIF", save_all=True, append_images=[Image.fromarray(OTHER)]),
        "gif",
        message="has 2 frames",
    ),
    with_one(
        "png-animated",
        saved(Image.fromarray(RGB), "PNG", save_all=True, append_images=[Image.fromarray(OTHER)]),
        message="has 2 frames",
    ),
    with_one(
        "webp-animated",
        saved(Image.fromarray(RGB), "WEBP", save_all=True, append_images=[Image.fromarray(OTHER)], lossless=True),
        "webp",
        message="has 2 frames",
    ),
]

ORIENTATIONS = [
    with_one(
        f"{kind.lower()}-orientation-{orientation}",
        saved(Image.fromarray(turned(orientation)), kind, exif=exif(orientation), **options),
        kind.lower(),
        pixels=UPRIGHT[orientation](turned(orientation)),
    )
    for kind, options, orientations in (
        ("PNG", {}, range(1, 9)),
        ("WEBP", {"lossless": True}, (6,)),
        ("TIFF", {}, (3, 6, 8)),
    )
    for orientation in orientations
]
ORIENTATIONS.append(
    with_one(
        "jpeg-orientation-6",
        (jpeg := saved(Image.fromarray(turned(6)), "JPEG", exif=exif(6))),
        "jpg",
        pixels=np.rot90(opened(jpeg), -1),
    )
)

UNDECODED = "cannot be decoded: "
FORMATS = UNDECODED + "it is not a complete image in one of the formats"
DAMAGES = [
    with_one("empty-file", b"", message="is empty"),
    with_one("text-instead-of-image", b"<html>404</html>", message=FORMATS),
    with_one("svg-instead-of-png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", message=FORMATS),
    with_one("postscript-is-not-executed", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n", message=FORMATS),
    with_one("truncated-png", encode(RGB)[:-40], message=UNDECODED),
    with_one("truncated-header", encode(RGB)[:20], message=UNDECODED),
    with_one("truncated-jpeg", encode(RGB, "JPEG")[:-30], "jpg", message=UNDECODED),
    with_one("damaged-checksum", png((W, H, 8, 2), bytes(H * (3 * W + 1)), crc=1), message=UNDECODED),
    with_one("damaged-pixels", png((W, H, 8, 2), bytes(20)), message=UNDECODED),
    with_one(
        "decompression-bomb", png((60000, 60000, 8, 0), bytes(1)), message=UNDECODED + "Image size .* exceeds limit"
    ),
    with_one("random-bytes", RANDOM.bytes(200), message=FORMATS),
    with_one("webp-truncated", encode(RGB, "WEBP")[:30], "webp", message=UNDECODED),
    with_one("gif-truncated", encode(RGB, "GIF")[:-20], "gif", message=UNDECODED),
    with_one("tiff-truncated", encode(RGB, "TIFF")[:60], "tif", message=UNDECODED),
    folders(
        "all-damaged-images-are-counted",
        SPLIT | {f"train/a/{index}.png": b"" for index in range(10, 15)},
        message=r"5 of 9 images cannot be used: train/a/10.png is empty; .*; all of them are listed in .*damaged\.txt",
    ),
    folders(
        "damaged-images-are-skipped",
        SPLIT | {"train/a/5.png": b"", "train/b/5.png": b"x"},
        **TWO,
        options={"damaged": "skip"},
        notes=r"2 damaged images left out .* the first: train/a/5.png is empty",
    ),
    folders(
        "a-class-that-loses-all-its-images",
        SPLIT | {"train/a/0.png": b""},
        options={"damaged": "skip"},
        message=r"class 0 \(a\) of 2 has no training images",
    ),
]

LARGE = np.ascontiguousarray(RGB.repeat(4, 0).repeat(4, 1))  # 24 x 20
WIDE = np.ascontiguousarray(np.concatenate([RGB, OTHER, RGB], 1))  # 6 x 15


def middle(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return the middle square of 6 x 15 pixels."""
    left = (pixels.shape[1] - side) // 2
    return pixels[:, left : left + side]


SIZES = [
    folders(
        "different-sizes",
        SPLIT | {"train/a/2.png": WIDE},
        message="images have 2 different sizes, from 6x5 to 6x15 .*data.stored=N",
    ),
    folders(
        "other-size-than-data-shape",
        SPLIT | {"train/a/2.png": WIDE},
        options={"shape": [3, 6, 5]},
        message=r"image 1 of train is 3x6x15 .*, but data.shape is 3x6x5 \(train/a/2.png\)",
    ),
    folders(
        "middle-squares-of-different-shapes",
        {
            "train/a/0.png": (square := np.ascontiguousarray(WIDE[:, :6])),
            "train/b/0.png": np.ascontiguousarray(np.concatenate([square, OTHER, square[:, :5]], 1)),
            "test/a/1.png": WIDE[:, 3:9],
            "test/b/1.png": WIDE[:, 2:8],
        },
        train=[square, np.concatenate([square, OTHER, square[:, :5]], 1)[:, 5:11]],
        labels=[0, 1],
        options={"stored": 6},
    ),
    folders(
        "one-aspect-ratio-is-kept-whole",
        {"train/a/0.png": WIDE, "train/b/0.png": WIDE[::-1], "test/a/1.png": WIDE[:, ::-1], "test/b/1.png": WIDE + 1},
        train=[WIDE, WIDE[::-1]],
        labels=[0, 1],
        options={"stored": 6, "shape": [3, 6, 6]},
    ),
    folders(
        "the-shape-of-whole-images-is-found",
        in_both(WIDE, "a", "b"),
        train=[WIDE, WIDE + 1],
        labels=[0, 1],
        options={"stored": 6},
    ),
    folders(
        "one-pixel",
        in_both(RGB[:1, :1], "a", "b"),
        train=[RGB[:1, :1], RGB[:1, :1] + 1],
        labels=[0, 1],
    ),
    folders(
        "grey-images-have-one-channel",
        in_both(GREY, "a", "b"),
        train=[GREY[..., None], GREY[..., None] + 1],
        labels=[0, 1],
    ),
    folders(
        "colour-as-grey-by-data-shape",
        SPLIT,
        train=[np.asarray(Image.fromarray(each).convert("L"))[..., None] for each in (RGB, OTHER)],
        labels=[0, 1],
        options={"shape": [1, 6, 5]},
    ),
]

NAMES = [
    folders(
        "a-class-called-train",
        in_both(RGB, "test", "train"),
        train=[RGB, RGB + 1],
        labels=[0, 1],
        test_labels=[0, 1],
    ),
    folders(
        "a-class-called-bullet-train",
        in_both(RGB, "bullet_train", "test_car"),
        train=[RGB, RGB + 1],
        labels=[0, 1],
        test_labels=[0, 1],
    ),
    folders(
        "below-a-folder-called-train",
        {f"train/{path}": content for path, content in SPLIT.items()},
        **TWO,
        inside="train",
    ),
    folders(
        "below-a-folder-with-brackets",
        {f"x[1]*?/{path}": content for path, content in SPLIT.items()},
        **TWO,
        inside="x[1]*?",
    ),
    folders("a-class-that-begins-with-underscore", two("train/", "_a") | two("test/", "_a"), **TWO),
    folders(
        "a-class-with-spaces-and-umlauts", two("train/", "a ä%20", "b [x]") | two("test/", "a ä%20", "b [x]"), **TWO
    ),
    folders(
        "a-hidden-class", SPLIT | {"train/.c/0.png": RGB}, message=r"train/\.c holds images, but its name is hidden"
    ),
    folders(
        "numbers-are-sorted-as-text",
        two("train/", "10", "9") | two("test/", "10", "9"),
        **TWO,
        notes=r"0 \(10\), 1 \(9\)",
    ),
    folders(
        "an-extension-in-capitals",
        two("train/") | two("test/") | {"train/b/1.PNG": RGB},
        train=[RGB, OTHER, RGB],
        labels=[0, 1, 1],
    ),
    folders(
        "images-in-deeper-folders", {"train/a/images/0.png": RGB, "train/b/x/y/0.png": OTHER, **two("test/")}, **TWO
    ),
    folders(
        "files-that-are-not-images",
        SPLIT | {"train/a/._0.png": b"x", "train/b/Thumbs.db": b"x", "train/b/notes": b"x"},
        **TWO,
        notes=r"ignored 3 files that are not images by their names: 1 \.db, 1 hidden, 1 no extension",
    ),
    folders(
        "an-image-outside-classes", SPLIT | {"train/x.png": RGB}, message="train holds x.png outside folders of classes"
    ),
    folders(
        "a-class-that-is-a-link",
        {"away/0.png": RGB, "data/train/a": ("../../away",), "data/train/b/0.png": OTHER, **two("data/test/")},
        **TWO,
        inside="data",
    ),
    folders(
        "splits-that-are-links",
        {**two("x/"), **two("y/"), "data/train": ("../x",), "data/test": ("../y",)},
        **TWO,
        inside="data",
    ),
    folders(
        "test-is-a-link-to-train",
        {**two("train/"), "test": ("train",)},
        message="train/a/0.png and test/a/0.png are the same file",
    ),
    folders(
        "an-image-that-is-a-link-to-another",
        SPLIT | {"test/b/7.png": ("../../train/b/0.png",)},
        message="are the same file",
    ),
    folders(
        "a-link-to-its-own-parent", SPLIT | {"train/a/loop": ("..",)}, message="is a link to a folder that contains it"
    ),
    folders(
        "a-broken-link",
        SPLIT | {"train/a/9.png": ("gone.png",)},
        message="train/a/9.png is a broken link; it leads to gone.png",
    ),
    Case(
        "a-class-twice-by-a-hard-link",
        both(
            lambda folder: write_folders(folder, SPLIT),
            lambda folder: os.link(folder / "train/a/0.png", folder / "train/b/5.png"),
        ),
        message="are the same file",
    ),
    Case(
        "an-empty-class",
        both(lambda folder: write_folders(folder, SPLIT), empty("train/c")),
        message=r"class 2 \(c\) of 3 has no training",
    ),
    folders(
        "a-class-in-test-alone", SPLIT | {"test/c/0.png": RGB}, message=r"class 2 \(c\) of 3 has no training images"
    ),
    folders(
        "a-class-without-test-images",
        SPLIT | {"train/c/0.png": RGB},
        train=[RGB, OTHER, RGB],
        labels=[0, 1, 2],
        notes=r"there are no test images of class 2 \(c\)",
    ),
    folders(
        "fewer-classes-than-expected",
        SPLIT,
        options={"classes": 3},
        message=r"has 2 classes \(a, b\), but data.classes is 3",
    ),
    folders(
        "val-instead-of-test",
        {**two("train/"), **two("val/")},
        **TWO,
        test_labels=[0, 1],
        notes="no split 'test'; 'val' is used",
    ),
    folders("valid-instead-of-test", {**two("train/"), **two("valid/")}, **TWO, notes="'valid' is used"),
    folders(
        "a-validation-split-beside-test", SPLIT | {"validation/x.png": RGB}, **TWO, notes="unused splits: validation"
    ),
    folders(
        "two-validation-splits",
        {**two("train/"), **two("val/"), **two("valid/")},
        message="no split 'test'; available splits: train, val, valid",
    ),
    folders(
        "a-test-split-of-another-name", {**two("train/"), **two("holdout/")}, **TWO, options={"test_split": "holdout"}
    ),
    folders(
        "a-flat-val-folder",
        {**two("train/"), "val/0.png": RGB},
        message=r"val holds 0.png outside folders of classes; move every image",
    ),
    folders(
        "flat-train-and-test",
        {"train/0.png": RGB, "test/0.png": RGB},
        message=r"test/ and train/ hold images, but no folders of classes",
    ),
    folders(
        "flat-train-alone",
        {"train/0.png": RGB},
        message=r"train/ holds images, but no folders of classes",
    ),
    folders(
        "splits-of-other-names",
        two("Training/") | two("Testing/"),
        message="Testing holds folders, but is not the name of a split; rename it to test",
    ),
    folders("splits-in-capitals", two("Train/") | two("Test/"), message="Test holds folders, .* rename it to test"),
    folders("a-class-called-testing", SPLIT | {"train/Testing/0.png": RGB}, notes="3 classes: 0 \\(Testing\\), 1"),
    folders(
        "one-class",
        {"flowers/rose/0.png": RGB, "flowers/daisy/0.png": RGB},
        options={"test_share": 0.5},
        message=r"has 1 class \(0 \(flowers\)\), but a network tells two or more apart",
    ),
    folders(
        "a-share-without-images",
        {f"{name}/0.png": RGB for name in "ab"},
        options={"test_share": 0.2},
        message="data.test_share is 0.2, which leaves no test images of the 2 of",
    ),
    folders(
        "test-images-that-were-trained-on",
        two("train/") | {"test/a/9.png": OTHER, "test/b/9.png": OTHER + 1},
        notes="1 of 2 test images equal a training image in every pixel; the first: test/a/9.png",
    ),
    folders(
        "a-class-without-test-images-but-damaged-ones",
        SPLIT | {"test/b/1.png": b""},
        options={"damaged": "skip"},
        test_labels=[0],
        notes=r"there are no test images of class 1 \(b\)",
    ),
    folders(
        "only-damaged-test-images",
        two("train/") | {"test/a/0.png": b""},
        options={"damaged": "skip"},
        message="none of the 1 test images can be used; the last: test/a/0.png is empty; mend them",
    ),
    folders(
        "only-damaged-training-images",
        two("test/") | {"train/a/0.png": b"", "train/b/0.png": b""},
        options={"damaged": "skip"},
        message="classes 0 .a., 1 .b. of 2 have no training images",
    ),
    folders("no-splits", two(), message="is not divided into train and test; set data.test_share=0.2"),
    folders(
        "no-test-split", two("train/"), message="has no split 'test'; available splits: train; set data.test_share=0.2"
    ),
    folders(
        "a-seeded-test-split",
        {f"{name}/{i}.png": RGB + i for name in "ab" for i in range(5)},
        test_labels=[0, 1],
        options={"test_share": 0.2},
        notes=r"test images are 20 % of each class, drawn from a fixed seed",
    ),
    folders(
        "a-share-of-a-data-set-that-has-a-test-split",
        SPLIT,
        options={"test_share": 0.2},
        message="test images in split 'test'; remove",
    ),
    folders("a-test-split-alone", two("test/"), test_labels=[0, 1], notes="can only be used by plainres eval"),
    folders(
        "no-images", {"readme.txt": b"x"}, message="does not hold a data set of images in a layout that is accepted"
    ),
]

IMAGES = [encode(RGB), encode(OTHER)]


def table(name: str, columns: Mapping[str, Any], class_names: Sequence[str] | None = None, **case: Any) -> Case:
    """Return a case of Parquet files with the same rows in both splits."""

    def write(folder: Path) -> None:
        for split in ("train", "test"):
            write_table(folder / f"{split}-00000-of-00001.parquet", columns, class_names)

    return Case(name, write, **case)


def tables(name: str, files: Sequence[str], **case: Any) -> Case:
    """Return a case of Parquet files with the same content."""

    def write(folder: Path) -> None:
        for file in files:
            write_table(folder / file, {"image": rows_of(IMAGES), "label": pa.array([0, 1])})

    return Case(name, write, **case)


IMAGE = rows_of(IMAGES)
TABLES = [
    table("parquet", {"image": IMAGE, "label": pa.array([0, 1])}, **TWO),
    table(
        "parquet-class-names",
        {"image": IMAGE, "label": pa.array([0, 1])},
        ["cat", "dog"],
        **TWO,
        notes=r"0 \(cat\), 1 \(dog\)",
    ),
    table("parquet-binary-images", {"image": pa.array(IMAGES), "label": pa.array([0, 1])}, **TWO),
    table(
        "parquet-text-labels",
        {"image": IMAGE, "kind": pa.array(["dog", "cat"])},
        train=[RGB, OTHER],
        labels=[1, 0],
        notes=r"0 \(cat\), 1 \(dog\)",
    ),
    table("parquet-dictionary-labels", {"image": IMAGE, "kind": pa.array(["a", "b"]).dictionary_encode()}, **TWO),
    table(
        "parquet-null-image",
        {"image": rows_of([IMAGES[0], None]), "label": pa.array([0, 1])},
        message=r"row 1 of train-00000-of-00001.parquet is null; row 1 of test",
    ),
    table(
        "parquet-null-bytes",
        {"image": pa.array([{"bytes": IMAGES[0]}, {"bytes": None}]), "label": pa.array([0, 1])},
        message="row 1 of train-00000-of-00001.parquet is null",
    ),
    table(
        "parquet-null-label",
        {"image": rows_of([*IMAGES, IMAGES[0]]), "label": pa.array([0, 1, None], pa.int64())},
        options={"damaged": "skip"},
        **TWO,
        notes="2 damaged images left out .* row 2 of train-00000-of-00001.parquet has no label",
    ),
    table(
        "parquet-null-label-refused",
        {"image": IMAGE, "label": pa.array([None, 1], pa.int64())},
        message="no training images",
    ),
    table(
        "parquet-list-labels",
        {"image": IMAGE, "label": pa.array([[0], [1]])},
        message="has no column with integers or strings",
    ),
    table(
        "parquet-float-labels",
        {"image": IMAGE, "label": pa.array([0.0, 1.0])},
        options={"label_column": "label"},
        message="column 'label' .* does not contain integers or strings, but double",
    ),
    table(
        "parquet-two-label-columns",
        {"image": IMAGE, "fine": pa.array([0, 1]), "coarse": pa.array([0, 0])},
        message="has several columns with integers or strings: fine, coarse; set data.label_column",
    ),
    table(
        "parquet-named-label-column",
        {"image": IMAGE, "fine": pa.array([0, 1]), "coarse": pa.array([0, 0])},
        **TWO,
        options={"label_column": "fine"},
    ),
    table(
        "parquet-two-image-columns",
        {"image": IMAGE, "mask": IMAGE, "label": pa.array([0, 1])},
        message="has several columns with images: image, mask; set data.image_column",
    ),
    table(
        "parquet-missing-column",
        {"image": IMAGE, "label": pa.array([0, 1])},
        options={"image_column": "img"},
        message="no column 'img'; available columns: image, label; set data.image_column",
    ),
    table(
        "parquet-no-image-column",
        {"path": pa.array(["x", "y"]), "label": pa.array([0, 1])},
        message="has no column with images",
    ),
    table(
        "parquet-negative-label", {"image": IMAGE, "label": pa.array([0, -1])}, message="image 1 of train has label -1"
    ),
    table(
        "parquet-labels-from-1",
        {"image": IMAGE, "label": pa.array([1, 2])},
        message="class 0 of 3 has no training images",
    ),
    table(
        "parquet-label-beyond-names",
        {"image": IMAGE, "label": pa.array([0, 2])},
        ["a", "b"],
        message="image 1 of train has label 2",
    ),
    tables("parquet-split-folders", ["default/train/0000.parquet", "default/test/0000.parquet"], **TWO),
    tables(
        "parquet-numbered-files-with-a-gap",
        [*(f"default/train/{number}.parquet" for number in ("0000", "0001", "0004")), "default/test/0000.parquet"],
        message="has files of split 'train' up to 0004; missing: 0002, 0003; download them",
    ),
    tables(
        "parquet-files-of-years", ["train/2012.parquet", "train/2014.parquet", "test/2015.parquet"], labels=[0, 1] * 2
    ),
    tables("parquet-data-folder", ["data/train.parquet", "data/test.parquet"], **TWO),
    tables(
        "parquet-one-shard-of-four",
        ["train-00000-of-00004.parquet", "test-00000-of-00001.parquet"],
        message="has 1 of the 4 files of split 'train'; missing: 00001, 00002, 00003",
    ),
    tables(
        "parquet-several-shards",
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test.parquet"],
        train=[RGB, OTHER] * 2,
        labels=[0, 1, 0, 1],
    ),
    tables(
        "parquet-two-versions-of-a-split",
        ["train-00000-of-00001.parquet", "train.parquet", "test.parquet"],
        message="has several versions of split 'train'",
    ),
    tables(
        "parquet-two-subsets",
        [f"{subset}/{split}.parquet" for subset in "xy" for split in ("train", "test")],
        message="has the subsets 'x', 'y'; choose one with data.subset",
    ),
    tables(
        "parquet-chosen-subset",
        [f"{subset}/{split}.parquet" for subset in "xy" for split in ("train", "test")],
        **TWO,
        options={"subset": "y"},
    ),
    tables(
        "parquet-unknown-subset",
        ["x/train.parquet", "x/test.parquet"],
        options={"subset": "z"},
        message="has no subset 'z'; it has 'x'",
    ),
    tables(
        "parquet-undivided",
        ["flowers.parquet"],
        message="has no split 'test'; available splits: flowers; set data.test_share",
    ),
    Case(
        "parquet-truncated",
        lambda folder: write_folders(folder, {"train.parquet": b"PAR1", "test.parquet": b"PAR1"}),
        message="train.parquet is not a complete Parquet file",
    ),
    Case(
        "parquet-different-columns",
        lambda folder: [
            write_table(folder / "train.parquet", {"image": IMAGE, "label": pa.array([0, 1])}),
            write_table(folder / "test.parquet", {"image": IMAGE, "label": pa.array(["0", "1"])}),
        ],
        message="column 'label' of test.parquet is not as in train.parquet",
    ),
    Case(
        "parquet-small-row-groups",
        lambda folder: [
            pq.write_table(
                pa.table({"image": rows_of(IMAGES * 5), "label": pa.array([0, 1] * 5)}),
                folder / f"{split}.parquet",
                row_group_size=3,
            )
            for split in ("train", "test")
            if folder.mkdir(exist_ok=True) is None
        ],
        train=[RGB, OTHER] * 5,
        labels=[0, 1] * 5,
    ),
    Case(
        "parquet-beside-folders",
        lambda folder: [
            write_folders(folder, SPLIT),
            write_table(folder / "train.parquet", {"image": IMAGE, "label": pa.array([0, 1])}),
        ],
        message="holds Parquet files and folders of images",
    ),
]

CIFAR = RANDOM.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def batch(labels: str) -> bytes:
    return pickle.dumps({b"data": CIFAR.transpose(0, 3, 1, 2).reshape(2, -1), labels.encode(): [0, 1]}, 2)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def mat(**arrays: Any) -> bytes:
    file = io.BytesIO()
    savemat(file, arrays, do_compression=True)
    return file.getvalue()


def gzipped(content: bytes) -> bytes:
    import gzip

    return gzip.compress(content)


class Evil:
    """Object that executes a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


CIFAR10 = {
    f"cifar-10-batches-py/{name}": batch("labels") for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
}
CIFAR10["cifar-10-batches-py/batches.meta"] = pickle.dumps({b"label_names": [b"plane", b"car"]}, 2)
CIFAR100 = {f"cifar-100-python/{name}": batch("fine_labels") for name in ("train", "test")}
CIFAR100["cifar-100-python/meta"] = pickle.dumps({b"fine_label_names": [b"apple", b"bee"]}, 2)
PAIR = np.stack([RGB, OTHER])
GREYS = np.stack([GREY, GREY + 1])
LABELS = np.array([0, 1], dtype=np.uint8)
IDX = {
    f"{split}-{content}-idx{array.ndim}-ubyte": idx(array)
    for split in ("train", "t10k")
    for content, array in (("images", GREYS), ("labels", LABELS))
}
TWO_GREYS: dict[str, Any] = {"train": [GREY[..., None], GREY[..., None] + 1], "labels": [0, 1]}
SVHN = {"X": CIFAR.transpose(1, 2, 3, 0), "y": np.array([[10], [1]], dtype=np.uint8)}
MAT = {f"{split}_32x32.mat": mat(**SVHN) for split in ("train", "test")}
KERAS = {"x_train": PAIR, "y_train": LABELS, "x_test": PAIR, "y_test": LABELS}
ARRAYS = [
    folders("cifar-10-pickles", CIFAR10, train=[*CIFAR] * 5, labels=[0, 1] * 5, notes=r"0 \(plane\), 1 \(car\)"),
    folders("cifar-10-inner-folder", CIFAR10, train=[*CIFAR] * 5, labels=[0, 1] * 5, inside="cifar-10-batches-py"),
    folders("cifar-100-pickles", CIFAR100, train=[*CIFAR], labels=[0, 1], notes=r"0 \(apple\), 1 \(bee\)"),
    folders(
        "cifar-10-missing-batch",
        {k: v for k, v in CIFAR10.items() if "batch_3" not in k},
        message="data_batch_3 is missing",
    ),
    folders(
        "cifar-10-and-cifar-100", CIFAR10 | CIFAR100, message="holds cifar-10-batches-py and cifar-100-python; set"
    ),
    folders(
        "cifar-100-of-unknown-labels",
        CIFAR100,
        options={"label_column": "corse_label"},
        message="data.label_column is corse_label; CIFAR-100 has fine_label and coarse_label",
    ),
    folders(
        "a-pickle-that-executes-a-command",
        CIFAR10 | {"cifar-10-batches-py/test_batch": pickle.dumps(Evil())},
        message="test_batch cannot be read: it would execute .*system, and only arrays are accepted",
    ),
    folders(
        "a-truncated-pickle",
        CIFAR10 | {"cifar-10-batches-py/test_batch": batch("labels")[:50]},
        message="test_batch cannot be read",
    ),
    folders(
        "cifar-10-of-another-size",
        CIFAR10 | {"cifar-10-batches-py/test_batch": pickle.dumps({b"data": GREYS, b"labels": [0, 1]})},
        message=r"test_batch has data of shape \[2, 6, 5\]; it must be \[N, 3072\]",
    ),
    folders("svhn", MAT, train=[*CIFAR], labels=[0, 1], test_labels=[0, 1]),
    folders(
        "svhn-extra-images-are-not-read",
        MAT | {"extra_32x32.mat": b"x"},
        train=[*CIFAR],
        labels=[0, 1],
        notes="unused splits: extra",
    ),
    folders("svhn-test-alone", {"test_32x32.mat": MAT["test_32x32.mat"]}, test_labels=[0, 1], notes="plainres eval"),
    *(
        folders(f"svhn-{damage}", MAT | {"train_32x32.mat": content}, message=rf"train_32x32\.mat {message}")
        for damage, content, message in (
            ("truncated", mat(**SVHN)[:-400], "cannot be read: "),
            ("truncated-header", mat(**SVHN)[:50], "cannot be read: "),
            ("empty", b"", "cannot be read: "),
            ("text", b"<html>404</html>" * 20, "cannot be read: "),
            ("of-version-7-3", b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(400), "cannot be read: .*HDF"),
            ("without-labels", mat(X=SVHN["X"]), "has the arrays X; it needs X and y"),
            ("labels-from-0", mat(**SVHN | {"y": SVHN["y"] % 10}), "has labels from 0 to 1; SVHN's are 1 to 10"),
            ("fractional-labels", mat(**SVHN | {"y": SVHN["y"] / 2}), "has labels of type float64"),
            ("fewer-labels", mat(**SVHN | {"y": SVHN["y"][:1]}), "has 2 images, but 1 labels"),
            ("float", mat(**SVHN | {"X": SVHN["X"] / 255}), "has images of type float64; they must be uint8"),
            ("struct", mat(**SVHN | {"X": {"a": 1}}), "has images of type "),
        )
    ),
    folders("idx", IDX, **TWO_GREYS),
    folders("idx-of-torchvision", {f"FashionMNIST/raw/{k}": v for k, v in IDX.items()}, **TWO_GREYS),
    folders("idx-compressed", {f"{k}.gz": gzipped(v) for k, v in IDX.items()}, **TWO_GREYS),
    folders("idx-both-plain-and-compressed", IDX | {f"{k}.gz": gzipped(v) for k, v in IDX.items()}, **TWO_GREYS),
    folders("idx-truncated", {k: v[:-1] for k, v in IDX.items()}, message="its header says"),
    folders("idx-gz-truncated", {f"{k}.gz": gzipped(v)[:-9] for k, v in IDX.items()}, message="cannot be read"),
    folders(
        "idx-without-labels",
        {k: v for k, v in IDX.items() if "train-labels" not in k},
        message="has only train-images-idx3-ubyte of the train",
    ),
    folders("npz-of-keras", {"x.npz": npz(**KERAS)}, **TWO),
    folders("npz-file", {"x.npz": npz(**KERAS)}, **TWO, inside="x.npz"),
    folders(
        "npz-of-medmnist",
        {
            "x.npz": npz(
                train_images=PAIR,
                train_labels=LABELS[:, None],
                val_images=PAIR,
                val_labels=LABELS[:, None],
                test_images=PAIR,
                test_labels=LABELS[:, None],
            )
        },
        **TWO,
        notes="unused splits: val",
    ),
    folders(
        "npz-float",
        {"x.npz": npz(**KERAS | {"x_train": PAIR / 255})},
        message="has images of type float64; they must be uint8",
    ),
    folders(
        "npz-channels-first",
        {"x.npz": npz(**KERAS | {"x_train": PAIR.transpose(0, 3, 1, 2)})},
        message="has images of shape",
    ),
    folders(
        "npz-several-labels", {"x.npz": npz(**KERAS | {"y_train": np.eye(2, dtype=np.uint8)})}, message="one integer"
    ),
    folders(
        "npz-fewer-labels", {"x.npz": npz(**KERAS | {"y_train": LABELS[:1]})}, message="has 2 images, but 1 labels"
    ),
    folders("npz-other-arrays", {"x.npz": npz(a=PAIR)}, message="has the arrays a; it needs x_train"),
    folders(
        "npz-two-sets",
        {"x.npz": npz(**KERAS, train_images=PAIR, train_labels=LABELS)},
        message="has two sets of train images",
    ),
    folders("npz-truncated", {"x.npz": npz(**KERAS)[:100]}, message="is not a complete .npz file"),
    folders(
        "two-npz-files",
        {"x.npz": npz(**KERAS), "y.npz": npz(**KERAS)},
        message="holds x.npz, y.npz; set data.path to one of them",
    ),
    folders("two-layouts", IDX | {"x.npz": npz(**KERAS)}, message="holds idx files and an .npz file"),
]

CASES = [*MODES, *ORIENTATIONS, *DAMAGES, *SIZES, *NAMES, *TABLES, *ARRAYS]


def main(folder: Path) -> None:
    """Write all data sets into a folder."""
    for case in CASES:
        case.write(folder / case.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
