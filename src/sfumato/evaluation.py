"""First measures of a model: agreement with its captions, distance from real images, saturation.

Every figure is a record: value, interval, counts, judge, seeds, weights, versions.
"""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import field_validator
from torch import Tensor

from sfumato import __version__
from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import write_bytes, write_json
from sfumato.base.images import grid, png_bytes, to_pil
from sfumato.base.randomness import generator_for
from sfumato.base.section import Section
from sfumato.data.captions import captions_from_templates
from sfumato.data.sources import Records, load_records
from sfumato.diffusion.guidance import CONVENTION
from sfumato.generation import ImageGenerator
from sfumato.metrics.frechet import feature_statistics, frechet_distance
from sfumato.metrics.intervals import Proportion, wilson
from sfumato.metrics.pixels import saturated_share
from sfumato.models.schedulers import sampler_of
from sfumato.training.checkpoint import environment
from sfumato.training.judges import Judge, load_judge

SCHEMA = 1
FLOOR_DRAWS = 10


class EvaluationConfig(Section):
    """What is measured when nothing else is asked for."""

    guidance_scales: tuple[float, ...] = (1, 2, 3, 5)
    """The guidance scales of a table."""
    count: int = 100
    """Images drawn for each guidance scale."""

    @field_validator("count")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("count must be positive")
        return value


@dataclass(frozen=True, kw_only=True)
class ScaleResult:
    """The measures of one guidance scale."""

    guidance_scale: float
    agreement: Proportion
    frechet: float
    saturated: float
    calls: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MetricCard:
    """All measures of one evaluation and what they depend on."""

    judge: str
    judge_description: str
    judge_test_accuracy: Proportion
    feature_dim: int
    frechet_count: int
    frechet_real: float
    frechet_real_spread: float
    saturated_real: float
    reference: str
    results: list[ScaleResult]
    count: int
    seeds: tuple[int, int]
    scheduler: str
    timestep_spacing: str
    steps: int
    model: dict[str, Any]
    captions: list[str] = field(default_factory=list)
    guidance: str = "cfg"
    guidance_convention: str = CONVENTION
    schema: int = SCHEMA
    sfumato: str = __version__
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat("T", "seconds"))
    hardware: dict[str, Any] = field(
        default_factory=lambda: {**environment(), "processor": platform.processor() or "unknown"}
    )

    def save(self, folder: Path) -> Path:
        """Write `card.json` into `folder`."""
        write_json(folder / "card.json", asdict(self))
        return folder / "card.json"


def card_from_json(values: dict[str, Any]) -> MetricCard:
    """The card that `MetricCard.save` wrote; `DamagedDataError` where it is of another form."""
    try:
        results = [
            ScaleResult(**{**row, "agreement": Proportion(**row["agreement"])})
            for row in values["results"]
        ]
        return MetricCard(
            **{
                **values,
                "results": results,
                "judge_test_accuracy": Proportion(**values["judge_test_accuracy"]),
                "seeds": tuple(values["seeds"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise DamagedDataError(
            f"card.json is not a metric card of this version ({error}).",
            mend="Run `sfumato evaluate` again.",
        ) from error


def evaluate(
    generator: ImageGenerator,
    *,
    guidance_scales: Sequence[float],
    count: int,
    first_seed: int = 0,
    templates: Sequence[str] = (),
    folder: Path | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    on_batch: Callable[[int], None] | None = None,
) -> MetricCard:
    """Draw `count` images for each guidance scale (captions in turn) and measure them.

    Image i has class i mod K and seed `first_seed` + i at every scale, so that scales are compared
    on the same noise. Its caption is the first that the class was trained with, or, with
    `templates`, theirs in turn. With `folder`, a grid of the first images of each scale is kept.
    """
    if generator.data is None:
        raise InputError(
            "This model does not say which data set it was trained on.",
            mend="Evaluate the run folder it came from.",
        )
    if count < 10:
        raise InputError(f"{count} images are too few to measure.", mend="Give --count 10 or more.")
    if not guidance_scales:
        raise InputError("No guidance scale is given.")
    judge = load_judge(generator.data, on_training=say)
    test = load_records(generator.data, "test")
    _, test_features = judge(test.images)
    frechet_count = min(count, len(test))
    floor = _real_against_real(generator, judge, test_features, frechet_count)
    reference = feature_statistics(test_features[:frechet_count])
    labels = torch.arange(count) % len(test.class_names)
    prompts = prompts_for(test, labels, templates)
    results = []
    for scale in guidance_scales:
        started = time.perf_counter()
        images, calls = _draw(generator, prompts, scale, first_seed, on_batch)
        seconds = time.perf_counter() - started
        predicted, features = judge(images)
        agreeing = int((predicted == labels).sum())
        statistics = feature_statistics(features[:frechet_count])
        results.append(
            ScaleResult(
                guidance_scale=float(scale),
                agreement=wilson(agreeing, count),
                frechet=frechet_distance(statistics, reference),
                saturated=saturated_share(images),
                calls=calls,
                seconds=round(seconds, 2),
            )
        )
        if folder is not None:
            picture = to_pil(grid(images[:100], columns=10, scale=2))
            write_bytes(folder / f"samples-w{scale:g}.png", png_bytes(picture))
    config = generator.pipeline.config
    return MetricCard(
        judge=judge.identity,
        judge_description=judge.description,
        judge_test_accuracy=judge.test_accuracy,
        feature_dim=judge.extractor.dim,
        frechet_count=frechet_count,
        frechet_real=floor[0],
        frechet_real_spread=floor[1],
        saturated_real=saturated_share(test.images),
        reference=test.description,
        results=results,
        count=count,
        captions=list(templates or generator.data.caption[:1]),
        seeds=(first_seed, first_seed + count - 1),
        scheduler=sampler_of(generator.pipeline.scheduler)[0],
        timestep_spacing=generator.pipeline.scheduler.config["timestep_spacing"],
        steps=config["num_inference_steps"],
        guidance=str(generator.with_weak_network(generator.guidance)),
        model=dict(generator.provenance),
    )


def prompts_for(test: Records, labels: Tensor, templates: Sequence[str]) -> list[str]:
    """A caption for each of `labels` (N,): the class's own, or of each template in turn."""
    if not templates:
        return [test.class_captions[label] for label in labels]
    classes = len(test.class_names)
    captions = captions_from_templates(templates, test.class_names)
    return [
        captions[index // classes % len(templates) * classes + label]
        for index, label in enumerate(labels.tolist())
    ]


def _draw(
    generator: ImageGenerator,
    prompts: Sequence[str],
    scale: float,
    first_seed: int,
    on_batch: Callable[[int], None] | None,
) -> tuple[Tensor, int]:
    """uint8 (N, C, H, W) and the network calls an image took."""
    pictures = list(
        generator.draw(
            prompts,
            range(first_seed, first_seed + len(prompts)),
            guidance_scale=scale,
            on_batch=on_batch,
        )
    )
    return torch.stack([picture.image for picture in pictures]), pictures[0].settings["calls"]


def _real_against_real(
    generator: ImageGenerator, judge: Judge, test_features: Tensor, count: int
) -> tuple[float, float]:
    """What a perfect model would score: mean and standard deviation of the distance between
    `count` real images of the generator's half and the same reference, over random draws.

    The judge saw none of them. The draws overlap where the data are few, so the spread is a lower
    bound.
    """
    assert generator.data is not None
    _, features = judge(load_records(generator.data, "train").images)
    reference = feature_statistics(test_features[:count])
    distances = torch.tensor(
        [
            frechet_distance(
                feature_statistics(
                    features[
                        torch.randperm(
                            len(features), generator=generator_for("real-against-real", draw)
                        )[:count]
                    ]
                ),
                reference,
            )
            for draw in range(FLOOR_DRAWS)
        ],
        dtype=torch.float64,
    )
    return float(distances.mean()), float(distances.std())
