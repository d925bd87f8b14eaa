"""A look at a data set's headers: sizes, colours, captions; and the settings that follow."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from sfumato.base.errors import InputError
from sfumato.config.sections import AUTO_CAPTION, DataConfig
from sfumato.data.decode import BadImage, read_header
from sfumato.data.memo import recall
from sfumato.data.opening import BUNDLED, open_images
from sfumato.data.prepared import MANIFEST, read_manifest
from sfumato.data.table import RawImages

RESOLUTIONS = (8, 16, 28, 32, 64)
"""What data.resolution=auto chooses from."""
CLASS_CAPTION = "A photo of a {class_name}"
OWN_CAPTION = "{caption}"
_ALL_BELOW = 5_000
_BLOCKS, _BLOCK_ROWS = 20, 100


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the headers say. Of large sets `looked` rows in 20 places are looked at."""

    source: str
    layout: str
    counts: dict[str, int]
    looked: int
    unreadable: int
    formats: dict[str, int]
    smallest: tuple[int, int]
    largest: tuple[int, int]
    median_short_px: float
    grey: bool
    class_names: Sequence[str]
    captions: str
    example: str
    prepared_px: int | None

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    def sentence(self) -> str:
        """What was found, in one line."""
        low, high = ("x".join(map(str, size)) for size in (self.smallest, self.largest))
        text = f"Found {self.count:,} image{'s' * (self.count != 1)} ({self.layout}), "
        text += low if low == high else f"{low} to {high}"
        text += f", {'greyscale' if self.grey else 'RGB'}"
        if self.looked < self.count:
            text += f" (headers of {self.looked:,} looked at)"
        if self.class_names:
            several = len(self.class_names) > 1
            text += f"; {len(self.class_names):,} {'classes' if several else 'class'}"
        if self.captions:
            text += f"; captions from {self.captions}"
        return f"{text}."


def survey(config: DataConfig) -> Survey:
    """Look at the headers of `config.source`; raises as `open_images`."""
    raw = open_images(config)
    return recall("surveys", raw, lambda: _survey(raw, config.source))


def _survey(raw: RawImages, source: str) -> Survey:
    sizes: list[tuple[int, int]] = []
    formats: Counter[str] = Counter()
    grey, unreadable, example = True, 0, ""
    for part in raw.parts.values():
        for row in part.read(_spread(part.count, raw.count)):
            example = example or (row.caption or "").split("\n")[0]
            try:
                header = read_header(row.image)
            except BadImage:
                unreadable += 1
                continue
            sizes.append((header.width, header.height))
            formats[header.format] += 1
            grey = grey and header.grey
    if not sizes:
        raise InputError(
            f"{source}: none of {unreadable:,} files or rows is an image.",
            hint="Check that they open in another program.",
        )
    return Survey(
        source=source,
        layout=raw.layout,
        counts={name: part.count for name, part in raw.parts.items()},
        looked=len(sizes) + unreadable,
        unreadable=unreadable,
        formats=dict(formats.most_common()),
        smallest=min(sizes, key=lambda size: size[0] * size[1]),
        largest=max(sizes, key=lambda size: size[0] * size[1]),
        median_short_px=median(min(size) for size in sizes),
        grey=grey,
        class_names=raw.class_names,
        captions=raw.captions,
        example=example,
        prepared_px=None if raw.prepared is None else raw.prepared.resolution,
    )


def resolve(config: DataConfig, found: Survey | None = None) -> DataConfig:
    """`config` with every `auto` made concrete, by `found` or a survey of its own.

    Resolution: the largest of `RESOLUTIONS` that the median short side reaches, or the one that
    the images were prepared at. Channels: 1 where all images are greyscale. Caption: the images'
    own; else by the class. Images that were prepared have the fit of their preparation, whatever
    `config` says.
    """
    config = _with_prepared_fit(config)
    if config.is_resolved:
        return config
    found = found or survey(config)
    changes: dict[str, object] = {}
    if config.resolution == "auto":
        reached = [side for side in RESOLUTIONS if side <= found.median_short_px]
        changes["resolution"] = found.prepared_px or max(reached, default=RESOLUTIONS[0])
    if config.channels == "auto":
        changes["channels"] = 1 if found.grey else 3
    if config.caption == AUTO_CAPTION:
        if not found.captions and not found.class_names:
            raise InputError(
                f"{config.source} has neither captions nor classes.",
                hint="Write a .txt beside each image or a metadata.jsonl, put the images into a "
                "folder for each class, name a Parquet column with data.label_column or "
                "data.caption_column, or give all of them one caption: --set "
                "'data.caption=A photo'.",
            )
        changes["caption"] = (OWN_CAPTION if found.captions else CLASS_CAPTION,)
    return config.model_copy(update=changes)


def settle(config: DataConfig, found: Survey | None = None) -> DataConfig:
    """`resolve`, and a folder's path made absolute: what an experiment.yaml holds is true from
    anywhere. `found` saves a second look at the data."""
    config = resolve(config, found)
    folder = Path(config.source).expanduser()
    if config.source not in BUNDLED and folder.is_dir():
        config = config.model_copy(update={"source": str(folder.resolve())})
    return config


def _with_prepared_fit(config: DataConfig) -> DataConfig:
    folder = Path(config.source).expanduser()
    if config.source in BUNDLED or not (folder / MANIFEST).is_file():
        return config
    return config.model_copy(update={"fit": read_manifest(folder).settings.fit})


def _spread(count: int, total: int) -> np.ndarray | None:
    """Which rows of a part are looked at: all, or blocks of neighbours, which read fewer bytes of
    a Parquet file than rows far apart."""
    if total <= _ALL_BELOW:
        return None
    keep = np.zeros(count, dtype=bool)
    for start in np.linspace(0, max(0, count - _BLOCK_ROWS), _BLOCKS).astype(int):
        keep[start : start + _BLOCK_ROWS] = True
    return keep
