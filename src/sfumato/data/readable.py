"""Values of a table as words of a caption: `still_life` and `claude-monet` are not English."""

import re
from collections.abc import Mapping, Sequence

_UNKNOWN = {"", "unknown", "none", "null", "nan", "n/a"}
_SLUG = re.compile(r"[^\W_A-Z]+(?:-[^\W_A-Z]+)+")
_LOWER = re.compile(r"[^\sA-Z_]+")
_PARTICLES = {
    *("af", "and", "da", "de", "del", "della", "den", "der", "di", "dos", "du", "el", "la", "le"),
    *("of", "the", "van", "von", "y"),
}


def readable_columns(columns: Mapping[str, Sequence[str | None]]) -> dict[str, list[str]]:
    """The values of each column as words; "" for those that say that nothing is known.

    Underscores become spaces. In a column of which half of the values or more are slugs, such as
    `claude-monet`, all are names: `Claude Monet`, `Vincent van Gogh`, `Raphael`. Unknown are empty
    values, None, `unknown`, `none`, `null`, `nan`, `n/a`, and `Unknown Artist` in a column
    `artist`.
    """
    return {name: _readable(name, values) for name, values in columns.items()}


def _readable(name: str, values: Sequence[str | None]) -> list[str]:
    distinct = {value for value in values if value and not _is_unknown(name, value)}
    slugs = sum(_is_slug(value) for value in distinct)
    title = slugs > 0 and 2 * slugs >= len(distinct)
    words = {value: _as_name(value) if title else _opened(value) for value in distinct}
    return [words.get(value, "") if value else "" for value in values]


def _is_unknown(name: str, value: str) -> bool:
    plain = _opened(value).lower()
    return plain in _UNKNOWN or plain == f"unknown {name.replace('_', ' ').lower()}"


def _is_slug(value: str) -> bool:
    return _SLUG.fullmatch(value.replace(".", "").replace("'", "")) is not None


def _opened(value: str) -> str:
    """Without underscores, where they stand for spaces."""
    return " ".join((value if re.search(r"\s", value) else value.replace("_", " ")).split())


def _as_name(value: str) -> str:
    """A slug as a name; what has spaces or capitals is one already."""
    if not _LOWER.fullmatch(value):
        return _opened(value)
    first, *rest = value.split("-")
    return " ".join([_capital(first), *(w if w in _PARTICLES else _capital(w) for w in rest)])


def _capital(word: str) -> str:
    return re.sub(r"(^|\.)(\w)", lambda found: found[1] + found[2].upper(), word)
