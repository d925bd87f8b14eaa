"""Is one set of images better than another? Two evaluations of the same seeds and captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import now
from sfumato.base.errors import ConfigError, DamagedDataError, InputError
from sfumato.base.section import Section
from sfumato.evaluation.card import MetricCard, Row, read_card
from sfumato.evaluation.measure import image_values_file
from sfumato.evaluation.metrics.paired import mcnemar, paired_bootstrap
from sfumato.evaluation.taken import images_folder

BETTER: dict[str, str] = {
    "clip_score": "higher",
    "frechet": "lower",
    "nearest": "lower",
    "diversity": "",
    "saturated": "",
}
"""Which way a figure is better; "" where it is read beside the same figure of real images."""
MEANINGS: dict[str, str] = {
    "clip_score": "CLIP score",
    "frechet": "Frechet",
    "nearest": "nearest real",
    "diversity": "diversity",
    "saturated": "saturated",
}


class Agreements(Section):
    """McNemar's test (exact) of who shows what was asked for."""

    first: float
    second: float
    only_first: int
    """Images that only the first got right."""
    only_second: int
    p_value: float


class Difference(Section):
    """One figure of both, and first - second by the paired bootstrap, with its 95 % interval."""

    name: str
    extractor: str = ""
    """The key of the extractor whose features it is taken on; "" for pixels."""
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    real: float | None = None
    """The same figure of real images, where it is read beside that."""

    @property
    def better(self) -> str:
        """first, second, or "" where the interval holds 0 or neither way is better."""
        if not BETTER[self.name] or self.low <= 0 <= self.high:
            return ""
        return "first" if (self.difference > 0) == (BETTER[self.name] == "higher") else "second"


class Comparison(Section):
    """Two rows of images, image by image of the same seed and caption."""

    first: dict[str, Any]
    """Folder name, title and settings."""
    second: dict[str, Any]
    count: int
    agreement: Agreements | None
    differences: list[Difference]
    reference: str
    sfumato: str = __version__
    date: str = Field(default_factory=now)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One row of an evaluation, with what was kept of its images."""

    name: str
    card: MetricCard
    row: Row
    values: Mapping[str, Tensor]
    folder: Path

    @classmethod
    def open(cls, folder: Path, title: str, *, name: str) -> "Side":
        """The row `title` of the evaluation in `folder`; `DamagedDataError` without its values."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        card = read_card(folder)
        row = next((row for row in card.rows if row.title == title), None)
        if row is None:
            raise InputError(
                f"{folder} has no row '{title}'.",
                hint=f"It has: {', '.join(row.title for row in card.rows)}.",
            )
        file = image_values_file(folder, title)
        try:
            values = load_file(file)
        except (OSError, SafetensorError) as error:
            raise DamagedDataError(
                f"{file} cannot be read ({error}).", hint="Run `sfumato evaluate` again."
            ) from error
        return cls(name=name, card=card, row=row, values=values, folder=folder)

    @property
    def is_judged(self) -> bool:
        return "seen" in self.values

    @property
    def right(self) -> Tensor:
        """(N,) bool: whether the judge sees what was asked for."""
        return self.values["seen"] == self.values["asked"]

    def images(self, numbers: Sequence[int]) -> list[Tensor]:
        """Images by number, uint8 (C, H, W)."""
        from safetensors.torch import load_file

        files = {
            range(*(int(part) for part in path.stem.split("-"))): path
            for path in images_folder(self.folder, self.row.title).glob("*.safetensors")
        }
        found = []
        for number in numbers:
            part = next(part for part in files if number in part)
            found.append(load_file(files[part])["images"][number - part.start])
        return found


def compare(first: Side, second: Side) -> Comparison:
    """Paired tests of everything that both measured; `ConfigError` where they are unlike, or one
    and the same."""
    if (first.folder.resolve(), first.row.title) == (second.folder.resolve(), second.row.title):
        raise ConfigError(
            f"Both are {first.name}, {first.row.title}.",
            hint="Give two models, or two rows of one: runs/demo@1 runs/demo@3.",
        )
    check_alike(first, second)
    keys = [key for key in first.values if key in second.values and "seen" not in key]
    differences = []
    for key in keys:
        name, _, extractor = key.partition(".")
        if name not in BETTER:
            continue
        found = paired_bootstrap(first.values[key], second.values[key])
        differences.append(
            Difference(
                name=name,
                extractor=extractor,
                first=float(first.values[key].double().mean()),
                second=float(second.values[key].double().mean()),
                difference=found.value,
                low=found.low,
                high=found.high,
                p_value=found.p_value,
                real=_real(first.card, name, extractor),
            )
        )
    differences.sort(key=lambda one: (list(BETTER).index(one.name), one.extractor))
    return Comparison(
        first=_about(first),
        second=_about(second),
        count=first.row.count,
        agreement=_agreements(first, second),
        differences=differences,
        reference=first.card.reference.description,
    )


def check_alike(first: Side, second: Side) -> None:
    """`ConfigError`, which names every difference, unless both may stand in one column: the same
    real images, judge, extractors, number of images, seeds and captions.
    """
    unlike = []

    def same(what: str, one: object, other: object) -> None:
        if one != other:
            unlike.append(f"{what}: {one} and {other}")

    a, b = first.card, second.card
    same("number of images", first.row.count, second.row.count)
    if a.reference.digest != b.reference.digest:
        same("real images", a.reference.description, b.reference.description)
        if a.reference.description == b.reference.description:
            unlike.append("real images: read with other settings")
    same("number of real images", a.reference.count, b.reference.count)
    same("judge", a.judge and a.judge.identity, b.judge and b.judge.identity)
    same("seeds", first.row.settings.get("seeds"), second.row.settings.get("seeds"))
    same("captions", a.subject.captions, b.subject.captions)
    asked = [side.values.get("asked") for side in (first, second)]
    if asked[0] is not None and asked[1] is not None and not torch.equal(asked[0], asked[1]):
        unlike.append("classes asked for: in another order")
    names = {info.key: info.name for info in b.measured}
    for info in a.measured:
        if info.key in names:
            same(f"extractor {info.key}", info.name, names[info.key])
    if unlike:
        raise ConfigError(
            f"{first.name} and {second.name} cannot be compared:\n  " + "\n  ".join(unlike),
            hint="Evaluate both with the same data, judge, extractors, --count, --seed and "
            "captions; `sfumato compare` does so when it is given two models.",
        )


def disagreements(first: Side, second: Side) -> tuple[list[int], list[int]]:
    """Numbers of the images that only the first got right, and that only the second did."""
    if not (first.is_judged and second.is_judged):
        return [], []
    right, also = first.right, second.right
    only_first, only_second = right & ~also, also & ~right
    return only_first.nonzero().flatten().tolist(), only_second.nonzero().flatten().tolist()


def _agreements(first: Side, second: Side) -> Agreements | None:
    if not (first.is_judged and second.is_judged):
        return None
    found = mcnemar(first.right, second.right)
    return Agreements(
        first=float(first.right.double().mean()),
        second=float(second.right.double().mean()),
        only_first=found.only_first,
        only_second=found.only_second,
        p_value=found.p_value,
    )


def _about(side: Side) -> dict[str, Any]:
    return {"name": side.name, "row": side.row.title, **side.row.settings}


def _real(card: MetricCard, name: str, extractor: str) -> float | None:
    """The figure of real images beside which one is read."""
    floor = card.floors.get(extractor)
    if name == "saturated":
        return card.real.saturated
    if name == "clip_score" and extractor in card.real.clip_score:
        return card.real.clip_score[extractor].value
    if name == "diversity" and floor is not None and floor.diversity is not None:
        return floor.diversity.value
    if name == "frechet" and floor is not None and floor.frechet is not None:
        return floor.frechet.mean
    return None
