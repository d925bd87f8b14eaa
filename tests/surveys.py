"""Surveys for tests: pictures of noise, crowds, and the calibration of intervals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sfumato.interactive.survey.analysis import differences_of, means_of
from sfumato.interactive.survey.bootstrap import (
    Answers,
    Crossed,
    Statistic,
    crossed_bootstrap,
    means,
)
from sfumato.interactive.survey.build import build_survey
from sfumato.interactive.survey.crowd import Asked, Crowd, simulated_answers, true_means
from sfumato.interactive.survey.designs import design_of
from sfumato.interactive.survey.forms import Settings, make_layout
from sfumato.interactive.survey.key import Key
from sfumato.interactive.survey.pictures import Arm

NAMES = ("secretcan", "secretflow", "secretstudent", "secretteacher", "secretunet")
PROMPTS = [f"secretprompt number {number}" for number in range(10)]
SEED = 987654321


def arm(name: str, count: int, *, prompts: Sequence[str] | None = PROMPTS) -> Arm:
    """Pictures of noise, 8x8, other ones for another name."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    captions = None if prompts is None else [prompts[i % len(prompts)] for i in range(count)]
    return Arm(
        name=name,
        images=torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator),
        prompts=captions,
        labels=None,
        about={"seeds": [SEED, SEED + count]},
    )


def small_survey(out: Path, design: str, *, models: int = 2, seed: int = SEED, **size) -> Key:
    settings = Settings(design=design, **{"people": 4, "trials": 12, "items": 12, **size})
    arms = [arm(name, settings.pictures) for name in NAMES[:models]]
    real = arm("secretphotos", settings.pictures, prompts=None) if design == "real" else None
    return build_survey(arms, settings, out, seed=seed, real=real)


def key_of(settings: Settings, models: int, seed: int = 0) -> Key:
    """A key without pictures."""
    design = design_of(settings.design)
    layout = make_layout(design, models, settings, np.random.default_rng(seed))
    names = [*NAMES[:models], *(["secretphotos"] if design.real else [])]
    return Key.of(layout, names, [f"t{n}" for n in range(len(layout.trials))], "a-survey")


def calibration(
    settings: Settings,
    crowd: Crowd,
    *,
    surveys: int,
    models: int = 2,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, float]:
    """Over simulated surveys and all pairs of models (of single pictures the first difference):
    how often the truth is in the interval, and, where it is that of no effect, how often an effect
    is found before p-values are adjusted; the same of a binomial test that knows no people.

    What has no interval says nothing: it holds the truth and finds nothing."""
    key = key_of(settings, models, seed)
    asked, rng = Asked.of(key), np.random.default_rng(seed)
    pair = key.design.pair
    true = true_means(key, crowd)
    truths = true if pair else true[:1] - true[1:2]
    inside = found = naive = 0
    for _ in range(surveys):
        answers = simulated_answers(key, asked, crowd, rng)

        def crossed(statistic: Statistic, answers: Answers = answers) -> Crossed:
            return crossed_bootstrap(answers, statistic, resamples=resamples, rng=rng)

        if pair:
            results = means_of(key, answers, crossed(means))
        else:
            results = differences_of(key, answers, crossed)[:1]
        for one, truth in zip(results, truths, strict=True):
            low, high = one.estimate.low, one.estimate.high
            inside += int(low is None or low <= truth <= high)
            found += int(one.p_value is not None and one.p_value < 0.05)
        naive += int(abs(_z(answers, pair)) > 1.96)
    asked_about = surveys * len(truths)
    return {
        "coverage": inside / asked_about,
        "found": found / asked_about,
        "naive": naive / surveys,
    }


def _z(answers: Answers, pair: bool) -> float:
    """Of all answers as if each came from another person about another picture."""
    groups = [answers.value[answers.group == group] for group in range(2)]
    if pair:
        return float((groups[0].mean() - 0.5) / np.sqrt(0.25 / len(groups[0])))
    spread = sum(one.var(ddof=1) / len(one) for one in groups)
    return float((groups[0].mean() - groups[1].mean()) / np.sqrt(spread))
