"""Classes of labels without names: the values that occur."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

_ROWS_FOR_STRAYS = 100
_ROWS_FOR_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class Classes:
    """`names` of the classes in order and the `index` of each value that is one; `why_none` says
    why a column's values are no classes."""

    names: list[str]
    index: Mapping[Any, int]
    why_none: str = ""

    def find(self, value: Any) -> tuple[int | None, str]:
        """The class of a value, and what is wrong with it."""
        value = plain(value)
        if value is None or value in self.index:
            return None if value is None else self.index[value], ""
        return None, f"label {value} is outside the {len(self.names)} classes"


def plain(value: Any) -> Any:
    """A label as it is compared: 1, 1.0 and Decimal("1.00") are the same; NaN is no label."""
    if isinstance(value, bool | str | int) or value is None:
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() else value
    if isinstance(value, Decimal):
        return None if value.is_nan() else int(value) if value == int(value) else value
    return str(value)


def text_of(value: Any) -> str | None:
    """A value of a column as the text that a caption has of it; None where there is none."""
    value = plain(value)
    return None if value is None else str(value)


def classes_of(found: Mapping[Any, int], *, chosen: bool = False) -> Classes:
    """The classes of the labels of a data set, by how often each was `found`: numbers by size, text
    by the alphabet.

    A whole number beyond all others that occurs once in a hundred labels is damage, not a class;
    and values of which most occur once are measurements or keys, not classes, unless they are
    `chosen` as labels.
    """
    counts: Counter[Any] = Counter()
    for value, count in found.items():
        if (label := plain(value)) is not None:
            counts[label] += count
    total = counts.total()
    if not chosen and total >= _ROWS_FOR_CLASSES and 2 * len(counts) > total:
        return Classes(names=[], index={}, why_none=f"has {len(counts):,} values in {total:,} rows")
    numeric = all(isinstance(value, int | float | Decimal) for value in counts)
    known = set(counts) - _strays(counts) if numeric else set(counts)
    ordered = sorted(known) if numeric else sorted(known, key=str)
    return Classes(
        names=[str(value) for value in ordered],
        index={value: index for index, value in enumerate(ordered)},
    )


def _strays(counts: Counter[Any]) -> set[Any]:
    """Numbers that occur once and lie outside of all that occur more often."""
    often = [value for value, count in counts.items() if count > 1]
    if not often:
        return set()
    low, high = min(often), max(often)
    once = {value for value, count in counts.items() if count == 1 and not low <= value <= high}
    return once if _ROWS_FOR_STRAYS * len(once) <= counts.total() else set()
