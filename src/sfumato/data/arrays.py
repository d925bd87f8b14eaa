"""Images given from Python (arrays, Pillow images, a torch Dataset), written once as Parquet."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import TEMPORARY_PREFIX, make_folder, sync, writing
from sfumato.base.images import BadImage, coloured, png_bytes, upright
from sfumato.data.sources.columns import CAPTION_NAMES, IMAGE_NAMES, LABEL_NAMES
from sfumato.data.sources.parquet_file import open_parquet

if TYPE_CHECKING:
    import PIL.Image

_GROUP_ROWS = 1000
_COLUMNS = {"caption": CAPTION_NAMES, "label": LABEL_NAMES}

Item = dict[str, Any]
"""An image as Pillow has it, with a `caption` (str), a `label` (str or int), or both."""


def stored_columns(folder: Path) -> list[str]:
    """The columns of the images that `write_images` left in `folder`; none where there are none."""
    files = sorted(folder.glob("images-*.parquet"))
    return open_parquet(files[0]).schema_arrow.names if files else []


def write_images(data: Any, folder: Path) -> None:
    """Write `data` as `folder/images-HASH.parquet`, with a hash of its content: the same images
    have the same file.

    `data`: `(images, captions)` with uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W), or a
    list of Pillow images; or a torch Dataset (any sequence or iterable) of `(image, caption)`,
    `(image, [caption, ...])`,
    `(image, class number)` or mappings such as `{"image": ..., "caption": ..., "label": ...}`.

    `InputError` for what is none of these, `ConfigError` where `folder` holds other images.
    """
    items = _items(data)
    first = next(items, None)
    if first is None:
        raise InputError("There are no images in data.", hint="Give at least two.")
    temporary = make_folder(folder) / f"{TEMPORARY_PREFIX}images-{os.getpid()}.parquet"
    try:
        with writing(temporary):
            digest = _write(chain([first], items), list(first)[1:], temporary)
            sync(temporary)
        file = folder / f"images-{digest}.parquet"
        if others := [path for path in folder.glob("images-*.parquet") if path != file]:
            raise ConfigError(
                f"{folder.parent} was trained on other images ({others[0].name}).",
                hint="Choose another folder, or leave data out to resume with its own images.",
            )
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _write(items: Iterable[Item], columns: Sequence[str], file: Path) -> str:
    """Write a Parquet file of PNGs; a hash of pixels, captions and labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    digest = hashlib.sha256()
    rows = iter(items)
    writer, several = None, None
    with file.open("wb") as opened:  # Arrow takes no name that is not UTF-8
        while part := list(islice(rows, _GROUP_ROWS)):
            for item in part:
                several = _has_several(item) if several is None else several
                _check_item(item, columns, several)
                image = item["image"]
                digest.update(repr((image.mode, image.size, *list(item.values())[1:])).encode())
                digest.update(image.tobytes())
            values: dict[str, Any] = {"image": [png_bytes(item["image"]) for item in part]}
            values |= {name: [item[name] for item in part] for name in columns}
            table = pa.table(values)
            writer = writer or pq.ParquetWriter(opened, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
    return digest.hexdigest()[:16]


def _has_several(item: Item) -> bool:
    return isinstance(item.get("caption"), list | tuple)


def _check_item(item: Item, columns: Sequence[str], several: bool) -> None:
    if _has_several(item) != several:
        raise InputError(
            "Some items of data have one caption, others a list of captions.",
            hint="Give every image a list, of one caption too.",
        )
    if list(item)[1:] != list(columns):
        raise InputError(
            f"An item of data has {', '.join(item)}; the first has "
            f"{', '.join(['image', *columns])}.",
            hint="Give every image the same: a caption, a label, or both.",
        )


def _items(data: Any) -> Iterator[Item]:
    if isinstance(data, tuple):
        yield from _of_arrays(*_pair(data))
        return
    # A torch Dataset has __getitem__ and __len__, and need not end by an IndexError.
    rows = (
        (data[index] for index in range(len(data)))
        if hasattr(data, "__len__") and hasattr(data, "__getitem__")
        else iter(data)
    )
    for number, row in enumerate(rows):
        yield _item(row, f"Item {number} of data")


def _pair(data: tuple[Any, ...]) -> tuple[Any, Sequence[Any]]:
    if len(data) != 2:
        raise InputError(
            f"data is a tuple of {len(data)} values.", hint="Give (images, captions), or a list."
        )
    images, captions = data
    if len(images) != len(captions):
        raise InputError(
            f"The number of images, {len(images):,}, is not that of captions, {len(captions):,}.",
            hint="Give one caption for each image.",
        )
    return images, captions


def _of_arrays(images: Any, captions: Sequence[Any]) -> Iterator[Item]:
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        yield _item((image, caption), f"Image {number} of data")


def _item(row: Any, what: str) -> Item:
    if isinstance(row, Mapping):
        images = [row[name] for name in IMAGE_NAMES if name in row]
        known = {
            column: next(row[name] for name in names if name in row)
            for column, names in _COLUMNS.items()
            if any(name in row for name in names)
        }
    elif isinstance(row, Sequence) and len(row) == 2:
        images, column = [row[0]], "caption" if isinstance(row[1], str | list | tuple) else "label"
        known = {column: row[1]}
    else:
        images, known = [], {}
    if not images or not known:
        raise InputError(
            f"{what} is not an image with a caption, but {type(row).__name__}.",
            hint="Give (image, caption) or {'image': ..., 'caption': ...}.",
        )
    return {"image": _pillow(images[0], what), **known}


def _pillow(image: Any, what: str) -> "PIL.Image.Image":
    """A Pillow image, greyscale or RGB and as its EXIF orientation says, of a Pillow image, or of
    uint8 (H, W), (H, W, C) or (C, H, W)."""
    from PIL import Image

    if isinstance(image, Image.Image):
        grey = image.mode in ("1", "L", "LA", "La", "I") or image.mode.startswith("I;16")
        mode = "L" if grey and "transparency" not in image.info else "RGB"
        try:
            return coloured(upright(image), mode)
        except BadImage as error:
            raise InputError(f"{what} has {error}.", hint="Give an 8-bit image.") from error
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise InputError(
            f"{what} is of {array.dtype}.",
            hint="Give uint8 values from 0 to 255, or Pillow images.",
        )
    if array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        raise InputError(
            f"{what} has the shape {tuple(array.shape)}.",
            hint="Give (height, width), or (height, width, channels) with 1 or 3 channels.",
        )
    return Image.fromarray(np.ascontiguousarray(array))
