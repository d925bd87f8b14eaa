"""What a run's kept checkpoints draw: quality over the images that training has seen."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from sfumato import __version__
from sfumato.base.errors import InputError
from sfumato.base.files import folder_for, read_json, write_json
from sfumato.base.section import Section, validate
from sfumato.diffusion.guidance import CONVENTION
from sfumato.evaluation.arms import CallsDone, Draws, OnCalls
from sfumato.evaluation.card import FeatureFloor, Figure, JudgeInfo, Yardstick, hardware
from sfumato.evaluation.ground import Ground
from sfumato.generation import ImageGenerator
from sfumato.models.schedulers import sampler_of
from sfumato.pipeline import check_sampling_arguments
from sfumato.training.checkpoint import Checkpoints

FILE_NAME = "curve.json"
FORMAT = 1


class CurveConfig(Section):
    """What each checkpoint draws."""

    count: int = 500
    """Images of each checkpoint, classes in turn."""
    first_seed: int = Field(default=0, ge=0)
    judge: str = "auto"
    """Who reads the classes, as in `evaluation.judge`."""
    floor_pairs: int = Field(default=10, ge=2)
    """Real sets that are measured like a drawn one, for the floor."""


class CurvePoint(Section):
    """One checkpoint."""

    images_seen: int
    weights_sha256: str
    calls: int
    """Network evaluations an image."""
    seconds: float
    """Time of drawing."""
    figures: dict[str, Figure]
    """By the keys of `arms.MEASURES`."""


class CurveCard(Section):
    """Every point, and everything that they depend on."""

    format: int = FORMAT
    points: list[CurvePoint]
    real: dict[str, Figure]
    floor: FeatureFloor | None
    yardsticks: list[Yardstick]
    reference: str
    reference_count: int
    judge: JudgeInfo
    config: CurveConfig
    guidance: str
    guidance_scale: float
    scheduler: str
    steps: int
    model: dict[str, Any]
    """Of the last checkpoint."""
    convention: str = CONVENTION
    hardware: dict[str, Any] = Field(default_factory=hardware)
    sfumato: str = __version__
    date: str = Field(default_factory=lambda: datetime.now(UTC).isoformat("T", "seconds"))
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class CurveFound:
    """The card, its folder, and the first images of each point; `before`: found earlier, with its
    pictures, so that `images` is empty."""

    card: CurveCard
    folder: Path
    images: Sequence[Tensor] = field(default_factory=tuple)
    before: bool = False

    def save(self) -> Path:
        """Write `curve.json`: it comes last, as the sign that all is there."""
        write_json(self.folder / FILE_NAME, self.card.model_dump(mode="json"))
        return self.folder / FILE_NAME


def measure_curve(
    generator: ImageGenerator,
    config: CurveConfig,
    *,
    base: Path,
    say: Callable[[str], None] = lambda sentence: None,
    on_calls: OnCalls = lambda done, total: None,
) -> CurveFound:
    """Draw with every checkpoint that the run of `generator` has kept, by its settings and with the
    same seeds and captions; measure every image once.

    The card lies in `base`, or in `base`-2, ... where that holds another; images lie in
    `base`-images. Killed and started again with the same arguments it goes on. `InputError` for a
    pipeline, a model without data or classes, or too few images. The generator is left at its
    newest checkpoint.
    """
    if generator.run_folder is None:
        raise InputError(
            "A curve is of a run: a pipeline has one set of weights.",
            mend="Give the folder of the run that it came from.",
        )
    checkpoints = [
        one.images_seen for one in Checkpoints(generator.run_folder / "checkpoints").all()
    ]
    ground = Ground.of(
        generator, count=config.count, first_seed=config.first_seed, judge=config.judge, say=say
    )
    settings = generator.pipeline.config
    scale = settings["guidance_scale"]
    check_sampling_arguments(
        ground.asked.prompts, guidance_scale=scale, steps=settings["num_inference_steps"]
    )
    draws: dict[int, Draws] = {}
    for images in checkpoints:
        generator.use_checkpoint(images)
        draws[images] = Draws(
            generator=generator,
            asked=ground.asked,
            guidance_scale=scale,
            first_seed=config.first_seed,
            store=base.with_name(f"{base.name}-images"),
        )
        draws[images].settings  # noqa: B018, kept as they are now: the weights change
    folder = folder_for(
        base,
        {
            "format": FORMAT,
            "draws": [one.parts.folder.name for one in draws.values()],
            "config": config.model_dump(mode="json"),
            "reference": ground.real.reference.digest,
            "judge": ground.judge.identity,
        },
    )
    if (folder / FILE_NAME).exists():
        return CurveFound(card=read_curve(folder), folder=folder, before=True)

    on_part = CallsDone(draws.values(), on_calls)
    points: list[CurvePoint] = []
    drawn: list[Tensor] = []
    for images, one in draws.items():
        generator.use_checkpoint(images)
        taken = one.take(on_part)
        points.append(
            CurvePoint(
                images_seen=images,
                weights_sha256=generator.provenance["weights_sha256"],
                calls=one.calls,
                seconds=round(float(taken["seconds"]), 2),
                figures=ground.hold(taken["images"]).figures,
            )
        )
        drawn.append(taken["images"])
    card = CurveCard(
        points=points,
        real=ground.of_real.figures(()),
        floor=ground.floor(config.floor_pairs),
        yardsticks=ground.yardsticks(),
        reference=ground.real.reference.records.description,
        reference_count=ground.real.count,
        judge=JudgeInfo.of(ground.judge),
        config=config,
        guidance=str(generator.guidance),
        guidance_scale=scale,
        scheduler=sampler_of(generator.pipeline.scheduler)[0],
        steps=settings["num_inference_steps"],
        model=dict(generator.provenance),
        command=shlex.join(["sfumato", *sys.argv[1:]]),
    )
    return CurveFound(card=card, folder=folder, images=drawn)


def read_curve(folder: Path) -> CurveCard:
    """The card in `folder`; `ConfigError` for one of another version."""
    return validate(CurveCard, read_json(folder / FILE_NAME), source=str(folder / FILE_NAME))
