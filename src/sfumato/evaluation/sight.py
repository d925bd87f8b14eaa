"""Whether an extractor can tell images of this data apart: where it cannot, a number says nothing.

A network that was trained on other things may put noise beside real images, and a few images may
lie as far from the reference as changed ones do. Both show on real images alone.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from sfumato.base.errors import SfumatoError
from sfumato.base.randomness import generator_for
from sfumato.evaluation.card import Baseline, PerturbationBaseline, Row
from sfumato.evaluation.metrics.adherence import clip_scores
from sfumato.evaluation.metrics.pixels import PERTURBATIONS
from sfumato.evaluation.metrics.registry import all_metrics
from sfumato.evaluation.reference import Reference

DEVIATIONS = 3
"""How far above real images noise or blur must score, in deviations of real sets."""
ROWS_PER_FEATURE = 2
"""Images that a covariance needs for each feature where nothing else tells whether they suffice."""
SEEN = ("noise", "blurred")
"""The perturbations of which an extractor must see at least one."""


def blind_metrics(
    reference: Reference,
    baselines: Mapping[str, Baseline],
    perturbations: Mapping[str, Sequence[PerturbationBaseline]],
    *,
    count: int,
) -> dict[str, str]:
    """The keys of the metrics of `count` images that say nothing on this data, each with why."""
    found: dict[str, str] = {}
    for key in reference.extractors:
        features = distances_blind(
            key,
            baselines.get(key),
            perturbations.get(key, []),
            counts=(count, reference.images.count),
            dim=reference.extractors[key].dim,
        )
        embedded = reference.features(key)
        text = ""
        if embedded.embed_text is not None:
            try:
                text = captions_blind(key, embedded.rows, embedded.text)
            except (SfumatoError, ValueError) as error:  # no text half, or no tokenizer
                text = f"agreement with captions cannot be measured on {key}: {error}"
        for metric in all_metrics().values():
            why = {"features": features, "text": text}.get(metric.needs, "")
            if why:
                found[f"{metric.name}.{key}"] = why
    return found


def without_blind(row: Row, blind: Collection[str]) -> Row:
    """A row without the metrics that say nothing."""
    kept = {key: found for key, found in row.metrics.items() if key not in blind}
    return row.model_copy(update={"metrics": kept})


def distances_blind(
    key: str,
    baseline: Baseline | None,
    perturbed: Sequence[PerturbationBaseline],
    *,
    counts: tuple[int, int],
    dim: int,
) -> str:
    """Why distances on an extractor say nothing; empty where they do.

    As many real images with noise, or blurred, must lie further from the reference than real
    images do. Where there are too few real images to know, both sets (`counts`) need twice as many
    images as there are features (`dim`).
    """
    real = None if baseline is None else baseline.metrics.get("frechet")
    titles = [PERTURBATIONS[name].title for name in SEEN]
    changed = [one for one in perturbed if one.title in titles]
    if real is None or not changed:
        needed = ROWS_PER_FEATURE * dim
        if min(counts) >= needed:
            return ""
        return (
            f"distances on {key} ({dim:,} features) need {needed:,} images on both sides, since "
            "there are too few real ones to measure real sets of the same size; there are "
            f"{counts[0]:,} and {counts[1]:,} real ones."
        )
    if any(one.frechet > real.mean + DEVIATIONS * real.std for one in changed):
        return ""
    scores = ", ".join(f"{one.title} {one.frechet:.3g}" for one in changed)
    return (
        f"{key} does not tell real images from changed ones in sets of {counts[0]:,} of this "
        f"data: real sets score {real.mean:.3g} ± {real.std:.2g}, {scores}. Distances need more "
        "images (--count) or another extractor."
    )


def captions_blind(key: str, images: Tensor, texts: Tensor) -> str:
    """Why agreement with captions says nothing on an extractor; empty where it does.

    Real images (N, D) must agree more with their own captions (N, D) than with those of others.
    """
    order = torch.randperm(len(texts), generator=generator_for("captions of other images"))
    other = (texts != texts[order]).any(1)
    if int(other.sum()) < 2:
        return ""  # one caption for all: nothing to confuse
    own, others = (clip_scores(images[other], one[other]) for one in (texts, texts[order]))
    gain = own - others
    if float(gain.mean()) > DEVIATIONS * float(gain.std()) / len(gain) ** 0.5:
        return ""
    return (
        f"{key} does not know this data's captions: real images agree with their own no more "
        f"than with those of other images (CLIP score {own.mean():.3g} and {others.mean():.3g})."
    )
