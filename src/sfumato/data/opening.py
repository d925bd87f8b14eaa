"""Opening a data source: a registry of readers that all end in the same raw images."""

import hashlib
import re
import warnings
from collections.abc import Callable, Collection, Hashable
from dataclasses import replace
from pathlib import Path

from sfumato.base.errors import ConfigError, DataWarning, InputError, nearest
from sfumato.base.words import counted
from sfumato.config.sections import DataConfig
from sfumato.data.captions import CLASS_FIELDS, OWN, column_fields
from sfumato.data.files import find_images, visible_files
from sfumato.data.memo import recall
from sfumato.data.prepared import MANIFEST, read_prepared, refuse_other_settings
from sfumato.data.sources.digits import read_digits
from sfumato.data.sources.folder import read_folder
from sfumato.data.sources.hub import hub_folder
from sfumato.data.sources.idx import read_idx
from sfumato.data.sources.local import local_folder
from sfumato.data.sources.parquet import Columns, read_parquet
from sfumato.data.table import RawImages

BUNDLED: dict[str, Callable[[DataConfig], RawImages]] = {"digits": read_digits}
"""Sources that come with sfumato, by name."""


LAYOUTS: dict[str, Callable[[Path, DataConfig], RawImages | None]] = {
    "prepared.json": lambda folder, config: read_prepared(folder, column_fields(config.templates)),
    "*.parquet": lambda folder, config: read_parquet(
        folder,
        Columns(
            image=config.image_column,
            label=config.label_column,
            caption=config.caption_column,
            fields=column_fields(config.templates),
        ),
        config.also_train,
    ),
    "*-images-idx3-ubyte[.gz]": lambda folder, config: read_idx(folder, config.also_train),
    "images": lambda folder, config: read_folder(
        folder, config.also_train, column_fields(config.templates)
    ),
}
"""What a folder may hold: the first reader that finds its files there reads them."""


def open_images(config: DataConfig) -> RawImages:
    """The data set of `config.source`, not yet decoded; downloaded where it is a Hub name.

    Opened once in a process, and again when a file changes. Raises `ConfigError` or `InputError`
    for a source that is not there or holds no images, `DamagedDataError` for files that are not
    whole. A `DataWarning` says what of the source is not used.
    """
    source = config.source
    if source in BUNDLED:
        key = (source, config.split_seed)
        raw = recall("bundled", key, lambda: BUNDLED[source](config))
        _refuse_unknown_fields(config, raw)
        return raw
    folder = source_folder(source)
    stats = {str(path): path.stat() for path in visible_files(folder)}
    files = frozenset((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items())
    columns = (config.image_column, config.label_column, config.caption_column)
    fields = column_fields(config.templates)
    key = (source, columns, fields, config.also_train, files)
    raw = recall("opened", key, lambda: _open_folder(folder, config, files))
    _refuse_unknown_fields(config, raw)
    if raw.prepared is not None:
        refuse_other_settings(folder, raw.prepared, config)
    return raw


def _refuse_unknown_fields(config: DataConfig, raw: RawImages) -> None:
    """`ConfigError` for a caption with a field that is no column of the data set."""
    there = [name for name in raw.columns if name not in CLASS_FIELDS | {OWN}]
    for name in column_fields(config.templates):
        if name not in there:
            template = next(one for one in config.templates if name in column_fields([one]))
            own = f"Columns of {config.source}: {', '.join(there)}. " if there else ""
            close = nearest(name, [*there, *CLASS_FIELDS, OWN])
            close = f"{close} " if close.startswith("Did") else ""
            raise ConfigError(
                f"The caption template {template!r} has an unknown field, {{{name}}}.",
                hint=f"{close}{own}With any data: {{label}} for the class index, {{class_name}} "
                "for its name, {style_name} for its name with underscores as spaces, {word} for "
                "its name in words, {caption} for the image's own caption.",
            )


def _open_folder(folder: Path, config: DataConfig, files: Collection[Hashable]) -> RawImages:
    for read in LAYOUTS.values():
        if (found := read(folder, config)) is not None:
            _refuse_empty(folder, found)
            version = hashlib.sha256(repr(sorted(files, key=repr)).encode()).hexdigest()
            beside = _images_beside(folder, found)
            used = column_fields(config.templates)
            found = replace(
                found,
                left_out=found.left_out + beside,
                version=version,
                used_columns=used,
            )
            if beside:
                files_are = f"{counted(beside, 'image file')} {'is' if beside == 1 else 'are'}"
                note = f"{files_are} left out: {found.layout} is read instead."
                found = replace(found, notes=[*found.notes, note])
            for note in found.notes:
                warnings.warn(note, DataWarning, stacklevel=2)
            return found
    empty = not any(folder.iterdir())
    raise InputError(
        f"{folder} is empty." if empty else f"{folder} holds no images.",
        hint=f"Looked for {', '.join(LAYOUTS)}, in the folder and below it.",
    )


def _refuse_empty(folder: Path, found: RawImages) -> None:
    """`InputError` where there are no rows, or none in one of the parts."""
    if found.count == 0:
        raise InputError(
            f"{folder}: its files hold no rows.", hint="Give a folder whose files hold images."
        )
    for name, part in found.parts.items():
        if part.count == 0:
            raise InputError(
                f"{folder}: the part {name} holds no rows.",
                hint="Fill its files or remove them; without a test part, a share is held out.",
            )


def _images_beside(folder: Path, found: RawImages) -> int:
    """The number of image files in a folder of which something else is read."""
    if found.layout == "image folder":
        return 0
    beside = find_images(visible_files(folder))
    return len(beside.images) + len(beside.left_out)


def source_folder(source: str) -> Path:
    """The local folder of a source that is not bundled, downloaded where it is a Hub name."""
    return local_folder(source) or hub_folder(source)


def source_name(config: DataConfig) -> str:
    """What to call the data."""
    return folder_name(config.source)


def folder_name(name: str) -> str:
    """A folder's own name, without the path to it; anything else as it was given."""
    folder = Path(name).expanduser()
    known = name and (folder.is_dir() or folder.is_absolute())
    return folder.resolve().name if known else name


def same_source(one: str, other: str) -> bool:
    """Whether two sources are the same name, the same folder, or folders of `sfumato prepare` with
    the same images, such as one with latents and one without."""
    if one == other:
        return True
    folders = [Path(source).expanduser() for source in (one, other)]
    if not all(folder.is_dir() for folder in folders):
        return False
    if folders[0].resolve() == folders[1].resolve():
        return True
    first, second = (folder / MANIFEST for folder in folders)
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()


def same_images(one: DataConfig, other: DataConfig) -> bool:
    """Whether both train on the same images of the same source, as far as their settings say."""
    names = ("split_seed", "test_share", "also_train", "left_out")
    return same_source(one.source, other.source) and all(
        getattr(one, name) == getattr(other, name) for name in names
    )


def source_identity(config: DataConfig) -> str:
    """A name for folders and keys that changes with the data: words of the source and a digest of
    its files' names and sizes."""
    if config.source in BUNDLED:
        return config.source
    words = re.sub(r"[^\w]+", "-", source_name(config))[:40].strip("-").lower()
    columns = (config.image_column, config.label_column, config.caption_column)
    columns += (config.also_train,) if config.also_train else ()
    raw = open_images(config)
    split = ("split by content",) if "all" in raw.parts else ()
    key = repr((raw.fingerprint, columns, *split))
    return f"{words or 'images'}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
