"""What a model was trained to draw, and prompts that name nothing of it."""

import warnings
from collections.abc import Sequence

from sfumato.base.errors import OtherSubjectWarning, SfumatoError
from sfumato.data.captions import (
    CLASS_FIELDS,
    captions_from_templates,
    fields,
    in_words,
    label_texts,
    required_fields,
)
from sfumato.generation.can import CanModel
from sfumato.generation.model import Model
from sfumato.text.encoder import NULL, shortened, words_of

_LEAST_STEM = 3
_SHOWN = 10


def warn_of_other_subjects(model: Model, prompts: Sequence[str]) -> None:
    """One warning for all `prompts` that name no class of the captions that the model was trained
    on: it draws one of its classes all the same. None where its captions are not made of classes.
    """
    classes = trained_classes(model)
    if not classes:
        return
    known = _words_for(classes)
    other = [one for one in dict.fromkeys(prompts) if one != NULL and not _names_any(one, known)]
    if not other:
        return
    more = f" and {len(other) - 3:,} more" if len(other) > 3 else ""
    shown = ", ".join(classes[:_SHOWN]) + (", ..." if len(classes) > _SHOWN else "")
    warnings.warn(
        f"The model was trained on captions of {len(classes):,} classes ({shown}), and "
        f"{'; '.join(map(shortened, other[:3]))}{more} {'names' if len(other) == 1 else 'name'} "
        "none of them: it draws one of them all the same. A caption it knows: "
        f"{shortened(_example(model, classes))}.",
        OtherSubjectWarning,
        stacklevel=2,
    )


def known_examples(model: Model) -> list[str]:
    """Captions for a look at the model; none where the data that it learned from cannot be read."""
    try:
        return model.examples()[0]
    except (SfumatoError, OSError):
        return []


def trained_classes(model: Model) -> list[str]:
    """The names of the classes that every caption of the model's training names; empty where they
    are not known or the captions are made of more than classes."""
    data = model.data
    if isinstance(model, CanModel):  # it refuses such prompts
        return []
    if data is None or not all(_of_classes(template) for template in data.templates):
        return []
    examples = model.provenance.get("examples") or {}
    return list(model.provenance.get("classes") or examples.values())


def _of_classes(template: str) -> bool:
    """Whether a template names the class, and nothing else that an image has."""
    return bool(required_fields(template) & CLASS_FIELDS) and fields(template) <= CLASS_FIELDS


def _example(model: Model, classes: Sequence[str]) -> str:
    """The first caption of the last class."""
    assert model.data is not None
    return captions_from_templates(model.data.caption[:1], classes)[-1]


def _words_for(classes: Sequence[str]) -> set[str]:
    """Words that name a class: of its name, as a caption has it or in words, and its number."""
    names = [*classes, *map(in_words, classes), *label_texts(classes)]
    return {word for name in names for word in words_of(name)}


def _names_any(prompt: str, known: set[str]) -> bool:
    """Whether a word of a prompt is known, or a longer form of one: frogs, horseback."""
    stems = tuple(word for word in known if len(word) >= _LEAST_STEM)
    return any(word in known or word.startswith(stems) for word in words_of(prompt))
