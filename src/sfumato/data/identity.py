"""Which image is which: by a hash of its content, whatever its file is called and wherever its row
stands. An image stays on its side of a split when others come and go."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from sfumato.base.environment import processors
from sfumato.base.files import cache_folder, make_folder, whole_file
from sfumato.base.progress import Progress
from sfumato.data.memo import recall
from sfumato.data.sources.parquet import read_group
from sfumato.data.sources.parquet_pages import index_images
from sfumato.data.table import GroupedPart, Part, RawImages, Row, RowGroup

_CHUNK_ROWS = 256
_FORMAT = 2
_SHOWN_AFTER_SECONDS = 5.0


def identities(raw: RawImages, name: str) -> np.ndarray:
    """(N, 2) uint64 for the rows of the part `name`: a hash of each image's encoded bytes (of its
    pixels where it is not encoded), and one of its caption and class.

    Costs a read of the part; kept in the cache until a file changes.
    """
    return recall("identities", (raw, name), lambda: _read_or_make(raw, name))


def _read_or_make(raw: RawImages, name: str) -> np.ndarray:
    part = raw.parts[name]
    if part.identities is not None:
        return part.identities()
    if not raw.version:
        return _of_rows(part, raw.class_names)
    where = ()
    if isinstance(part, GroupedPart):
        groups = tuple((group.name, group.index) for group in part.groups)
        where = (part.image_column, groups)
    known = (raw.version, name, part.count, raw.labels, raw.captions, *raw.used_columns)
    key = repr((_FORMAT, *known, where))
    file = cache_folder() / "identities" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
    if file.is_file():
        try:
            known = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError):
            known = None
        if known is not None and known.shape == (part.count, 2):
            return known
    found = _of_rows(part, raw.class_names)
    make_folder(file.parent)
    with whole_file(file) as temporary, temporary.open("wb") as opened:
        np.save(opened, found)
    return found


def _of_rows(part: Part, class_names: Sequence[str]) -> np.ndarray:
    found: list[tuple[int, int]] = []
    rows = _rows(part)
    on_rows = Progress(after_seconds=_SHOWN_AFTER_SECONDS).of(
        "images read, once, to know them again"
    )
    with ThreadPoolExecutor(processors()) as pool:
        while chunk := list(islice(rows, _CHUNK_ROWS)):
            notes = (note_hash(row, class_names) for row in chunk)
            found += zip(pool.map(image_hash, chunk), notes, strict=True)
            on_rows(len(found), part.count)
    return np.array(found, np.uint64).reshape(-1, 2)


def _rows(part: Part) -> Iterator[Row]:
    """The rows of a part, one by one: a row group of large images is not held as a whole."""
    if not isinstance(part, GroupedPart):
        yield from part.read(None)
        return
    notes = part.read_notes(None)
    for group in part.groups:
        images = _images_of(group, part.image_column)
        for _ in range(group.count):
            yield next(notes)._replace(image=next(images, None))


def _images_of(group: RowGroup, column: str) -> Iterator[bytes | None]:
    """The encoded images of a row group; it ends early where the file cannot be read."""
    import pyarrow as pa

    index, rows = index_images(group.file, group.index, column), range(group.count)
    try:
        yield from index.read(rows) if index else read_group(group.file, group.index, rows, column)
    except (pa.ArrowException, OSError):
        return
    finally:
        pa.default_memory_pool().release_unused()


def identities_by_place(part: GroupedPart, class_names: Sequence[str]) -> np.ndarray:
    """(N, 2) uint64, without reading an image: a hash of each row's place and of the size of its
    row group, and one of its caption and class."""
    places = [
        f"{group.name}\t{group.index}\t{group.size_bytes}\t{row}"
        for group in part.groups
        for row in range(group.count)
    ]
    hashes = np.array([_hash(place.encode()) for place in places], np.uint64)
    notes = np.array([note_hash(row, class_names) for row in part.read_notes(None)], np.uint64)
    return np.stack([hashes, notes], axis=1)


def image_hash(row: Row) -> int:
    """64 bits that are those of every row with the same image; a row without one has its own."""
    image = row.image
    if isinstance(image, Path):
        try:
            return _hash(image.read_bytes())
        except OSError:
            image = None
    if isinstance(image, np.ndarray):
        return _hash(repr(image.shape).encode() + image.tobytes())
    return _hash(image or f"{row.file}\t{row.number}".encode())


def note_hash(row: Row, class_names: Sequence[str]) -> int:
    """64 bits of what is said of a row's image."""
    known = bool(class_names) and row.label is not None
    name = class_names[row.label] if known and row.label is not None else ""
    said = (name, row.caption, row.columns) if row.columns else (name, row.caption)
    return _hash(repr(said).encode("utf-8", "backslashreplace"))


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def held_out(images: np.ndarray, share: float, seed: Sequence[int]) -> np.ndarray:
    """(N,) bool: a random `share` of the images by their hashes `images` (N,) uint64.

    Each image is drawn by itself, so that it stays where it is when others are added or removed;
    the count is random too. At least one image is held out, and one is not, unless `share` is 0 or
    all images are the same.
    """
    chances = _chances(images, seed)
    chosen = chances < share
    if share > 0 and not chosen.any():
        chosen = chances == chances.min(initial=1)
    if chosen.all():
        chosen = chances != chances.max(initial=0)
    return chosen


def _chances(images: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    """(N,) float64 in [0, 1): splitmix64 (Steele et al. 2014) of each hash and a seed."""
    z = images ^ np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
