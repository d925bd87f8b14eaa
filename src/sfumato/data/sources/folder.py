"""A folder of images: captions in a table or .txt files, classes by folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfumato.data.sources.metadata import NAMES, Entry, read_metadata
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
    Raises `InputError` for a table of captions that cannot be read at all.
    """
    files = visible_files(folder)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not images:
        return None
    tables = [path for path in files if path.name in NAMES]
    entries = read_metadata(folder, tables)
    splits = _split_folders(folder, images)
    texts = {path for path in files if path.suffix == ".txt" and not tables}
    beside = any(image.with_suffix(".txt") in texts for image in images)
    classes = _class_folders(folder, images, splits)
    strays = any(path.parent not in classes for path in images)
    if (tables or beside) and (strays or len(set(classes.values())) == 1):
        classes = {}  # with captions of their own, folders need not be classes
    items = _items_by_split(folder, images, entries, splits, classes)
    names = sorted(set(classes.values()))
    return RawImages(
        layout="image folder",
        parts={name: _part(group, names, texts) for name, group in split_groups(items).items()},
        class_names=names,
        labels="folders" if names else "",
        captions=tables[0].name if tables else ".txt files" if beside else "",
        fingerprint=fingerprint(folder, [*images, *tables, *sorted(texts)]),
    )


def _items_by_split(
    folder: Path,
    images: Sequence[Path],
    entries: Sequence[Entry],
    splits: dict[str, str],
    classes: dict[Path, str],
) -> dict[str | None, list[_Item]]:
    known = {entry.path: entry for entry in entries if entry.path is not None}
    there = set(images)
    items: dict[str | None, list[_Item]] = {}
    for entry in entries:  # first, so that a broken table is named before images without caption
        if entry.path in there:
            continue
        path = entry.path or folder / entry.file
        name = path.relative_to(folder)
        problem = entry.problem or f"names {name}, which is not there"
        split = splits.get(name.parts[0], "train" if splits else None)
        items.setdefault(split, []).append(
            _Item(path, entry.file, entry.number, entry.caption, None, problem)
        )
    for path in images:
        name, entry = path.relative_to(folder), known.get(path)
        items.setdefault(splits.get(name.parts[0]), []).append(
            _Item(
                path,
                str(name),
                None,
                entry.caption if entry else None,
                classes.get(path.parent),
                entry.problem if entry else "",
            )
        )
    return items


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
