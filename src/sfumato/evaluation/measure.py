"""An evaluation from beginning to end, to be read from top to bottom."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sfumato.base.environment import command
from sfumato.base.errors import DamagedDataError, InputError, SfumatoError
from sfumato.base.files import folder_for
from sfumato.base.randomness import generator_for
from sfumato.config.sections import EvaluationConfig
from sfumato.evaluation.card import (
    FILE_NAME,
    ExtractorInfo,
    FeatureFloor,
    JudgeInfo,
    Memorised,
    MetricCard,
    ReferenceInfo,
    Row,
    RowFigures,
    ScoreOfInception,
    Subjects,
    Untrained,
    classes_of,
    figure,
    read_card,
)
from sfumato.evaluation.classifier import Judge, UntrainedHeads, load_judge, untrained_heads
from sfumato.evaluation.extractors.extractor import (
    Device,
    FeatureExtractor,
    GivesLogits,
    ReadsCaptions,
)
from sfumato.evaluation.extractors.registry import Opened, available_extractors
from sfumato.evaluation.figures import (
    Features,
    ReferenceFeatures,
    feature_figures,
)
from sfumato.evaluation.floors import (
    FIGURES,
    RealSets,
    floor_of,
    reference_features,
    yardsticks_of,
)
from sfumato.evaluation.metrics.agreement import agreement, confusion_matrix
from sfumato.evaluation.metrics.alignment import clip_scores
from sfumato.evaluation.metrics.inception_score import inception_score_of_logits
from sfumato.evaluation.metrics.intervals import bootstrap_mean
from sfumato.evaluation.metrics.memorisation import Memorisation, memorisation
from sfumato.evaluation.metrics.pixels import saturated_shares
from sfumato.evaluation.parts import write_tensors
from sfumato.evaluation.real import OnImages
from sfumato.evaluation.subjects import file_name
from sfumato.evaluation.taken import Taken, take
from sfumato.evaluation.target import Target

CUSTOMARY_COUNT = 5_000
"""Below so many images a Frechet distance says more of their number than of the model."""
FEWEST_FOR_SCORE = 500
"""Ten parts of less than 50 images have no inception score worth the name."""
NEAREST_BY = ("dinov2", "clip", "small-clip", "judge", "inception")
"""Whose features tell the nearest training image: the first of them that is at hand."""
_SHOWN_NEAREST = 12


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The images closest to a training image, the closest first, each with that training image:
    uint8 (K, C, H, W); generated ones, and as a yardstick real test images."""

    generated: Tensor
    of_generated: Tensor
    test: Tensor
    of_test: Tensor


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation: its card, where it lies, and the pictures for a person, by a row's title.

    `samples`: the first images, `nearest`: the memorisation panel. Both are empty where the same
    evaluation was `found`, with its pictures.
    """

    card: MetricCard
    folder: Path
    found: bool = False
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    nearest: Mapping[str, Nearest] = field(default_factory=dict)


def evaluate(
    target: Target,
    config: EvaluationConfig,
    *,
    base: Path,
    device: Device = "cpu",
    say: Callable[[str], None] = lambda sentence: None,
    on_images: OnImages = lambda what, done, total: None,
) -> Evaluated:
    """Take the features of all images once and every metric from them.

    The card lies in `base`, or in `base`-2, ... where that holds another evaluation. Killed and
    started again with the same arguments it goes on: images and features that are there are not
    made again. Raises what opening the data, the judge and the extractors raises.
    """
    real = RealSets.load(target.data, reference_count=config.reference_count)
    if real.count < 2:
        raise InputError(
            f"{real.count} real test image is too few to measure against.",
            hint="Hold out more with --set data.test_share=0.5 when training, or give more images.",
        )
    judge = None
    if len(real.reference.records.class_names) > 1:
        judge = load_judge(target.data, config.classifier, device=device, on_training=say)
    opened = list(
        available_extractors(
            config.extractors,
            config.features,
            device=device,
            judge=None if judge is None else judge.extractor,
        )
    )
    extractors = {one.key: one.extractor for one in opened if one.extractor is not None}
    if judge is not None:
        extractors.setdefault("judge", judge.extractor)

    def on_images_of(key: str) -> OnImages:
        return lambda what, done, total: on_images(f"{what} ({key})", done, total)

    folder = folder_for(base, _request(target, config, real, extractors), say=say)
    if (card := _card_there(folder)) is not None:
        return Evaluated(card=card, folder=folder, found=True)

    against = {
        key: reference_features(real, extractor, on_images_of(key))
        for key, extractor in extractors.items()
    }
    count, total = target.subjects[0].count, sum(one.count for one in target.subjects)
    taken = [
        take(
            subject,
            extractors,
            folder,
            on_done=lambda done, place=place: on_images("images", place * count + done, total),
        )
        for place, subject in enumerate(target.subjects)
    ]
    nearest_by = next((key for key in NEAREST_BY if key in extractors), None)
    rows, nearest = [], {}
    for images in taken:
        row = _row(images, extractors, against, judge, folder)
        if nearest_by is not None:
            row, panel = _with_memorisation(
                row, images, nearest_by, real, extractors[nearest_by], on_images_of(nearest_by)
            )
            if panel is not None:
                nearest[row.title] = panel
        rows.append(row)
    real_figures = _real_figures(real, extractors, against, judge, count)
    if config.classifier.partition(":")[0] == "untrained":
        rows = [
            row.model_copy(update={"untrained": _untrained(target, images)})
            for row, images in zip(rows, taken, strict=True)
        ]
        real_figures = real_figures.model_copy(update={"untrained": _untrained(target, real)})
    floors = {
        key: floor
        for key, extractor in extractors.items()
        if (
            floor := floor_of(
                real,
                extractor,
                against[key],
                count,
                config.baseline_pairs,
                on_images_of(key),
                balanced=target.subjects[0].balanced,
            )
        )
    }
    yardsticks = {
        key: found
        for key, extractor in extractors.items()
        if (
            found := yardsticks_of(
                real, extractor, against[key], count, balanced=target.subjects[0].balanced
            )
        )
    }
    infos = [_info(one) for one in opened]
    card = MetricCard(
        subject=Subjects(
            kind=target.kind,
            name=target.name,
            provenance=target.provenance,
            captions=list(target.captions),
            labels=target.labels,
        ),
        reference=ReferenceInfo(
            description=real.reference.records.description,
            digest=real.reference.digest,
            count=real.count,
            training_description=real.training.records.description,
        ),
        judge=None if judge is None else JudgeInfo.of(judge),
        extractors=infos,
        rows=rows,
        real=real_figures,
        floors=floors,
        yardsticks=yardsticks,
        warnings=_warnings(count, floors, infos, real, judge),
        command=command(),
    )
    card.save(folder)
    samples = {images.subject.title: images.first(100) for images in taken}
    return Evaluated(card=card, folder=folder, samples=samples, nearest=nearest)


# Where it lies ------------------------------------------------------------------------------------


def _request(
    target: Target,
    config: EvaluationConfig,
    real: RealSets,
    extractors: Mapping[str, FeatureExtractor],
) -> dict[str, object]:
    """Everything that the figures depend on: equal requests have equal cards."""
    return {
        "figures": FIGURES,
        "subjects": [subject.key for subject in target.subjects],
        "reference": real.reference.digest,
        "reference_count": real.count,
        "training": real.training.digest,
        "extractors": {key: extractor.name for key, extractor in extractors.items()},
        "asked_for": list(config.extractors),
        "baseline_pairs": config.baseline_pairs,
    }


def image_values_file(folder: Path, title: str) -> Path:
    """Where an evaluation keeps what it knows of a row image by image."""
    return folder / "values" / f"{file_name(title)}.safetensors"


def _card_there(folder: Path) -> MetricCard | None:
    """The card of a finished evaluation; a damaged one is made again from what is kept beside."""
    if not (folder / FILE_NAME).exists():
        return None
    try:
        return read_card(folder)
    except DamagedDataError:
        return None


# Real images --------------------------------------------------------------------------------------


def _real_figures(
    real: RealSets,
    extractors: Mapping[str, FeatureExtractor],
    against: Mapping[str, ReferenceFeatures],
    judge: Judge | None,
    count: int,
) -> RowFigures:
    """The reference images as a row of their own; scores that depend on the number at `count`."""
    rows = {key: features.rows for key, features in against.items()}
    return RowFigures(
        agreement=None if judge is None else figure(judge.test_accuracy),
        saturated=float(saturated_shares(real.first(real.count)).mean()),
        clip_score={
            key: figure(bootstrap_mean(scores))
            for key, scores in _clip_scores(
                extractors, rows, real.reference.captions(real.count), []
            ).items()
        },
        inception_score=_inception_scores(
            extractors, judge, {key: values[:count] for key, values in rows.items()}
        ),
    )


# One set of images --------------------------------------------------------------------------------


def _row(
    taken: Taken,
    extractors: Mapping[str, FeatureExtractor],
    against: Mapping[str, ReferenceFeatures],
    judge: Judge | None,
    folder: Path,
) -> Row:
    """The figures of one set; what is known image by image is kept for `sfumato compare`."""
    subject, notes = taken.subject, list(taken.subject.notes)
    found, rows = {}, {}
    values = {"saturated": taken.saturated}
    for key in extractors:
        features = Features.gathered(taken.of(key), subject.labels)
        measured = feature_figures(features, against[key], balanced=subject.balanced)
        found[key], rows[key] = measured.figures, features.rows
        notes += [note for note in measured.notes if note not in notes]
        values |= {f"{name}.{key}": kept for name, kept in measured.values.items()}
    agreed = None
    if judge is not None and subject.labels is not None:
        seen = torch.cat([judge.head(part).argmax(1) for part in taken.of("judge")])
        names = list(judge.class_names)
        agreed = agreement(confusion_matrix(subject.labels, seen, classes=len(names)))
        values |= {"asked": subject.labels, "seen": seen}
    scores = _clip_scores(extractors, rows, subject.prompts, notes)
    values |= {f"clip_score.{key}": kept for key, kept in scores.items()}
    write_tensors(image_values_file(folder, subject.title), values)
    return Row(
        title=subject.title,
        count=subject.count,
        settings=subject.settings,
        calls=taken.calls,
        seconds=taken.seconds,
        agreement=figure(agreed.overall) if agreed else None,
        classes=classes_of(agreed, list(judge.class_names)) if agreed and judge else None,
        saturated=float(taken.saturated.mean()),
        clip_score={key: figure(bootstrap_mean(kept)) for key, kept in scores.items()},
        inception_score=_inception_scores(extractors, judge, rows),
        features=found,
        notes=notes,
    )


def _untrained(target: Target, images: Taken | RealSets) -> Untrained | None:
    """What judges with random weights say of one set; None where its classes are not known."""
    labels = images.labels
    if labels is None:
        return None
    return untrained_of(untrained_heads(target.data, images.first(len(labels)), labels))


def untrained_of(found: UntrainedHeads) -> Untrained:
    """For the card."""
    return Untrained(
        mean=found.mean, lowest=found.lowest, highest=found.highest, chance=found.chance
    )


def _clip_scores(
    extractors: Mapping[str, FeatureExtractor],
    rows: Mapping[str, Tensor],
    prompts: Sequence[str] | None,
    notes: list[str],
) -> dict[str, Tensor]:
    """(N,) by extractor that reads captions; a note where its text half cannot be had."""
    found = {}
    for key, extractor in extractors.items():
        if prompts is not None and isinstance(extractor, ReadsCaptions):
            try:
                texts = extractor.texts(prompts[: len(rows[key])])
            except SfumatoError as error:
                notes.append(f"CLIP score ({key}): {error.what}")
            else:
                found[key] = clip_scores(rows[key], texts)
    return found


def _inception_scores(
    extractors: Mapping[str, FeatureExtractor], judge: Judge | None, rows: Mapping[str, Tensor]
) -> dict[str, ScoreOfInception]:
    """By extractor whose network goes on to classes."""
    heads: dict[str, Callable[[Tensor], Tensor]] = {
        key: extractor.logits
        for key, extractor in extractors.items()
        if isinstance(extractor, GivesLogits)
    }
    if judge is not None:
        heads["judge"] = judge.head
    found = {}
    for key, head in heads.items():
        if len(rows[key]) < FEWEST_FOR_SCORE:
            continue
        score = inception_score_of_logits(
            head(rows[key]), generator=generator_for("inception score")
        )
        found[key] = ScoreOfInception(value=score.value, std=score.std, whole=score.whole)
    return found


def _with_memorisation(
    row: Row,
    taken: Taken,
    key: str,
    real: RealSets,
    extractor: FeatureExtractor,
    on_images: OnImages,
) -> tuple[Row, Nearest | None]:
    """The row with its share of copies, and the closest pairs as images."""
    training = real.training.features(extractor, real.training_count, on_images=on_images)
    test = real.reference.features(extractor, real.count, on_images=on_images)
    try:
        found = memorisation(torch.cat(list(taken.of(key))), training, test=test)
    except ValueError as error:
        return row.model_copy(update={"notes": [*row.notes, f"memorisation: {error}"]}), None
    memorised = Memorised(
        extractor=key,
        share=figure(found.share),
        quantile=found.quantile,
        training_count=len(training),
    )
    return row.model_copy(update={"memorised": memorised}), _panel(found, taken, real)


def _panel(found: Memorisation, taken: Taken, real: RealSets) -> Nearest:
    closest = found.order[:_SHOWN_NEAREST]
    closest_test = found.test_distances.argsort(stable=True)[:_SHOWN_NEAREST]
    return Nearest(
        generated=taken.at(closest.tolist()),
        of_generated=real.training.at(found.indices[closest]),
        test=real.reference.at(closest_test),
        of_test=real.training.at(found.test_indices[closest_test]),
    )


# What to say of it --------------------------------------------------------------------------------


def _info(opened: Opened) -> ExtractorInfo:
    if opened.extractor is None:
        return ExtractorInfo(
            key=opened.key, title=opened.title, missing=opened.reason, hint=opened.hint
        )
    return ExtractorInfo(
        key=opened.key,
        title=opened.title,
        name=opened.extractor.name,
        dim=opened.extractor.dim,
    )


def _warnings(
    count: int,
    floors: Mapping[str, FeatureFloor],
    infos: Sequence[ExtractorInfo],
    real: RealSets,
    judge: Judge | None,
) -> list[str]:
    warnings = []
    chance = 1 / max(1, len(real.reference.records.class_names))
    if judge is not None and judge.test_accuracy.low <= chance:
        warnings.append(
            f"The judge reads {100 * judge.test_accuracy.value:.0f} % of "
            f"{judge.test_accuracy.count:,} real images right, which guessing "
            f"may do as well ({100 * chance:.0f} %): agreement and what is measured on its "
            "features say nothing."
        )
    if count < CUSTOMARY_COUNT:
        known = "; ".join(
            f"{info.title} {found.mean:.3g}"
            for info in infos
            if info.key in floors and (found := floors[info.key].frechet)
        )
        warnings.append(
            f"A Frechet distance of {count:,} images lies above that of many "
            f"({CUSTOMARY_COUNT:,} or more are the custom): compare at equal numbers only."
            + (f" Real images of the same number score: {known}." if known else "")
        )
    if not floors:
        warnings.append(
            f"There are less than {count:,} real training images, so that there is no floor."
        )
    return warnings
