"""Which guidance to draw with: candidates on the same seeds, the worse half left out each round.

Successive halving (Jamieson and Talwalkar 2016): every round spends the same number of images, on
half as many candidates as the one before, and a candidate's earlier images count on. All draw with
the same seeds and captions, so that what differs is the setting.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import environment, now
from sfumato.base.errors import InputError
from sfumato.base.files import write_bytes, write_json
from sfumato.base.section import Section
from sfumato.config.sections import SamplingConfig
from sfumato.diffusion.guidance import GuidanceConfig
from sfumato.diffusion.sampling import network_calls
from sfumato.diffusion.schedule import NoiseSchedule
from sfumato.diffusion.solvers.schedulers import build_scheduler, build_solver, diffusion_of
from sfumato.evaluation.card import Figure, figure
from sfumato.evaluation.classifier import Judge, load_judge
from sfumato.evaluation.metrics.frechet import (
    FeatureStatistics,
    feature_statistics,
    frechet_influence,
    frechet_to,
)
from sfumato.evaluation.metrics.intervals import wilson
from sfumato.evaluation.parts import Parts
from sfumato.evaluation.real import RealImages, digest_of
from sfumato.evaluation.subjects import Asked, what_to_ask
from sfumato.generation.model import AVERAGE, TUNED, ImageGenerator, Tuned

Goal = Literal["agreement", "frechet", "front"]
FIRST_SEED = 20_000
"""Apart from the seeds that evaluations are usually made on: a choice is not measured on the images
that it was made with."""
WORSE_BY = 0.01
"""`front`: how far below the best agreement the choice may lie, unless a level is asked for."""
_PART = 32
_FEWEST = 64
"""Images of each candidate in the first round: fewer say nothing of a distance."""
_NORMAL_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One setting. `average`: the part of the checkpoint whose weights are used."""

    guidance_scale: float
    guidance: GuidanceConfig
    scheduler: str
    steps: int
    calls: int
    average: str = AVERAGE

    @property
    def title(self) -> str:
        form = "" if self.guidance.form == "cfg" else f" {self.guidance}"
        average = "" if self.average == AVERAGE else f", {self.average}"
        return f"w = {self.guidance_scale:g}{form}, {self.scheduler} {self.steps}{average}"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A candidate after its last round: on `count` images."""

    candidate: Candidate
    count: int
    agreement: Figure
    frechet: Figure
    survived: int
    """Rounds it took part in."""

    @property
    def point(self) -> tuple[float, float]:
        """Both to be small."""
        return 1 - self.agreement.value, self.frechet.value


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """All candidates with their scores, the best last round first, and the choice."""

    scores: Sequence[Score]
    choice: Score
    goal: Goal
    judge: str
    images: int
    reference: str
    seeds: tuple[int, int]
    least_agreement: float | None = None
    front: Sequence[Score] = field(default_factory=tuple)


def candidates_of(
    generator: ImageGenerator,
    *,
    scales: Sequence[float],
    forms: Sequence[GuidanceConfig],
    schedulers: Sequence[str],
    calls: int,
    averages: Sequence[str] = (AVERAGE,),
) -> list[Candidate]:
    """Every combination, each with as many steps as `calls` network evaluations an image allow.

    Forms differ at scales other than 0 and 1 only; `InputError` where `calls` is too few for a
    step, or nothing is left.
    """
    if calls < 1:
        raise InputError(f"--calls {calls} is out of range.", hint="Give 1 or more.")
    there = generator.pipeline.scheduler
    spacing = there.config["timestep_spacing"]
    found: dict[tuple[Any, ...], Candidate] = {}
    for name, form, scale, average in product(schedulers, forms, scales, averages):
        scheduler = build_scheduler(name, diffusion_of(there), timestep_spacing=spacing)
        steps, own = _most_steps(scheduler, form, scale, calls)
        alike = form if scale not in (0, 1) else GuidanceConfig()
        found.setdefault(
            (name, str(alike), scale, average),
            Candidate(
                guidance_scale=float(scale),
                guidance=alike,
                scheduler=name,
                steps=steps,
                calls=own,
                average=average,
            ),
        )
    if not found:
        raise InputError("There is nothing to choose from.", hint="Give one scale or more.")
    return list(found.values())


def _most_steps(scheduler: Any, form: GuidanceConfig, scale: float, calls: int) -> tuple[int, int]:
    """The most steps whose calls do not exceed `calls`, and those calls."""
    schedule = NoiseSchedule.from_config(diffusion_of(scheduler))
    guidance = form.build(scale=scale)
    for steps in range(min(calls, schedule.num_train_timesteps), 0, -1):
        solver = build_solver(scheduler, steps=steps, generators=[])
        own = network_calls(solver.timesteps, schedule, guidance)
        if own <= calls:
            return steps, own
    raise InputError(
        f"--calls {calls} are too few for a step at w = {scale:g}.", hint="A guided step takes two."
    )


# The rounds ---------------------------------------------------------------------------------------


def rounds_of(candidates: int, budget: int, *, least: int) -> list[tuple[int, int]]:
    """(candidates, images of each in all) of each round: halved until two are left, at most
    `budget` images drawn. `InputError` where the first round would have less than `least` each."""
    kept = [candidates]
    while kept[-1] > 2:
        kept.append(math.ceil(kept[-1] / 2))
    counts, drawn = [], 0
    for left in kept:
        drawn += budget // (len(kept) * left)
        counts.append(drawn // _PART * _PART)
    if counts[0] < least:
        needed = len(kept) * candidates * least
        raise InputError(
            f"{budget:,} images are too few for {candidates} candidates.",
            hint=f"Give --budget {needed} or more, or fewer scales, forms and samplers.",
        )
    return list(zip(kept, counts, strict=True))


def tune(
    run: Path,
    generator: ImageGenerator,
    candidates: Sequence[Candidate],
    *,
    goal: Goal,
    budget: int,
    judge: str = "auto",
    least_agreement: float | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    on_images: Callable[[int, int], None] = lambda done, total: None,
) -> Tuning:
    """Find the setting to draw with, and write it into the run, so that it is drawn with.

    `run`/tuning/ holds the features (a killed search goes on), tuning.json and front.png. The
    distance is on the judge's features. `least_agreement`: of the goal `front`, the share that the
    choice must reach; else 0.01 below the best. Raises what opening the data and judge raises.
    """
    data = generator.data
    assert data is not None
    reads = load_judge(data, judge, on_training=say)
    rounds = rounds_of(len(candidates), budget, least=_FEWEST)
    most = rounds[-1][1]
    # Not what evaluations measure against, where the test images have another part.
    reference = RealImages.load(data, "tuning" if data.tuning_share else "reference")
    features = reference.features(reads.extractor, on_images=lambda what, done, total: None)
    statistics, root = reference.statistics(reads.extractor, features)
    asked = what_to_ask(
        reference.records, count=most, labels="balanced", templates=(), first_seed=FIRST_SEED
    )
    assert asked.labels is not None  # the judge would have refused
    measured = _Measured(run, generator, reads, asked, statistics, root)
    total, done = sum(_drawn(rounds)), 0
    left, scores = list(candidates), {}
    for number, (_, count) in enumerate(rounds, start=1):
        before = rounds[number - 2][1] if number > 1 else 0
        for candidate in left:
            scores[candidate.title] = measured.score(candidate, count, survived=number)
            done += count - before
            on_images(done, total)
        if number < len(rounds):
            ranked = ranking([scores[candidate.title] for candidate in left], goal)
            left = [score.candidate for score in ranked[: rounds[number][0]]]
            say(f"Round {number}, {count} images each; left: {'; '.join(c.title for c in left)}")
    finalists = [scores[candidate.title] for candidate in left]
    tuning = Tuning(
        scores=sorted(scores.values(), key=lambda score: (-score.survived, score.frechet.value)),
        choice=choice_of(finalists, goal, least_agreement=least_agreement),
        goal=goal,
        judge=reads.identity,
        images=total,
        reference=reference.records.description,
        seeds=(FIRST_SEED, FIRST_SEED + most - 1),
        least_agreement=least_agreement,
        front=nondominated(list(scores.values())),
    )
    _write(tuning, run, generator)
    return tuning


def _drawn(rounds: Sequence[tuple[int, int]]) -> Iterable[int]:
    """New images of each round."""
    before = 0
    for left, count in rounds:
        yield left * (count - before)
        before = count


@dataclass(frozen=True)
class _Measured:
    """Draws candidates' images, keeps what the judge makes of them."""

    run: Path
    generator: ImageGenerator
    judge: Judge
    asked: Asked
    statistics: FeatureStatistics
    root: Tensor

    def score(self, candidate: Candidate, count: int, *, survived: int) -> Score:
        features = self._features(candidate, count)
        assert self.asked.labels is not None
        seen = self.judge.head(features).argmax(1)
        agreed = int((seen == self.asked.labels[:count]).sum())
        distance = frechet_to(feature_statistics(features), self.statistics, root=self.root)
        moves = frechet_influence(features, self.statistics, root=self.root)
        half = _NORMAL_95 * float(moves.std()) / count**0.5
        return Score(
            candidate=candidate,
            count=count,
            agreement=figure(wilson(agreed, count)),
            frechet=Figure(
                value=max(0.0, distance), low=max(0.0, distance - half), high=distance + half
            ),
            survived=survived,
        )

    def _features(self, candidate: Candidate, count: int) -> Tensor:
        generator = self.generator
        generator.use_average(candidate.average)
        generator.use(scheduler=candidate.scheduler)
        key = digest_of(
            {
                "candidate": candidate.title,
                "weights": generator.provenance["weights_sha256"],
                "judge": self.judge.identity,
                "captions": list(dict.fromkeys(self.asked.prompts)),
                "first_seed": FIRST_SEED,
            }
        )
        parts = Parts(self.run / "tuning" / "features" / key, count=count, rows=_PART)

        def make(part: range) -> dict[str, Tensor]:
            pictures = generator.draw(
                self.asked.prompts[part.start : part.stop],
                range(FIRST_SEED + part.start, FIRST_SEED + part.stop),
                guidance_scale=candidate.guidance_scale,
                guidance=candidate.guidance,
                steps=candidate.steps,
            )
            images = torch.stack([picture.image for picture in pictures])
            return {"features": self.judge.extractor(images)}

        return torch.cat([parts.get(part, make)["features"] for part in parts])


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
    if goal == "agreement":
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


def choice_of(
    scores: Sequence[Score], goal: Goal, *, least_agreement: float | None = None
) -> Score:
    """The best for the goal. `front`: the smallest distance among those that agree enough; where
    none does, the best agreement."""
    if goal != "front":
        return ranking(scores, goal)[0]
    best = max(score.agreement.value for score in scores)
    level = best - WORSE_BY if least_agreement is None else least_agreement
    enough = [score for score in scores if score.agreement.value >= level]
    return ranking(enough, "frechet")[0] if enough else ranking(scores, "agreement")[0]


# Writing ------------------------------------------------------------------------------------------


class TuningRecord(Section):
    """tuning.json: what was tried and what was chosen."""

    choice: dict[str, Any]
    goal: str
    least_agreement: float | None
    judge: str
    reference: str
    images: int
    seeds: tuple[int, int]
    scores: list[dict[str, Any]]
    model: dict[str, Any]
    environment: dict[str, Any]
    sfumato: str = __version__
    date: str


def _write(tuning: Tuning, run: Path, generator: ImageGenerator) -> None:
    chosen = tuning.choice.candidate
    folder = run / "tuning"
    generator.use_average(chosen.average)
    record = TuningRecord(
        choice=_as_values(tuning.choice),
        goal=tuning.goal,
        least_agreement=tuning.least_agreement,
        judge=tuning.judge,
        reference=tuning.reference,
        images=tuning.images,
        seeds=tuning.seeds,
        scores=[_as_values(score) for score in tuning.scores],
        model=dict(generator.provenance),
        environment=environment(),
        date=now(),
    )
    write_json(folder / "tuning.json", record.model_dump(mode="json"))
    write_bytes(folder / "front.png", front_chart(tuning))
    sampling = SamplingConfig(
        scheduler=chosen.scheduler,
        steps=chosen.steps,
        guidance_scale=chosen.guidance_scale,
        guidance=chosen.guidance,
        timestep_spacing=generator.pipeline.scheduler.config["timestep_spacing"],
    )
    tuned = Tuned(sampling=sampling, average=chosen.average)
    write_json(run / TUNED, tuned.model_dump(mode="json"))


def _as_values(score: Score) -> Mapping[str, Any]:
    candidate = score.candidate
    return {
        "title": candidate.title,
        "guidance_scale": candidate.guidance_scale,
        "guidance": str(candidate.guidance),
        "scheduler": candidate.scheduler,
        "steps": candidate.steps,
        "calls": candidate.calls,
        "average": candidate.average,
        "count": score.count,
        "rounds": score.survived,
        "agreement": score.agreement.model_dump(),
        "frechet": score.frechet.model_dump(),
    }


def front_chart(tuning: Tuning) -> bytes:
    """PNG: distance over agreement, every candidate by the rounds it survived, the front as a
    line with its points numbered, the choice ringed."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import StrMethodFormatter

    canvas = Canvas(figsize=(7.2, 5.2), dpi=140, layout="constrained")
    axes = canvas.subplots()
    last = max(score.survived for score in tuning.scores)
    for rounds in range(1, last + 1):
        of_round = [score for score in tuning.scores if score.survived == rounds]
        if not of_round:
            continue
        shade = 0.25 + 0.75 * rounds / last
        axes.errorbar(
            [100 * score.agreement.value for score in of_round],
            [score.frechet.value for score in of_round],
            xerr=_errors([score.agreement for score in of_round], 100),
            yerr=_errors([score.frechet for score in of_round], 1),
            fmt="o",
            ms=5,
            color="#7a4b2a",
            alpha=shade,
            elinewidth=0.7,
            label=f"{of_round[0].count} images" + (" (last round)" if rounds == last else ""),
        )
    front = sorted(tuning.front, key=lambda score: score.point[0])
    axes.plot(
        [100 * score.agreement.value for score in front],
        [score.frechet.value for score in front],
        color="#2a6f97",
        lw=1.2,
        label="front",
        zorder=1,
    )
    choice = tuning.choice
    axes.plot(
        100 * choice.agreement.value,
        choice.frechet.value,
        "o",
        ms=14,
        ls="none",
        mfc="none",
        mec="#c1121f",
        mew=1.8,
        label="choice",
    )
    for number, score in enumerate(front, start=1):
        place = (100 * score.agreement.value, score.frechet.value)
        axes.annotate(str(number), place, xytext=(9, 7), textcoords="offset points", fontsize=8)
        title = score.candidate.title
        axes.plot([], [], ls="none", marker=f"${number}$", mew=0, color="black", label=title)
    axes.set(xlabel="agreement, %", ylabel="Frechet distance (judge's features)", yscale="log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(loc="outside lower left", ncols=2, fontsize=7, frameon=False, markerscale=0.8)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    return buffer.getvalue()


def _errors(figures: Sequence[Figure], factor: float) -> list[list[float]]:
    return [
        [factor * (one.value - (one.low or 0.0)) for one in figures],
        [factor * ((one.high or one.value) - one.value) for one in figures],
    ]
