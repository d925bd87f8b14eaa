"""The captions of a data set: what `Annotations` holds of each image, and the class that a caption
stands for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.base.errors import InputError, nearest
from sfumato.config.sections import DataConfig
from sfumato.data.captions import (
    OWN,
    caption_images,
    class_captions,
    column_fields,
    counts_of,
    fields,
    required_fields,
)
from sfumato.data.decode import row_problem
from sfumato.data.opening import open_images
from sfumato.data.survey import resolve
from sfumato.data.table import GroupedPart, Part, RawImages
from sfumato.text.sentences import with_sentences

SENTENCES = 12
"""Sentences around each of `data.phrases`."""


def needs_caption(config: DataConfig) -> bool:
    """Whether an image without a caption of its own cannot be used."""
    return any(OWN in required_fields(one) for one in config.templates)


def annotate(
    raw: RawImages,
    config: DataConfig,
    *,
    labels: np.ndarray,
    own: Sequence[str | None],
    columns: Sequence[tuple[str | None, ...]],
) -> dict[str, Any]:
    """The labels and captions of `Annotations`, for images with `labels` (N,) int64, captions of
    their `own` (N) and `columns` (N) as `Row` has them."""
    about = {"labels": torch.from_numpy(labels), "class_names": raw.class_names}
    templates = with_sentences(config.caption, config.phrases, each=SENTENCES)
    named = {
        name: [row[place] if row else None for row in columns]
        for place, name in enumerate(column_fields(config.templates))
    }
    prompts, captions = caption_images(templates, **about, own=own, columns=named)
    counts = torch.from_numpy(len(templates) * counts_of(own))
    same = not any(OWN in fields(one) for one in templates) or bool(
        (counts == prompts.shape[1]).all()
    )
    return {
        **about,
        "prompts": prompts,
        "caption_counts": None if same else counts,
        "captions": captions,
        "class_captions": class_captions(config.caption, prompts, captions, **about),
    }


def read_captions(
    raw: RawImages, config: DataConfig, part: Part
) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows of a part that can be used, as far as is known without their images, and what
    `annotate` gives for them."""
    classes, needed = len(raw.class_names), needs_caption(config)
    notes = part.read_notes(None) if isinstance(part, GroupedPart) else part.read(None)
    good = [
        (place, (row.label or 0) if classes else 0, row.caption, row.columns)
        for place, row in enumerate(notes)
        if not (row.problem or row_problem(row, classes, needed))
    ]
    rows, labels, own, columns = zip(*good, strict=True) if good else ((), (), (), ())
    about = annotate(raw, config, labels=np.array(labels, int), own=own, columns=columns)
    return np.array(rows, int), about


def classes_of_captions(config: DataConfig, captions: Sequence[str]) -> Tensor | None:
    """(len(captions),) int64: the class of the images that have each caption; None for a data set
    without classes.

    No image is decoded. `InputError` for a caption that no image has, or images of several classes.
    """
    config = resolve(config)
    raw = open_images(config)
    found: dict[str, set[int]] = {one: set() for one in captions}
    known: set[str] = set()
    for part in raw.parts.values():
        about = read_captions(raw, config, part)[1]
        places = {caption: place for place, caption in enumerate(about["captions"])}
        known |= places.keys()
        for one in found.keys() & places.keys():  # another part may have it alone
            of = (about["prompts"] == places[one]).any(1)
            found[one] |= set(about["labels"][of].tolist())
    for one, classes in found.items():
        if not classes:
            raise InputError(
                f"No image of {config.source} has the caption '{one}'.",
                hint=nearest(one, sorted(known)),
            )
        if raw.class_names and len(classes) > 1:
            names = ", ".join(raw.class_names[label] for label in sorted(classes))
            raise InputError(
                f"'{one}' is the caption of images of several classes: {names}.",
                hint="Name the column of its class with data.label_column.",
            )
    if not raw.class_names:
        return None
    return torch.tensor([min(found[one]) for one in captions])
