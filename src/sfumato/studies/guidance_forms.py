"""Forms of guidance side by side: what each pays for adherence, scale by scale.

All sample the same seeds and captions, so a form is compared with plain guidance pair by pair.
The claims of the paper's section 3.3.7 are decided on the plain form (`scale_claims.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import field_validator
from torch import Tensor

from sfumato.base.files import folder_for, read_json, sibling, write_json
from sfumato.base.section import Section, validate
from sfumato.config.sections import DataConfig
from sfumato.diffusion.guidance import GUIDANCE_FORMS, parse_guidance
from sfumato.evaluation.image_set import ImageSet, OnImages
from sfumato.evaluation.metrics.intervals import Estimate, percentile_interval, resampled
from sfumato.evaluation.metrics.paired import paired_bootstrap, share_difference
from sfumato.evaluation.reference import Scores
from sfumato.evaluation.sampled_images import complete
from sfumato.generation.model import Model
from sfumato.studies.scale_claims import ScaleEvidence
from sfumato.studies.study import ACCURACY, FRECHET, Study, StudyCard, StudyConfig
from sfumato.studies.tuning import WORSE_BY
from sfumato.studies.verdicts import RULE, Claim

FILE_NAME = "guidance.json"
FORMAT = 3
PLAIN = "cfg"
ALIKE = (0.0, 1.0)
"""Scales at which every form samples what plain guidance samples, or nearly so."""


class FormsConfig(StudyConfig):
    """What is sampled."""

    forms: tuple[str, ...] = tuple(name for name in GUIDANCE_FORMS if name != "autoguidance")
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


class FormRow(Section):
    """One form at one guidance scale."""

    form: str
    """In the short form, with every parameter."""
    guidance_scale: float
    nfe: int
    """Network evaluations an image."""
    seconds: float
    metrics: dict[str, Estimate]
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

    format: int = FORMAT
    rows: list[FormRow]
    choice: int
    """The row to sample with (`choice_among`)."""
    alike: int
    """How many other rows are as accurate and have a distance that is not told from the smallest:
    by the paired bootstrap their difference's interval holds 0."""
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
    request = {"format": FORMAT, "images": [one.key for one in sets.values()], **study.request()}
    folder = folder_for(base, request, say=log)
    if (folder / FILE_NAME).exists():
        return read_forms(folder).model_copy(update={"from_cache": True})
    complete(list(sets.values()), on_images, what="network evaluations")
    scores = {key: study.score(images) for key, images in sets.items()}
    rows = [_row(sets[key], scores[key], scores[PLAIN, key[1]], study.real) for key in sets]
    distances = [one.values[FRECHET] for one in scores.values()]
    choice, alike = choice_among(rows, distances, study.real.metrics)
    card = FormsCard(
        rows=rows,
        choice=choice,
        alike=len(alike) - 1,
        claims=_evidence(scores, study).claims(),
        config=config,
        folder=folder,
        **study.card_fields(model),
    )
    from sfumato.studies.guidance_forms_page import write_forms

    write_forms(card, {key: images.images(range(2)) for key, images in sets.items()})
    write_json(folder / FILE_NAME, card.model_dump(mode="json"))
    return card


def read_forms(folder: Path) -> FormsCard:
    """The card in `folder`; `ConfigError` for one of another version."""
    values = {**read_json(folder / FILE_NAME), "folder": folder}
    return validate(FormsCard, values, source=str(folder / FILE_NAME))


def _row(images: ImageSet, scores: Scores, plain: Scores, real: Scores) -> FormRow:
    settings = images.settings
    burnt = change = None
    if scores is not plain:
        saturated = float(real.values["saturated"].mean())
        burnt = excess_ratio(scores.values["saturated"], plain.values["saturated"], real=saturated)
        change = share_difference(scores.values[ACCURACY], plain.values[ACCURACY])
    assert images.nfe is not None
    return FormRow(
        form=settings["guidance"],
        guidance_scale=settings["guidance_scale"],
        nfe=images.nfe,
        seconds=images.seconds or 0,
        metrics=scores.metrics,
        burnt=burnt,
        accuracy_change=change,
    )


def choice_among(
    rows: Sequence[FormRow], distances: Sequence[Tensor], real: Mapping[str, Estimate]
) -> tuple[int, list[int]]:
    """The place of the row to sample with, and those it was chosen of by its saturated values.

    Of the rows whose class accuracy is at most `WORSE_BY` below the best, or below that of `real`
    images where this is lower (more than they have is worth nothing), the smallest Frechet
    distance; of those that are not told from it, the share of saturated values nearest to that of
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
    """Whether two distances, by their pseudo-values (N,), are not told apart."""
    found = paired_bootstrap(first, second)
    low, high = found.interval
    return low <= 0 <= high


def excess_ratio(
    ours: Tensor, plain: Tensor, *, real: float, resamples: int = 10_000, seed: int = 0
) -> Estimate | None:
    """(mean(ours) - real) / (mean(plain) - real) with its percentile bootstrap over pairs.

    `ours`, `plain` (N,): shares of saturated values of the same seeds. None where plain guidance
    has no excess that its interval tells from none.
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


def _evidence(scores: Mapping[tuple[str, float], Scores], study: Study) -> ScaleEvidence:
    """Of plain guidance, scale by scale."""
    assert study.prompts.labels is not None  # the data have classes
    return ScaleEvidence(
        scores={scale: one for (form, scale), one in scores.items() if form == PLAIN},
        labels=study.prompts.labels,
        real=study.real.metrics,
    )
