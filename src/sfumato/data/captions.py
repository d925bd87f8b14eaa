"""Captions from labels, by templates."""

import string
from collections.abc import Sequence

from sfumato.base.errors import ConfigError

FIELDS = {"label", "class_name", "word"}
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def captions_from_templates(templates: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """One caption for each template and class: template after template, classes in order.

    `{label}` is the class index, `{class_name}` its name, `{word}` its name in words: "seven" where
    the name is "7".
    """
    captions = []
    for template in templates:
        _check(template)
        captions += [
            template.format(label=label, class_name=name, word=in_words(name))
            for label, name in enumerate(class_names)
        ]
    return captions


def in_words(class_name: str) -> str:
    """A digit's word; every other name with its underscores opened."""
    if class_name.isdecimal() and int(class_name) < len(_WORDS):
        return _WORDS[int(class_name)]
    return class_name.replace("_", " ")


def _check(template: str) -> None:
    try:
        unknown = {name for _, name, _, _ in string.Formatter().parse(template) if name} - FIELDS
    except ValueError as error:
        raise ConfigError(f"data.caption: {template!r} is not a template ({error}).") from error
    if unknown:
        raise ConfigError(
            f"data.caption: unknown field {{{min(unknown)}}} in {template!r}.",
            mend="Use {label} for the class index, {class_name} for its name, {word} for its name "
            "in words.",
        )
