"""Text that names a file or a row and says nothing of the image: no caption."""

import re
from collections.abc import Sequence

from sfumato.data.files import SUFFIXES

_FILE = "|".join(re.escape(suffix) for suffix in SUFFIXES)
_KINDS = {
    "URLs": re.compile(r"[a-z][a-z0-9+.-]*://\S+|www\.\S+", re.I),
    "paths": re.compile(
        r"(?:\.{0,2}|~|[a-z]:)[/\\].+"  # from a root
        r"|(?:[^\s/\\]+[/\\]){2,}\S*"  # through two folders
        r"|.*[/\\][^/\\]*\.\w{1,5}",  # to a file
        re.I,
    ),
    "file names": re.compile(rf".*(?:{_FILE}|\.heic|\.json|\.txt)|\S+\.[a-z0-9]{{2,4}}", re.I),
    "hashes": re.compile(r"(?:[a-z0-9]+:)?(?=\S*\d)[0-9a-f]{16,}", re.I),
    "ids": re.compile(r"\{?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\}?", re.I),
}
_CODE = re.compile(r"(?=\S*\d)[\w.:#-]+")
_NUMBERS = re.compile(r"[-+\d.,;:eE\s]*\d[-+\d.,;:eE\s]*")
_SHARE = 0.9


def kind_of_identifiers(values: Sequence[str | None]) -> str:
    """What `values` are instead of captions: "paths", "URLs", "file names", "hashes", "ids" or
    "numbers", where nine in ten of them are; empty where they may be captions.

    Codes (one word with a digit in it) and numbers count as ids where no two are the same.
    """
    texts = [value.strip() for value in values if value and value.strip()]
    if not texts:
        return ""
    for kind, pattern in _KINDS.items():
        if _most(texts, pattern):
            return kind
    different = len(texts) > 1 and len(set(texts)) == len(texts)
    if different and _most(texts, _CODE):
        return "ids"
    if _most(texts, _NUMBERS) and (different or any(" " in text for text in texts)):
        return "numbers"
    return ""


def _most(texts: Sequence[str], pattern: re.Pattern[str]) -> bool:
    return sum(pattern.fullmatch(text) is not None for text in texts) >= _SHARE * len(texts)
