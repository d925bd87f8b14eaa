"""Captions from labels or from an image's own caption, by templates."""

import string
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sfumato.base.errors import ConfigError

OWN = "caption"
"""The field of an image's own caption."""
CLASS_FIELDS = {"label", "class_name", "word"}
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def captions_from_templates(templates: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """One caption for each template and class: template after template, classes in order.

    `{label}` is the class index, `{class_name}` its name, `{word}` its name in words: "seven" where
    the name is "7".
    """
    captions = []
    for template in templates:
        fields(template)
        captions += [
            template.format(label=label, class_name=name, word=in_words(name))
            for label, name in enumerate(class_names)
        ]
    return captions


def caption_images(
    templates: Sequence[str],
    *,
    labels: Tensor,
    class_names: Sequence[str],
    own: Sequence[str | None],
) -> tuple[Tensor, list[str]]:
    """Rows (N, T) int64 into the captions, and the captions: T templates for each of N images.

    `labels`: (N,) into `class_names`, which may be empty; `own`: the images' own captions. Raises
    `ConfigError` for a template with a field that the data set has nothing for.
    """
    used = [fields(template) for template in templates]
    for template, names in zip(templates, used, strict=True):
        if names & CLASS_FIELDS and not class_names:
            raise ConfigError(
                f"data.caption: {template!r} asks for a class, but the data set has no classes.",
                hint="Use {caption} where the images have captions of their own, or a text "
                "without fields.",
            )
    if class_names and not any(OWN in names for names in used):
        rows = labels[:, None] + len(class_names) * torch.arange(len(templates))
        return rows, captions_from_templates(templates, class_names)
    known: dict[str, int] = {}
    rows = torch.empty((len(own), len(templates)), dtype=torch.int64)
    for image, (label, text) in enumerate(zip(labels.tolist(), own, strict=True)):
        name = class_names[label] if class_names else ""
        for column, template in enumerate(templates):
            caption = template.format(
                caption=text, label=label, class_name=name, word=in_words(name)
            )
            rows[image, column] = known.setdefault(caption, len(known))
    return rows, list(known)


def class_captions(
    templates: Sequence[str],
    prompts: Tensor,
    captions: Sequence[str],
    *,
    labels: Tensor,
    class_names: Sequence[str],
) -> list[str]:
    """The first template's caption of each class; with the images' own captions in it, that of
    the class's first image (the class's name where it has none)."""
    if OWN not in fields(templates[0]):
        return captions_from_templates(templates[:1], class_names)
    present, rows = np.unique(labels.numpy(), return_index=True)
    first = dict(zip(present.tolist(), prompts[rows, 0].tolist(), strict=True))
    return [
        captions[first[label]] if label in first else name for label, name in enumerate(class_names)
    ]


def in_words(class_name: str) -> str:
    """A digit's word; every other name with its underscores opened."""
    if class_name.isdecimal() and int(class_name) < len(_WORDS):
        return _WORDS[int(class_name)]
    return class_name.replace("_", " ")


def fields(template: str) -> set[str]:
    """The fields that a template uses; `ConfigError` for one that is not known."""
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ConfigError(f"data.caption: {template!r} is not a template ({error}).") from error
    if unknown := names - CLASS_FIELDS - {OWN}:
        raise ConfigError(
            f"data.caption: unknown field {{{min(unknown)}}} in {template!r}.",
            hint="Use {label} for the class index, {class_name} for its name, {word} for its name "
            "in words, {caption} for the image's own caption.",
        )
    return names
