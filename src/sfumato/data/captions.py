"""Captions from labels or from an image's own caption, by templates."""

import re
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

    `{label}` is the class index, or the label itself where all are whole numbers; `{class_name}`
    its name; `{word}` its name in words: "seven" where the name is "7".
    """
    captions = []
    numbers = label_texts(class_names)
    for template in templates:
        fields(template)
        captions += [
            template.format(label=number, class_name=name, word=in_words(name))
            for number, name in zip(numbers, class_names, strict=True)
        ]
    return captions


def label_texts(class_names: Sequence[str]) -> list[str]:
    """What `{label}` is for each class."""
    whole = all(re.fullmatch(r"-?\d+", name) for name in class_names)
    return [name if whole else str(index) for index, name in enumerate(class_names)]


def caption_images(
    templates: Sequence[str],
    *,
    labels: Tensor,
    class_names: Sequence[str],
    own: Sequence[str | None],
) -> tuple[Tensor, list[str]]:
    """Rows (N, T) int64 into the captions, and the captions: T templates for each of N images.

    `labels`: (N,) into `class_names`, which may be empty; `own`: the images' own captions. Where
    images have several, on a line each, every template is there for each of them, and T is that of
    the image with the most; the rows of an image with fewer are repeated. Raises `ConfigError` for
    a template with a field that the data set has nothing for.
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
    if not any(OWN in names for names in used):
        own = [None] * len(own)
    known: dict[str, int] = {}
    numbers = label_texts(class_names)
    width = len(templates) * int(counts_of(own).max(initial=1))
    rows = np.empty((len(own), width), np.int64)
    for image, (label, texts) in enumerate(zip(labels.tolist(), own, strict=True)):
        name, number = (class_names[label], numbers[label]) if class_names else ("", label)
        captions = [
            template.format(caption=text, label=number, class_name=name, word=in_words(name))
            for template in templates
            for text in (texts or "").split("\n")
        ]
        mine = [known.setdefault(caption, len(known)) for caption in captions]
        rows[image] = mine if len(mine) == width else np.resize(mine, width)
    return torch.from_numpy(rows), list(known)


def counts_of(own: Sequence[str | None]) -> np.ndarray:
    """(N,) int64: how many captions of its own each image has, at least one."""
    return np.array([1 + (texts or "").count("\n") for texts in own], np.int64)


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
    """A digit's word; every other name with its underscores opened, and the hyphens of one like
    `claude-monet`."""
    if class_name.isdecimal() and int(class_name) < len(_WORDS):
        return _WORDS[int(class_name)]
    if re.fullmatch(r"[a-z]{2,}(-[a-z]{2,})+", class_name):
        return class_name.replace("-", " ")
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
