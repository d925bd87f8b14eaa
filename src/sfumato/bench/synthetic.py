"""Synthetic data sets in the form of real ones: the same files, columns, sizes and classes.

For trying the data engine, a preset or a cluster without the 32 GB of the real thing. The pictures
are made by a program, and everything about them says so.
"""

import io
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from sfumato.base.environment import processors
from sfumato.base.errors import InputError
from sfumato.base.files import remove_incomplete, whole_file, write_text
from sfumato.base.randomness import derived_seed
from sfumato.bench.paintings.canvas import Size
from sfumato.bench.paintings.styles import STYLES, paint

if TYPE_CHECKING:
    import pyarrow as pa

Order = Literal["sorted", "mixed"]

VERSION = 1
"""Counts up when the same seed would give other bytes."""
GENRES = (
    *("abstract_painting", "cityscape", "genre_painting", "illustration", "landscape"),
    *("nude_painting", "portrait", "religious_painting", "sketch_and_study", "still_life"),
    "Unknown Genre",
)
ARTISTS = tuple(f"synthetic_artist_{number:03d}" for number in range(129))
LEAST_BYTES, MOST_BYTES = 250_000, 400_000
_KEY = b"sfumato"
_TASK_ROWS = 8
_QUALITIES = (40, 65, 82, 93)


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """What is made: `files` of `rows` each, in row groups of `row_group`; `sorted` by style, or
    `mixed`. Equal settings give equal bytes (with one version of Pillow and its JPEG library)."""

    files: int = 72
    rows: int = 1100
    row_group: int = 100
    order: Order = "mixed"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("files", "rows", "row_group"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more (got {getattr(self, name)}).")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more (got {self.seed}).")
        if self.order not in ("sorted", "mixed"):
            raise InputError(f"There is no order '{self.order}'.", hint="Choose sorted or mixed.")

    def name(self, file: int) -> str:
        return f"synthetic-train-{file:05d}-of-{self.files:05d}.parquet"

    def styles(self) -> np.ndarray:
        """The style of every row (files * rows,): WikiArt's long tail, rounded to whole rows."""
        counts = np.array([style.count for style in STYLES.values()])
        ends = np.rint(np.cumsum(counts) * (self.files * self.rows / counts.sum())).astype(int)
        styles = np.repeat(np.arange(len(counts)), np.diff(ends, prepend=0))
        if self.order == "mixed":
            styles = np.random.default_rng(derived_seed(self.seed, "order")).permutation(styles)
        return styles


LIKE: dict[str, type[Synthesis]] = {"wikiart": Synthesis}
"""What can be imitated, by name."""


def synthesize(
    folder: Path,
    synthesis: Synthesis,
    *,
    processes: int | None = None,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Make the data set in `folder`; the files. Those that are there already are kept.

    A file appears when it is whole. `on_rows` gets (rows done, rows in all). Raises `InputError`
    where `folder` holds something else, or a synthesis with other settings.
    """
    data = folder / "data"
    _refuse_others(folder, synthesis)
    remove_incomplete(data)
    write_text(folder / "README.md", _readme(synthesis))
    paths = [data / synthesis.name(file) for file in range(synthesis.files)]
    missing = [file for file, path in enumerate(paths) if not path.exists()]
    styles, rows = synthesis.styles(), synthesis.rows
    done = rows * (synthesis.files - len(missing))
    total = rows * synthesis.files
    # Spawned, not forked: torch has threads by now, and the workers need none of it.
    context = multiprocessing.get_context("spawn")
    if missing:
        with context.Pool(processes or processors()) as pool:
            numbers = (
                number for file in missing for number in range(file * rows, (file + 1) * rows)
            )
            tasks = ((number, int(styles[number])) for number in numbers)
            made = pool.imap(partial(_row, seed=synthesis.seed), tasks, chunksize=_TASK_ROWS)
            for file in missing:
                for batch in _write(paths[file], islice(made, rows), synthesis):
                    done += batch
                    on_rows(done, total)
    return paths


# A row --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Row:
    image: bytes
    path: str
    artist: int
    genre: int
    style: int


def _row(task: tuple[int, int], *, seed: int) -> _Row:
    number, style = task
    rng = np.random.default_rng(derived_seed(seed, "painting", number))
    name = list(STYLES)[style]
    genres = STYLES[name].genres
    genre = genres[rng.integers(len(genres))]
    image = paint(STYLES[name], genre, _size(rng), rng)
    # A style has its few artists, as real ones do.
    artist = (5 * style + int(rng.integers(12))) % len(ARTISTS)
    return _Row(
        image=_jpeg(image, rng.uniform(LEAST_BYTES + 25_000, MOST_BYTES - 25_000)),
        path=f"synthetic-{name.lower()}-{number:06d}.jpg",
        artist=artist,
        genre=GENRES.index(genre),
        style=style,
    )


def _size(rng: np.random.Generator) -> Size:
    """About 1500 x 1200 pixels, upright or lying."""
    long = int(rng.integers(1300, 1750))
    short = int(np.clip(long / rng.uniform(1.02, 1.5), 960, 1400))
    return (short, long) if rng.random() < 0.45 else (long, short)


def _jpeg(image: Image.Image, aim_bytes: float) -> bytes:
    """A JPEG of about `aim_bytes`: the quality is found on a part of the image, then mended."""
    w, h = image.size
    bands = Image.new("RGB", (w, 160))
    for band in range(5):
        top = (band * h // 5) // 8 * 8
        bands.paste(image.crop((0, top, w, top + 32)), (0, 32 * band))
    sizes = [np.log(len(_encoded(bands, quality)) * h / 160) for quality in _QUALITIES]
    quality = float(np.interp(np.log(aim_bytes), sizes, _QUALITIES))
    slope = (sizes[-1] - sizes[0]) / (_QUALITIES[-1] - _QUALITIES[0])
    encoded = _encoded(image, round(quality))
    for _ in range(4):
        if LEAST_BYTES <= len(encoded) <= MOST_BYTES:
            break
        quality += (np.log(aim_bytes) - np.log(len(encoded))) / slope
        quality = float(np.clip(quality, 10, 98))
        encoded = _encoded(image, round(quality))
    return encoded


def _encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


# A file -------------------------------------------------------------------------------------------


def _write(path: Path, rows: Iterable[_Row], synthesis: Synthesis) -> Iterator[int]:
    """Write one file; the number of rows after each row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(synthesis)
    rows = iter(rows)
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while group := list(islice(rows, synthesis.row_group)):
            columns = [
                pa.array([{"bytes": row.image, "path": row.path} for row in group], schema[0].type),
                *(pa.array([getattr(row, name) for row in group]) for name in schema.names[1:]),
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(group))
            yield len(group)


def _schema(synthesis: Synthesis) -> "pa.Schema":
    """The Hub's columns; the classes' names as `datasets` writes them; and what made it."""
    import pyarrow as pa

    classes = {"artist": ARTISTS, "genre": GENRES, "style": tuple(STYLES)}
    features: dict[str, object] = {"image": {"_type": "Image"}}
    features |= {name: {"names": names, "_type": "ClassLabel"} for name, names in classes.items()}
    info = {"description": "Synthetic: made by a program.", "features": features}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema(
        [("image", image), *((name, pa.int64()) for name in classes)],
        metadata={b"huggingface": json.dumps({"info": info}).encode(), _KEY: _made_by(synthesis)},
    )


def _made_by(synthesis: Synthesis) -> bytes:
    return json.dumps({"synthetic": "wikiart", "version": VERSION, **asdict(synthesis)}).encode()


def _refuse_others(folder: Path, synthesis: Synthesis) -> None:
    """`InputError` unless `folder` is new, empty or holds the same synthesis."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file.", hint="Give a new folder.")
    names = {synthesis.name(file) for file in range(synthesis.files)}
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        if path == folder / "data" or path.name.startswith(".") or path.name == "README.md":
            continue
        made_by = None
        if path.suffix == ".parquet":
            try:
                made_by = (pq.read_schema(path).metadata or {}).get(_KEY)
            except (pa.ArrowException, OSError):
                made_by = None
        if path.name not in names or made_by != _made_by(synthesis):
            what = "made with other settings" if made_by else "which is not of this data set"
            raise InputError(
                f"{folder} holds {path.relative_to(folder)}, {what}; nothing was overwritten.",
                hint="Give a new folder, or the settings that it was begun with (its README.md "
                "has them).",
            )


def _readme(synthesis: Synthesis) -> str:
    settings = "\n".join(f"- {name}: {value}" for name, value in asdict(synthesis).items())
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/synthetic-train-*.parquet
tags:
- synthetic
---

# Synthetic WikiArt

No painting in here was painted: a program (`sfumato data synthesize`) drew all of them. They have
the form of WikiArt (columns, classes, long tail, sizes in pixels and bytes) for trying machinery,
and say nothing about art. The artists are made up.

Settings, version {VERSION}:

{settings}
"""
