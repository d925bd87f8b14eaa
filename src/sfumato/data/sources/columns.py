"""The columns of a Parquet data set: which hold images, labels and captions, and of which type."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.base.errors import InputError, nearest
from sfumato.data.identifiers import kind_of_identifiers

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "class", "category", "target")
CAPTION_NAMES = ("caption", "text", "captions", "prompt", "description")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns that are wanted: "auto" finds them by type, "none" does without."""

    image: str = "auto"
    label: str = "auto"
    caption: str = "auto"
    fields: tuple[str, ...] = ()
    """Columns that captions use."""


@dataclass(frozen=True, kw_only=True)
class FoundColumns:
    """Names of the columns there are, empty for none; `notes`: a line on each that was passed
    over."""

    image: str
    label: str
    caption: str
    notes: Sequence[str] = ()
    fields: tuple[str, ...] = ()
    """Those of `Columns.fields` that there are."""


# Types --------------------------------------------------------------------------------------------


def features_of(schema: "pa.Schema") -> dict[str, Any]:
    """What the `datasets` library wrote of the columns' meaning; empty without it."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def has_type(feature: Any, name: str) -> bool:
    """Whether `feature` is of the `datasets` library's type `name`."""
    return isinstance(feature, dict) and feature.get("_type") == name


def kind_of(kind: "pa.DataType") -> str:
    """What a column's type comes to here: how wide a number is, how long a text may be, and how
    either is stored are the same."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return kind_of(kind.value_type)
    if types.is_boolean(kind):
        return "true or false"
    if types.is_integer(kind):
        return "whole numbers"
    if types.is_floating(kind) or types.is_decimal(kind):
        return "numbers"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    if binary or types.is_fixed_size_binary(kind):
        return "bytes"
    if is_list(kind):
        return f"lists of {kind_of(kind.value_type)}"
    if types.is_struct(kind):
        return "a struct"
    return str(kind)


def is_list(kind: "pa.DataType") -> bool:
    """Whether a column holds a list in each row."""
    import pyarrow as pa

    types = pa.types
    views = (getattr(types, name, None) for name in ("is_list_view", "is_large_list_view"))
    checks = (types.is_list, types.is_large_list, types.is_fixed_size_list, *views)
    return any(check(kind) for check in checks if check is not None)


def encoded_images(column: "pa.Array") -> "pa.Array":
    """The bytes of an image column, which may be a struct or a dictionary of them."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_struct(column.type):
        return column
    # flatten() hands a null of the struct on to its bytes
    return encoded_images(column.flatten()[column.type.get_field_index("bytes")])


def _holds_images(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and kind_of(kind.field(place).type) == "bytes"
    return kind_of(kind) == "bytes"


# Finding ------------------------------------------------------------------------------------------

_LABEL_KINDS = ("whole numbers", "numbers", "text", "true or false")
_CAPTION_KINDS = ("text", "lists of text")
ReadValues = Callable[[str], Sequence[str | None]]


def find_columns(
    schema: "pa.Schema", wanted: Columns, file: Path, first_texts: ReadValues
) -> FoundColumns:
    """The columns of `wanted` in a schema of `file`. `first_texts` gives the texts of the first
    rows of a column.

    `InputError` for one that is wanted and not there or of no use, and where several could be
    meant.
    """
    types = dict(zip(schema.names, schema.types, strict=True))
    kinds = {name: kind_of(kind) for name, kind in types.items()}
    features = features_of(schema)
    images = [name for name, kind in types.items() if _holds_images(kind)]
    labels = [
        name
        for name in types
        if has_type(features.get(name), "ClassLabel") and kinds[name] in _LABEL_KINDS
    ] or [name for name in types if name in LABEL_NAMES and kinds[name] in _LABEL_KINDS]
    captions = [name for name in types if name not in labels and kinds[name] in _CAPTION_KINDS]
    image = _pick("image", wanted.image, images, IMAGE_NAMES, kinds, file)
    if not image:
        raise InputError(
            f"{file} has no column of images; its columns are {', '.join(types)}.",
            hint="An image column holds encoded images: binary, or a struct with `bytes`.",
        )
    label = _pick("label", wanted.label, labels, LABEL_NAMES, kinds, file)
    if image not in images:
        raise _useless("image", image, kinds, file, "encoded images: bytes, or a struct of them")
    if label and kinds[label] not in _LABEL_KINDS:
        raise _useless("label", label, kinds, file, "one number or text a row")
    captions = [name for name in captions if name != label]
    caption, notes = _pick_caption(wanted.caption, captions, kinds, file, first_texts)
    if not label and wanted.label == "auto":
        notes += [
            f"Column '{name}' holds {kinds[name]}: it is not used for classes."
            for name in LABEL_NAMES
            if name in types and kinds[name] not in _LABEL_KINDS
        ]
    fields = tuple(name for name in wanted.fields if name in names_for_captions(schema))
    return FoundColumns(image=image, label=label, caption=caption, notes=notes, fields=fields)


def names_for_captions(schema: "pa.Schema") -> list[str]:
    """The columns with one text, number or class in each row."""
    return [
        name
        for name, kind in zip(schema.names, schema.types, strict=True)
        if kind_of(kind) in _LABEL_KINDS
    ]


def _pick_caption(
    wanted: str,
    found: Sequence[str],
    kinds: dict[str, str],
    file: Path,
    first_texts: ReadValues,
) -> tuple[str, list[str]]:
    """The column of captions, and a line on what was passed over: a column of paths or ids."""
    if wanted != "auto":
        chosen = _pick("caption", wanted, found, CAPTION_NAMES, kinds, file)
        if chosen and kinds[chosen] not in _CAPTION_KINDS:
            raise _useless("caption", chosen, kinds, file, "text, or lists of text")
        return chosen, []
    usual = [name for name in CAPTION_NAMES if name in found]
    notes = []
    for name in usual or (found if len(found) == 1 else []):
        texts = first_texts(name)
        kind = kind_of_identifiers(texts)
        if not kind:
            return name, notes
        example = next(text for text in texts if text)
        notes.append(
            f"Column '{name}' holds {kind}, such as '{example[:60]}', not captions: it is not used "
            f"(--set data.caption_column={name} uses it)."
        )
    return "", notes


def _useless(role: str, name: str, kinds: dict[str, str], file: Path, right: str) -> InputError:
    return InputError(
        f"data.{role}_column: column '{name}' of {file} holds {kinds[name]}.",
        hint=f"Choose a column with {right}.",
    )


def _pick(
    role: str,
    wanted: str,
    found: Sequence[str],
    usual: Sequence[str],
    kinds: dict[str, str],
    file: Path,
) -> str:
    """The wanted column; else the one with a usual name; else the only one; else a question."""
    if wanted == "none":
        return ""
    if wanted != "auto":
        if wanted not in kinds:
            raise InputError(
                f"data.{role}_column: {file} has no column '{wanted}'.",
                hint=nearest(wanted, list(kinds)),
            )
        return wanted
    for name in usual:
        if name in found:
            return name
    if len(found) > 1 and role != "caption":
        raise InputError(
            f"{file} has {len(found)} columns that could be the {role}: {', '.join(found)}.",
            hint=f"Choose one with --set data.{role}_column={found[-1]}"
            + ("." if role == "image" else ", or do without with =none."),
        )
    return found[0] if len(found) == 1 else ""
