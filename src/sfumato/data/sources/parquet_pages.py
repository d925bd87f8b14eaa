"""Images of a row group read one by one, without the row group around them.

Arrow reads a column of a row group as a whole, and writes up to 1,024 images into one page: 340 MB
of paintings, read again for each few of them. Here the pages are walked once, from header to header
and from image to image, for an index of where each lies; then an image costs its own bytes.

Walked are pages as Arrow and most others write them: version 1 or 2, PLAIN or with a dictionary,
uncompressed or in Snappy. All else, and all that does not add up, is left to Arrow, which reads it
or says what is wrong with it.

Formats: https://parquet.apache.org/docs/file-format and parquet.thrift, whose numbers of fields are
used below; https://github.com/google/snappy/blob/main/format_description.txt.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfumato.data.sources.parquet_file import open_parquet

_LEAST_IMAGE_BYTES = 16 * 2**10
"""Mean size below which Arrow reads all images of a group sooner than one is found here."""
_MOST_INDICES = 256
_NO_IMAGE = -1


class _Unusual(Exception):
    """Pages that are not walked here, or do not add up."""


@dataclass(frozen=True, kw_only=True)
class ImageIndex:
    """Where the images of a row group lie in their `file`.

    The image of row r is the `sizes[r]` bytes from `starts[r]` on of page `page_of[r]`; a row
    without an image has no page (-1).
    """

    file: Path
    pages: "Sequence[_Page]"
    page_of: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    def read(self, rows: Sequence[int]) -> Iterator[bytes | None]:
        """The encoded images of `rows`, counted from the group's first. Raises `OSError`."""
        with self.file.open("rb", buffering=0) as opened:
            for row in rows:
                if self.page_of[row] == _NO_IMAGE:
                    yield None
                    continue
                start = int(self.starts[row])
                page = self.pages[self.page_of[row]]
                yield page.read(opened.fileno(), start, start + int(self.sizes[row]))


@lru_cache(maxsize=_MOST_INDICES)
def index_images(file: Path, group: int, column: str) -> ImageIndex | None:
    """The index of a row group's image column, which is binary or a struct with `bytes`; None
    where Arrow has to read it."""
    try:
        with open_parquet(file) as opened:
            chunk = _Chunk.of(opened, group, column)
        with file.open("rb", buffering=0) as content:
            return _walk(file, content.fileno(), chunk)
    except Exception:  # damaged bytes can mean anything; Arrow says what is wrong with them
        return None


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """A column of a row group: bytes start..stop of the file. `count`: its rows, of which those
    with an image have the definition level `levels`; `snappy`: else it is not compressed."""

    start: int
    stop: int
    count: int
    levels: int
    snappy: bool

    @classmethod
    def of(cls, opened: Any, group: int, column: str) -> "_Chunk":
        schema, about = opened.schema, opened.metadata.row_group(group)
        names = (column, f"{column}.bytes")
        (number,) = (i for i in range(len(schema)) if schema.column(i).path in names)
        leaf, chunk = schema.column(number), about.column(number)
        binary = leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"
        known = chunk.compression in ("SNAPPY", "UNCOMPRESSED")
        small = chunk.total_uncompressed_size < _LEAST_IMAGE_BYTES * about.num_rows
        if not binary or not known or small or leaf.max_repetition_level:
            raise _Unusual
        start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
        return cls(
            start=start,
            stop=start + chunk.total_compressed_size,
            count=about.num_rows,
            levels=leaf.max_definition_level,
            snappy=chunk.compression == "SNAPPY",
        )


# From page to page --------------------------------------------------------------------------------


def _walk(path: Path, file: int, chunk: _Chunk) -> ImageIndex:
    pages: list[_Page] = []
    page_of = np.full(chunk.count, _NO_IMAGE)
    starts, sizes = np.zeros((2, chunk.count), np.int64)
    dictionary: tuple[int, np.ndarray, np.ndarray] | None = None
    row, at = 0, chunk.start
    while row < chunk.count:
        header, body = _read_header(file, at)
        at = body + header.stored
        if at > chunk.stop or not 0 <= header.count <= chunk.count - row:
            raise _Unusual
        if header.kind == _DICTIONARY:
            page = _page(file, body, at, header.size, snappy=chunk.snappy)
            dictionary = len(pages), *_images(file, page, 0, header.count)
            pages.append(page)
            continue
        has_image, page, first = _data_page(file, body, at, header, chunk)
        rows = row + np.flatnonzero(has_image)
        row += header.count
        if header.encoding == _PLAIN:
            page_of[rows] = len(pages)
            starts[rows], sizes[rows] = _images(file, page, first, len(rows))
            pages.append(page)
        elif header.encoding in _BY_DICTIONARY and dictionary is not None:
            width = page.read(file, first, first + 1)[0] if len(rows) else 0
            which = _numbers(page.read(file, first + 1, page.size), width, len(rows))
            page_of[rows] = dictionary[0]
            starts[rows], sizes[rows] = (found[which] for found in dictionary[1:])
        else:
            raise _Unusual
    return ImageIndex(file=path, pages=pages, page_of=page_of, starts=starts, sizes=sizes)


def _data_page(
    file: int, body: int, stop: int, header: "_Header", chunk: _Chunk
) -> "tuple[np.ndarray, _Page, int]":
    """Which rows have an image; the page; and where in it the images, or their numbers, begin."""
    width = chunk.levels.bit_length()
    first, levels = 0, b""
    if header.kind == _DATA_2:  # the levels stand before what is compressed
        levels, body = _read(file, body, header.level_bytes), body + header.level_bytes
        snappy, size = chunk.snappy and header.compressed, header.size - header.level_bytes
        page = _page(file, body, stop, size, snappy=snappy)
    else:
        page = _page(file, body, stop, header.size, snappy=chunk.snappy)
        if width:
            first = 4 + int.from_bytes(page.read(file, 0, 4), "little")
            levels = page.read(file, 4, first)
    return _numbers(levels, width, header.count) == chunk.levels, page, first


def _images(file: int, page: "_Page", start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the `count` images begin that fill a page from `start` on, and their sizes, which
    stand before them."""
    starts, sizes = np.empty((2, count), np.int64)
    for number in range(count):
        size = int.from_bytes(page.read(file, start, start + 4), "little")
        starts[number], sizes[number] = start + 4, size
        start += 4 + size
    if start != page.size:
        raise _Unusual
    return starts, sizes


# Headers ------------------------------------------------------------------------------------------

_HEADER_BYTES = 16 * 2**10
"""Most of a header: with the least and largest image of a page it can be long."""
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_PLAIN, _RLE = 0, 3
_BY_DICTIONARY = (2, 8)
_MOST_BITS = 32


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What a page says of itself: `size` and `stored`, its bytes before and after compression;
    `count` and `encoding` of its values; in version 2 also how many bytes its definition levels
    take, and whether the rest is compressed."""

    kind: int
    size: int
    stored: int
    count: int
    encoding: int
    level_bytes: int
    compressed: bool


def _read_header(file: int, at: int) -> tuple[_Header, int]:
    """The header at byte `at` of the file, and where it ends."""
    fields, length = _struct(os.pread(file, _HEADER_BYTES, at), 0)
    kind, size, stored = fields[1], fields[2], fields[3]
    level_bytes, compressed = 0, True
    if kind == _DATA_2:
        about = fields[8]
        encoding, level_bytes, compressed = about[4], about[5], about.get(7, True)
        usual = about[6] == 0
    else:
        about = fields[{_DATA: 5, _DICTIONARY: 7}[kind]]
        encoding = about[2]
        usual = kind == _DICTIONARY or about[3] == _RLE
    if not usual or min(size, stored) < 0:
        raise _Unusual
    header = _Header(
        kind=kind,
        size=size,
        stored=stored,
        count=about[1],
        encoding=encoding,
        level_bytes=level_bytes,
        compressed=compressed,
    )
    return header, at + length


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct in Thrift's compact protocol, by the numbers of its fields, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        step, kind = divmod(data[at], 16)
        if step == 0:
            raise _Unusual
        number, at = number + step, at + 1
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind in (4, 5, 6):
            zigzag, at = _varint(data, at)
            fields[number] = zigzag >> 1 ^ -(zigzag & 1)
        elif kind == 8:
            size, at = _varint(data, at)
            fields[number], at = data[at : at + size], at + size
        elif kind == 12:
            fields[number], at = _struct(data, at)
        else:
            raise _Unusual
    return fields, at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, 7 bits a byte and the lowest first, and where it ends."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
    return value | data[at] << shift, at + 1


def _numbers(data: bytes, width: int, count: int) -> np.ndarray:
    """`count` numbers of `width` bits, in runs of one number and in eights packed bit by bit."""
    if width > _MOST_BITS:
        raise _Unusual
    numbers = np.zeros(count, np.int64)
    done = at = 0
    while width and done < count:
        head, at = _varint(data, at)
        if head & 1:
            packed = np.frombuffer(data, np.uint8, (head >> 1) * width, at)
            bits = np.unpackbits(packed, bitorder="little").reshape(-1, width)
            run, at = bits @ (1 << np.arange(width)), at + len(packed)
        else:
            end = at + -(-width // 8)
            number = int.from_bytes(data[at:end], "little")
            run, at = np.full(min(head >> 1, count), number), end
        numbers[done : done + len(run)] = run[: count - done]
        done += len(run)
    return numbers


# Bytes of a page ----------------------------------------------------------------------------------

_BLOCK_BYTES = 64 * 2**10
"""What Snappy's writers compress at a time: no block needs another one."""
_LEAST_RATIO = 0.8
"""A page that Snappy makes smaller than this has too many elements to walk. Encoded images hardly
shrink: a block of one is an element or two."""
_WINDOW_BYTES = 4 * 2**10


class _Page(NamedTuple):
    """The `size` bytes of a page: those of the file from edges[0] on, or in Snappy's blocks, of
    which block i lies between edges[i] and edges[i + 1]."""

    size: int
    edges: np.ndarray
    snappy: bool

    def read(self, file: int, start: int, stop: int) -> bytes:
        if not start <= stop <= self.size:
            raise _Unusual
        if not self.snappy:
            return _read(file, int(self.edges[0]) + start, stop - start)
        first, last = start // _BLOCK_BYTES, -(-stop // _BLOCK_BYTES)
        begin, end = first * _BLOCK_BYTES, min(last * _BLOCK_BYTES, self.size)
        stored = int(self.edges[first])
        blocks = _read(file, stored, int(self.edges[last]) - stored)
        return _decompressed(blocks, end - begin)[start - begin : stop - begin]


def _read(file: int, start: int, size: int) -> bytes:
    content = os.pread(file, size, start)
    if len(content) < size:
        raise OSError(f"it ends at byte {start + len(content):,}")
    return content


def _decompressed(blocks: bytes, size: int) -> bytes:
    """`size` bytes in some blocks of a page, which want only their size before them."""
    import pyarrow as pa

    head, left = bytearray(), size
    while left >= 0x80:
        head.append(left & 0x7F | 0x80)
        left >>= 7
    head.append(left)
    return pa.decompress(bytes(head) + blocks, size, "snappy", asbytes=True)


def _page(file: int, start: int, stop: int, size: int, *, snappy: bool) -> _Page:
    """The page of `size` bytes that is stored in start..stop of the file."""
    if snappy and size:
        return _Page(size, np.array(_block_edges(file, start, stop, size)), snappy=True)
    if not snappy and stop - start != size:
        raise _Unusual
    return _Page(size, np.array([start]), snappy=False)


def _block_edges(file: int, start: int, stop: int, size: int) -> list[int]:
    """Where the Snappy blocks of a page begin, and where the last one ends, by the elements that
    they consist of: each says how many bytes it makes and where the next one is."""
    if stop - start < _LEAST_RATIO * size:
        raise _Unusual
    window, base = os.pread(file, _WINDOW_BYTES, start), start
    total, length = _varint(window, 0)
    at = start + length
    edges, filled = [at], 0
    while at < stop:
        if at + 5 > base + len(window):  # an element's head takes up to five bytes
            window, base = os.pread(file, _WINDOW_BYTES, at), at
        tag, here = window[at - base], at - base + 1
        if tag & 3 == 0:  # a literal; a size that does not fit into the tag stands behind it
            made, extra = (tag >> 2) + 1, max(0, (tag >> 2) - 59)
            if extra:
                made = int.from_bytes(window[here : here + extra], "little") + 1
            at += 1 + extra + made
        else:  # a copy of what was made `back` bytes before
            extra = (1, 2, 4)[(tag & 3) - 1]
            back = int.from_bytes(window[here : here + extra], "little")
            made = (tag >> 2) + 1
            if extra == 1:
                back, made = back + (tag >> 5 << 8), (tag >> 2 & 7) + 4
            if back > filled:
                raise _Unusual  # from another block
            at += 1 + extra
        filled += made
        if filled > _BLOCK_BYTES:
            raise _Unusual
        if filled == _BLOCK_BYTES:
            edges.append(at)
            filled = 0
    whole_blocks = (len(edges) - 1) * _BLOCK_BYTES
    if filled:
        edges.append(at)
    if at != stop or not whole_blocks + filled == total == size:
        raise _Unusual
    return edges
