"""Small images and data sets that the tests of the data room write."""

import gzip
import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def noise(seed: int, shape: Sequence[int] = (12, 16, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any] | None = None,
    *,
    image: str = "image",
    label: str = "label",
    names: Sequence[str] | None = None,
    row_group_size: int = 100,
    classes: Mapping[str, Sequence[str]] | None = None,
    **columns: Sequence[Any],
) -> Path:
    """A file as the Hub has it: struct of bytes and path, and the features in the schema.

    `columns` are further ones; those in `classes` are class labels too."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [None if data is None else {"bytes": data, "path": None} for data in images]
    arrays: dict[str, Any] = {image: pa.array(rows, kind)}
    features: dict[str, Any] = {image: {"_type": "Image"}}
    if labels is not None:
        arrays[label] = pa.array(labels)
        if names is not None:
            features[label] = {"names": list(names), "_type": "ClassLabel"}
    for name, its_names in (classes or {}).items():
        features[name] = {"names": list(its_names), "_type": "ClassLabel"}
    arrays.update({name: pa.array(values) for name, values in columns.items()})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(arrays).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def write_idx(path: Path, array: np.ndarray) -> Path:
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content += array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_image(path: Path, array: np.ndarray, caption: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, "utf-8")
    return path


def bomb(side: int = 60_000) -> bytes:
    """A PNG of some hundred bytes whose header claims side x side pixels."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
