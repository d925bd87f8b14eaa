"""A folder of images: captions in metadata.jsonl or .txt files, classes by folder."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfumato.base.errors import InputError
from sfumato.data.table import (
    Part,
    RawImages,
    Row,
    fingerprint,
    split_groups,
    split_in_name,
    visible_files,
)

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
}
CAPTION_KEYS = ("text", "caption", "prompt")
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class _Item:
    """An image and what is known of it; `file` and `number` say where it is listed."""

    path: Path
    file: str
    number: int | None
    caption: str | None
    class_name: str | None
    problem: str = ""


def read_folder(folder: Path) -> RawImages | None:
    """The data set in the images below `folder`; None where there are no images.

    Folders `train` and `test` are splits; the folders below (or those at the top) are classes.
    Raises `InputError` for a line of metadata.jsonl that cannot be read.
    """
    files = visible_files(folder)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not images:
        return None
    tables = [path for path in files if path.name == METADATA]
    told = {path: entry for table in tables for path, entry in _metadata(folder, table).items()}
    there = set(images)
    splits = _split_folders(folder, images)
    texts = {path for path in files if path.suffix == ".txt" and not tables}
    beside = any(image.with_suffix(".txt") in texts for image in images)
    classes = _class_folders(folder, images, splits)
    strays = any(path.parent not in classes for path in images)
    if (tables or beside) and (strays or len(set(classes.values())) == 1):
        classes = {}  # with captions of their own, folders need not be classes
    items: dict[str | None, list[_Item]] = {}
    for path in [*images, *(path for path in told if path not in there)]:
        name = path.relative_to(folder)
        file, number, caption = told.get(path, ("", None, None))
        items.setdefault(splits.get(name.parts[0]), []).append(
            _Item(path, str(name), None, caption, classes.get(path.parent))
            if path in there
            else _Item(path, file, number, caption, None, f"names {name}, which is not there")
        )
    names = sorted(set(classes.values()))
    return RawImages(
        layout="image folder",
        parts={name: _part(group, names, texts) for name, group in split_groups(items).items()},
        class_names=names,
        labels="folders" if names else "",
        captions=METADATA if tables else ".txt files" if beside else "",
        fingerprint=fingerprint(folder, [*images, *tables, *sorted(texts)]),
    )


def _part(items: Sequence[_Item], names: Sequence[str], texts: set[Path]) -> Part:
    numbers = {name: index for index, name in enumerate(names)}

    def read(keep: np.ndarray | None) -> Iterator[Row]:
        for index, item in enumerate(items):
            if keep is not None and not keep[index]:
                continue
            caption, problem = item.caption, item.problem
            text = item.path.with_suffix(".txt")
            if text in texts and not problem:
                caption, problem = _read_caption(text)
            label = None if item.class_name is None else numbers[item.class_name]
            yield Row(item.path, label, caption, item.file, item.number, problem)

    return Part(count=len(items), read=read)


def _read_caption(file: Path) -> tuple[str | None, str]:
    try:
        return " ".join(file.read_text("utf-8-sig").split()) or None, ""
    except (UnicodeDecodeError, OSError):
        return None, f"its caption {file.name} is not text in UTF-8"


def _split_folders(folder: Path, images: Sequence[Path]) -> dict[str, str]:
    """Names of the folders at the top that are splits: only where all of them are."""
    tops = {path.relative_to(folder).parts for path in images}
    if any(len(parts) == 1 for parts in tops):
        return {}
    splits = {parts[0]: split_in_name(parts[0]) for parts in tops}
    named = {top: split for top, split in splits.items() if split is not None}
    return named if len(named) == len(splits) else {}


def _class_folders(folder: Path, images: Sequence[Path], splits: dict[str, str]) -> dict[Path, str]:
    """The class of each folder that holds images; empty where most images lie in no class folder.

    A few that lie outside are strays: they have no label, which counts as damage.
    """
    depth = 1 if splits else 0
    classes = {}
    for parent in {path.parent for path in images}:
        parts = parent.relative_to(folder).parts
        if len(parts) > depth:
            classes[parent] = parts[depth]
    inside = sum(path.parent in classes for path in images)
    return classes if inside > len(images) / 2 else {}


def _metadata(folder: Path, table: Path) -> dict[Path, tuple[str, int, str | None]]:
    """Path of each image that a metadata.jsonl names: (its file, row from 0, caption)."""
    name = str(table.relative_to(folder))
    entries = {}
    try:
        lines = table.read_text("utf-8-sig").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{table} is not text in UTF-8 ({error}).") from error
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise _broken(table, number, f"not JSON ({error})") from error
        file_name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(file_name, str) or not file_name:
            raise _broken(table, number, "no file_name")
        if Path(file_name).is_absolute() or ".." in Path(file_name).parts:
            raise _broken(table, number, f"{file_name!r} leads out of the folder")
        caption = next((entry[key] for key in CAPTION_KEYS if entry.get(key)), None)
        if caption is not None and not isinstance(caption, str):
            raise _broken(table, number, "the caption is not text")
        path = table.parent / file_name
        entries[path] = (name, number, " ".join(caption.split()) if caption else None)
    return entries


def _broken(table: Path, number: int, problem: str) -> InputError:
    return InputError(
        f"{table}, line {number + 1}: {problem}.",
        mend='A line is JSON such as {"file_name": "a.png", "text": "A red bird"}.',
    )
