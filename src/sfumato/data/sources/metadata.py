"""The table beside a folder's images: metadata.jsonl, .csv or .parquet, as on the Hub."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.data.files import shown
from sfumato.data.labels import text_of
from sfumato.data.sources.parquet_file import open_parquet
from sfumato.data.table import one_a_line

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_KEYS = ("text", "caption", "prompt")
_EXAMPLE = '{"file_name": "a.png", "text": "A red bird"}'


class Entry(NamedTuple):
    """What a table says of one image; `file` and `number` (from 0) are the table's and its row's.

    `path` is None and `problem` says why where a row names no image.
    """

    path: Path | None
    file: str
    number: int
    caption: str | None = None
    problem: str = ""
    columns: tuple[str | None, ...] = ()


def read_metadata(
    folder: Path, tables: Sequence[Path], images: Sequence[Path], fields: Sequence[str] = ()
) -> tuple[list[Entry], list[str]]:
    """Every row of `tables`, files called as in `NAMES` below `folder`, in their order, with the
    values of the columns `fields`; and the names of the columns that captions may use.

    A name finds its image among `images` with either slash and in any Unicode normal form. A row
    that cannot be used has a `problem`. `InputError` for a table that cannot be read at all, or
    two of them in one folder.
    """
    alone: dict[Path, Path] = {}
    for table in tables:
        if (first := alone.setdefault(table.parent, table)) != table:
            raise InputError(
                f"{table.parent} has both {first.name} and {table.name}.",
                hint="Keep the one that holds the captions, and rename the other.",
            )
    there = {_key(path): path for path in images}
    entries: list[Entry] = []
    names: dict[str, None] = {}
    for table in tables:
        for number, row in _rows(table):
            entry = _entry(folder, table, there, number, row)
            if not isinstance(row, str):
                names.update(dict.fromkeys(name for name, value in row.items() if _is_one(value)))
                known = (row.get(name) for name in fields)
                columns = tuple(text_of(value) if _is_one(value) else None for value in known)
                entry = entry._replace(columns=columns)
            entries.append(entry)
    return entries, [name for name in names if name != "file_name"]


def _is_one(value: Any) -> bool:
    """Whether a value is one text or number."""
    return isinstance(value, str | int | float)


def _key(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path))


def _rows(table: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Number and values of each row, or what is wrong with it."""
    if table.suffix == ".parquet":
        yield from enumerate(_rows_of_parquet(table))
        return
    try:
        text = table.read_bytes().decode("utf-8-sig")  # a name may hold a carriage return
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{table} is not text in UTF-8 ({error}).") from error
    yield from (_rows_of_csv if table.suffix == ".csv" else _rows_of_jsonl)(table, text)


def _rows_of_parquet(table: Path) -> list[dict[str, Any]]:
    import pyarrow as pa

    try:
        opened = open_parquet(table)
        if "file_name" not in opened.schema_arrow.names:
            raise _no_file_name(table, "A column file_name names the image of each row.")
        return opened.read().to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DamagedDataError(
            f"{table} is not a whole Parquet file.",
            hint="It was cut short or altered: get it again.",
        ) from error


def _no_file_name(table: Path, hint: str) -> InputError:
    return InputError(f"{table} has no column file_name.", hint=hint)


def _rows_of_jsonl(table: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text)):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            yield number, f"not JSON ({error})"
        else:
            yield number, row if isinstance(row, dict) else f"not a line such as {_EXAMPLE}"


def _rows_of_csv(table: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if "file_name" not in (reader.fieldnames or ()):
            raise _no_file_name(table, "Its first line names the columns, such as: file_name,text")
        yield from enumerate(reader)
    except csv.Error as error:
        raise InputError(
            f"{table}, line {reader.line_num}: {error}.",
            hint="Check the quotes: a field that begins with one ends with one.",
        ) from error


def _is_text(value: object, errors: str = "strict") -> bool:
    """Whether a value is a string, and no half of a character that JSON can write too."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


def _entry(
    folder: Path,
    table: Path,
    there: Mapping[str, Path],
    number: int,
    row: Mapping[str, Any] | str,
) -> Entry:
    file = shown(table.relative_to(folder))
    if isinstance(row, str):
        return Entry(None, file, number, problem=row)
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        return Entry(None, file, number, problem="no file_name")
    if not _is_text(name, "surrogateescape"):  # bytes of a name that is not UTF-8
        return Entry(None, file, number, problem="its file_name is not text")
    path = next(
        (
            there[key]
            for key in (_key(table.parent / one) for one in (name, name.replace("\\", "/")))
            if key in there
        ),
        None,
    )
    inside = PurePosixPath(name.replace("\\", "/"))
    if path is None and (inside.is_absolute() or ".." in inside.parts or name[1:2] == ":"):
        return Entry(None, file, number, problem=f"{name!r} leads out of the folder")
    path = path or table.parent / inside
    value = next((row[key] for key in CAPTION_KEYS if row.get(key)), None)
    several = [value] if isinstance(value, str) else value or []
    if not isinstance(several, list) or not all(map(_is_text, several)):
        return Entry(path, file, number, problem="its caption is not text")
    return Entry(path, file, number, one_a_line(several))
