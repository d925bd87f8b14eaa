"""Forms of guidance side by side: what each pays for adherence, scale by scale.

All sample the same seeds and captions, so a form is compared with plain guidance pair by pair.
The claims of the paper's section 3.3.7 are decided on the plain form (`scale_claims.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import field_validator
from torch import Tensor

from sfumato.base.files import sibling
from sfumato.base.lock import locked
from sfumato.config.sections import DataConfig
from sfumato.diffusion.guidance import FREE_FORMS, parse_guidance
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.metrics.intervals import Estimate, percentile_interval, resampled
from sfumato.evaluation.metrics.paired import paired_bootstrap, share_difference
from sfumato.evaluation.metrics.registry import title_of
from sfumato.evaluation.reference import Scores
from sfumato.evaluation.sampled_images import complete
from sfumato.generation.model import Model
from sfumato.report.grids import labelled_grid
from sfumato.report.page import markdown_table
from sfumato.studies.charts import (
    Line,
    claims_table,
    format_estimate,
    real_rows,
    scale_panels,
    study_text,
)
from sfumato.studies.scale_claims import PLAIN, scale_claims
from sfumato.studies.study import (
    ACCURACY,
    DIVERSITY,
    FRECHET,
    SetMetrics,
    Study,
    StudyCard,
    StudyConfig,
)
from sfumato.studies.tuning import WORSE_BY
from sfumato.studies.verdicts import RULE, Claim, Evidence

ALIKE = (0.0, 1.0)
"""Scales at which every form samples what plain guidance samples, or nearly so."""
PANELS = (ACCURACY, FRECHET, DIVERSITY, "saturated")
COLUMNS = (*PANELS, "brightness")
_COLOURS = ("#222222", "#1f618d", "#b03a2e", "#2e7d32", "#b9770e", "#7d3c98", "#5d6d7e")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class FormsConfig(StudyConfig):
    """What is sampled."""

    forms: tuple[str, ...] = tuple(name for name in FREE_FORMS if name != "autoguidance")
    """Forms of guidance; plain guidance is always among them."""
    guidance_scales: tuple[float, ...] = (0, 1, 2, 3, 5, 10)
    count: int = 1_000
    """Images of each form and scale, classes in turn."""

    @field_validator("forms")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys([PLAIN, *(str(parse_guidance(form)) for form in value)]))

    @field_validator("guidance_scales")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not set(value) - set(ALIKE):
            raise ValueError("forms differ at scales other than 0 and 1: give one of those too")
        return tuple(sorted(set(value)))


class FormRow(SetMetrics):
    """One form at one guidance scale."""

    form: str
    """In the short form, with every parameter."""
    guidance_scale: float
    burnt: Estimate | None
    """Excess saturation over real images as a multiple of plain guidance's at this scale; None
    where that has none."""
    accuracy_change: Estimate | None
    """Class accuracy less plain guidance's at this scale, of the same seeds."""

    @property
    def label(self) -> str:
        """The form with the parameters that differ from their defaults."""
        return parse_guidance(self.form).label


class FormsCard(StudyCard):
    """Every metric, the choice, the claims, and everything that they depend on."""

    NAME: ClassVar[str] = "guidance"
    FORMAT: ClassVar[int] = 4

    rows: list[FormRow]
    choice: int
    """The row to sample with (`choice_among`)."""
    alike: int
    """How many other rows are as accurate and have a distance that does not differ from the
    smallest: the paired bootstrap's interval of the difference holds 0."""
    claims: list[Claim]
    rule: str = RULE
    config: FormsConfig


def compare_forms(
    model: Model,
    config: FormsConfig,
    *,
    base: Path,
    data: DataConfig | None = None,
    log: Callable[[str], None] = lambda text: None,
    on_images: OnImages = lambda what, done, total: None,
) -> FormsCard:
    """Sample every form at every scale, score every set once, write card and pictures.

    The card lies in `base`, or in `base`-2, ... where that holds another; images lie in
    `base`-images. Killed and started again with the same arguments it goes on. `InputError` for a
    model without data or classes, or too few images.
    """
    for scale in config.guidance_scales:  # before a classifier is trained
        model.with_(guidance=scale)
    study = Study.of(model, config, data=data, log=log)
    sets = {
        (form, scale): study.sampled(model, sibling(base, "images"), guidance=scale, form=form)
        for form in config.forms
        for scale in config.guidance_scales
        if form == PLAIN or scale not in ALIKE
    }
    request = {"images": [one.key for one in sets.values()], **study.request()}
    folder, card = FormsCard.at(base, request, log)
    if card is not None:
        return card
    with locked(folder):
        complete(list(sets.values()), on_images, what="network evaluations")
        card = _card(study, model, sets, folder)
        examples = {key: images.images(range(2)) for key, images in sets.items()}
        card.write(markdown(card), {"guidance": chart(card), "examples": _examples(card, examples)})
    return card


def _card(
    study: Study, model: Model, sets: Mapping[tuple[str, float], ImageSet], folder: Path
) -> FormsCard:
    scores = {key: study.score(images) for key, images in sets.items()}
    rows = [_row(sets[key], scores[key], scores[PLAIN, key[1]], study.real) for key in sets]
    distances = [one.values[FRECHET] for one in scores.values()]
    choice, alike = choice_among(rows, distances, study.real.metrics)
    assert study.prompts.labels is not None  # the data have classes
    evidence = Evidence(scores=scores, labels=study.prompts.labels, real=study.real.metrics)
    return FormsCard(
        rows=rows,
        choice=choice,
        alike=len(alike) - 1,
        claims=scale_claims(evidence),
        folder=folder,
        **study.card_fields(model, **study.baselines()),
    )


def _row(images: ImageSet, scores: Scores, plain: Scores, real: Scores) -> FormRow:
    burnt = change = None
    if scores is not plain:
        saturated = float(real.values["saturated"].mean())
        burnt = excess_ratio(scores.values["saturated"], plain.values["saturated"], real=saturated)
        change = share_difference(scores.values[ACCURACY], plain.values[ACCURACY])
    return FormRow.of(
        images,
        scores.metrics,
        form=images.settings["guidance"],
        guidance_scale=images.settings["guidance_scale"],
        burnt=burnt,
        accuracy_change=change,
    )


def choice_among(
    rows: Sequence[FormRow], distances: Sequence[Tensor], real: Mapping[str, Estimate]
) -> tuple[int, list[int]]:
    """The place of the row to sample with, and those it was chosen of by its saturated values.

    Of the rows whose class accuracy is at most `WORSE_BY` below the best, or below that of `real`
    images where this is lower (more than they have is worth nothing), the smallest Frechet
    distance; of those that do not differ from it, the share of saturated values nearest to that of
    real images. `distances`: pseudo-values (N,) of each row's distance.
    """
    accuracy = [row.metrics[ACCURACY].value for row in rows]
    enough = min(max(accuracy), real[ACCURACY].value) - WORSE_BY
    accurate = [place for place, value in enumerate(accuracy) if value >= enough]
    nearest = min(accurate, key=lambda place: rows[place].metrics[FRECHET].value)
    alike = [place for place in accurate if _alike(distances[place], distances[nearest])]
    saturated = real["saturated"].value

    def excess(place: int) -> float:
        return abs(rows[place].metrics["saturated"].value - saturated)

    return min(alike, key=excess), alike


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two distances, by their pseudo-values (N,), do not differ."""
    found = paired_bootstrap(first, second)
    low, high = found.interval
    return low <= 0 <= high


def excess_ratio(
    ours: Tensor, plain: Tensor, *, real: float, resamples: int = 10_000, seed: int = 0
) -> Estimate | None:
    """(mean(ours) - real) / (mean(plain) - real) with its percentile bootstrap over pairs.

    `ours`, `plain` (N,): shares of saturated values of the same seeds. None where plain guidance
    has no excess beyond its interval.
    """
    below = plain.double().mean() - real
    half = 1.96 * float(plain.double().std()) / len(plain) ** 0.5
    if float(below) <= half:
        return None
    ratios = torch.cat(
        [
            (ours[rows].double().mean(dim=1) - real) / (plain[rows].double().mean(dim=1) - real)
            for rows in resampled(len(ours), resamples=resamples, seed=seed)
        ]
    )
    low, high = percentile_interval(ratios, confidence=0.95)
    return Estimate(value=float((ours.double().mean() - real) / below), low=low, high=high)


# Writing ------------------------------------------------------------------------------------------


def chart(card: FormsCard) -> bytes:
    """PNG: each of `PANELS` over w, a line for each form."""
    forms = dict.fromkeys(row.form for row in card.rows)
    lines = [
        Line(
            label="plain guidance" if form == PLAIN else parse_guidance(form).label,
            points={row.guidance_scale: row.metrics for row in card.rows if row.form == form},
            colour=_COLOURS[place % len(_COLOURS)],
            marker=_MARKERS[place % len(_MARKERS)],
        )
        for place, form in enumerate(forms)
    ]
    return scale_panels(lines, card, PANELS, count=card.config.count)


def _examples(card: FormsCard, examples: Mapping[tuple[str, float], Tensor]) -> bytes:
    """The seeds of each form as rows, scales as columns; plain guidance's image stands where a
    form samples the same."""
    scales = list(card.config.guidance_scales)
    rows, names = [], []
    for form in dict.fromkeys(form for form, _ in examples):
        for example in range(len(examples[PLAIN, scales[0]])):
            rows.append([examples.get((form, w), examples[PLAIN, w])[example] for w in scales])
            names.append(parse_guidance(form).label if example == 0 else "")
    return labelled_grid(
        rows,
        row_labels=names,
        column_labels=[f"w = {scale:g}" for scale in scales],
        settings=[{"first_seed": card.config.first_seed}],
    )


def markdown(card: FormsCard) -> str:
    """Every row with its intervals, the choice, the claims, and how it came about."""
    header = ["form", "w", "NFE", *map(title_of, COLUMNS)]
    header += ["excess saturation / plain's", "class accuracy less plain's"]
    rows = [
        [
            row.label + (" **(chosen)**" if place == card.choice else ""),
            f"{row.guidance_scale:g}",
            str(row.nfe),
            *(format_estimate(key, row.metrics.get(key)) for key in COLUMNS),
            _format_burnt(row.burnt),
            format_estimate(ACCURACY, row.accuracy_change),
        ]
        for place, row in enumerate(card.rows)
    ]
    table = markdown_table(header, rows + real_rows(card, COLUMNS, before=2, after=2))
    sampled = (
        f"{card.config.count:,} images of each form and scale, seeds from {card.config.first_seed}"
    )
    claims = [claims_table(card.claims), card.rule] if card.claims else []
    return study_text(card, sampled, table, *claims)


def _format_burnt(burnt: Estimate | None) -> str:
    return "" if burnt is None else f"{burnt.value:.2f} ({burnt.low:.2f}, {burnt.high:.2f})"
