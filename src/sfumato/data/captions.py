"""Captions from labels, columns of a table or an image's own caption, by templates.

A template is text with fields in braces: `{caption}`, the image's own; `{class_name}`,
`{style_name}`, `{word}` and `{label}`, its class; any other name is a column of the data set.
`[ ... ]` is left out where a field in it has no value, `[a|b]` is the first of its texts whose
fields all have one; `a(n)` becomes "a" or "an" by the letter that follows.
"""

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sfumato.base.errors import ConfigError
from sfumato.data.readable import readable_columns

OWN = "caption"
"""The field of an image's own caption."""
CLASS_FIELDS = {"label", "class_name", "style_name", "word"}
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_OPTIONAL = re.compile(r"(\[\[|\]\]|\[[^\[\]]*\])")
_ARTICLE = re.compile(r"\b([Aa])\(n\)(?=\s+(\w))")


def captions_from_templates(templates: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """One caption for each template and class: template after template, classes in order.

    `{label}` is the class index, or the label itself where all are whole numbers; `{class_name}`
    its name; `{style_name}` its name with underscores as spaces; `{word}` its name in words:
    "seven" where the name is "7". Columns and the image's own caption have no value here:
    `ConfigError` for a template that needs one.
    """
    for template in templates:
        if needed := required_fields(template) - CLASS_FIELDS:
            raise ConfigError(
                f"The caption template {template!r} needs {{{min(needed)}}}, and a class alone has "
                "no value for it.",
                hint="Use {label} for the class index, {class_name} for its name, {style_name} for "
                "its name with underscores as spaces, {word} for its name in words; or put what "
                f"may be missing in brackets, such as [{{{min(needed)}}}|painting].",
            )
    numbers = label_texts(class_names)
    return [
        rendered(template, _of_class(name, number))
        for template in templates
        for number, name in zip(numbers, class_names, strict=True)
    ]


def _of_class(name: str, number: str) -> dict[str, str]:
    """The values of `CLASS_FIELDS`."""
    opened = name.replace("_", " ")
    return {"label": number, "class_name": name, "style_name": opened, "word": in_words(name)}


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
    columns: Mapping[str, Sequence[str | None]],
) -> tuple[Tensor, list[str]]:
    """Rows (N, T) int64 into the captions, and the captions: T templates for each of N images.

    `labels`: (N,) into `class_names`, which may be empty; `own`: the images' own captions;
    `columns`: N values of each column that the templates use. Where images have several captions,
    on a line each, every template is there for each of them, and T is that of the image with the
    most; the rows of an image with fewer are repeated. Raises `ConfigError` for a template with a
    field that the data set, or an image of it, has nothing for.
    """
    used = [fields(template) for template in templates]
    if not class_names:
        _refuse_class_fields(templates)
    if class_names and not any(names - CLASS_FIELDS for names in used):
        rows = labels[:, None] + len(class_names) * torch.arange(len(templates))
        return rows, captions_from_templates(templates, class_names)
    if not any(OWN in names for names in used):
        own = [None] * len(own)
    columns = readable_columns(columns)
    _refuse_missing(templates, columns)
    known: dict[str, int] = {}
    numbers = label_texts(class_names)
    width = len(templates) * int(counts_of(own).max(initial=1))
    rows = np.empty((len(own), width), np.int64)
    for image, (label, texts) in enumerate(zip(labels.tolist(), own, strict=True)):
        values = {name: column[image] for name, column in columns.items()}
        if class_names:
            values |= _of_class(class_names[label], numbers[label])
        each = [{**values, OWN: text} for text in (texts or "").split("\n")]
        captions = [rendered(template, one) for template in templates for one in each]
        mine = [known.setdefault(caption, len(known)) for caption in captions]
        rows[image] = mine if len(mine) == width else np.resize(mine, width)
    return torch.from_numpy(rows), list(known)


def _refuse_class_fields(templates: Sequence[str]) -> None:
    """`ConfigError` for a template that needs a class."""
    for template in templates:
        if required_fields(template) & CLASS_FIELDS:
            raise ConfigError(
                f"The caption template {template!r} asks for a class, but the data set has no "
                "classes.",
                hint="Use {caption} where the images have captions of their own, or a text "
                "without fields.",
            )


def _refuse_missing(templates: Sequence[str], columns: Mapping[str, Sequence[str]]) -> None:
    """`ConfigError` where a column that a template cannot do without has no value in some rows."""
    for name in sorted(set().union(*map(required_fields, templates)) & columns.keys()):
        if missing := sum(not value for value in columns[name]):
            raise ConfigError(
                f"data.caption: {missing:,} of {len(columns[name]):,} images have no value in "
                f"column '{name}', which the caption needs.",
                hint=f"Put what may be missing in brackets: [by {{{name}}}] leaves it out, "
                f"[{{{name}}}|painting] says something else.",
            )


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
    """The first template's caption of each class; where that needs more than the class, that of
    the class's first image (the class's name where it has none)."""
    if not required_fields(templates[0]) - CLASS_FIELDS:
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


# Templates ----------------------------------------------------------------------------------------


def rendered(template: str, values: Mapping[str, str]) -> str:
    """The caption of a template: a field without a value, or with an empty one, has none. Each
    field outside of brackets must be in `values`."""
    parts = _parts(template)
    text = ""
    for choices in parts:
        known = (one for one in choices if all(values.get(name) for name in _names(one)))
        text += (choices[0] if len(choices) == 1 else next(known)).format_map(values)
    if any(len(choices) > 1 for choices in parts):  # what was left out leaves no gap
        text = re.sub(r" ([,.;:!?])", r"\1", " ".join(text.split()))
    return _ARTICLE.sub(lambda found: found[1] + "n" * (found[2].lower() in "aeiou"), text)


def fields(template: str) -> set[str]:
    """The fields that a template uses; `ConfigError` for text that is no template."""
    return {name for choices in _parts(template) for one in choices for name in _names(one)}


def required_fields(template: str) -> set[str]:
    """The fields that a template cannot do without: those outside of brackets."""
    return {
        name for choices in _parts(template) if len(choices) == 1 for name in _names(choices[0])
    }


def column_fields(templates: Iterable[str]) -> tuple[str, ...]:
    """The columns that templates use, in alphabetical order."""
    return tuple(sorted(set().union(*map(fields, templates)) - CLASS_FIELDS - {OWN}))


@lru_cache(maxsize=1024)
def _parts(template: str) -> list[list[str]]:
    """The texts that each part of a template chooses from: one where there is no choice."""
    parts = []
    for part in _OPTIONAL.split(template):
        if part in ("[[", "]]"):
            parts.append([part[0]])
        elif part.startswith("["):
            choices = part[1:-1].split("|")
            parts.append([*choices, ""])
        elif "[" in part or "]" in part:
            raise ConfigError(
                f"The caption template {template!r} has a bracket without its other half, or "
                "brackets in brackets.",
                hint="[by {artist}] is left out where there is no artist; [[ and ]] are brackets "
                "in the caption.",
            )
        elif part:
            parts.append([part])
    for one in (one for choices in parts for one in choices):
        try:
            _names(one)
        except ValueError as error:
            raise ConfigError(
                f"The caption template {template!r} is not a template ({error}).",
                hint="Fields stand in braces, {class_name}; {{ and }} are braces in the caption.",
            ) from error
    return parts


@lru_cache(maxsize=4096)
def _names(text: str) -> frozenset[str]:
    parsed = string.Formatter().parse(text)
    return frozenset(name for _, name, _, _ in parsed if name is not None)
