"""Where images come from: a registry of readers that all end in the same records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sfumato.base.errors import ConfigError, DamagedDataError, InputError, nearest
from sfumato.base.words import counted
from sfumato.config.sections import DataConfig
from sfumato.data.annotations import annotate, needs_caption, read_captions
from sfumato.data.decode import NO_CAPTION, Decoded, Target, decode_rows
from sfumato.data.identity import held_out, identities, identities_by_place
from sfumato.data.memo import recall
from sfumato.data.opening import open_images, source_name
from sfumato.data.prepared import MappedImages
from sfumato.data.survey import resolve
from sfumato.data.table import Damage, GroupedPart, Part, RawImages, list_damage

Split = Literal["train", "classifier", "test", "tuning", "reference", "validation"]
"""`tuning` and `reference` are the two parts of `test`, by `tuning_share`; `validation` is there
where a source has one beside its test part."""
_SHOWN_DAMAGE = 10
_HOW_IT_IS_READ = {"loading": "memory", "workers": 0, "accept_changes": False}


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """What is known of the images of one split without their pixels.

    `labels`: (N,) int64 into `class_names`, zeros where those are empty; `prompts`: (N, T) int64
    into `captions`, the distinct captions: an image has T of them, and a step draws one.
    `caption_counts`: (N,) int64, how many of those T are the image's, the first; None for all.
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
    caption_counts: Tensor | None = None
    damage: Sequence[Damage] = ()
    resized: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def present(self) -> list[int]:
        """The classes that these images have: `class_names` may list others, as those of a part of
        WikiArt do. Empty without classes."""
        return self.labels.unique().tolist() if self.class_names else []

    def examples(self, most: int = 16) -> tuple[list[str], list[str]]:
        """Captions to draw for a look at the model, and a short label of each: one for each class
        that images have, or, without classes, up to eight of the captions."""
        if self.class_names:
            shown = self.present[:most]
            return [self.class_captions[i] for i in shown], [self.class_names[i] for i in shown]
        count = min(8, most, len(self.captions))
        chosen = [self.captions[place * len(self.captions) // count] for place in range(count)]
        return chosen, chosen


@dataclass(frozen=True, kw_only=True)
class Records(Annotations):
    """Images of one split, decoded: `images` (N, C, H, W) uint8, in memory or in the file of
    prepared data (the test part always in memory)."""

    images: Tensor | MappedImages


# Loading ------------------------------------------------------------------------------------------


def load_records(
    config: DataConfig, split: Split, *, on_rows: Callable[[int, int], None] | None = None
) -> Records:
    """The images of `split`, decoded, or as they were decoded before in this process.

    Settings that are `auto` are found first. `on_rows` gets (rows done, rows in all). Raises as
    `open_images`, and `DamagedDataError` where more than `max_damaged` of the rows are damaged.
    """
    config = resolve(config)
    raw = open_images(config)
    name = split_name(raw, split, config)
    # How training reads the images does not change them.
    key = (config.model_copy(update=_HOW_IT_IS_READ), name, raw)
    return recall("records", key, lambda: _decode_split(raw, config, name, on_rows))


def _decode_split(
    raw: RawImages, config: DataConfig, name: Split, on_rows: Callable[[int, int], None] | None
) -> Records:
    part, keep = rows_of(raw, config, name)
    count = part.count if keep is None else int(keep.sum())
    if part.stored is not None:
        decoded = part.stored(keep, needs_caption(config))
    else:
        decoded = decode_rows(
            part.read(keep),
            count=count,
            target=target_of(config),
            classes=len(raw.class_names),
            needs_caption=needs_caption(config),
            on_rows=(lambda done: on_rows(done, count)) if on_rows else (lambda done: None),
        )
    check_damage(decoded.damage, count, config)
    images = decoded.images
    if name != "train" and isinstance(images, MappedImages):
        images = images[:]  # small, and metrics need all of it
    return Records(
        **annotate(
            raw, config, labels=decoded.labels, own=decoded.captions, columns=decoded.columns
        ),
        description=_describe(raw, decoded, config, name, count),
        damage=decoded.damage,
        resized=decoded.resized,
        images=torch.from_numpy(images) if isinstance(images, np.ndarray) else images,
    )


def target_of(config: DataConfig) -> Target:
    """What the images of a resolved `config` are brought to."""
    assert config.resolution != "auto"
    assert config.channels != "auto"
    return Target(resolution=config.resolution, channels=config.channels, fit=config.fit)


def split_name(raw: RawImages, split: Split, config: DataConfig) -> Split:
    """The split that stands for `split`: `train` for `classifier` where the source has no part for
    it, `test` for `reference` without a `tuning_share`."""
    if split == "classifier" and "classifier" not in raw.parts:
        return "train"
    return "test" if split == "reference" and config.tuning_share == 0 else split


def training_part(raw: RawImages) -> Part:
    """The part whose rows, or some of them, are trained on."""
    return raw.parts["train"] if "train" in raw.parts else raw.parts["all"]


def rows_of(raw: RawImages, config: DataConfig, split: Split) -> tuple[Part, np.ndarray | None]:
    """The part that holds a split (of `split_name`), and which of its rows; None is all.

    A source without a test part holds out `test_share` of its images, chosen by `split_seed` and
    their content. Images of the captions `left_out` are in no training split.
    """
    part, keep = _rows_of_split(raw, config, split)
    if not config.left_out or split not in ("train", "classifier"):
        return part, keep
    trained = ~_left_out(raw, config, split)
    keep = trained if keep is None else keep & trained
    if not keep.any():
        raise InputError(
            "data.left_out leaves no image to train on.", hint="Leave out fewer captions."
        )
    return part, keep


def _rows_of_split(
    raw: RawImages, config: DataConfig, split: Split
) -> tuple[Part, np.ndarray | None]:
    if split in ("tuning", "reference"):
        return _rows_of_test(raw, config, split)
    if split in raw.parts:
        return raw.parts[split], None
    part, share = raw.parts["all"], config.test_share
    if share == 0:
        if split == "test":
            raise InputError(
                f"No image of {config.source} is held out: data.test_share is 0.",
                hint="Set data.test_share, such as 0.1.",
            )
        return part, None
    test = held_out(identities(raw, "all")[:, 0], share, [config.split_seed])
    if not test.any():
        raise InputError(
            "One image is too few, and so is the same one several times: one is held out for test.",
            hint="Give two or more, or set data.test_share=0.",
        )
    return part, test if split == "test" else ~test


def _left_out(raw: RawImages, config: DataConfig, split: Split) -> np.ndarray:
    """(N,) bool: which rows of the part that holds a training split have one of the captions that
    are not trained on. `ConfigError` for a caption that no image of the training split has."""

    def find() -> np.ndarray:
        part, _ = _rows_of_split(raw, config, split)
        rows, about = read_captions(raw, config, part)
        captions = {caption: place for place, caption in enumerate(about["captions"])}
        for one in config.left_out:
            if one not in captions and split == "train":
                raise ConfigError(
                    f"data.left_out: no image of {config.source} has the caption '{one}'.",
                    hint=nearest(one, sorted(captions)),
                )
        places = torch.tensor([captions.get(one, -1) for one in config.left_out])
        found = np.zeros(part.count, dtype=bool)
        found[rows] = torch.isin(about["prompts"], places).any(1).numpy()
        return found

    return recall("left out", (config.model_copy(update=_HOW_IT_IS_READ), split, raw), find)


def trained_on(config: DataConfig, split: Split = "train") -> np.ndarray:
    """(N, 2) uint64, sorted: a hash of each image of a split of a resolved `config`, damaged ones
    included, and one of its caption and class.

    A streamed split that need not be read for that is known by the places of its rows and the sizes
    of its files instead of the images' content.
    """
    raw = open_images(config)
    name = split_name(raw, split, config)
    part, keep = rows_of(raw, config, name)
    if config.loading == "stream" and keep is None and isinstance(part, GroupedPart):
        found = identities_by_place(part, raw.class_names)
    else:
        found = identities(raw, name if name in raw.parts else "all")
    found = found if keep is None else found[keep]
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def _rows_of_test(
    raw: RawImages, config: DataConfig, split: Split
) -> tuple[Part, np.ndarray | None]:
    """One side of the test images: `tuning_share` of them, chosen by `split_seed`, or the rest."""
    part, test = _rows_of_split(raw, config, "test")
    if config.tuning_share == 0:
        raise InputError(
            f"No test image of {config.source} is set apart for tuning.",
            hint="Set data.tuning_share, such as 0.5.",
        )
    rows = np.arange(part.count) if test is None else np.flatnonzero(test)
    if len(rows) < 2:
        raise InputError(
            f"{config.source} has one test image, too few for data.tuning_share.",
            hint="Set data.tuning_share=0, or hold out more with data.test_share.",
        )
    seed = [config.split_seed, 1]
    if test is None:
        tuning, reference = _share(rows, config.tuning_share, seed)
    else:
        chosen = held_out(identities(raw, "all")[rows, 0], config.tuning_share, seed)
        tuning, reference = rows[chosen], rows[~chosen]
    keep = np.zeros(part.count, dtype=bool)
    keep[tuning if split == "tuning" else reference] = True
    return part, keep


def _share(rows: np.ndarray, share: float, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """A random `share` of two or more rows, and the rest; neither is empty."""
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows[order[:count]], rows[order[count:]]


def too_much_damage(damaged: int, count: int, config: DataConfig) -> bool:
    """Whether `damaged` of `count` rows are more than `max_damaged` allows, or all of them."""
    return damaged > config.max_damaged * count or damaged >= count


def check_damage(damage: Sequence[Damage], count: int, config: DataConfig) -> None:
    """`DamagedDataError` that lists the rows where they are more than `max_damaged` of `count`."""
    if not too_much_damage(len(damage), count, config):
        return
    lines = "\n  ".join(list_damage(damage, most=_SHOWN_DAMAGE))
    share = f"{100 * len(damage) / count:.3g} %"
    allowed = f"up to {100 * config.max_damaged:g} % are skipped"
    if len(damage) == count:
        allowed = "no image is left"
    if all(item.reason == NO_CAPTION for item in damage):
        raise InputError(
            f"{len(damage):,} of {counted(count, 'image')} "
            f"{'has' if len(damage) == 1 else 'have'} no caption ({share}; {allowed}):\n  {lines}",
            hint="Write a caption for each, or choose a caption that needs none, such as --set "
            "'data.caption=A photo'.",
        )
    raise DamagedDataError(
        f"{len(damage):,} of {counted(count, 'row')} cannot be used ({share}; {allowed}):\n"
        f"  {lines}",
        hint=f"Mend or remove them (`sfumato data show {config.source}` lists all), or allow more "
        "with --set data.max_damaged=SHARE.",
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
    if config.left_out and split in ("train", "classifier"):
        text += f", without the images of {counted(len(config.left_out), 'caption')}"
    if "test" not in raw.parts or "classifier" in raw.parts or split in ("tuning", "reference"):
        text += f", split seed {config.split_seed}"
    if decoded.damage:
        text += f", {len(decoded.damage):,} damaged rows skipped"
    return text
