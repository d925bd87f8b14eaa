"""Captions from labels, by template."""

import string
from collections.abc import Sequence

from sfumato.base.errors import ConfigError

FIELDS = {"label", "class_name"}


def captions_from_template(template: str, class_names: Sequence[str]) -> list[str]:
    """One caption a class: `{label}` is the class index, `{class_name}` its name."""
    try:
        unknown = {name for _, name, _, _ in string.Formatter().parse(template) if name} - FIELDS
    except ValueError as error:
        raise ConfigError(f"data.caption: {template!r} is not a template ({error}).") from error
    if unknown:
        raise ConfigError(
            f"data.caption: unknown field {{{min(unknown)}}} in {template!r}.",
            mend="Use {label} for the class index or {class_name} for its name.",
        )
    return [template.format(label=label, class_name=name) for label, name in enumerate(class_names)]
