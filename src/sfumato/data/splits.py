"""The parts of a data set by the names of its files and folders: train, test, validation, others.

`test` is held out. `validation` is a part of its own that is never trained on; it is the held-out
part where there is no `test`. Other parts are left out of both, unless `data.also_train` names
them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sfumato.base.errors import ConfigError, InputError, nearest

T = TypeVar("T")

_WORDS = r"train(?:ing)?|test(?:ing)?|t10k|val|valid|validation|dev"
_INSIDE = re.compile(rf"(?:^|[-_. ])({_WORDS})(?=$|[-_. ]|\d)", re.I)
_THINGS = r"images?|imgs?|data|set|split|part"
_WHOLE = re.compile(
    rf"(?:(?:{_THINGS})[-_. ]?)?({_WORDS})(?:[-_. ]?(?:{_THINGS}))?(?:[-_. ]?\d+)?", re.I
)
_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
}
NAMED = ("train", "test", "validation")


def split_in_name(name: str) -> str | None:
    """train, test or validation, where a word of a file's or folder's name says so."""
    found = _INSIDE.search(name)
    return _NAMES.get(found[1].lower(), "validation") if found else None


def split_of_name(name: str) -> str | None:
    """train, test or validation, where a name says that and nothing else: `train2017`,
    `test_images`, but not `bullet train`."""
    found = _WHOLE.fullmatch(name)
    return _NAMES.get(found[1].lower(), "validation") if found else None


@dataclass(frozen=True, kw_only=True)
class Splits(Generic[T]):
    """`parts`: "train" with "test" and perhaps "validation", or "all" where the names say nothing
    of parts. `left_out`: what is in neither, by the name of its part; "" is what has none.
    `remark`: a line where a part does not serve as its name says."""

    parts: Mapping[str, list[T]]
    left_out: Mapping[str, list[T]]
    remark: str = ""


def group_splits(
    items: Mapping[str, Sequence[T]], *, also_train: Sequence[str], where: str
) -> Splits[T]:
    """Parts of `items` by the names of their parts, "" for items in none.

    `where` names the source in messages. `ConfigError` for a part in `also_train` that is not
    there or is the test part; `InputError` where none is left to train on.
    """
    groups = {name: list(group) for name, group in items.items() if group}
    _check_also_train(also_train, groups, where)
    for name in also_train:
        groups["train"] = groups.get("train", []) + groups.pop(name)
    named = [name for name in NAMED if name in groups]
    others = {name: group for name, group in groups.items() if name not in NAMED}
    everything = [one for group in groups.values() for one in group]
    if not named or len(groups) == 1:
        alone = named and named != ["train"]
        remark = f"The only part is {named[0]}: it is trained on but for a share." if alone else ""
        return Splits(parts={"all": everything}, left_out={}, remark=remark)
    remark = ""
    if "train" not in groups:
        if not others:
            raise InputError(
                f"{where} has the parts {' and '.join(named)}, and none to train on.",
                hint="Add a part called train, or give data.also_train=validation.",
            )
        groups["train"], others = [one for group in others.values() for one in group], {}
        remark = f"No part is called train: all that is not in {' or '.join(named)} is trained on."
    test = groups.get("test") or groups.get("validation")
    if test is None:
        return Splits(parts={"all": groups["train"]}, left_out=others)
    parts = {"train": groups["train"], "test": test}
    if "test" in groups and "validation" in groups:
        parts["validation"] = groups["validation"]
    return Splits(parts=parts, left_out=others, remark=remark)


def _check_also_train(
    also_train: Sequence[str], groups: Mapping[str, Sequence[object]], where: str
) -> None:
    known = sorted(name for name in groups if name not in ("", "train", "test"))
    for name in also_train:
        if name not in known:
            why = "is held out" if name == "test" else "is not there"
            raise ConfigError(
                f"data.also_train: the part '{name}' of {where} {why}.",
                hint=nearest(name, known) or "It has no parts beside train and test.",
            )


def split_notes(parts: Mapping[str, int], left_out: Mapping[str, int]) -> list[str]:
    """A line with the number of images of each part, where some are in neither train nor test."""
    apart = {name: count for name, count in parts.items() if name == "validation"}
    if not left_out and not apart:
        return []
    used = [
        f"{name} {count:,}" for name, count in parts.items() if name in ("train", "test", "all")
    ]
    text = f"Images by part: {', '.join(used)}"
    if apart:
        text += f"; validation {apart['validation']:,}, neither trained on nor tested on"
    if left_out:
        others = [
            f"{name} {count:,}" if name else f"{count:,} beside the parts"
            for name, count in left_out.items()
        ]
        text += f"; left out: {', '.join(others)}"
    if trainable := [*apart, *(name for name in left_out if name)]:
        text += f". --set data.also_train={trainable[-1]} trains on that part too"
    return [f"{text}."]
