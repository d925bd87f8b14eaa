"""What every reader gives: rows of encoded images with labels and captions, split by split."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from sfumato.data.decode import Decoded
    from sfumato.data.prepared import Settings


class Row(NamedTuple):
    """One image as it lies in its file, not yet decoded.

    `image`: an encoded file's bytes or its path, or uint8 (H, W) or (H, W, 3). `caption`: several
    captions stand on a line each. `number` counts the rows of `file` from 0; None where the file is
    the image. `problem` says why the reader could not read it. `columns`: the values of the columns
    that the captions name, in the order of `captions.column_fields`; empty where none is known.
    """

    image: bytes | Path | np.ndarray | None
    label: int | None
    caption: str | None
    file: str
    number: int | None = None
    problem: str = ""
    columns: tuple[str | None, ...] = ()


def one_a_line(value: str | Sequence[str | None] | None) -> str | None:
    """A caption in one line, or several captions on a line each; None where there is none."""
    several = [value] if isinstance(value, str) else (value or [])
    lines = [" ".join(text.split()) for text in several if text]
    return "\n".join(line for line in lines if line) or None


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows of one split. `read(keep)` gives those where `keep` (count,) bool is true, in
    their order; None is all of them. Of prepared data, `stored(keep, needs_caption)` gives them as
    decoding would, without decoding, and `identities()` what `data/identity.py` finds in their
    source."""

    count: int
    read: Callable[[np.ndarray | None], Iterator[Row]]
    stored: "Callable[[np.ndarray | None, bool], Decoded] | None" = None
    identities: Callable[[], np.ndarray] | None = None


class RowGroup(NamedTuple):
    """Rows of a file that can be read without the others: number `index` of `file`, whose first
    row is row `start` of the file. `name` is the file's in messages; `size_bytes` is what its
    columns take."""

    file: Path
    name: str
    index: int
    start: int
    count: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class GroupedPart(Part):
    """A part in row groups. `read_notes` is `read` without the images, which costs next to
    nothing; `image_column` and `label_column` (empty: none) name the columns."""

    groups: Sequence[RowGroup]
    image_column: str
    label_column: str
    read_notes: Callable[[np.ndarray | None], Iterator[Row]]


@dataclass(frozen=True, kw_only=True, eq=False)
class RawImages:
    """A data set before decoding.

    `parts` has "train" and "test", perhaps "validation", or "all" where the files name no such
    parts. `labels` and `captions` say where they were found (empty: nowhere); `class_names` is
    empty without labels. `columns` names those that captions may use, `used_columns` those of which
    rows have values. `fingerprint` changes with the names and sizes of the files. `prepared` says
    how the pixels were made, where they were made before. `left_out` counts the images that are
    there and in no part; `notes`: a line on each thing that was left out. `version` changes with
    the places, sizes and times of the files; empty where there are none.
    """

    layout: str
    parts: Mapping[str, Part]
    class_names: Sequence[str]
    labels: str
    captions: str
    fingerprint: str
    columns: Sequence[str] = ()
    used_columns: Sequence[str] = ()
    prepared: "Settings | None" = None
    left_out: int = 0
    notes: Sequence[str] = ()
    version: str = ""

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts.values())


class Damage(NamedTuple):
    """A row that cannot be used, and why."""

    file: str
    number: int | None
    reason: str


def list_damage(damage: Iterable[Damage], *, most: int | None = None) -> list[str]:
    """One line a stretch of rows with the same problem: `FILE, rows 20-29: no image`.

    Rows count from 0, as in pandas and `datasets`. Beyond `most` lines the last says how many more.
    """
    lines: list[str] = []
    stretches = _stretches(damage)
    for index, (first, last) in enumerate(stretches):
        if index == most:
            left = sum(1 + (b.number or 0) - (a.number or 0) for a, b in stretches[index:])
            return [*lines, f"and {left:,} more"]
        where = first.file
        if first.number is not None:
            several = last.number != first.number
            where += f", rows {first.number}-{last.number}" if several else f", row {first.number}"
        lines.append(f"{where}: {first.reason}")
    return lines


def _stretches(damage: Iterable[Damage]) -> list[tuple[Damage, Damage]]:
    stretches: list[tuple[Damage, Damage]] = []
    for item in damage:
        if stretches and item.number is not None:
            first, last = stretches[-1]
            if last.number is not None and item == (first.file, last.number + 1, first.reason):
                stretches[-1] = (first, item)
                continue
        stretches.append((item, item))
    return stretches
