"""Prepared data: every image decoded and resized once, in one array that is mapped, not read.

`data/prepare.py` writes the folder; here it is read, as a source like others. It holds

    images.npy     (N, C, R, R) uint8: numpy.load(..., mmap_mode="r") reads it too
    rows.parquet   every row of the source in its order: part, file, number, label, caption,
                   identity (a hash of its encoded bytes), problem, and "column NAME" for each
                   column that captions may use
    prepared.json  from which source, how, checksums; written last: with it, the folder is whole
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.base.files import read_json, sha256_of_file
from sfumato.config.sections import DataConfig
from sfumato.data.decode import NO_CAPTION, Decoded
from sfumato.data.identity import note_hash
from sfumato.data.sources.parquet_file import open_parquet
from sfumato.data.table import Damage, Part, RawImages, Row

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 2
MANIFEST, BEGUN = "prepared.json", "preparing.json"
IMAGES, ROWS = "images.npy", "rows.parquet"
HEADER_BYTES = 128
"""Length of the header of images.npy, whatever the number of images."""
_MOVED_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the pixels and rows depend on; the source by its fingerprint, not by its place."""

    fingerprint: str
    resolution: int
    channels: int
    fit: str
    image_column: str
    label_column: str
    caption_column: str
    also_train: Sequence[str] = ()
    columns: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What prepared.json says. `checksums`: (images, CRC-32) of each stretch of images.npy."""

    settings: Settings
    source: str
    layout: str
    parts: Mapping[str, int]
    images: int
    class_names: Sequence[str]
    labels: str
    captions: str
    formats: Mapping[str, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    rows_sha256: str
    checksums: Sequence[tuple[int, int]]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        side = self.settings.resolution
        return self.images, self.settings.channels, side, side

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


class MappedImages:
    """Images (N, C, H, W) uint8, or latents, that stay in their file: chosen rows become tensors,
    the rest is never read. The operating system keeps what is used in memory, and lets it go when
    it must."""

    def __init__(self, file: Tensor, rows: Tensor) -> None:
        """`file`: (M, C, H, W), mapped; `rows`: (N,) int64 into it."""
        self._file = file
        self._rows = rows

    def beside(self, file: Tensor) -> "MappedImages":
        """The same rows of another file."""
        return MappedImages(file, self._rows)

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * self._file.element_size()

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self._rows), *self._file.shape[1:]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | slice | Tensor) -> Tensor:
        """The image, or the images, at `key`, copied from the file."""
        rows = self._rows[key]
        return self._file[int(rows)].clone() if rows.ndim == 0 else self._file.index_select(0, rows)

    def split(self, size: int) -> Iterator[Tensor]:
        """`size` images at a time, as `Tensor.split` has it."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device) -> Tensor:
        """All of them on `device`, a part at a time."""
        moved = torch.empty(self.shape, dtype=self._file.dtype, device=device)
        for part, images in zip(moved.split(_MOVED_ROWS), self.split(_MOVED_ROWS), strict=True):
            part.copy_(images)
        return moved


# Reading ------------------------------------------------------------------------------------------


def read_prepared(folder: Path, fields: Sequence[str] = ()) -> RawImages | None:
    """The data set that `sfumato prepare` left in `folder`; None where it left none. `fields`: its
    columns that captions use.

    Raises `InputError` where it was not finished, `DamagedDataError` where its files are not whole.
    """
    if not _is_prepared(folder):
        return None
    manifest = read_manifest(folder)
    table = _read_rows(folder, manifest)
    images = _mapped(folder, manifest)
    kept = np.asarray(table["problem"].to_numpy()) == ""
    places = np.cumsum(kept) - 1
    parts: dict[str, Part] = {}
    start = 0
    for name, count in manifest.parts.items():
        rows = _Rows(
            manifest=manifest,
            fields=[name for name in fields if name in manifest.settings.columns],
            images=images,
            table=table.slice(start, count),
            kept=kept[start : start + count],
            places=places[start : start + count],
        )
        parts[name] = Part(
            count=count, read=rows.read, stored=rows.stored, identities=rows.identities
        )
        start += count
    return RawImages(
        layout=f"prepared from {manifest.layout}",
        parts=parts,
        class_names=manifest.class_names,
        labels=manifest.labels,
        captions=manifest.captions,
        fingerprint=sha256_of_file(folder / MANIFEST)[:16],
        columns=manifest.settings.columns,
        prepared=manifest.settings,
    )


def _is_prepared(folder: Path) -> bool:
    """`InputError` for what was begun and not finished."""
    there = (folder / MANIFEST).exists()
    if not there and (folder / BEGUN).exists():
        raise InputError(
            f"{folder} is not finished: `sfumato prepare` was stopped.",
            hint="Give the same command again; it goes on where it stopped.",
        )
    return there


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of one part: `kept` (n,) says which have an image, `places` where it lies."""

    manifest: Manifest
    fields: Sequence[str]
    images: Tensor
    table: "pa.Table"
    kept: np.ndarray
    places: np.ndarray

    def read(self, keep: np.ndarray | None) -> Iterator[Row]:
        names = ("file", "number", "label", "caption", "problem")
        columns = [self.table[name].to_pylist() for name in names]
        said = zip(*columns, self._columns(), strict=True)
        for index, (file, number, label, caption, problem, others) in enumerate(said):
            if keep is not None and not keep[index]:
                continue
            pixels = None
            if self.kept[index]:
                array = self.images[int(self.places[index])].numpy()
                pixels = array[0] if len(array) == 1 else array.transpose(1, 2, 0)
            yield Row(pixels, label, caption, file, number, problem, others)

    def _columns(self) -> list[tuple[str | None, ...]]:
        """Of each row, the columns that captions use."""
        if not self.fields:
            return [()] * len(self.kept)
        return list(
            zip(*(self.table[f"column {name}"].to_pylist() for name in self.fields), strict=True)
        )

    def identities(self) -> np.ndarray:
        """(N, 2) uint64, as `data/identity.py` finds them in the source."""
        labels, captions = (self.table[name].to_pylist() for name in ("label", "caption"))
        names = self.manifest.class_names
        notes = [
            note_hash(Row(None, label, caption, "", columns=others), names)
            for label, caption, others in zip(labels, captions, self._columns(), strict=True)
        ]
        return np.stack([self.table["identity"].to_numpy(), np.array(notes, np.uint64)], axis=1)

    def stored(self, keep: np.ndarray | None, needs_caption: bool) -> Decoded:
        """What decoding the rows would give, without decoding: the images stay in their file."""
        asked = np.ones(len(self.kept), bool) if keep is None else keep
        problems = self.table["problem"].to_numpy().astype(object)
        captions, columns = self.table["caption"].to_pylist(), self._columns()
        if needs_caption:
            without = self.kept & np.array([not caption for caption in captions])
            problems[without] = NO_CAPTION
        used = asked & (problems == "")
        files, numbers = (self.table[name].to_pylist() for name in ("file", "number"))
        return Decoded(
            images=MappedImages(self.images, torch.from_numpy(self.places[used])),
            labels=self.table["label"].fill_null(0).to_numpy()[used],
            captions=[captions[index] for index in np.flatnonzero(used).tolist()],
            columns=[columns[index] for index in np.flatnonzero(used).tolist()],
            damage=[
                Damage(files[index], numbers[index], problems[index])
                for index in np.flatnonzero(asked & ~used).tolist()
            ],
            formats=dict(self.manifest.formats),
            smallest=self.manifest.smallest,
            largest=self.manifest.largest,
        )


def read_manifest(folder: Path) -> Manifest:
    """prepared.json; `DamagedDataError` where it is none of ours."""
    values = read_json(folder / MANIFEST)
    try:
        if values.pop("format") != FORMAT:
            raise InputError(
                f"{folder} was prepared by another version of sfumato.",
                hint="Prepare the source again, into a new folder.",
            )
        settings = Settings(**values.pop("settings"))
        pairs = {name: tuple(values.pop(name)) for name in ("smallest", "largest")}
        checksums = [(int(count), int(crc)) for count, crc in values.pop("checksums")]
        return Manifest(settings=settings, checksums=checksums, **pairs, **values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise DamagedDataError(
            f"{folder / MANIFEST} is not what `sfumato prepare` wrote ({why}).",
            hint="Prepare the source again, into a new folder.",
        ) from error


def mapped_images(folder: Path) -> Tensor:
    """uint8 (N, C, R, R): all images of a prepared folder, in their file; raises as
    `read_prepared`."""
    return _mapped(folder, read_manifest(folder))


def verify(folder: Path, manifest: Manifest) -> None:
    """`DamagedDataError` unless every image has the checksum that it was written with."""
    images = _mapped(folder, manifest).numpy()
    start = 0
    for count, crc in manifest.checksums:
        if zlib.crc32(images[start : start + count]) != crc:
            raise DamagedDataError(
                f"{folder / IMAGES}: images {start}-{start + count - 1} are not as they were "
                "written.",
                hint="The disk or another program altered them: prepare the source again, into a "
                "new folder.",
            )
        start += count
    if sha256_of_file(folder / ROWS) != manifest.rows_sha256:
        raise _not_whole(folder / ROWS)


def refuse_other_settings(folder: Path, made: Settings, config: DataConfig) -> None:
    """`ConfigError` where `config` asks for another size, or for other columns or parts, than the
    images in `folder` were prepared with."""
    if config.also_train and list(config.also_train) != list(made.also_train):
        raise ConfigError(
            f"data.also_train is {list(config.also_train)}, but {folder} was prepared with "
            f"{list(made.also_train)}.",
            hint="Leave it out, or prepare the source again with it, into a new folder.",
        )
    for name in ("resolution", "channels", "image_column", "label_column", "caption_column"):
        asked, there = getattr(config, name), getattr(made, name)
        if asked not in ("auto", there):
            raise ConfigError(
                f"data.{name} is {asked}, but {folder} was prepared with {there}.",
                hint=f"Leave data.{name} as auto, or prepare the source again with "
                f"--set data.{name}={asked}, into a new folder.",
            )


def _mapped(folder: Path, manifest: Manifest) -> Tensor:
    file = folder / IMAGES
    expected = HEADER_BYTES + int(np.prod(manifest.shape))
    if not file.exists() or file.stat().st_size != expected:
        raise _not_whole(file)
    # Copy on write: torch wants memory that it could write to, and the file stays as it is.
    array = np.memmap(file, np.uint8, "c", offset=HEADER_BYTES, shape=manifest.shape)
    return torch.from_numpy(array)


def _read_rows(folder: Path, manifest: Manifest) -> "pa.Table":
    import pyarrow as pa

    file = folder / ROWS
    try:
        table = open_parquet(file).read()
    except (pa.ArrowException, OSError) as error:
        raise _not_whole(file) from error
    if table.num_rows != sum(manifest.parts.values()):
        raise _not_whole(file)
    return table


def _not_whole(file: Path) -> DamagedDataError:
    return DamagedDataError(
        f"{file} is missing, cut short or altered.",
        hint="Prepare the source again, into a new folder.",
    )
