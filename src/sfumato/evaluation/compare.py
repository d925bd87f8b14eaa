"""`compare`: paired tests of two sets of images of the same seeds and prompts."""

from collections.abc import Callable, Mapping, Sequence
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
from sfumato.evaluation.card import FILE_NAME, Card, Row, read_card
from sfumato.evaluation.evaluate import evaluate, values_file
from sfumato.evaluation.metrics.paired import mcnemar, paired_bootstrap, share_difference
from sfumato.evaluation.metrics.registry import all_metrics, metric_of, title_of
from sfumato.evaluation.task import Evaluated
from sfumato.generation.bundle_names import (
    check_comparable,
    is_model,
    model_folder,
    path_and_scale,
)
from sfumato.generation.can import CAN_TITLE, CanModel
from sfumato.generation.loading import load
from sfumato.generation.model import Model


class Difference(Section):
    """One metric of both, and first - second with its 95 % interval: by a paired bootstrap, of
    shares by McNemar's exact test and Newcombe's interval."""

    key: str
    """The metric's name, with ".EXTRACTOR" for those of features."""
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float
    only_first: int | None = None
    """Of a share: images that only the first got right."""
    only_second: int | None = None
    real: float | None = None
    """The same of real images."""

    @property
    def title(self) -> str:
        return title_of(self.key)

    @property
    def better(self) -> str:
        """first, second, or "" where the difference is not significant or has no direction."""
        which = metric_of(self.key).better
        significant = (
            self.p_value < 0.05 if self.only_first is not None else not self.low <= 0 <= self.high
        )
        if not which or not significant:
            return ""
        return "first" if (self.difference > 0) == (which == "higher") else "second"


class Comparison(Section):
    """Two sets of images, image by image of the same seed and prompt."""

    first: dict[str, Any]
    """Name, title and settings."""
    second: dict[str, Any]
    count: int
    differences: list[Difference]
    reference: str
    sfumato: str = __version__
    date: str = Field(default_factory=now)
    folder: Path | None = Field(default=None, exclude=True)
    """Where the page lies."""

    @property
    def names(self) -> tuple[str, str]:
        """The shortest names that tell the two apart."""
        a, b = self.first, self.second
        if a["name"] == b["name"]:
            return a["row"], b["row"]
        if a["row"] == b["row"]:
            return a["name"], b["name"]
        return f"{a['name']}, {a['row']}", f"{b['name']}, {b['row']}"

    def difference(self, key: str) -> Difference:
        """The difference of one metric; `KeyError` where it is not there."""
        return {one.key: one for one in self.differences}[key]

    def __str__(self) -> str:
        from sfumato.evaluation.comparison_page import format_comparison

        return format_comparison(self)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One row of an evaluation, with what was kept of its images."""

    name: str
    card: Card
    row: Row
    values: Mapping[str, Tensor]

    @classmethod
    def of(cls, card: Card, title: str, *, name: str) -> "Side":
        """The row `title` of a card; `DamagedDataError` without its values."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        assert card.folder is not None
        row = next((row for row in card.rows if row.title == title), None)
        if row is None:
            raise InputError(
                f"{card.folder} has no row '{title}'.",
                hint=f"It has: {', '.join(row.title for row in card.rows)}.",
            )
        file = values_file(card.folder, title)
        try:
            values = load_file(file)
        except (OSError, SafetensorError) as error:
            raise DamagedDataError(
                f"{file} cannot be read ({error}).", hint="Run `sfumato evaluate` again."
            ) from error
        return cls(name=name, card=card, row=row, values=values)

    def images(self, numbers: Sequence[int]) -> list[Tensor]:
        """Sampled images by number, uint8 (C, H, W); empty where they are not kept."""
        from safetensors.torch import load_file

        if not self.row.images or self.card.folder is None:
            return []
        files = {
            range(*(int(part) for part in path.stem.split("-")[:2])): path
            for path in (self.card.folder / self.row.images).glob("*.safetensors")
        }
        loaded = {
            part: load_file(file)["images"]
            for part, file in files.items()
            if any(number in part for number in numbers)
        }
        return [
            images[number - part.start]
            for number in numbers
            for part, images in loaded.items()
            if number in part
        ]


def compare(
    first: Evaluated | Card,
    second: Evaluated | Card,
    *,
    guidance: float | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    log: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Comparison:
    """Evaluate both with the same settings, and test everything that both measured pair by pair.

    Args:
        first, second: as for `evaluate`; also a card, or the folder of one. `PATH@3` is a path at
            the guidance scale 3.
        guidance: the scale of paths and cards that name none; else a model's own.
        out: a folder for the page with both sets side by side.
        options: as for `evaluate`, such as `count=200`.

    `ConfigError` where the two are unlike, or one and the same.
    """
    for one in (first, second):  # a wrong name is reported before anything is sampled
        if isinstance(one, str | Path):
            check_comparable(str(one))
    options |= {"device": device, "log": log}
    sides = [_side(one, guidance, options) for one in (first, second)]
    found = compare_sides(*sides)
    if out is None:
        return found
    from sfumato.evaluation.comparison_page import write_comparison

    write_comparison(Path(out), found, *sides)
    return found.model_copy(update={"folder": Path(out)})


def _side(subject: Evaluated | Card, scale: float | None, options: dict[str, Any]) -> Side:
    """Evaluated, or read from its card."""
    name, own = "", None
    if isinstance(subject, str | Path):
        subject, own = path_and_scale(str(subject))
        scale = own if own is not None else scale
        name = short_name(Path(subject))
        if (Path(subject) / FILE_NAME).is_file():
            subject = read_card(Path(subject))
    if isinstance(subject, Card):
        return Side.of(subject, _row_title(subject, scale), name=name or subject.subject.name)
    if isinstance(subject, Model) or (isinstance(subject, str) and is_model(subject)):
        model = load(subject, device="cpu") if isinstance(subject, str) else subject
        if isinstance(
            model, CanModel
        ):  # the scale of both is not for it, one of its own is refused
            scale = own
        elif scale is None:
            scale = model.sampling.guidance_scale
        if scale is not None:
            options = {**options, "guidance_scales": (scale,)}
        options["log"](f"{name or 'model'}, {model.title if scale is None else f'w = {scale:g}'}:")
    card = evaluate(subject, **options)
    return Side.of(card, card.rows[0].title, name=name or card.subject.name)


def _row_title(card: Card, scale: float | None) -> str:
    titles = [row.title for row in card.rows]
    if scale is not None and titles != [CAN_TITLE]:
        return f"w = {scale:g}"
    if len(titles) > 1:
        raise InputError(
            f"{card.folder} has several rows: {', '.join(titles)}.",
            hint=f"Name one: {card.folder}@3 for w = 3.",
        )
    return titles[0]


def short_name(path: Path) -> str:
    """A run's name, for an evaluation inside it as well."""
    if is_model(path):
        return model_folder(path).resolve().name
    resolved = path.resolve()
    inside = (resolved / FILE_NAME).is_file() and is_model(resolved.parent)
    return f"{resolved.parent.name}/{resolved.name}" if inside else resolved.name


# Comparing ----------------------------------------------------------------------------------------


def compare_sides(first: Side, second: Side) -> Comparison:
    """Paired tests of every metric that both have image by image."""
    same = first.card.folder is not None and second.card.folder is not None
    if same and (first.card.folder.resolve(), first.row.title) == (  # pyright: ignore
        second.card.folder.resolve(),  # pyright: ignore
        second.row.title,
    ):
        raise ConfigError(
            f"Both sides are the same: {first.name}, {first.row.title}.",
            hint="Give two models, or two rows of one: runs/demo@1 runs/demo@3.",
        )
    check_alike(first, second)
    order = {name: place for place, name in enumerate(all_metrics())}
    keys = [key for key in first.values if key in second.values and key != "labels"]
    keys.sort(key=lambda key: (order.get(key.partition(".")[0], len(order)), key))
    return Comparison(
        first={"name": first.name, "row": first.row.title, **first.row.settings},
        second={"name": second.name, "row": second.row.title, **second.row.settings},
        count=first.row.count,
        differences=[
            difference(key, first.values[key], second.values[key], first.card.real_value(key))
            for key in keys
            if "compare" in metric_of(key).shown
            and key not in first.card.blind
            and key not in second.card.blind
        ],
        reference=first.card.reference.description,
    )


def difference(key: str, first: Tensor, second: Tensor, real: float | None) -> Difference:
    """Of one value an image: (N,) each."""
    if first.dtype == torch.bool:
        counts, found = mcnemar(first, second), share_difference(first, second)
        more: dict[str, Any] = {
            "p_value": counts.p_value,
            "only_first": counts.only_first,
            "only_second": counts.only_second,
        }
    else:
        found = paired_bootstrap(first, second)
        more = {"p_value": found.p_value}
    low, high = found.interval
    return Difference(
        key=key,
        first=float(first.double().mean()),
        second=float(second.double().mean()),
        difference=found.value,
        low=low,
        high=high,
        real=real,
        **more,
    )


def check_alike(first: Side, second: Side) -> None:
    """`ConfigError`, which names every difference, unless both may stand in one column: the same
    real images, classifier, extractors, number of images, seeds and captions.
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
            unlike.append("real images: read with different settings")
    same("number of real images", a.reference.count, b.reference.count)
    same("classifier", *(card.classifier and card.classifier.identity for card in (a, b)))
    same("seeds", first.row.settings.get("seeds"), second.row.settings.get("seeds"))
    if a.subject.captions and b.subject.captions:  # a CAN reads the class alone
        same("captions", a.subject.captions, b.subject.captions)
    labels = [side.values.get("labels") for side in (first, second)]
    if labels[0] is not None and labels[1] is not None and not torch.equal(labels[0], labels[1]):
        unlike.append("classes of the prompts: in another order")
    names = {info.key: info.name for info in b.measured}
    for info in a.measured:
        if info.key in names:
            same(f"extractor {info.key}", info.name, names[info.key])
    if unlike:
        raise ConfigError(
            f"{first.name} and {second.name} cannot be compared:\n  " + "\n  ".join(unlike),
            hint="Evaluate both with the same data, classifier, extractors, --count, --seed and "
            "captions; `sfumato compare` does so when it is given two models.",
        )
