"""Parquet in the Hub's layout: an image column, perhaps a label and a caption column."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfumato.base.errors import DamagedDataError, InputError, nearest
from sfumato.base.files import is_lfs_pointer
from sfumato.data.table import (
    GroupedPart,
    RawImages,
    Row,
    RowGroup,
    dense_classes,
    fingerprint,
    split_groups,
    split_in_name,
    visible_files,
)

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "class", "category", "target")
CAPTION_NAMES = ("caption", "text", "captions", "prompt", "description")
_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})")
_BATCH_ROWS = 256
_FEW_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns that are wanted: "auto" finds them by type, "none" does without."""

    image: str = "auto"
    label: str = "auto"
    caption: str = "auto"


def read_parquet(folder: Path, columns: Columns) -> RawImages | None:
    """The data set in the `*.parquet` below `folder`; None where there is none.

    Raises `DamagedDataError` for a file that is not whole or a set of shards that is not complete,
    `InputError` where the columns cannot be determined.
    """
    files = [path for path in visible_files(folder) if path.suffix == ".parquet"]
    if not files:
        return None
    _refuse_several_data_sets(folder, files)
    _refuse_missing_shards(files)
    first = _open(files[0]).schema_arrow
    found = _find_columns(first, columns, files[0])
    groups: dict[str | None, list[Path]] = {}
    for file in files:
        split = split_in_name(file.name) or split_in_name(file.parent.name)
        groups.setdefault(split, []).append(file)
    parts = split_groups(groups)
    names, text_labels = _class_names(first, found.label, parts.get("train") or parts["all"])
    reader = _Reader(folder=folder, columns=found, text_labels=text_labels, first=first)
    return RawImages(
        layout="Parquet",
        parts={name: reader.part(group) for name, group in parts.items()},
        class_names=names,
        labels=f"column '{found.label}'" if names else "",
        captions=f"column '{found.caption}'" if found.caption else "",
        fingerprint=fingerprint(folder, files),
    )


@dataclass(frozen=True, kw_only=True)
class _Reader:
    folder: Path
    columns: Columns
    text_labels: dict[str, int]
    first: "pa.Schema"

    def part(self, files: Sequence[Path]) -> GroupedPart:
        groups: list[RowGroup] = []
        for file in files:
            opened = _open(file)
            missing = [name for name in self._wanted() if name not in opened.schema_arrow.names]
            if missing:
                raise InputError(
                    f"{file} has no column '{missing[0]}', which the other files have.",
                    hint="Give a folder with the files of one data set.",
                )
            self._refuse_other_schema(file, opened.schema_arrow)
            start = 0
            for index in range(opened.num_row_groups):
                about = opened.metadata.row_group(index)
                size = about.total_byte_size
                groups.append(RowGroup(file, self._name(file), index, start, about.num_rows, size))
                start += about.num_rows

        def read(keep: np.ndarray | None, *, images: bool = True) -> Iterator[Row]:
            start = 0
            for file, its_groups in groupby(groups, key=lambda group: group.file):
                opened = _open(file)
                for group in its_groups:
                    mine = None if keep is None else keep[start : start + group.count]
                    if mine is None or mine.any():
                        yield from self._rows(opened, group, mine, images=images)
                    start += group.count

        return GroupedPart(
            count=sum(group.count for group in groups),
            read=read,
            groups=groups,
            image_column=self.columns.image,
            label_column=self.columns.label,
            read_notes=lambda keep: read(keep, images=False),
        )

    def _refuse_other_schema(self, file: Path, schema: "pa.Schema") -> None:
        """`InputError` where a column means something else than in the first file."""
        for name in self._wanted():
            there, first = (_kind(each.field(name).type) for each in (schema, self.first))
            what = "" if there == first else f"is of another type ({there} instead of {first})"
            if name == self.columns.label and not what:
                named = (_features(each).get(name) for each in (schema, self.first))
                names = [feature.get("names") for feature in named if isinstance(feature, dict)]
                what = "has other classes" if names and names[0] != names[-1] else ""
            if what:
                raise InputError(
                    f"{file}: column '{name}' {what} than in the first file.",
                    hint="The files are of different data sets, or of two versions of one: get all "
                    "of them again, from one place.",
                )

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.folder))

    def _wanted(self, *, images: bool = True) -> list[str]:
        image = self.columns.image if images else ""
        return [name for name in (image, self.columns.label, self.columns.caption) if name]

    def _rows(
        self, opened: Any, group: RowGroup, keep: np.ndarray | None, *, images: bool
    ) -> Iterator[Row]:
        import pyarrow as pa

        number = 0
        try:
            batches = opened.iter_batches(
                batch_size=_BATCH_ROWS,
                row_groups=[group.index],
                columns=self._wanted(images=images),
            )
            for batch in batches:
                for image, label, caption in zip(*self._values(batch, images=images), strict=True):
                    if keep is None or keep[number]:
                        yield Row(image, label, caption, group.name, group.start + number)
                    number += 1
        except (pa.ArrowException, OSError) as error:
            reason = unreadable(error)
            for lost in range(number, group.count):
                if keep is None or keep[lost]:
                    yield Row(None, None, None, group.name, group.start + lost, reason)

    def _values(
        self, batch: "pa.RecordBatch", *, images: bool
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Images, labels and captions of a batch as plain lists."""
        nothing = [None] * len(batch)
        encoded = _encoded(batch.column(self.columns.image)).to_pylist() if images else nothing
        labels = batch.column(self.columns.label).to_pylist() if self.columns.label else nothing
        if self.text_labels:
            numbers = {None: None, **self.text_labels}
            labels = [numbers.get(label, -1) for label in labels]
        captions = nothing
        if self.columns.caption:
            texts = batch.column(self.columns.caption).to_pylist()
            captions = [" ".join(text.split()) if text else None for text in texts]
        return encoded, labels, captions


def read_group(file: Path, group: int, rows: Sequence[int], column: str) -> Iterator[bytes | None]:
    """The encoded images of some `rows` of a row group, counted from its start and rising. Raises
    Arrow's errors and `OSError`."""
    wanted = iter(rows)
    row = next(wanted, None)
    first = 0
    batches = _open(file, memory_map=True).iter_batches(
        batch_size=_FEW_ROWS, row_groups=[group], columns=[column], use_threads=False
    )
    for batch in batches:
        images = _encoded(batch.column(column))
        while row is not None and row < first + len(batch):
            yield images[row - first].as_py()
            row = next(wanted, None)
        if row is None:
            return
        first += len(batch)


def _encoded(column: "pa.Array") -> "pa.Array":
    """The bytes of an image column, which may be a struct."""
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        return column
    # flatten() hands a null of the struct on to its bytes
    return column.flatten()[column.type.get_field_index("bytes")]


def unreadable(error: Exception) -> str:
    """Why the rows from here to the end of their group are damaged."""
    return f"the file cannot be read here ({_first_line(error)})"


def _open(file: Path, *, memory_map: bool = False) -> Any:
    """A `ParquetFile`; `DamagedDataError` where it is not whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file, memory_map=memory_map)
    except (pa.ArrowException, OSError) as error:
        if is_lfs_pointer(file):
            raise DamagedDataError(
                f"{file} is a pointer of Git LFS, not the data itself.",
                hint="Run `git lfs pull` in its repository.",
            ) from error
        raise DamagedDataError(
            f"{file} is not a whole Parquet file ({_first_line(error)}; "
            f"{file.stat().st_size:,} bytes).",
            hint="It was cut short or altered: get it again.",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


# Which files --------------------------------------------------------------------------------------


def _refuse_several_data_sets(folder: Path, files: Sequence[Path]) -> None:
    """Files in different folders are different data sets, unless the folders are splits."""
    homes = {}
    for file in files:
        parts = file.relative_to(folder).parts[:-1]
        home = "/".join(part for part in parts if part != "data" and split_in_name(part) != part)
        homes.setdefault(home, file)
    if len(homes) > 1:
        raise InputError(
            f"{folder} holds {len(homes)} data sets: {', '.join(sorted(homes))}.",
            hint=f"Give one of them, for example {folder / sorted(homes)[-1]}.",
        )


def _refuse_missing_shards(files: Sequence[Path]) -> None:
    there: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        if found := _SHARD.match(file.name):
            key = (file.parent, found[1], int(found[3]))
            there.setdefault(key, set()).add(int(found[2]))
    for (parent, prefix, total), shards in there.items():
        if missing := sorted(set(range(total)) - shards):
            raise DamagedDataError(
                f"{parent}: {len(shards)} of {total} files of '{prefix}' are there; the first that "
                f"is missing is {prefix}-{missing[0]:05d}-of-{total:05d}.parquet.",
                hint="The download was not finished: get the missing files. Part of a data set is "
                "not taken for the whole of it.",
            )


# Which columns ------------------------------------------------------------------------------------


def _features(schema: "pa.Schema") -> dict[str, Any]:
    """What the `datasets` library wrote of the columns' meaning; empty without it."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _kind(kind: "pa.DataType") -> str:
    """What a column's type comes to here: 32 or 64 bits, or how long a text may be, is the same."""
    import pyarrow as pa

    if pa.types.is_integer(kind):
        return "whole numbers"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    return "a struct" if pa.types.is_struct(kind) else str(kind).removeprefix("large_")


def _has_type(feature: Any, name: str) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == name


def _find_columns(schema: "pa.Schema", wanted: Columns, file: Path) -> Columns:
    """The concrete names; a column that is not there is an empty name."""
    import pyarrow as pa

    types = dict(zip(schema.names, schema.types, strict=True))
    features = _features(schema)
    binary = (pa.types.is_binary, pa.types.is_large_binary)
    text = (pa.types.is_string, pa.types.is_large_string)
    images = [
        name
        for name, kind in types.items()
        if _has_type(features.get(name), "Image")
        or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
        or any(check(kind) for check in binary)
    ]
    labels = [name for name in types if _has_type(features.get(name), "ClassLabel")] or [
        name
        for name, kind in types.items()
        if name in LABEL_NAMES and (pa.types.is_integer(kind) or any(c(kind) for c in text))
    ]
    captions = [
        name for name, kind in types.items() if name not in labels and any(c(kind) for c in text)
    ]
    image = _pick("image", wanted.image, images, IMAGE_NAMES, types, file)
    if not image:
        raise InputError(
            f"{file} has no column of images; its columns are {', '.join(types)}.",
            hint="An image column holds encoded images: binary, or a struct with `bytes`.",
        )
    label = _pick("label", wanted.label, labels, LABEL_NAMES, types, file)
    caption = _pick("caption", wanted.caption, captions, CAPTION_NAMES, types, file)
    return Columns(image=image, label=label, caption=caption)


def _pick(
    role: str,
    wanted: str,
    found: list[str],
    usual: Sequence[str],
    types: dict[str, Any],
    file: Path,
) -> str:
    """The wanted column; else the one with a usual name; else the only one; else a question."""
    if wanted == "none":
        return ""
    if wanted != "auto":
        if wanted not in types:
            raise InputError(
                f"data.{role}_column: {file} has no column '{wanted}'.",
                hint=nearest(wanted, list(types)),
            )
        return wanted
    for name in usual:
        if name in found:
            return name
    if len(found) > 1 and role != "caption":
        raise InputError(
            f"{file} has {len(found)} columns that could be the {role}: {', '.join(found)}.",
            hint=f"Choose one with --set data.{role}_column={found[-1]}"
            + ("." if role == "image" else ", or do without with =none."),
        )
    return found[0] if len(found) == 1 else ""


def _class_names(
    schema: "pa.Schema", label: str, files: Sequence[Path]
) -> tuple[list[str], dict[str, int]]:
    """Names of the classes, and for labels that are text the number of each.

    From the schema where it has them; else from the labels that occur in `files`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not label:
        return [], {}
    feature = _features(schema).get(label)
    if _has_type(feature, "ClassLabel") and feature.get("names"):
        return [str(name) for name in feature["names"]], {}
    column = pa.chunked_array(
        [chunk for file in files for chunk in _read_column(file, label).chunks],
        type=schema.field(label).type,
    )
    values = pc.unique(column).drop_null()
    if pa.types.is_integer(column.type):
        return dense_classes(values.to_numpy()), {}
    names = sorted(str(value) for value in values.to_pylist())
    return names, {name: index for index, name in enumerate(names)}


def _read_column(file: Path, name: str) -> "pa.ChunkedArray":
    import pyarrow as pa

    try:
        return _open(file).read(columns=[name]).column(name)
    except (pa.ArrowException, OSError) as error:
        raise DamagedDataError(
            f"{file}: column '{name}' cannot be read ({_first_line(error)}).", hint="Get it again."
        ) from error
