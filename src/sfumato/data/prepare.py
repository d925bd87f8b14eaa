"""One pass over a source: decode, resize and write every image, so that training only copies."""

import json
import os
import re
import shutil
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from sfumato.base.errors import DamagedDataError, DataWarning, InputError, SfumatoError
from sfumato.base.files import (
    is_temporary,
    make_folder,
    read_json,
    remove_incomplete,
    sha256_of_file,
    whole_file,
    write_json,
    writing,
)
from sfumato.config.sections import DataConfig
from sfumato.data.captions import column_fields
from sfumato.data.decode import decode_chunks
from sfumato.data.identity import image_hash
from sfumato.data.opening import open_images, source_name
from sfumato.data.prepared import (
    BEGUN,
    HEADER_BYTES,
    IMAGES,
    MANIFEST,
    ROWS,
    Manifest,
    Settings,
    read_manifest,
    verify,
)
from sfumato.data.records import check_damage, target_of
from sfumato.data.survey import OWN_CAPTION, resolve
from sfumato.data.table import Damage, RawImages, Row

_JOURNAL = "preparing.jsonl"
_OWN_FILES = {MANIFEST, BEGUN, _JOURNAL, IMAGES, ROWS}


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a pass left in its folder, or found there (`already`)."""

    manifest: Manifest
    damage: list[Damage]
    already: bool = False


def prepare(
    config: DataConfig, out: Path, *, on_rows: Callable[[int, int], None] = lambda done, total: None
) -> Prepared:
    """Write every image of `config.source` at its resolution into `out` (`data/prepared.py`).

    Killed at any moment and called again, it goes on, and ends with the same bytes. Damaged rows
    are left out up to `max_damaged` of a part. `on_rows` gets (rows done, rows in all). Raises
    as `open_images`; `InputError` where `out` holds something else, or was begun from other images
    or with other settings; `DamagedDataError` for too many damaged rows.
    """
    # Captions and columns are stored as they are, so that no template is needed yet.
    config = resolve(config.model_copy(update={"caption": (OWN_CAPTION,)}))
    raw = _with_columns(config)
    if raw.prepared is not None:
        raise InputError(f"{config.source} is prepared already.", hint="Train on it as it is.")
    settings = _settings(config, raw)
    finished = _claim(out, settings)
    if finished is not None:
        verify(out, finished)
        _tidy(out)
        return Prepared(manifest=finished, damage=[], already=True)
    with writing(out / IMAGES), _alone(out) as images:
        remove_incomplete(out)
        write_json(out / BEGUN, asdict(settings))
        work = _Work.resume(out / _JOURNAL)
        _refuse_lost_images(out, settings, work)
        _refuse_small_disk(out, raw, settings, work)
        _run(raw, config, images, work, on_rows)
        _write_rows(out / ROWS, work.rows, settings.columns)
        _finish_images(images, (work.kept, *_shape(settings)))
        manifest = _manifest(config, raw, settings, work, rows_sha256=sha256_of_file(out / ROWS))
        write_json(out / MANIFEST, manifest.as_json())
        _tidy(out)
    return Prepared(manifest=manifest, damage=_damage(work.rows))


def _manifest(
    config: DataConfig, raw: RawImages, settings: Settings, work: "_Work", *, rows_sha256: str
) -> Manifest:
    return Manifest(
        settings=settings,
        source=source_name(config),
        layout=raw.layout,
        parts={name: part.count for name, part in raw.parts.items()},
        images=work.kept,
        class_names=list(raw.class_names),
        labels=raw.labels,
        captions=raw.captions,
        formats=dict(work.formats.most_common()),
        smallest=min(work.sizes),
        largest=max(work.sizes),
        rows_sha256=rows_sha256,
        checksums=work.checksums,
    )


def _settings(config: DataConfig, raw: RawImages) -> Settings:
    target = target_of(config)
    return Settings(
        fingerprint=raw.fingerprint,
        resolution=target.resolution,
        channels=target.channels,
        fit=target.fit,
        image_column=config.image_column,
        label_column=config.label_column,
        caption_column=config.caption_column,
        also_train=list(config.also_train),
        columns=list(column_fields(_naming(raw))),
    )


def _with_columns(config: DataConfig) -> RawImages:
    """The source, with all columns that captions may use."""
    raw = open_images(config)
    with warnings.catch_warnings():  # they were given a line ago
        warnings.simplefilter("ignore", DataWarning)
        return open_images(config.model_copy(update={"caption": (OWN_CAPTION, *_naming(raw))}))


def _naming(raw: RawImages) -> list[str]:
    """Templates that name every column which a template can name."""
    return [f"[{{{name}}}]" for name in raw.columns if re.fullmatch(r"[\w -]+", name)]


def _shape(settings: Settings) -> tuple[int, int, int]:
    return settings.channels, settings.resolution, settings.resolution


# Whose folder it is -------------------------------------------------------------------------------


def _claim(out: Path, settings: Settings) -> Manifest | None:
    """The manifest of a finished pass with the same settings; None where there is work to do."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file.", hint="Give a new folder.")
    make_folder(out)
    if (out / MANIFEST).exists():
        finished = read_manifest(out)
        _refuse_other(out, asdict(finished.settings), settings)
        return finished
    begun = (out / BEGUN).exists()
    if begun:
        _refuse_other(out, read_json(out / BEGUN), settings)
    there = sorted(path for path in out.iterdir() if not is_temporary(path))
    if strange := [path.name for path in there if not _is_own(path, begun=begun)]:
        raise InputError(
            f"{out} holds {strange[0]}, which is not of a prepared data set; nothing was "
            "overwritten.",
            hint="Give a new folder.",
        )
    return None


def _is_own(path: Path, *, begun: bool) -> bool:
    """Whether a pass left this file; before it was begun, an empty images.npy at most."""
    if begun:
        return path.name in _OWN_FILES
    return path.name == IMAGES and path.stat().st_size == 0


def _refuse_other(out: Path, made: dict[str, Any], settings: Settings) -> None:
    wanted = asdict(settings)
    new = "Give a new folder; what is in this one stays as it is."
    if made.get("fingerprint") != wanted["fingerprint"]:
        raise InputError(
            f"{out} was prepared from other images: the source is another one, or its files have "
            "changed since.",
            hint=new,
        )
    for name, value in wanted.items():
        if made.get(name, []) != value:
            raise InputError(
                f"{out} was prepared with data.{name}={made.get(name)}, not {value}.", hint=new
            )


@contextmanager
def _alone(out: Path) -> Iterator[IO[bytes]]:
    """images.npy, held by this process: two passes would write over each other."""
    file = out / IMAGES
    with file.open("r+b" if file.exists() else "w+b") as images:
        try:
            import fcntl
        except ImportError:  # not on Windows
            fcntl = None
        if fcntl is not None:
            try:
                fcntl.flock(images, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"Another `sfumato prepare` is writing {out}.", hint="Wait for it, or stop it."
                ) from error
        yield images


def _refuse_lost_images(out: Path, settings: Settings, work: "_Work") -> None:
    written = HEADER_BYTES + work.kept * int(np.prod(_shape(settings)))
    if work.kept and (out / IMAGES).stat().st_size < written:
        raise DamagedDataError(
            f"{out / IMAGES} is shorter than what was written.", hint="Give a new folder."
        )


def _refuse_small_disk(out: Path, raw: RawImages, settings: Settings, work: "_Work") -> None:
    missing = (raw.count - len(work.rows)) * int(np.prod(_shape(settings)))
    free = shutil.disk_usage(out).free
    if free < missing:
        raise SfumatoError(
            f"{out}: {missing / 1e9:.3g} GB are to be written, {free / 1e9:.3g} GB are free.",
            hint="Free some space, give a folder on another disk, or a lower resolution.",
        )


# The pass -----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Work:
    """What was written so far: a line of the journal for each stretch of rows, after its images."""

    journal: Path
    rows: list[list[Any]] = field(default_factory=list)
    kept: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    sizes: set[tuple[int, int]] = field(default_factory=set)
    checksums: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def resume(cls, journal: Path) -> "_Work":
        """As the journal says; a last line that was cut short is cut off."""
        work = cls(journal=journal)
        if not journal.exists():
            journal.touch()
        good = 0
        with journal.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                work._take(json.loads(line))
                good += len(line)
            file.truncate(good)
        return work

    def add(self, entry: dict[str, Any]) -> None:
        with self.journal.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        self.rows += entry["rows"]
        self.kept += entry["images"]
        self.formats.update(entry["formats"])
        self.sizes.update((width, height) for width, height in entry["sizes"])
        self.checksums.append((entry["images"], entry["crc32"]))


def _run(
    raw: RawImages,
    config: DataConfig,
    images: IO[bytes],
    work: _Work,
    on_rows: Callable[[int, int], None],
) -> None:
    on_rows(len(work.rows), raw.count)
    start = 0
    for name, part in raw.parts.items():
        done = min(max(0, len(work.rows) - start), part.count)
        damage = _damage(work.rows[start : start + done])
        check_damage(damage, part.count, config)
        start += part.count
        if done == part.count:
            continue
        chunks = decode_chunks(
            part.read(np.arange(part.count) >= done),
            target=target_of(config),
            classes=len(raw.class_names),
            needs_caption=False,
        )
        for chunk in chunks:
            work.add(_write_chunk(images, work.kept, name, chunk))
            damage += _damage(work.rows[-len(chunk) :])
            check_damage(damage, part.count, config)
            on_rows(len(work.rows), raw.count)


def _damage(rows: list[list[Any]]) -> list[Damage]:
    return [Damage(file, number, problem) for _, file, number, *_, problem in rows if problem]


def _write_chunk(
    images: IO[bytes], kept: int, part: str, chunk: list[tuple[Row, Any]]
) -> dict[str, Any]:
    """Write the images of a stretch of rows, safely on the disk; its line of the journal."""
    good = [result for _, result in chunk if not isinstance(result, str)]
    pixels = np.stack([array for array, _ in good]).tobytes() if good else b""
    if good:
        images.seek(HEADER_BYTES + kept * (len(pixels) // len(good)))
        images.write(pixels)
        images.flush()
        os.fsync(images.fileno())
    headers = [header for _, header in good]
    return {
        "rows": [
            [
                part,
                row.file,
                row.number,
                row.label,
                row.caption,
                image_hash(row),
                row.columns,
                result if isinstance(result, str) else "",
            ]
            for row, result in chunk
        ],
        "images": len(good),
        "crc32": zlib.crc32(pixels),
        "formats": Counter(header.format for header in headers),
        "sizes": sorted({(header.width, header.height) for header in headers}),
    }


def _write_rows(file: Path, rows: list[list[Any]], columns: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        "part": pa.string(),
        "file": pa.string(),
        "number": pa.int64(),
        "label": pa.int64(),
        "caption": pa.string(),
        "identity": pa.uint64(),
        **{f"column {name}": pa.string() for name in columns},
        "problem": pa.string(),
    }
    none = [None] * len(columns)
    flat = [[*rest, *(others or none), problem] for *rest, others, problem in rows]
    table = pa.table(dict(zip(kinds, zip(*flat, strict=True), strict=True)), pa.schema(kinds))
    with whole_file(file) as temporary, temporary.open("wb") as opened:
        pq.write_table(table, opened)


def _finish_images(images: IO[bytes], shape: tuple[int, ...]) -> None:
    """The header, now that the number of images is known, and the end."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    images.seek(0)
    np.lib.format.write_array_header_1_0(images, header)
    assert images.tell() == HEADER_BYTES
    images.truncate(HEADER_BYTES + int(np.prod(shape)))
    images.flush()
    os.fsync(images.fileno())


def _tidy(out: Path) -> None:
    for name in (BEGUN, _JOURNAL):
        (out / name).unlink(missing_ok=True)
    remove_incomplete(out)
