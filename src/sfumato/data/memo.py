"""What a process opened or decoded last, so that a command may ask as often as it likes."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")

_KEPT = 3
_recent: dict[str, OrderedDict[Hashable, Any]] = defaultdict(OrderedDict)


def recall(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """What `make` returns; the newest few of each kind are kept, since a command asks often."""
    kept = _recent[kind]
    if key not in kept:
        kept[key] = make()
        while len(kept) > _KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
