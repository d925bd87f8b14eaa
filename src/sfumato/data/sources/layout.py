"""Which folders of a tree are splits, and which are classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.data.splits import split_in_name, split_of_name


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Folders at depth `split_depth` below `folder` that are called as in `splits` are splits, None
    where there are none; those at `class_depth` are classes. `beside`: those beside the splits are
    classes too, as cat and dog beside test/cat and test/dog."""

    folder: Path
    split_depth: int | None
    splits: Mapping[str, str]
    class_depth: int | None
    beside: bool = False

    def part_of(self, parent: Path) -> str:
        """The part that the images of a folder belong to; empty for none."""
        if self.split_depth is None:
            return ""
        names = parent.relative_to(self.folder).parts
        if len(names) <= self.split_depth:
            return ""
        name = names[self.split_depth]
        return self.splits.get(name, name)

    def class_of(self, parent: Path) -> str:
        """The name of the class folder that holds a folder's images; empty for none."""
        names, depth = parent.relative_to(self.folder).parts, self.class_depth
        if self.beside and self.split_depth is not None and len(names) > self.split_depth:
            above = names[self.split_depth] not in self.splits
            depth = self.split_depth if above else self.split_depth + 1
        return "" if depth is None or len(names) <= depth else names[depth]


def find_layout(folder: Path, images: Sequence[Path]) -> Layout:
    """The layout of the folders that hold `images`: splits above classes (train/cat) or below them
    (cat/train), or classes alone.

    One folder called as a split beside others may be a class, such as `train` beside `bicycle`: it
    is a split only where it has folders that the others have too.
    """
    counts = Counter(path.parent.relative_to(folder).parts for path in images)
    for depth in range(max(map(len, counts))):
        names = {parts[depth] for parts in counts if len(parts) > depth}
        if splits := _splits_among(names, counts, depth):
            inside = _inside(counts, depth, splits)
            return Layout(
                folder=folder,
                split_depth=depth,
                splits=splits,
                class_depth=_class_depth(counts, depth, splits),
                beside="train" not in splits.values() and bool(inside & (names - set(splits))),
            )
    return Layout(folder=folder, split_depth=None, splits={}, class_depth=0)


def _splits_among(
    names: set[str], counts: Mapping[tuple[str, ...], int], depth: int
) -> dict[str, str]:
    loose = {name: split for name in names if (split := split_in_name(name))}
    strict = {name: split for name in names if (split := split_of_name(name))}
    clear = len(loose) == len(names) and (len(names) == 1 or len(set(loose.values())) > 1)
    found = loose if clear else strict
    if len(set(found.values())) > 1 or len(found) == len(names):
        return found
    inside = _inside(counts, depth, found)
    others = {
        name
        for parts in counts
        if len(parts) > depth and parts[depth] not in found
        for name in parts[depth : depth + 2]
    }
    return found if inside & others else {}


def _inside(
    counts: Mapping[tuple[str, ...], int], depth: int, splits: Mapping[str, str]
) -> set[str]:
    """Names of the folders in those that are called as in `splits`."""
    return {
        parts[depth + 1] for parts in counts if len(parts) > depth + 1 and parts[depth] in splits
    }


def _class_depth(
    counts: Mapping[tuple[str, ...], int], depth: int, splits: Mapping[str, str]
) -> int | None:
    """Below the splits where most of their images have a folder there; else above."""
    mine = {
        parts: n for parts, n in counts.items() if len(parts) > depth and parts[depth] in splits
    }
    below = sum(number for parts, number in mine.items() if len(parts) > depth + 1)
    if 2 * below > sum(mine.values()):
        return depth + 1
    above = depth and len({parts[depth - 1] for parts in mine}) > 1
    return depth - 1 if above else None
