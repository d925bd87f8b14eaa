"""A folder of images: captions in a table or in text files, classes by folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfumato.base.errors import InputError
from sfumato.data.files import class_name, find_images, fingerprint, shown, walk
from sfumato.data.identifiers import kind_of_identifiers
from sfumato.data.sources.layout import Layout, find_layout
from sfumato.data.sources.metadata import NAMES, Entry, read_metadata
from sfumato.data.splits import Splits, group_splits, split_notes
from sfumato.data.table import Part, RawImages, Row, one_a_line

_TEXTS = (".txt", ".caption")
_LOOKED_TEXTS = 100


@dataclass(frozen=True)
class _Item:
    """An image and what is known of it; `file` and `number` say where it is listed."""

    path: Path
    file: str
    number: int | None
    caption: str | None
    class_name: str | None
    problem: str = ""
    columns: tuple[str | None, ...] = ()


def read_folder(
    folder: Path, also_train: Sequence[str] = (), fields: Sequence[str] = ()
) -> RawImages | None:
    """The data set in the images below `folder`; None where there are no images. `fields`: columns
    of its table that captions use.

    Folders called `train` and `test` are splits (`data/splits.py`); the folders below (or those at
    the top) are classes. Raises `InputError` for a table of captions that cannot be read at all,
    and where images are there but none in a format that is read.
    """
    found = walk(folder)
    images = find_images(found.files)
    if not images.images:
        if images.note:
            raise InputError(f"{folder} holds no image that can be read.", hint=images.note)
        return None
    tables = [path for path in found.files if path.name in NAMES]
    texts, note = _text_files(folder, images.images, [] if tables else found.files)
    layout = find_layout(folder, images.images)
    splits = _splits(folder, images.images, layout, also_train)
    used = {path for group in splits.parts.values() for path in group}
    classes = _classes(used, layout, captioned=bool(tables or texts))
    known = [*images.images, *images.left_out]
    listed, columns = read_metadata(folder, tables, known, fields)
    entries = [entry for entry in listed if entry.path not in images.left_out]
    items = _items_by_part(folder, splits, layout, entries, classes)
    names = sorted(set(classes.values()))
    counts, left_out = (
        {name: len(items[name]) for name in of} for of in (splits.parts, splits.left_out)
    )
    notes = [*found.notes, images.note, note, splits.remark, *split_notes(counts, left_out)]
    return RawImages(
        layout="image folder",
        parts={name: _part(items[name], names, texts) for name in splits.parts},
        class_names=names,
        labels="folders" if names else "",
        captions=tables[0].name if tables else _named_after(texts),
        fingerprint=fingerprint(folder, [*images.images, *tables, *sorted(texts.values())]),
        columns=columns,
        left_out=len(images.left_out) + sum(left_out.values()),
        notes=[note for note in notes if note],
    )


def _classes(used: set[Path], layout: Layout, *, captioned: bool) -> dict[Path, str]:
    """The class of each image, by its folder. With captions of their own, folders need not be
    classes."""
    classes = _class_folders(used, layout)
    strays = len(classes) < len(used)
    return {} if captioned and (strays or len(set(classes.values())) == 1) else classes


# Captions -----------------------------------------------------------------------------------------


def _text_files(
    folder: Path, images: Sequence[Path], files: Sequence[Path]
) -> tuple[dict[Path, Path], str]:
    """The text file beside each image that has one; and a line where they hold no captions.

    Text files of numbers (boxes of objects, for example) or of paths are no captions.
    """
    there = {path for path in files if path.suffix in _TEXTS}
    texts: dict[Path, Path] = {}
    for image in images if there else ():
        beside = (image.with_suffix(suffix) for suffix in _TEXTS)
        if (found := next((path for path in beside if path in there), None)) is not None:
            texts[image] = found
    first = list(texts.values())[:_LOOKED_TEXTS]
    if not (kind := kind_of_identifiers([_read_caption(file)[0] for file in first])):
        return texts, ""
    example = shown(first[0].relative_to(folder))
    return {}, f"The text files beside the images hold {kind} ({example}): they are no captions."


def _named_after(texts: Mapping[Path, Path]) -> str:
    suffixes = sorted({path.suffix for path in texts.values()}, reverse=True)
    return f"{' and '.join(suffixes)} files" if suffixes else ""


def _read_caption(file: Path) -> tuple[str | None, str]:
    """The captions in a text file, one a line; and what is wrong with it."""
    try:
        return one_a_line(file.read_text("utf-8-sig").split("\n")), ""
    except (UnicodeDecodeError, OSError):
        return None, f"its caption {shown(Path(file.name))} is not text in UTF-8"


# Parts and classes --------------------------------------------------------------------------------


def _splits(
    folder: Path, images: Sequence[Path], layout: Layout, also_train: Sequence[str]
) -> Splits[Path]:
    groups: dict[str, list[Path]] = {}
    for path in images:
        groups.setdefault(layout.part_of(path.parent), []).append(path)
    return group_splits(groups, also_train=also_train, where=str(folder))


def _class_folders(images: set[Path], layout: Layout) -> dict[Path, str]:
    """The class of each image in a class folder; empty where most images lie in none.

    A few that lie outside are strays: they have no label, which counts as damage.
    """
    classes = {}
    for path in images:
        if name := layout.class_of(path.parent):
            classes[path] = class_name(name)
    return classes if len(classes) > len(images) / 2 else {}


def _items_by_part(
    folder: Path,
    splits: Splits[Path],
    layout: Layout,
    entries: Sequence[Entry],
    classes: Mapping[Path, str],
) -> dict[str, list[_Item]]:
    known = _of_images(entries)
    groups = {**splits.parts, **splits.left_out}
    there = {path for group in groups.values() for path in group}
    items: dict[str, list[_Item]] = {name: [] for name in groups}
    for entry in entries:  # first, so that a broken table is named before images without caption
        if entry.path in there:
            continue
        path = entry.path or folder / entry.file
        problem = entry.problem or f"names {shown(path.relative_to(folder))}, which is not there"
        part = layout.part_of(path.parent)
        part = part if part in items else next(iter(items))
        items[part].append(_Item(path, entry.file, entry.number, entry.caption, None, problem))
    for part, images in groups.items():
        for path in images:
            entry = known.get(path)
            items[part].append(
                _Item(
                    path,
                    shown(path.relative_to(folder)),
                    None,
                    entry.caption if entry else None,
                    classes.get(path),
                    entry.problem if entry else "",
                    entry.columns if entry else (),
                )
            )
    return items


def _of_images(entries: Sequence[Entry]) -> dict[Path, Entry]:
    """What a table says of each image; several rows of one image are several captions of it."""
    known: dict[Path, Entry] = {}
    for entry in entries:
        if entry.path is None:
            continue
        first = known.setdefault(entry.path, entry)
        if first is not entry:
            captions = [caption for caption in (first.caption, entry.caption) if caption]
            problem = first.problem or entry.problem
            known[entry.path] = first._replace(caption="\n".join(captions) or None, problem=problem)
    return known


def _part(items: Sequence[_Item], names: Sequence[str], texts: Mapping[Path, Path]) -> Part:
    numbers = {name: index for index, name in enumerate(names)}

    def read(keep: np.ndarray | None) -> Iterator[Row]:
        for index, item in enumerate(items):
            if keep is not None and not keep[index]:
                continue
            caption, problem = item.caption, item.problem
            if item.path in texts and not problem:
                caption, problem = _read_caption(texts[item.path])
            label = None if item.class_name is None else numbers[item.class_name]
            yield Row(item.path, label, caption, item.file, item.number, problem, item.columns)

    return Part(count=len(items), read=read)
