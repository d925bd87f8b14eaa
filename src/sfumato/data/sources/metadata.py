"""The table beside a folder's images: metadata.jsonl or metadata.csv, as on the Hub."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.base.errors import InputError

NAMES = ("metadata.jsonl", "metadata.csv")
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


def read_metadata(folder: Path, tables: Sequence[Path]) -> list[Entry]:
    """Every row of `tables`, files called as in `NAMES` below `folder`, in their order.

    A row that cannot be used has a `problem`. `InputError` for a table that cannot be read at all,
    or two of them in one folder.
    """
    alone: dict[Path, Path] = {}
    for table in tables:
        if (first := alone.setdefault(table.parent, table)) != table:
            raise InputError(
                f"{table.parent} has both {first.name} and {table.name}.",
                hint="Keep the one that holds the captions, and rename the other.",
            )
    return [_entry(folder, table, *row) for table in tables for row in _rows(table)]


def _rows(table: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Number and values of each row, or what is wrong with it."""
    try:
        text = table.read_text("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{table} is not text in UTF-8 ({error}).") from error
    yield from (_rows_of_csv if table.suffix == ".csv" else _rows_of_jsonl)(table, text)


def _rows_of_jsonl(table: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    for number, line in enumerate(text.split("\n")):
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
            raise InputError(
                f"{table} has no column file_name.",
                hint="Its first line names the columns, such as: file_name,text",
            )
        yield from enumerate(reader)
    except csv.Error as error:
        raise InputError(
            f"{table}, line {reader.line_num}: {error}.",
            hint="Check the quotes: a field that begins with one ends with one.",
        ) from error


def _entry(folder: Path, table: Path, number: int, row: Mapping[str, Any] | str) -> Entry:
    file = str(table.relative_to(folder))
    if isinstance(row, str):
        return Entry(None, file, number, problem=row)
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        return Entry(None, file, number, problem="no file_name")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return Entry(None, file, number, problem=f"{name!r} leads out of the folder")
    caption = next((row[key] for key in CAPTION_KEYS if row.get(key)), None)
    if caption is not None and not isinstance(caption, str):
        return Entry(table.parent / name, file, number, problem="its caption is not text")
    caption = " ".join(caption.split()) if caption else None
    return Entry(table.parent / name, file, number, caption)
