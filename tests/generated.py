"""Data sets as they might lie on people's disks, drawn by hypothesis and written to a folder.

Each writer returns how many image files or rows there are, counted as it writes them: what the
readers count is compared with that.
"""

import csv
import io
import json
import os
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

# Pictures -----------------------------------------------------------------------------------------

SIZES = [(8, 8), (28, 28), (64, 64), (1, 1), (1, 64), (64, 1), (7, 5), (33, 20)]
KINDS = {
    "PNG": ("L", "RGB", "RGBA", "P", "1", "LA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("L", "RGB", "CMYK", "I;16", "F"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "1"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("L", "RGB"),
}
ENCODINGS = [(kind, mode) for kind, modes in KINDS.items() for mode in modes]
HEIC = b"\0\0\0\x18ftypheic" + bytes(16) + b"heicmif1"
SUFFIXES = [".png", ".jpg", ".PNG", ".JPEG", ".jfif", ".jpe", ".tif", ".bmp", ".webp", ".gif"]
FOREIGN = [".heic", ".HEIC", ".jxl", ".cr2", ".svg", ".tga"]
NOT_TELLING = ["", ".jpg_large", ".1", ".image"]


@cache
def encoded(kind: str, mode: str, size: tuple[int, int], seed: int) -> bytes:
    width, height = size
    numbers = np.random.default_rng([seed, width, height])
    if mode == "I;16":
        image = Image.fromarray(numbers.integers(0, 65536, (height, width), dtype=np.uint16))
    elif mode == "F":
        image = Image.fromarray(numbers.random((height, width), dtype=np.float32))
    else:
        shape = (height, width, 3)
        image = Image.fromarray(numbers.integers(0, 256, shape, dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


whole = st.builds(
    lambda encoding, size, seed: encoded(*encoding, size, seed),
    st.sampled_from(ENCODINGS),
    st.sampled_from(SIZES),
    st.integers(0, 999),
)
damaged = st.one_of(
    st.builds(lambda content, share: content[: int(share * len(content))], whole, st.floats(0, 1)),
    st.sampled_from([b"", b"x", bytes(100), b"<html>404 Not Found</html>"]),
    st.binary(max_size=40),
)


def pictures(*, may_be_damaged: bool) -> st.SearchStrategy[bytes]:
    """Mostly whole ones; damage in a data set is rare, or it is refused without a further look."""
    return st.one_of(*[whole] * 9, damaged) if may_be_damaged else whole


# Names and texts ----------------------------------------------------------------------------------

ODD_NAMES = [
    "caf\u00e9", "cafe\u0301", "名前", "😀", "a b", " lead", "trail ", "-rf", "--out", "it's",
    'say "x"', "a\\b", "C:\\x", "%s", "{caption}", "{", "[red]x[/red]", "[/]", "$HOME", "*", "a,b",
    "a\tb", "new\nline", "\x1b[31m", "..x", "x.", "CON", "n" * 200, "None", "0", "-1", "1e5", "nan",
    os.fsdecode(b"\xff\xfe"), os.fsdecode(b"caf\xe9"), "a.b.c", "&amp;", "\u202e", "train", "test",
]  # fmt: skip
names = st.one_of(
    st.sampled_from(["cat", "dog", "bird", "red car"]),
    st.sampled_from(ODD_NAMES),
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12
    ).filter(lambda text: not text.startswith(".") and len(text.encode()) < 60),
)
phrases = st.sampled_from(
    ["a red bird", "two boats, far away", "ein Baum", "猫", "A photo", "{x}", "a\u0301 b", '"q"',
     "x" * 500]
)  # fmt: skip
no_captions = st.sampled_from(
    ["/data/a/b.png", "https://example.org/1.jpg", "d41d8cd98f00b204e9800998ecf8427e", "img_1.png",
     "0 0.5 0.5 0.1", "17", "C:\\data\\x.png", "3f2504e0-4f89-11d3-9a0c-0305e82c3301"]
)  # fmt: skip
texts = st.one_of(phrases, phrases, phrases, no_captions, st.text(max_size=20), st.just(""))
several = st.lists(texts, max_size=4)


# Folders ------------------------------------------------------------------------------------------


@st.composite
def folders(draw: st.DrawFn, root: Path) -> int:
    """A folder of images below `root`: classes, parts, captions, links, names; how many images
    there are, of which rows of a table that name none count too."""
    parts = draw(
        st.sampled_from(
            [
                [""],
                [""],
                ["train", "test"],
                ["train"],
                ["train", "validation", "test", "extra"],
                ["Train", "val"],
                ["train2017", "t10k"],
                ["test", "validation"],
                ["", "train", "test"],
            ]
        )
    )
    classes = draw(st.lists(names, max_size=3, unique=True)) or [""]
    above = draw(st.booleans())
    rough = draw(st.booleans())
    captions = draw(st.sampled_from(["", "", "txt", "caption", "txt", *TABLES]))
    listed: list[Path] = []
    there = 0
    for part in parts:
        for name in classes:
            folder = root / name / part if above else root / part / name
            count = draw(st.integers(0, 6))
            written = _write_images(draw, root, folder, count, rough=rough)
            there += len(written)
            listed += written
    if captions in ("txt", "caption"):
        _write_texts(draw, listed, captions)
    elif captions and root.is_dir():
        there += _write_table(draw, root, listed, captions)
    if rough:
        there += _write_others(draw, root, listed)
    return there


def _write_images(
    draw: st.DrawFn, root: Path, folder: Path, count: int, *, rough: bool
) -> list[Path]:
    """Images in a folder of the data set `root`; those that are not hidden."""
    written = []
    for number in range(count):
        suffix = draw(st.sampled_from([*SUFFIXES, *SUFFIXES, *(FOREIGN if rough else ())]))
        stem = draw(names) if draw(st.booleans()) else f"{number}"
        path = folder / f"{stem[:150]}{suffix}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                continue
            path.write_bytes(draw(pictures(may_be_damaged=rough)))
        except OSError:  # a file where a folder should be, or a name that is too long here
            continue
        written.append(path)
    if rough and draw(st.booleans()):
        path = folder / f"plain{draw(st.sampled_from(NOT_TELLING))}"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw(st.one_of(whole, st.just(HEIC))))
        written.append(path)
    hidden = any(part.startswith(".") for part in folder.relative_to(root).parts)
    return [] if hidden else [path for path in written if not path.name.startswith(".")]


def _write_texts(draw: st.DrawFn, images: Sequence[Path], suffix: str) -> None:
    for image in images:
        content = draw(
            st.one_of(
                several.map(lambda lines: "\n".join(lines).encode()),
                texts.map(str.encode),
                st.sampled_from([b"\xff\xfe", b"\xef\xbb\xbfa bird", b"a\r\nb\r\n", b"a\0b"]),
            )
            if draw(st.integers(0, 5)) == 0
            else phrases.map(str.encode)
        )
        if draw(st.integers(0, 19)):
            image.with_suffix(f".{suffix}").write_bytes(content)


TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def _write_table(draw: st.DrawFn, root: Path, images: Sequence[Path], name: str) -> int:
    """A table of captions; how many of its rows name no image."""
    key = draw(st.sampled_from(["text", "caption", "prompt", "other"]))
    odd = draw(st.booleans())
    values = st.one_of(texts, several, st.none(), st.just([None, "x"])) if odd else phrases
    if name != "metadata.jsonl":
        values = texts if odd else phrases
    rows: list[dict[str, Any]] = []
    for image in images:
        file = str(image.relative_to(root))
        if any("\ud800" <= letter <= "\udfff" for letter in file):
            continue  # no text in UTF-8 names it
        file = file.replace("/", "\\") if odd and "\\" not in file and draw(st.booleans()) else file
        rows.append({"file_name": file, key: draw(values)})
    nothing = 0
    if odd and rows:
        missing = ["gone.png", "../out.png", "/abs.png", "", None, 3]
        wrong = draw(st.lists(st.sampled_from(missing), max_size=2))
        if name != "metadata.jsonl":
            wrong = [one for one in wrong if isinstance(one, str)]
        rows += [{"file_name": one, key: "x"} for one in wrong]
        nothing = len(wrong)
    (root / name).write_bytes(table_bytes(name, rows, key))
    return nothing


def table_bytes(name: str, rows: Sequence[dict[str, Any]], key: str) -> bytes:
    if name == "metadata.jsonl":
        return "\n".join(json.dumps(row) for row in rows).encode()
    if name == "metadata.csv":
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, ["file_name", key])
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue().encode()
    buffer = io.BytesIO()
    columns = {
        "file_name": pa.array([row["file_name"] for row in rows], pa.string()),
        key: pa.array([row[key] for row in rows], pa.string()),
    }
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _write_others(draw: st.DrawFn, root: Path, images: Sequence[Path]) -> int:
    """Hidden files, links and files of other kinds; how many further images they make."""
    root.mkdir(parents=True, exist_ok=True)
    more = 0
    for kind in draw(st.lists(st.sampled_from(OTHERS), max_size=5, unique=True)):
        path = root / kind
        if kind == "link.png" and images:
            path.symlink_to(images[0])
            more += 1
        elif kind == "broken.png":
            path.symlink_to(root / "nowhere.png")
        elif kind in ("up", "loop"):
            path.symlink_to(root.parent if kind == "up" else root, target_is_directory=True)
        elif kind == "beside":
            outside = root.parent / f"{root.name}-outside"
            outside.mkdir()
            (outside / "x.png").write_bytes(encoded("PNG", "RGB", (8, 8), 1))
            path.symlink_to(outside, target_is_directory=True)
            more += 1
        elif kind == "pipe.png":
            os.mkfifo(path)
        elif kind == ".hidden":
            path.mkdir()
            (path / "x.png").write_bytes(encoded("PNG", "RGB", (8, 8), 1))
        elif kind == "folder.png":
            path.mkdir()
        elif kind.startswith((".", "README", "Thumbs", "empty")):
            path.write_bytes(b"" if kind == "empty" else b"a text")
    return more


OTHERS = [
    "link.png", "broken.png", "up", "loop", "beside", "pipe.png", ".hidden", "folder.png",
    "._x.png", ".DS_Store", "README.md", "Thumbs.db", "README", "empty",
]  # fmt: skip


# Parquet ------------------------------------------------------------------------------------------

PAIR = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGE_TYPES = [
    PAIR,
    PAIR,
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int32(), pa.binary()),
    pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
]
NO_IMAGE_TYPES = [pa.struct([("path", pa.string())]), pa.list_(pa.binary()), pa.string()]
LABELS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pa.int64(), st.integers(0, 3)),
    (pa.int32(), st.sampled_from([-5, 0, 7, 1000])),
    (pa.int8(), st.one_of(st.none(), st.integers(-2, 2))),
    (pa.uint64(), st.sampled_from([1, 2**63, 2**64 - 1])),
    (pa.float64(), st.sampled_from([0.0, 1.0, 0.5, -1.0, float("nan"), float("inf"), 1e300])),
    (pa.bool_(), st.one_of(st.none(), st.booleans())),
    (pa.string(), st.one_of(st.none(), names.filter(str.isprintable), st.just(""))),
    (pa.large_string(), st.sampled_from(["a", "b"])),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", "b", None])),
    (pa.decimal128(6, 2), st.sampled_from([Decimal("1.00"), Decimal("2.50"), None])),
    (pa.date32(), st.just(date(2020, 1, 2))),
    (pa.list_(pa.int64()), st.lists(st.integers(0, 3), max_size=2)),
    (pa.binary(), st.sampled_from([b"a", b"\xff"])),
    (pa.null(), st.none()),
    (pa.struct([("a", pa.int64())]), st.just({"a": 1})),
]
CAPTIONS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pa.string(), phrases),
    (pa.string(), st.one_of(texts, st.none())),
    (pa.large_string(), phrases),
    (pa.dictionary(pa.int32(), pa.string()), st.one_of(phrases, st.none())),
    (pa.list_(pa.string()), st.one_of(several, st.none(), st.just([None, "x"]))),
    (pa.large_list(pa.string()), several),
    (pa.list_(pa.string(), 2), st.lists(phrases, min_size=2, max_size=2)),
    (pa.list_(pa.list_(pa.string())), st.lists(several, max_size=2)),
    (pa.string(), no_captions),
    (pa.null(), st.none()),
    (pa.struct([("en", pa.string())]), st.just({"en": "a bird"})),
]
FILES = [
    ["data.parquet"],
    ["train.parquet"],
    ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
    ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"],
    ["train.parquet", "validation.parquet", "test.parquet", "extra.parquet"],
    ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
    ["caf\u00e9 {x}.parquet"],
    [os.fsdecode(b"\xff.parquet")],
]
INCOMPLETE = [["test.parquet", "validation.parquet"], ["train-00000-of-00002.parquet"]]


@st.composite
def tables(draw: st.DrawFn, root: Path) -> int:
    """Parquet files below `root`, perhaps with images beside them; how many rows and images."""
    seldom = draw(st.integers(0, 9)) == 0
    kind = draw(st.sampled_from(NO_IMAGE_TYPES if seldom else IMAGE_TYPES))
    columns: list[tuple[str, Any, st.SearchStrategy[Any]]] = []
    rough = draw(st.booleans())
    content = st.one_of(*[pictures(may_be_damaged=rough)] * 19, st.none()) if rough else whole
    columns.append((draw(st.sampled_from(["image", "img", "picture", "a b"])), kind, content))
    if draw(st.booleans()):
        of = draw(st.sampled_from(LABELS))
        columns.append((draw(st.sampled_from(["label", "class", "style"])), *of))
    names_of_texts = st.lists(st.sampled_from(["text", "caption", "x"]), max_size=2, unique=True)
    columns += [(name, *draw(st.sampled_from(CAPTIONS))) for name in draw(names_of_texts)]
    there = 0
    features = _features(draw, columns)
    for file in draw(st.sampled_from(INCOMPLETE if seldom else FILES)):
        count = draw(st.integers(0 if seldom else 1, 8))
        arrays = {name: _array(draw, of, values, count) for name, of, values in columns}
        table = pa.table(arrays).replace_schema_metadata(features)
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        group, compression = draw(st.integers(1, 9)), draw(st.sampled_from(["snappy", "NONE"]))
        with path.open("wb") as opened:  # Arrow takes no name that is not UTF-8
            pq.write_table(table, opened, row_group_size=group, compression=compression)
        if rough and draw(st.integers(0, 9)) == 0:
            content = path.read_bytes()
            place = draw(st.integers(0, len(content) - 1))
            path.write_bytes(content[:place] + draw(st.sampled_from([b"", content[place + 1 :]])))
        there += count
    if draw(st.booleans()):
        there += len(_write_images(draw, root, root, 2, rough=rough))
    return there


def _features(draw: st.DrawFn, columns: Sequence[tuple[str, Any, Any]]) -> dict[str, str] | None:
    """What the `datasets` library would write, perhaps wrong."""
    known = [["a", "b", "c", "d"], ["a"], [], None, ["caf\u00e9", "{", "[red]", "d"]]
    features = {
        name: {"_type": "ClassLabel", "names": draw(st.sampled_from(known))}
        for name, *_ in columns[1:2]
    }
    text = draw(
        st.sampled_from(["", "", json.dumps({"info": {"features": features}}), "{", "null"])
    )
    return {"huggingface": text} if text else None


def _array(draw: st.DrawFn, kind: Any, values: st.SearchStrategy[Any], count: int) -> pa.Array:
    drawn = [draw(values) for _ in range(count)]
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        drawn = [None if one is None else {"bytes": one, "path": "x.png"} for one in drawn]
    elif pa.types.is_list(kind) and kind.value_type == pa.binary():
        drawn = [[one] for one in drawn]
    elif kind == pa.string() and drawn and isinstance(drawn[0], bytes):
        drawn = ["a/b.png"] * count
    drawn = ["a/b.png" if isinstance(one, bytes) and kind == pa.string() else one for one in drawn]
    if pa.types.is_dictionary(kind):
        return pa.array(drawn, kind.value_type).dictionary_encode()
    return pa.array(drawn, kind)
