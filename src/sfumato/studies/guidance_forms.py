"""Forms of guidance side by side: what each pays for adherence, scale by scale.

All draw the same seeds and captions, so that a form is held against plain guidance pair by pair.
The claims of the paper's section 3.3.7 are decided on the plain form (`scale_claims.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from sfumato.base.files import folder_for, read_json, sibling
from sfumato.base.section import Section, validate
from sfumato.diffusion.guidance import GUIDANCE_FORMS, GuidanceConfig
from sfumato.evaluation.arms import CallsDone, Draws, Measured, OnCalls
from sfumato.evaluation.card import Figure
from sfumato.evaluation.metrics.intervals import percentile_interval, resampled
from sfumato.evaluation.metrics.paired import paired_bootstrap, share_difference
from sfumato.evaluation.reference import Found, Ground, GroundCard, Held
from sfumato.generation.model import ImageGenerator
from sfumato.generation.pipeline import check_sampling_arguments
from sfumato.studies.scale_claims import ScaleEvidence
from sfumato.studies.tuning import WORSE_BY
from sfumato.studies.verdicts import RULE, Claim

FILE_NAME = "guidance.json"
FORMAT = 2
PLAIN = "cfg"
ALIKE = (0.0, 1.0)
"""Scales at which every form draws what plain guidance draws, or nearly so."""


class FormsConfig(Section):
    """What is drawn."""

    forms: tuple[GuidanceConfig, ...] = tuple(
        GuidanceConfig(form=name) for name in GUIDANCE_FORMS if name != "autoguidance"
    )
    """Forms of guidance; plain guidance is always drawn."""
    guidance_scales: tuple[float, ...] = (0, 1, 2, 3, 5, 10)
    count: int = 1_000
    """Images of each form and scale, classes in turn."""
    first_seed: int = Field(default=0, ge=0)
    judge: str = "auto"
    """Who reads the classes, as in `evaluation.classifier`."""
    floor_pairs: int = Field(default=10, ge=2)
    """Real sets that are measured like a drawn one, for the floor."""

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
    label: str
    guidance_scale: float
    calls: int
    """Network evaluations an image."""
    seconds: float
    figures: dict[str, Figure]
    """By the keys of `arms.MEASURES`."""
    burnt: Figure | None
    """Excess saturation over real images as a multiple of plain guidance's at this scale; None
    where that has none."""
    agreement_change: Figure | None
    """Agreement less plain guidance's at this scale, of the same seeds."""


class FormsCard(GroundCard):
    """Every figure, the choice, the claims, and everything that they depend on."""

    format: int = FORMAT
    rows: list[FormRow]
    choice: int
    """The row to draw with (`choice_among`)."""
    alike: int
    """How many other rows agree as well and have a distance that is not told from the smallest: by
    the paired bootstrap their difference's interval holds 0."""
    claims: list[Claim]
    rule: str = RULE
    config: FormsConfig


class FormsFound(Found[FormsCard]):
    """`images`: all of each row."""

    file_name: ClassVar = FILE_NAME


def compare_forms(
    generator: ImageGenerator,
    config: FormsConfig,
    *,
    base: Path,
    say: Callable[[str], None] = lambda sentence: None,
    on_calls: OnCalls = lambda done, total: None,
) -> FormsFound:
    """Draw every form at every scale, measure every image once.

    The card lies in `base`, or in `base`-2, ... where that holds another; images lie in
    `base`-images. Killed and started again with the same arguments it goes on. `InputError` for a
    model without data or classes, or too few images.
    """
    for scale in config.guidance_scales:  # before a judge is trained
        check_sampling_arguments(
            ["any"], guidance_scale=scale, steps=generator.pipeline.config["num_inference_steps"]
        )
    ground = Ground.of(
        generator,
        count=config.count,
        first_seed=config.first_seed,
        judge=config.judge,
        say=say,
    )
    draws = [
        (
            form,
            Draws(
                generator=generator,
                asked=ground.asked,
                guidance_scale=scale,
                first_seed=config.first_seed,
                store=sibling(base, "images"),
                guidance=form,
            ),
        )
        for form in _plain_first(config.forms)
        for scale in config.guidance_scales
        if form.form == PLAIN or scale not in ALIKE
    ]
    folder = folder_for(
        base,
        {
            "format": FORMAT,
            "draws": [one.parts.folder.name for _, one in draws],
            "config": config.model_dump(mode="json"),
            "reference": ground.real.reference.digest,
            "judge": ground.judge.identity,
        },
        say=say,
    )
    if (folder / FILE_NAME).exists():
        return FormsFound(card=read_forms(folder), folder=folder, before=True)

    on_part = CallsDone((one for _, one in draws), on_calls)
    held: list[Held] = []
    rows: list[FormRow] = []
    plain: dict[float, Measured] = {}
    for form, one in draws:
        taken = one.take(on_part)
        found = ground.hold(taken["images"])
        held.append(found)
        if form.form == PLAIN:
            plain[one.guidance_scale] = found.measured
        rows.append(
            FormRow(
                form=str(form),
                label=form.label,
                guidance_scale=one.guidance_scale,
                calls=one.calls,
                seconds=round(float(taken["seconds"]), 2),
                figures=found.figures,
                **_against_plain(found.measured, plain.get(one.guidance_scale), ground.of_real),
            )
        )
    choice, alike = choice_among(rows, [one.distances for one in held], ground.of_real.figures(()))
    evidence = _evidence(rows, held, ground)
    card = FormsCard(
        rows=rows,
        choice=choice,
        alike=len(alike) - 1,
        claims=evidence.claims(),
        config=config,
        **ground.card_fields(generator, floor_pairs=config.floor_pairs),
    )
    return FormsFound(card=card, folder=folder, images=[one.measured.images for one in held])


def read_forms(folder: Path) -> FormsCard:
    """The card in `folder`; `ConfigError` for one of another version."""
    return validate(FormsCard, read_json(folder / FILE_NAME), source=str(folder / FILE_NAME))


def choice_among(
    rows: Sequence[FormRow], distances: Sequence[Tensor], real: Mapping[str, Figure]
) -> tuple[int, list[int]]:
    """The place of the row to draw with, and those it was chosen of by its saturated values.

    Of the rows whose agreement is at most `WORSE_BY` below the best, or below that of `real` images
    where this is lower (to agree more than they do is worth nothing), the smallest Frechet
    distance; of those that are not told from it, the share of saturated values nearest to that of
    real images. `distances`: pseudo-values (N,) of each row's distance.
    """
    agreement = [row.figures["agreement"].value for row in rows]
    enough = min(max(agreement), real["agreement"].value) - WORSE_BY
    agreeing = [place for place, value in enumerate(agreement) if value >= enough]
    nearest = min(agreeing, key=lambda place: rows[place].figures["frechet"].value)
    alike = [place for place in agreeing if _alike(distances[place], distances[nearest])]
    saturated = real["saturated"].value

    def excess(place: int) -> float:
        return abs(rows[place].figures["saturated"].value - saturated)

    return min(alike, key=excess), alike


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two distances, by their pseudo-values (N,), are not told apart."""
    found = paired_bootstrap(first, second)
    return found.low <= 0 <= found.high


def excess_ratio(
    ours: Tensor, plain: Tensor, *, real: float, resamples: int = 10_000, seed: int = 0
) -> Figure | None:
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
            (ours[drawn].double().mean(dim=1) - real) / (plain[drawn].double().mean(dim=1) - real)
            for drawn in resampled(len(ours), resamples=resamples, seed=seed)
        ]
    )
    low, high = percentile_interval(ratios, confidence=0.95)
    return Figure(value=float((ours.double().mean() - real) / below), low=low, high=high)


def _against_plain(
    found: Measured, plain: Measured | None, real: Measured
) -> Mapping[str, Figure | None]:
    """Nothing for plain guidance itself."""
    if plain is None or plain is found:
        return {"burnt": None, "agreement_change": None}
    change = share_difference(found.right, plain.right)
    return {
        "burnt": excess_ratio(
            found.pixels["saturated"],
            plain.pixels["saturated"],
            real=float(real.pixels["saturated"].mean()),
        ),
        "agreement_change": Figure(value=change.value, low=change.low, high=change.high),
    }


def _plain_first(forms: Sequence[GuidanceConfig]) -> list[GuidanceConfig]:
    """Each form once, plain guidance before the others."""
    plain = GuidanceConfig(form=PLAIN)
    return list({str(form): form for form in (plain, *forms)}.values())


def _evidence(rows: Sequence[FormRow], held: Sequence[Held], ground: Ground) -> ScaleEvidence:
    """Of plain guidance, scale by scale."""
    plain = {
        row.guidance_scale: one for row, one in zip(rows, held, strict=True) if row.form == PLAIN
    }
    return ScaleEvidence(
        measured={scale: one.measured for scale, one in plain.items()},
        distances={scale: one.distances for scale, one in plain.items()},
        real=ground.of_real.figures(()),
    )
