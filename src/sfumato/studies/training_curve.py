"""What a run's kept checkpoints draw: quality over the images that training has seen."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import folder_for, read_json, sibling
from sfumato.base.section import Section, validate
from sfumato.evaluation.arms import CallsDone, Draws, OnCalls
from sfumato.evaluation.card import Figure
from sfumato.evaluation.reference import Found, Ground, GroundCard
from sfumato.generation.model import ImageGenerator
from sfumato.generation.pipeline import check_sampling_arguments
from sfumato.training.checkpoint import Checkpoints

FILE_NAME = "curve.json"
FORMAT = 1
SHOWN = 10


class CurveConfig(Section):
    """What each checkpoint draws."""

    count: int = 500
    """Images of each checkpoint, classes in turn."""
    first_seed: int = Field(default=0, ge=0)
    judge: str = "auto"
    """Who reads the classes, as in `evaluation.classifier`."""
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


class CurveCard(GroundCard):
    """Every point, and everything that they depend on; `model` is that of the last."""

    format: int = FORMAT
    points: list[CurvePoint]
    guidance: str
    guidance_scale: float
    shown: list[str]
    """What the first images are of: names of classes."""
    config: CurveConfig


class CurveFound(Found[CurveCard]):
    """`images`: of each point the first ones, one a class, at most `SHOWN`."""

    file_name: ClassVar = FILE_NAME


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

    Autoguidance leads away from its weaker checkpoint, so that this one and those before it are
    left out; so is one that is damaged, or removed meanwhile by training that goes on. The card
    lies in `base`, or in `base`-2, ... where that holds another; images lie in `base`-images and
    are not drawn again. `InputError` for a pipeline, a model without data or classes, too few
    images, or where no checkpoint is left. The generator is left at the last checkpoint.
    """
    if generator.run_folder is None:
        raise InputError(
            "A curve is of a run: a pipeline has one set of weights.",
            hint="Give the folder of the run that it came from.",
        )
    settings = generator.pipeline.config
    scale = settings["guidance_scale"]
    check_sampling_arguments(["any"], guidance_scale=scale, steps=settings["num_inference_steps"])
    form = generator.with_weak_network(generator.guidance)
    after = int(form.parameters["images"]) if form.needs_weak_network else -1
    ground = Ground.of(
        generator, count=config.count, first_seed=config.first_seed, judge=config.judge, say=say
    )
    checkpoints = Checkpoints(generator.run_folder / "checkpoints")
    names = list(ground.real.reference.records.class_names[:SHOWN])
    draws: list[Draws] = []
    points: list[CurvePoint] = []
    shown: list[Tensor] = []
    kept = [images for images in checkpoints.counts() if images > after]
    for place, images in enumerate(kept):
        try:
            generator.use_checkpoint(images)
        except (InputError, DamagedDataError) as error:
            say(f"Left out: {error.what}")
            continue
        one = Draws(
            generator=generator,
            asked=ground.asked,
            guidance_scale=scale,
            first_seed=config.first_seed,
            store=sibling(base, "images"),
            guidance=form,
        )
        draws.append(one)
        say(f"{images:,} images seen")
        taken = one.take(CallsDone([one], _of_all(on_calls, place, len(kept))))
        points.append(
            CurvePoint(
                images_seen=images,
                weights_sha256=generator.provenance["weights_sha256"],
                calls=one.calls,
                seconds=round(float(taken["seconds"]), 2),
                figures=ground.hold(taken["images"]).figures,
            )
        )
        shown.append(taken["images"][: len(names)])
    if not points:
        raise InputError(
            f"{generator.run_folder} has kept no checkpoint that can be drawn with.",
            hint="training.checkpoint_epochs and training.keep_checkpoints keep more.",
        )
    folder = folder_for(
        base,
        {
            "format": FORMAT,
            "weights": [point.weights_sha256 for point in points],
            "draws": {**draws[-1].settings, "model": None},
            "config": config.model_dump(mode="json"),
            "reference": ground.real.reference.digest,
            "judge": ground.judge.identity,
        },
        say=say,
    )
    if (folder / FILE_NAME).exists():
        return CurveFound(card=read_curve(folder), folder=folder, before=True)
    card = CurveCard(
        points=points,
        guidance=str(form),
        guidance_scale=scale,
        shown=names,
        config=config,
        **ground.card_fields(generator, floor_pairs=config.floor_pairs),
    )
    return CurveFound(card=card, folder=folder, images=shown)


def _of_all(on_calls: OnCalls, place: int, count: int) -> OnCalls:
    """`on_calls` as told by number `place` of `count` that take as many calls each."""
    return lambda done, total: on_calls(place * total + done, count * total)


def read_curve(folder: Path) -> CurveCard:
    """The card in `folder`; `ConfigError` for one of another version."""
    return validate(CurveCard, read_json(folder / FILE_NAME), source=str(folder / FILE_NAME))
