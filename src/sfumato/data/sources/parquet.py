"""Parquet in the Hub's layout: an image column, perhaps a label and a caption column."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import is_lfs_pointer
from sfumato.data.files import fingerprint, shown, visible_files
from sfumato.data.labels import Classes, classes_of, text_of
from sfumato.data.sources.columns import (
    Columns,
    FoundColumns,
    encoded_images,
    features_of,
    find_columns,
    has_type,
    is_list,
    kind_of,
    names_for_captions,
)
from sfumato.data.sources.metadata import NAMES as TABLES
from sfumato.data.sources.parquet_file import open_parquet
from sfumato.data.splits import group_splits, split_in_name, split_notes
from sfumato.data.table import GroupedPart, RawImages, Row, RowGroup, one_a_line

if TYPE_CHECKING:
    import pyarrow as pa

_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})")
_BATCH_ROWS = 256
_FEW_ROWS = 8
_LOOKED_ROWS = 200


def read_parquet(
    folder: Path, columns: Columns, also_train: Sequence[str] = ()
) -> RawImages | None:
    """The data set in the `*.parquet` below `folder`; None where there is none.

    Raises `DamagedDataError` for a file that is not whole or a set of shards that is not complete,
    `InputError` where the columns cannot be determined or no part can be trained on.
    """
    there = visible_files(folder)
    files = [path for path in there if path.suffix == ".parquet" and path.name not in TABLES]
    if not files:
        return None
    _refuse_several_data_sets(folder, files)
    _refuse_missing_shards(files)
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(_part_of(folder, file), []).append(file)
    splits = group_splits(groups, also_train=also_train, where=str(folder))
    used = [file for group in splits.parts.values() for file in group]
    first = _open(used[0]).schema_arrow
    found = find_columns(first, columns, used[0], lambda name: _first_texts(used[0], name))
    classes = _classes(first, found.label, used, chosen=columns.label != "auto")
    notes = [*filter(None, [splits.remark]), *found.notes, *_why_no_classes(found, classes)]
    reader = _Reader(folder=folder, columns=found, classes=classes, first=first)
    parts = {name: reader.part(group) for name, group in splits.parts.items()}
    counts = {name: part.count for name, part in parts.items()}
    left_out = {name: sum(map(_row_count, group)) for name, group in splits.left_out.items()}
    return RawImages(
        layout="Parquet",
        parts=parts,
        class_names=classes.names,
        labels=f"column '{found.label}'" if classes.names else "",
        captions=f"column '{found.caption}'" if found.caption else "",
        fingerprint=fingerprint(folder, files),
        columns=names_for_captions(first),
        left_out=sum(left_out.values()),
        notes=[*notes, *split_notes(counts, left_out)],
    )


@dataclass(frozen=True, kw_only=True)
class _Reader:
    folder: Path
    columns: FoundColumns
    classes: Classes
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
            label_column=self.columns.label if self.classes.names else "",
            read_notes=lambda keep: read(keep, images=False),
        )

    def _refuse_other_schema(self, file: Path, schema: "pa.Schema") -> None:
        """`InputError` where a column means something else than in the first file."""
        for name in self._wanted():
            there, first = (kind_of(each.field(name).type) for each in (schema, self.first))
            what = "" if there == first else f"is of another type ({there} instead of {first})"
            if not what:
                named = (features_of(each).get(name) for each in (schema, self.first))
                names = [feature.get("names") for feature in named if isinstance(feature, dict)]
                what = "has other classes" if names and names[0] != names[-1] else ""
            if what:
                raise InputError(
                    f"{file}: column '{name}' {what} than in the first file.",
                    hint="The files are of different data sets, or of two versions of one: get all "
                    "of them again, from one place.",
                )

    def _name(self, file: Path) -> str:
        return shown(file.relative_to(self.folder))

    def _wanted(self, *, images: bool = True) -> list[str]:
        image = self.columns.image if images else ""
        found = self.columns
        wanted = (image, found.label, found.caption, *found.fields)
        return list(dict.fromkeys(name for name in wanted if name))

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
                for image, label, caption, columns in self._values(batch, images=images):
                    if keep is None or keep[number]:
                        index, problem = self.classes.find(label)
                        row = group.start + number
                        yield Row(image, index, caption, group.name, row, problem, columns)
                    number += 1
        except (pa.ArrowException, OSError) as error:
            reason = unreadable(error)
            for lost in range(number, group.count):
                if keep is None or keep[lost]:
                    yield Row(None, None, None, group.name, group.start + lost, reason)

    def _values(
        self, batch: "pa.RecordBatch", *, images: bool
    ) -> Iterator[tuple[Any, Any, str | None, tuple[str | None, ...]]]:
        """Image, label, caption and columns of each row of a batch."""
        nothing = [None] * len(batch)
        found = self.columns
        encoded = encoded_images(batch.column(found.image)).to_pylist() if images else nothing
        known = found.label if self.classes.names else ""
        labels = batch.column(known).to_pylist() if known else nothing
        captions = nothing
        if found.caption:
            captions = [one_a_line(value) for value in batch.column(found.caption).to_pylist()]
        columns = [self._texts(batch, name) for name in found.fields]
        rows = zip(*columns, strict=True) if columns else [()] * len(batch)
        return zip(encoded, labels, captions, rows, strict=True)

    def _texts(self, batch: "pa.RecordBatch", name: str) -> list[str | None]:
        """A column as texts, classes by their names."""
        values = batch.column(name).to_pylist()
        feature = features_of(self.first).get(name)
        names = feature.get("names") if has_type(feature, "ClassLabel") else None
        if not names or kind_of(self.first.field(name).type) != "whole numbers":
            return [text_of(value) for value in values]
        known = dict(enumerate(names))
        return [text_of(known.get(value)) for value in values]


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
        images = encoded_images(batch.column(column))
        while row is not None and row < first + len(batch):
            yield images[row - first].as_py()
            row = next(wanted, None)
        if row is None:
            return
        first += len(batch)


def unreadable(error: Exception) -> str:
    """Why the rows from here to the end of their group are damaged."""
    return f"the file cannot be read here ({_first_line(error)})"


def _open(file: Path, *, memory_map: bool = False) -> Any:
    """A `ParquetFile`; `DamagedDataError` where it is not whole."""
    import pyarrow as pa

    try:
        return open_parquet(file, memory_map=memory_map)
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


def _why_no_classes(found: FoundColumns, classes: Classes) -> list[str]:
    if not classes.why_none:
        return []
    return [
        f"Column '{found.label}' {classes.why_none}: it is not used for classes "
        f"(--set data.label_column={found.label} uses it)."
    ]


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


def _part_of(folder: Path, file: Path) -> str:
    """The part that a file belongs to, by its name or its folder's; empty where neither says."""
    parent = "" if file.parent == folder else file.parent.name
    if known := split_in_name(file.name) or split_in_name(parent):
        return known
    found = _SHARD.match(file.name)
    stem = found[1] if found else file.stem
    return shown(Path(parent if parent and re.fullmatch(r"[\d_-]*", stem) else stem))


def _row_count(file: Path) -> int:
    return _open(file).metadata.num_rows


def _first_texts(file: Path, column: str) -> list[str | None]:
    """The texts of the first rows of a column, lists of them one after another."""
    import pyarrow as pa

    try:
        opened = _open(file)
        batch = next(opened.iter_batches(batch_size=_LOOKED_ROWS, columns=[column]), None)
    except (pa.ArrowException, OSError):
        return []  # the rows say so when they are read
    if batch is None:
        return []
    values = batch.column(0).to_pylist()
    if is_list(batch.column(0).type):
        return [text for value in values for text in value or ()]
    return values


# Classes ------------------------------------------------------------------------------------------


def _classes(schema: "pa.Schema", label: str, files: Sequence[Path], *, chosen: bool) -> Classes:
    """The classes: from the schema where it names them; else the values that occur in `files`."""
    if not label:
        return Classes(names=[], index={})
    feature = features_of(schema).get(label)
    if has_type(feature, "ClassLabel") and feature.get("names"):
        names = [str(name) for name in feature["names"]]
        numbers = {number: number for number in range(len(names))}
        text = kind_of(schema.field(label).type) == "text"
        named = {name: number for number, name in enumerate(names)}
        return Classes(names=names, index=named if text else numbers)
    counts: Counter[Any] = Counter()
    for file in files:
        counts.update(_value_counts(file, label))
    return classes_of(counts, chosen=chosen)


def _value_counts(file: Path, name: str) -> dict[Any, int]:
    import pyarrow as pa

    try:
        opened = _open(file)
        if name not in opened.schema_arrow.names:
            return {}  # `_Reader.part` says so
        found = opened.read(columns=[name]).column(name).value_counts().to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DamagedDataError(
            f"{file}: column '{name}' cannot be read ({_first_line(error)}).", hint="Get it again."
        ) from error
    return {value["values"]: value["counts"] for value in found}
