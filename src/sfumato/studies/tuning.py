"""Which guidance to sample with: candidates on the same seeds, half of them dropped each round.

Successive halving (Jamieson and Talwalkar 2016): every round spends the same number of images, on
half as many candidates as the one before, and a candidate's earlier images count on. All sample
the same seeds and captions, so what differs is the setting.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from sfumato import __version__
from sfumato.base.environment import environment, now
from sfumato.base.errors import InputError
from sfumato.base.files import write_bytes, write_json
from sfumato.base.lock import locked
from sfumato.base.words import counted
from sfumato.config.sections import DataConfig
from sfumato.data.records import load_records
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.evaluation.classifier import ImageClassifier, load_classifier
from sfumato.evaluation.image_set import ImageSet
from sfumato.evaluation.metrics.adherence import class_accuracy_of
from sfumato.evaluation.metrics.features import ImageFeatures
from sfumato.evaluation.metrics.frechet import frechet_score
from sfumato.evaluation.metrics.intervals import Estimate
from sfumato.evaluation.prompt_set import PromptSet
from sfumato.evaluation.sampled_images import sampled_set
from sfumato.generation.loading import load
from sfumato.generation.model import Model
from sfumato.generation.runs import AVERAGE, TUNED, Tuned

Goal = Literal["accuracy", "frechet", "front"]
FIRST_SEED = 20_000
"""Apart from the seeds that evaluations are usually made on: a choice is not measured on the images
that it was made with."""
WORSE_BY = 0.01
"""`front`: how far below the best accuracy the choice may lie, unless a level is given."""
_PART = 32
_FEWEST = 64
"""Images of each candidate in the first round: a distance of fewer means nothing."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One setting. `average`: the part of the checkpoint whose weights are used."""

    sampling: Sampling
    nfe: int
    average: str = AVERAGE

    @property
    def title(self) -> str:
        sampling = self.sampling
        form = "" if sampling.guidance == "cfg" else f" {sampling.guidance}"
        average = "" if self.average == AVERAGE else f", {self.average}"
        scale = f"w = {sampling.guidance_scale:g}"
        return f"{scale}{form}, {sampling.sampler} {sampling.steps}{average}"


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for. `budget`: images to sample in all; `least_accuracy`: of the goal `front`,
    the share that the choice must reach; else 0.01 below the best."""

    goal: Goal
    budget: int
    classifier: str = "auto"
    least_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """A candidate after its last round: on `count` images."""

    candidate: Candidate
    count: int
    class_accuracy: Estimate
    frechet: Estimate
    survived: int
    """Rounds it took part in."""

    @property
    def point(self) -> tuple[float, float]:
        """Both to be small."""
        return 1 - self.class_accuracy.value, self.frechet.value


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """All candidates with their scores, the best last round first, and the choice."""

    scores: Sequence[Score]
    front: Sequence[Score]
    choice: Score
    search: Search
    classifier: str
    images: int
    reference: str
    seeds: tuple[int, int]


def candidates_of(
    model: Model,
    *,
    scales: Sequence[float],
    forms: Sequence[str],
    samplers: Sequence[str],
    nfe: int,
    averages: Sequence[str] = (AVERAGE,),
) -> list[Candidate]:
    """Every combination, each with as many steps as `nfe` network evaluations an image allow.

    Forms differ at scales other than 0 and 1 only; `InputError` where `nfe` is too small for a
    step, or nothing is left.
    """
    found: dict[tuple[Any, ...], Candidate] = {}
    for sampler, form, scale, average in product(samplers, forms, scales, averages):
        sampling = replace(
            model.sampling,
            sampler=sampler,
            guidance_scale=float(scale),
            guidance=form if scale not in (0, 1) else "cfg",
        )
        steps, own = _most_steps(model, sampling, nfe)
        found.setdefault(
            (sampler, sampling.guidance, scale, average),
            Candidate(sampling=replace(sampling, steps=steps), nfe=own, average=average),
        )
    if not found:
        raise InputError("There is nothing to choose from.", hint="Give one scale or more.")
    return list(found.values())


def _most_steps(model: Model, sampling: Sampling, nfe: int) -> tuple[int, int]:
    """The most steps that take no more than `nfe` network evaluations, and what they take."""
    most = min(nfe, getattr(model.process, "num_train_timesteps", nfe))
    for steps in range(most, 0, -1):
        changed = replace(model, sampling=replace(sampling, steps=steps), scheduler=None)
        if (own := changed.nfe()) <= nfe:
            return steps, own
    raise InputError(
        f"{nfe} network evaluations are too few for a step at w = {sampling.guidance_scale:g}.",
        hint="A guided step takes two.",
    )


# The rounds ---------------------------------------------------------------------------------------


def rounds_of(candidates: int, budget: int, *, least: int) -> list[tuple[int, int]]:
    """(candidates, images of each in all) of each round: halved until two are left, at most
    `budget` images. `InputError` where the first round would have less than `least` each."""
    kept = [candidates]
    while kept[-1] > 2:
        kept.append(math.ceil(kept[-1] / 2))
    counts, sampled = [], 0
    for left in kept:
        sampled += budget // (len(kept) * left)
        counts.append(sampled // _PART * _PART)
    if counts[0] < least:
        needed = len(kept) * candidates * least
        raise InputError(
            f"A budget of {counted(budget, 'image')} is too small for "
            f"{counted(candidates, 'candidate')}.",
            hint=f"Give --budget {needed} or more, or fewer scales, forms and samplers.",
        )
    return list(zip(kept, counts, strict=True))


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What every candidate is measured with; samples and features lie in the run."""

    run: Path
    device: str
    classifier: ImageClassifier
    prompts: PromptSet
    reference: ImageFeatures
    reference_description: str
    models: dict[str, Model] = field(default_factory=dict)

    @classmethod
    def of(
        cls, run: Path, data: DataConfig, classifier: ImageClassifier, *, count: int, device: str
    ) -> "_Setting":
        """`count`: the most images of a candidate."""
        # Not what evaluations measure against, where the test images have another part.
        split = "tuning" if data.tuning_share else "reference"
        records = load_records(data, split)
        return cls(
            run=run,
            device=device,
            classifier=classifier,
            prompts=PromptSet.of(records, count, seed=FIRST_SEED),
            reference=ImageSet.real(data, split).features(classifier),
            reference_description=records.description,
        )

    def model(self, average: str) -> Model:
        """The run's model with that average of its weights, loaded once."""
        if average not in self.models:
            self.models[average] = load(self.run, device=self.device, average=average)
        return self.models[average]

    def score(self, candidate: Candidate, count: int, *, survived: int) -> Score:
        """A candidate on the first `count` images."""
        model = replace(
            self.model(candidate.average), sampling=candidate.sampling, scheduler=None
        ).with_(form=candidate.sampling.guidance)
        images = replace(
            sampled_set(
                model,
                self.prompts.first(count),
                range(FIRST_SEED, FIRST_SEED + count),
                folder=self.run / "tuning" / "images",
            ),
            part_images=_PART,
        )
        features = images.features(self.classifier)
        accuracy = class_accuracy_of(features)
        assert accuracy is not None  # the data have classes
        return Score(
            candidate=candidate,
            count=count,
            class_accuracy=accuracy.overall,
            frechet=frechet_score(features, self.reference).estimate,
            survived=survived,
        )


def tune(
    run: Path,
    model: Model,
    candidates: Sequence[Candidate],
    search: Search,
    *,
    data: DataConfig,
    log: Callable[[str], None] = lambda text: None,
    on_images: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Tuning:
    """Find the setting to sample with, and write it into the run, which uses it from then on.

    `run`/tuning/ holds images and features (a killed search goes on), tuning.json and front.png.
    The distance is on the classifier's features. Raises what opening the data and the classifier
    raises.
    """
    with locked(run / "tuning"):
        classifier = load_classifier(data, search.classifier, log=log)
        rounds = rounds_of(len(candidates), search.budget, least=_FEWEST)
        most = rounds[-1][1]
        setting = _Setting.of(run, data, classifier, count=most, device=str(model.device))
        scores = _run_rounds(setting, candidates, rounds, search.goal, log, on_images)
        last = max(score.survived for score in scores)
        finalists = [score for score in scores if score.survived == last]
        tuning = Tuning(
            scores=sorted(scores, key=lambda score: (-score.survived, score.frechet.value)),
            front=nondominated(scores),
            choice=choice_of(finalists, search.goal, least_accuracy=search.least_accuracy),
            search=search,
            classifier=classifier.identity,
            images=sum(_new_images(rounds)),
            reference=setting.reference_description,
            seeds=(FIRST_SEED, FIRST_SEED + most - 1),
        )
        _write(tuning, run, setting.model(tuning.choice.candidate.average))
        return tuning


def _run_rounds(
    setting: _Setting,
    candidates: Sequence[Candidate],
    rounds: Sequence[tuple[int, int]],
    goal: Goal,
    log: Callable[[str], None],
    on_images: Callable[[str, int, int], None],
) -> list[Score]:
    """The last score of each candidate."""
    total, done = sum(_new_images(rounds)), 0
    left, scores = list(candidates), {}
    for number, (_, count) in enumerate(rounds, start=1):
        before = rounds[number - 2][1] if number > 1 else 0
        for candidate in left:
            scores[candidate.title] = setting.score(candidate, count, survived=number)
            done += count - before
            on_images("images", done, total)
        if number < len(rounds):
            ranked = ranking([scores[candidate.title] for candidate in left], goal)
            left = [score.candidate for score in ranked[: rounds[number][0]]]
            titles = "; ".join(candidate.title for candidate in left)
            log(f"Round {number}, {counted(count, 'image')} each; left: {titles}")
    return list(scores.values())


def _new_images(rounds: Sequence[tuple[int, int]]) -> Iterator[int]:
    """New images of each round."""
    before = 0
    for left, count in rounds:
        yield left * (count - before)
        before = count


# Ranking ------------------------------------------------------------------------------------------


def nondominated(scores: Sequence[Score]) -> list[Score]:
    """The front: scores of which no other is better in one and as good in the other."""
    return [
        score
        for score in scores
        if not any(_dominates(other.point, score.point) for other in scores)
    ]


def _dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def ranking(scores: Sequence[Score], goal: Goal) -> list[Score]:
    """Best first. `front`: the front, then the front of the rest, and so on; within one by the
    smaller distance."""
    if goal == "accuracy":
        return sorted(scores, key=lambda score: score.point)
    by_distance = sorted(scores, key=lambda score: score.point[::-1])
    if goal == "frechet":
        return by_distance
    ranked: list[Score] = []
    while by_distance:
        front = nondominated(by_distance)
        ranked += front
        by_distance = [score for score in by_distance if score not in front]
    return ranked


def choice_of(scores: Sequence[Score], goal: Goal, *, least_accuracy: float | None = None) -> Score:
    """The best for the goal. `front`: the smallest distance among those that are accurate
    enough; where none is, the best accuracy."""
    if goal != "front":
        return ranking(scores, goal)[0]
    best = max(score.class_accuracy.value for score in scores)
    level = best - WORSE_BY if least_accuracy is None else least_accuracy
    enough = [score for score in scores if score.class_accuracy.value >= level]
    return ranking(enough, "frechet")[0] if enough else ranking(scores, "accuracy")[0]


# Writing ------------------------------------------------------------------------------------------


def _write(tuning: Tuning, run: Path, model: Model) -> None:
    from sfumato.studies.tuning_page import front_chart

    record = {
        "choice": _as_values(tuning.choice),
        **asdict(tuning.search),
        "classifier": tuning.classifier,
        "reference": tuning.reference,
        "images": tuning.images,
        "seeds": tuning.seeds,
        "scores": [_as_values(score) for score in tuning.scores],
        "model": dict(model.provenance),
        "environment": environment(),
        "sfumato": __version__,
        "date": now(),
    }
    write_json(run / "tuning" / "tuning.json", record)
    write_bytes(run / "tuning" / "front.png", front_chart(tuning))
    chosen = tuning.choice.candidate
    tuned = Tuned(sampling=chosen.sampling, average=chosen.average)
    write_json(run / TUNED, tuned.model_dump(mode="json"))


def _as_values(score: Score) -> dict[str, Any]:
    candidate = score.candidate
    return {
        "title": candidate.title,
        **asdict(candidate.sampling),
        "nfe": candidate.nfe,
        "average": candidate.average,
        "count": score.count,
        "rounds": score.survived,
        "class_accuracy": asdict(score.class_accuracy),
        "frechet": asdict(score.frechet),
    }
