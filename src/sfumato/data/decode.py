"""The one path from an encoded image to pixels: orientation, colours, size, and what is refused."""

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from sfumato.base.environment import processors
from sfumato.base.images import (
    ORIENTED,
    BadImage,
    check_one_picture,
    coloured,
    fitted,
    is_turned,
    upright,
)
from sfumato.config.sections import Fit
from sfumato.data.files import MAGIC_BYTES, format_in, readable_formats
from sfumato.data.png import without_text
from sfumato.data.table import Damage, Row

if TYPE_CHECKING:
    from sfumato.data.prepared import MappedImages

warnings.filterwarnings("ignore", module=r"PIL\.")
# Pillow warns of damaged headers; what cannot be decoded is listed by its row.

MAX_PIXELS = 100_000_000
"""Larger images are refused by their header, before a pixel is decoded: a few kilobytes can claim
60,000 x 60,000 pixels."""
_CHUNK_ROWS = 256
_SMALL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Target:
    """What images are brought to: `resolution` pixels high and wide, 1 or 3 channels."""

    resolution: int
    channels: int
    fit: Fit


class Header(NamedTuple):
    """What an image says of itself: size in pixels, format, and whether it is greyscale."""

    width: int
    height: int
    format: str
    grey: bool


def read_header(image: "bytes | Path | np.ndarray | None") -> Header:
    """Size and kind without decoding pixels; `BadImage` for what is no image or too large."""
    if isinstance(image, np.ndarray):
        return Header(image.shape[1], image.shape[0], "raw", image.ndim == 2)
    with open_image(image) as opened:
        return _header(opened)


def decode(image: "bytes | Path | np.ndarray | None", target: Target) -> tuple[np.ndarray, Header]:
    """uint8 (C, R, R) and the image's own header; `BadImage` where there is none to be had.

    In this order: the header's size is checked; a JPEG far larger than needed is decoded at 1/2,
    1/4 or 1/8 (never below twice the target); the EXIF orientation is applied; transparency is
    laid on white; 16-bit grey is scaled to 8 bits; colours become L or RGB (profiles are ignored);
    then crop or squash, by Pillow's antialiased bilinear filter.
    """
    if isinstance(image, np.ndarray):
        picture, header = Image.fromarray(image), read_header(image)
    else:
        with open_image(image) as opened:
            header = _header(opened)
            try:
                if header.format == "JPEG":
                    opened.draft(None, (2 * target.resolution, 2 * target.resolution))
                    if isinstance(image, bytes):
                        opened.decodermaxblock = len(image)  # fed at once it takes 2 % less time
                opened.load()
                picture = upright(opened)
            except Exception as error:  # each format's parser raises errors of its own
                if (smaller := _without_text(image, error)) is not None:
                    return decode(smaller, target)
                raise BadImage(f"cannot be decoded ({_reason(error)})") from error
    picture = coloured(picture, "L" if target.channels == 1 else "RGB")
    pixels = np.asarray(fitted(picture, target.resolution, target.fit))
    return (pixels[None] if target.channels == 1 else pixels.transpose(2, 0, 1)), header


def open_image(image: "bytes | Path | None") -> ImageFile.ImageFile:
    """An image of which only the header is read; `BadImage` for what is none."""
    if image is None or image == b"":
        raise BadImage("no image")
    try:
        file = io.BytesIO(image) if isinstance(image, bytes) else image
        return Image.open(file, formats=readable_formats())
    except FileNotFoundError as error:
        raise BadImage("the file is not there") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"claims more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:
        if (smaller := _without_text(image, error)) is not None:
            return open_image(smaller)
        kind = format_in(_start(image))
        known = kind and kind not in readable_formats()
        raise BadImage(f"{kind}, which is not read here" if known else "not an image") from error


def _start(image: bytes | Path) -> bytes:
    if isinstance(image, bytes):
        return image[:MAGIC_BYTES]
    try:
        with image.open("rb") as file:
            return file.read(MAGIC_BYTES)
    except OSError:
        return b""


def _without_text(image: bytes | Path, error: Exception) -> bytes | None:
    """The PNG without its text, where that may be what Pillow refused: its limits on text are a
    `ValueError`, and the pixels are whole."""
    if type(error) is not ValueError:
        return None
    content = image if isinstance(image, bytes) else image.read_bytes()
    smaller = without_text(content, kept=ORIENTED)
    return smaller if len(smaller) < len(content) else None


def _header(opened: Image.Image) -> Header:
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"claims {width} x {height} pixels, more than {MAX_PIXELS:,}")
    grey = opened.mode in ("1", "L", "LA", "I", "F") or opened.mode.startswith("I;16")
    return Header(width, height, opened.format or "", grey)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_picture(path: Path, target: Target) -> tuple[np.ndarray, tuple[int, int]]:
    """A file that is one picture, as `decode` gives it, and its upright width and height;
    `BadImage` for what is none and for several pictures."""
    pixels, _ = decode(path, target)
    with open_image(path) as opened:
        try:
            check_one_picture(opened)
            width, height = opened.size
            return pixels, (height, width) if is_turned(opened) else (width, height)
        except (OSError, SyntaxError, ValueError, EOFError) as error:  # where later frames are cut
            raise BadImage(f"cannot be decoded ({_reason(error)})") from error


# Many rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The rows that could be used, and those that could not.

    `images`: (N, C, R, R) uint8, in their file where they are prepared; `labels`: (N,) int64,
    zeros without classes; `captions`: N; `columns`: N, as `Row` has them; `resized`: how many had
    another size, None where that is not known.
    """

    images: "np.ndarray | MappedImages"
    labels: np.ndarray
    captions: list[str | None]
    damage: list[Damage]
    formats: dict[str, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    resized: int | None = None
    columns: Sequence[tuple[str | None, ...]] = ()


def decode_rows(
    rows: Iterable[Row],
    *,
    count: int,
    target: Target,
    classes: int,
    needs_caption: bool,
    on_rows: Callable[[int], None] = lambda done: None,
) -> Decoded:
    """Decode up to `count` rows in their order, on the threads that are there.

    A label that is missing or outside `classes` (0: none) and, with `needs_caption`, a missing
    caption are damage. `on_rows` gets the number of rows done.
    """
    images = np.empty((count, target.channels, target.resolution, target.resolution), np.uint8)
    labels, captions, columns, damage = [], [], [], []
    headers: list[Header] = []
    for chunk in decode_chunks(rows, target=target, classes=classes, needs_caption=needs_caption):
        for row, result in chunk:
            if isinstance(result, str):
                damage.append(Damage(row.file, row.number, result))
                continue
            images[len(headers)], header = result
            labels.append(row.label if classes else 0)
            captions.append(row.caption)
            columns.append(row.columns)
            headers.append(header)
        on_rows(len(headers) + len(damage))
    sizes = Counter((header.width, header.height) for header in headers)
    return Decoded(
        images=images[: len(headers)],
        labels=np.array(labels, np.int64),
        captions=captions,
        damage=damage,
        formats=dict(Counter(header.format for header in headers).most_common()),
        smallest=min(sizes, default=(0, 0)),
        largest=max(sizes, default=(0, 0)),
        resized=len(headers) - sizes[target.resolution, target.resolution],
        columns=columns,
    )


Pixels = tuple[np.ndarray, Header]
"""An image as `decode` gives it."""


def decode_chunks(
    rows: Iterable[Row], *, target: Target, classes: int, needs_caption: bool
) -> Iterator[list[tuple[Row, Pixels | str]]]:
    """The rows in their order, a few hundred at a time, each with its image or what is wrong with
    it; decoded on the threads that are there, while one more reads the rows that come next.

    Arguments as for `decode_rows`.
    """

    def attempt(row: Row) -> Pixels | str:
        if problem := row.problem or row_problem(row, classes, needs_caption):
            return problem
        try:
            return decode(row.image, target)
        except BadImage as error:
            return str(error)

    chunks = _chunks(rows)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(processors()) as pool:
        coming = reader.submit(next, chunks, None)
        while chunk := coming.result():
            coming = reader.submit(next, chunks, None)
            run = map if _is_small(chunk) else pool.map
            yield list(zip(chunk, run(attempt, chunk), strict=True))


NO_CAPTION = "no caption"


def row_problem(row: Row, classes: int, needs_caption: bool) -> str:
    """Why a row cannot be used, whatever its image is; empty where it can."""
    if classes and row.label is None:
        return "no label"
    if classes and row.label is not None and not 0 <= row.label < classes:
        return f"label {row.label} is outside the {classes} classes"
    if needs_caption and not row.caption:
        return NO_CAPTION
    return ""


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        yield chunk


def _is_small(chunk: list[Row]) -> bool:
    """Whether threads would only wait for one another: small images are decoded in microseconds,
    most of them under the interpreter's lock."""
    encoded = [row.image for row in chunk if isinstance(row.image, bytes)]
    if len(encoded) < len(chunk):
        return any(isinstance(row.image, np.ndarray) for row in chunk)
    return sum(map(len, encoded)) < _SMALL_BYTES * len(encoded)
