"""Where images come from: a registry of readers that all end in the same records."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.config.sections import DataConfig
from sfumato.data.captions import OWN, caption_images, class_captions, fields
from sfumato.data.decode import NO_CAPTION, Decoded, Target, decode_rows
from sfumato.data.prepared import MappedImages, read_prepared
from sfumato.data.sources.digits import read_digits
from sfumato.data.sources.folder import read_folder
from sfumato.data.sources.hub import hub_folder
from sfumato.data.sources.idx import read_idx
from sfumato.data.sources.local import local_folder
from sfumato.data.sources.parquet import Columns, read_parquet
from sfumato.data.table import Damage, Part, RawImages, list_damage

Split = Literal["train", "classifier", "test", "tuning", "reference"]
"""`tuning` and `reference` are the two parts of `test`, by `tuning_share`."""
_SHOWN_DAMAGE = 10
_KEPT_RECORDS = 3


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """What is known of the images of one split without their pixels.

    `labels`: (N,) int64 into `class_names`, zeros where those are empty; `prompts`: (N, T) int64
    into `captions`, the distinct captions: an image has T of them, and a step draws one.
    `class_captions`: one caption of each class, for a look at the model. `damage`: the rows that
    were skipped. `resized`: how many images had another size than `resolution`, None where that is
    not known (prepared and streamed data).
    """

    labels: Tensor
    class_names: Sequence[str]
    prompts: Tensor
    captions: Sequence[str]
    class_captions: Sequence[str]
    description: str
    damage: Sequence[Damage] = ()
    resized: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def examples(self, most: int = 16) -> tuple[list[str], list[str]]:
        """Captions to draw for a look at the model, and a short label of each: one a class, or,
        without classes, up to eight of the captions."""
        if self.class_names:
            return list(self.class_captions[:most]), list(self.class_names[:most])
        count = min(8, most, len(self.captions))
        chosen = [self.captions[place * len(self.captions) // count] for place in range(count)]
        return chosen, chosen


@dataclass(frozen=True, kw_only=True)
class Records(Annotations):
    """Images of one split, decoded: `images` (N, C, H, W) uint8, in memory or in the file of
    prepared data (the test part always in memory)."""

    images: Tensor | MappedImages


# Opening ------------------------------------------------------------------------------------------

BUNDLED: dict[str, Callable[[DataConfig], RawImages]] = {"digits": read_digits}
"""Sources that come with sfumato, by name."""

LAYOUTS: dict[str, Callable[[Path, DataConfig], RawImages | None]] = {
    "prepared.json": read_prepared,
    "*.parquet": lambda folder, config: read_parquet(
        folder,
        Columns(
            image=config.image_column, label=config.label_column, caption=config.caption_column
        ),
    ),
    "*-images-idx3-ubyte[.gz]": lambda folder, config: read_idx(folder),
    "images": lambda folder, config: read_folder(folder),
}
"""What a folder may hold: the first reader that finds its files there reads them."""


def open_images(config: DataConfig) -> RawImages:
    """The data set of `config.source`, not yet decoded; downloaded where it is a Hub name.

    Raises `ConfigError` or `InputError` for a source that is not there or holds no images,
    `DamagedDataError` for files that are not whole.
    """
    source = config.source
    if source in BUNDLED:
        return BUNDLED[source](config)
    folder = source_folder(source)
    for read in LAYOUTS.values():
        if (found := read(folder, config)) is not None:
            if found.count == 0:
                raise InputError(f"{folder}: its files hold no rows.")
            return found
    empty = not any(folder.iterdir())
    raise InputError(
        f"{folder} is empty." if empty else f"{folder} holds no images.",
        hint=f"Looked for {', '.join(LAYOUTS)}, in the folder and below it.",
    )


def source_folder(source: str) -> Path:
    """The local folder of a source that is not bundled, downloaded where it is a Hub name."""
    return local_folder(source) or hub_folder(source)


def source_name(config: DataConfig) -> str:
    """What to call a source: a folder's own name, without the path to it; else as it was given."""
    folder = Path(config.source).expanduser()
    return folder.resolve().name if config.source and folder.is_dir() else config.source


def source_identity(config: DataConfig) -> str:
    """A name for folders and keys that changes with the data: words of the source and a digest of
    its files' names and sizes."""
    if config.source in BUNDLED:
        return config.source
    words = re.sub(r"[^\w]+", "-", source_name(config))[:40].strip("-").lower()
    columns = (config.image_column, config.label_column, config.caption_column)
    key = repr((open_images(config).fingerprint, columns))
    return f"{words or 'images'}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"


# Loading ------------------------------------------------------------------------------------------

_recent: OrderedDict[tuple[object, ...], Records] = OrderedDict()


def load_records(
    config: DataConfig, split: Split, *, on_rows: Callable[[int, int], None] | None = None
) -> Records:
    """The images of `split`, decoded; the newest few are kept, for a command asks several times.

    What is `auto` in `config` is found first. `on_rows` is told (rows done, rows in all). Raises
    as `open_images`, and `DamagedDataError` where more than `max_damaged` of the rows are damaged.
    """
    from sfumato.data.survey import resolve

    config = resolve(config)
    raw = open_images(config)
    part, keep, name = rows_of(raw, config, split)
    # How training reads them makes no other images.
    key = (config.model_copy(update={"loading": "memory", "workers": 0}), name, raw.fingerprint)
    if key not in _recent:
        count = part.count if keep is None else int(keep.sum())
        tell = (lambda done: None) if on_rows is None else (lambda done: on_rows(done, count))
        if part.stored is not None:
            decoded = part.stored(keep, needs_caption(config))
        else:
            decoded = decode_rows(
                part.read(keep),
                count=count,
                target=target_of(config),
                classes=len(raw.class_names),
                needs_caption=needs_caption(config),
                on_rows=tell,
            )
        check_damage(decoded.damage, count, config)
        about = annotate(
            raw,
            config,
            labels=decoded.labels,
            own=decoded.captions,
            description=_describe(raw, decoded, config, name, count),
            damage=decoded.damage,
            resized=decoded.resized,
        )
        images = decoded.images
        if name != "train" and isinstance(images, MappedImages):
            images = images[:]  # small, and compared as a whole by whatever measures
        _recent[key] = Records(
            images=torch.from_numpy(images) if isinstance(images, np.ndarray) else images,
            **vars(about),
        )
        while len(_recent) > _KEPT_RECORDS:
            _recent.popitem(last=False)
    _recent.move_to_end(key)
    return _recent[key]


def target_of(config: DataConfig) -> Target:
    """What the images of a resolved `config` are brought to."""
    assert config.resolution != "auto"
    assert config.channels != "auto"
    return Target(resolution=config.resolution, channels=config.channels, fit=config.fit)


def needs_caption(config: DataConfig) -> bool:
    """Whether an image without a caption of its own cannot be used."""
    return any(OWN in fields(template) for template in config.caption)


def rows_of(
    raw: RawImages, config: DataConfig, split: Split
) -> tuple[Part, np.ndarray | None, str]:
    """The part that holds a split, which of its rows, and the split's name.

    A source without a part for the judge lends it the training images; one without a test part
    holds out `test_share` of its rows, drawn by `split_seed`. Without a `tuning_share`, `reference`
    is `test`, under that name.
    """
    if split in ("tuning", "reference"):
        return _rows_of_test(raw, config, split)
    name = split if split != "classifier" or "classifier" in raw.parts else "train"
    if name in raw.parts:
        return raw.parts[name], None, name
    part = raw.parts["all"]
    if part.count < 2:
        raise InputError(
            "One image is too few: one is held out for test.", hint="Give two or more."
        )
    held_out = min(max(1, round(config.test_share * part.count)), part.count - 1)
    keep = np.zeros(part.count, dtype=bool)
    keep[np.random.default_rng(config.split_seed).permutation(part.count)[:held_out]] = True
    return part, keep if name == "test" else ~keep, name


def _rows_of_test(
    raw: RawImages, config: DataConfig, split: Split
) -> tuple[Part, np.ndarray | None, str]:
    """One side of the test images: `tuning_share` of them, drawn by `split_seed`, or the others."""
    part, test, name = rows_of(raw, config, "test")
    if config.tuning_share == 0:
        if split == "tuning":
            raise InputError(
                f"No test image of {config.source} is set apart for tuning.",
                hint="Set data.tuning_share, such as 0.5.",
            )
        return part, test, name
    rows = np.arange(part.count) if test is None else np.flatnonzero(test)
    if len(rows) < 2:
        raise InputError(
            f"{config.source} has one test image, too few for data.tuning_share.",
            hint="Set data.tuning_share=0, or hold out more with data.test_share.",
        )
    count = min(max(1, round(config.tuning_share * len(rows))), len(rows) - 1)
    order = np.random.default_rng([config.split_seed, 1]).permutation(len(rows))
    keep = np.zeros(part.count, dtype=bool)
    keep[rows[order[:count] if split == "tuning" else order[count:]]] = True
    return part, keep, split


def check_damage(damage: Sequence[Damage], count: int, config: DataConfig) -> None:
    """`DamagedDataError` that lists the rows where they are more than `max_damaged` of `count`."""
    if len(damage) <= config.max_damaged * count and len(damage) < count:
        return
    lines = "\n  ".join(list_damage(damage, most=_SHOWN_DAMAGE))
    share = f"{100 * len(damage) / count:.3g} %"
    allowed = f"{100 * config.max_damaged:g} % are skipped"
    if len(damage) == count:
        allowed = "no image is left"
    if all(item.reason == NO_CAPTION for item in damage):
        raise InputError(
            f"{len(damage):,} of {count:,} images have no caption ({share}; {allowed}):\n  {lines}",
            hint="Write a caption for each, or choose a caption that needs none, such as --set "
            "'data.caption=A photo'.",
        )
    raise DamagedDataError(
        f"{len(damage):,} of {count:,} rows cannot be used ({share}; {allowed}):\n  {lines}",
        hint=f"Mend or remove them (`sfumato data show {config.source}` lists all), or allow more "
        "with --set data.max_damaged=SHARE.",
    )


def annotate(
    raw: RawImages,
    config: DataConfig,
    *,
    labels: np.ndarray,
    own: Sequence[str | None],
    description: str,
    damage: Sequence[Damage],
    resized: int | None = None,
) -> Annotations:
    """Captions for images with `labels` (N,) int64 and captions of their `own` (N)."""
    classes = torch.from_numpy(labels)
    prompts, captions = caption_images(
        config.caption, labels=classes, class_names=raw.class_names, own=own
    )
    return Annotations(
        labels=classes,
        class_names=raw.class_names,
        prompts=prompts,
        captions=captions,
        class_captions=class_captions(
            config.caption, prompts, captions, labels=classes, class_names=raw.class_names
        ),
        description=description,
        damage=damage,
        resized=resized,
    )


def _describe(raw: RawImages, decoded: Decoded, config: DataConfig, split: str, count: int) -> str:
    """One line that a metric card can carry: source, split, encoding, sizes and the resize rule."""
    side = config.resolution
    # A set would have its order from the process, and so would every key made of this line.
    sizes = list(dict.fromkeys(f"{w}x{h}" for w, h in (decoded.smallest, decoded.largest)))
    text = f"{source_name(config)} ({raw.layout}), {split} split ({count:,} of {raw.count:,})"
    encoded = " and ".join(name for name in decoded.formats if name != "raw")
    text += f", {encoded + ' ' if encoded else ''}{' to '.join(sizes)}"
    if sizes != [f"{side}x{side}"]:
        fit = config.fit if raw.prepared is None else raw.prepared.fit
        how = "centre-cropped and brought" if fit == "crop" else "squashed"
        square = len(sizes) == 1 and decoded.smallest[0] == decoded.smallest[1]
        if decoded.resized and decoded.resized < len(
            decoded.labels
        ):  # the others keep their pixels
            text += f", {decoded.resized:,} of them"
        text += f" {'brought' if square else how} to {side}x{side} (bilinear, antialiased)"
    if "test" not in raw.parts or "classifier" in raw.parts or split in ("tuning", "reference"):
        text += f", split seed {config.split_seed}"
    if decoded.damage:
        text += f", {len(decoded.damage):,} damaged rows skipped"
    return text
