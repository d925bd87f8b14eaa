"""The paper's findings on guidance (section 3.2.7), measured and decided; to be read from the top.

Arms are models and ways from their samples to pixels; each claim is decided from the paired
differences of two (arm, scale) on the same seeds and captions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from torch import Tensor

from sfumato import __version__
from sfumato.base.environment import command, hardware, now
from sfumato.base.errors import InputError
from sfumato.base.files import folder_for, read_json, sibling, write_json
from sfumato.base.section import Section, validate
from sfumato.config.sections import DataConfig
from sfumato.data.records import Records, load_records, source_identity
from sfumato.diffusion.solvers.schedulers import sampler_of
from sfumato.evaluation.arms import (
    BORDER_PX,
    EDGE_PX,
    ArmFigures,
    CallsDone,
    Draws,
    Measured,
    OnCalls,
    ScaleFigures,
)
from sfumato.evaluation.card import Figure, JudgeInfo
from sfumato.evaluation.classifier import load_judge
from sfumato.evaluation.real import RealImages
from sfumato.evaluation.reference import MOST_REAL, check_enough, real_measured
from sfumato.evaluation.subjects import Asked, what_to_ask
from sfumato.generation.model import ImageGenerator, run_sections
from sfumato.paper.claims import EARLY_EPOCHS, GUIDED, NONE, Evidence
from sfumato.studies.verdicts import RULE, Claim
from sfumato.training.checkpoint import Checkpoints
from sfumato.training.records import read_records

FILE_NAME = "findings.json"
FORMAT = 2
DIGITS = ("4", "5")


class FindingsConfig(Section):
    """What is drawn for the findings."""

    guidance_scales: tuple[float, ...] = (0, 1, 2, 3, 5, 10, 20)
    """Of the main arms; 1 and 5, which the paper compares, must be among them."""
    clipped_scales: tuple[float, ...] = (NONE, GUIDED)
    """Of the arm whose x0 is clipped as the paper's scheduler does."""
    count: int = 500
    """Images of each arm and scale, classes in turn."""
    first_seed: int = 0
    judge: str = "auto"
    """Who reads the classes, as in `evaluation.classifier`."""

    @field_validator("guidance_scales", "clipped_scales")
    @classmethod
    def _compared(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not {NONE, GUIDED} <= set(value):
            raise ValueError("1 and 5, which the paper compares, must be among them")
        return tuple(sorted(set(value)))


class Findings(Section):
    """Every claim with its verdict, every figure, and everything that they depend on."""

    format: int = FORMAT
    claims: list[Claim]
    arms: list[ArmFigures]
    real: dict[str, Figure]
    real_count: int
    reference: str
    judge: JudgeInfo
    config: FindingsConfig
    seeds: tuple[int, int]
    captions: list[str]
    also_differ: list[str]
    """What the two models differ in beside caption dropout: setting, value, value."""
    notes: list[str]
    rule: str = RULE
    confidence: float = 0.95
    hardware: dict[str, Any] = Field(default_factory=hardware)
    sfumato: str = __version__
    date: str = Field(default_factory=now)
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The findings, the folder for them, and the first images of each row by its title.

    `before`: the same were found before, with their pictures; `rows` is empty then.
    """

    findings: Findings
    folder: Path
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    before: bool = False

    def save(self) -> Path:
        """Write `findings.json`: it comes last, as the sign that all is there."""
        write_json(self.folder / FILE_NAME, self.findings.model_dump(mode="json"))
        return self.folder / FILE_NAME


@dataclass(frozen=True, kw_only=True)
class _Arm:
    key: str
    title: str
    draws: Mapping[float, Draws]
    stretched: bool = False

    @property
    def tensor(self) -> str:
        return "stretched" if self.stretched else "images"


def measure_findings(
    without: ImageGenerator,
    with_dropout: ImageGenerator | None,
    config: FindingsConfig,
    *,
    base: Path,
    say: Callable[[str], None] = lambda sentence: None,
    on_calls: OnCalls = lambda done, total: None,
) -> Found:
    """Draw every arm, measure every image once, decide every claim.

    `without`: a run without caption dropout, drawn by its own sampler as it is set; `with_dropout`:
    one with it, of the same data. The findings belong in `base`, or in `base`-2, ... where that
    holds others; images lie in `base`-images and are shared by all. Killed and started again with
    the same arguments it goes on; what was found and saved before is read.
    `InputError` for runs that are no pair, or too few images.
    """
    run_folder, data = _run_of(without, dropout=False)
    if with_dropout is not None:
        _check_pair(data, _run_of(with_dropout, dropout=True)[1])
    real = RealImages.load(data, "reference")
    classes = len(real.records.class_names)
    check_enough(config.count, classes=classes)
    judge = load_judge(data, config.judge, device=without.pipeline.device, on_training=say)
    store = sibling(base, "images")
    early = _earlier(without, run_folder, data)
    arms = _arms(without, with_dropout, early, config, real.records, store)
    folder = folder_for(base, _request(arms, config, real, judge.identity), say=say)
    if (folder / FILE_NAME).exists():
        return Found(findings=read_findings(folder), folder=folder, before=True)

    all_draws = {id(d): d for arm in arms for d in arm.draws.values()}.values()
    on_part = CallsDone(all_draws, on_calls)
    digits = _places(real.records.class_names, DIGITS)
    measured: dict[tuple[str, float], Measured] = {}
    figures: dict[str, list[ScaleFigures]] = {arm.key: [] for arm in arms}
    for arm in arms:
        for scale, draws in arm.draws.items():
            taken = draws.take(on_part)
            assert draws.asked.labels is not None  # the data have classes: the judge saw to it
            found = Measured.of(taken[arm.tensor], draws.asked.labels, judge)
            measured[arm.key, scale] = found
            figures[arm.key].append(
                ScaleFigures(
                    guidance_scale=scale,
                    calls=draws.calls,
                    seconds=round(float(taken["seconds"]), 2),
                    drawn=f"{store.name}/{draws.parts.folder.name}",
                    figures=found.figures(digits),
                )
            )
    of_real = real_measured(real, MOST_REAL, judge)
    also_differ = [] if with_dropout is None else _differences(without, with_dropout)
    size = len(load_records(data, "train"))
    evidence = Evidence(
        measured=measured,
        real=of_real.figures(digits),
        digits=digits,
        also_differ=also_differ,
        epochs=None
        if early is None
        else (early.provenance["images_seen"] / size, without.provenance["images_seen"] / size),
        losses=read_records(run_folder / "metrics.jsonl"),
        total_images=run_sections(run_folder).training.total_images(size),
        value_range=without.pipeline.config["value_range"],
    )
    findings = Findings(
        claims=evidence.claims(),
        arms=[
            ArmFigures(
                key=arm.key,
                title=arm.title,
                settings={
                    name: value
                    for name, value in next(iter(arm.draws.values())).settings.items()
                    if name != "guidance_scale"
                },
                scales=figures[arm.key],
            )
            for arm in arms
        ],
        real=dict(evidence.real),
        real_count=len(of_real.labels),
        reference=real.records.description,
        judge=JudgeInfo.of(judge),
        config=config,
        seeds=(config.first_seed, config.first_seed + config.count - 1),
        captions=list(real.records.class_captions),
        also_differ=also_differ,
        notes=_notes(of_real, data),
        command=command(),
    )
    return Found(findings=findings, folder=folder, rows=_shown(arms, measured, of_real, classes))


def read_findings(folder: Path) -> Findings:
    """What `Found.save` wrote into `folder`; `ConfigError` where it is of another form."""
    return validate(Findings, read_json(folder / FILE_NAME), source=str(folder / FILE_NAME))


# What is drawn ------------------------------------------------------------------------------------


def _run_of(generator: ImageGenerator, *, dropout: bool) -> tuple[Path, DataConfig]:
    """The run's folder and data; `InputError` for a pipeline, or where dropout is the other way."""
    if generator.run_folder is None or generator.data is None:
        raise InputError(
            "Findings are of runs: a pipeline has no record of its training.",
            hint="Give the folder of the run that it came from.",
        )
    share = generator.provenance["caption_dropout"]
    if (share > 0) != dropout:
        first = f"{generator.run_folder} was trained with caption_dropout = {share:g}"
        raise InputError(
            f"{first}, but {'the second' if dropout else 'the first'} run is the one "
            f"{'with' if dropout else 'without'} dropout.",
            hint="sfumato findings RUN_WITHOUT_DROPOUT [RUN_WITH_DROPOUT]",
        )
    return generator.run_folder, generator.data


def _check_pair(first: DataConfig, second: DataConfig) -> None:
    unlike = [
        f"data.{name}: {getattr(first, name)} and {getattr(second, name)}"
        for name in ("resolution", "channels", "fit", "split_seed", "test_share", "tuning_share")
        if getattr(first, name) != getattr(second, name)
    ]
    if source_identity(first) != source_identity(second):
        unlike.insert(0, f"data.source: {first.source} and {second.source}")
    if unlike:
        raise InputError(
            "The two runs have no common real images:\n  " + "\n  ".join(unlike),
            hint="Train both on the same data.",
        )


def _arms(
    without: ImageGenerator,
    with_dropout: ImageGenerator | None,
    early: ImageGenerator | None,
    config: FindingsConfig,
    reference: Records,
    store: Path,
) -> list[_Arm]:
    """Every (arm, scale), the clipped one once for its two ways to pixels."""

    def draws(
        generator: ImageGenerator, scales: Sequence[float], *, clipped: bool = False
    ) -> dict[float, Draws]:
        own = reference
        if generator.data is not None and generator.data.caption != data.caption:
            own = load_records(generator.data, "reference")  # each is asked as it was trained
        return {
            scale: Draws(
                generator=generator,
                asked=_asked(own, config),
                guidance_scale=scale,
                first_seed=config.first_seed,
                store=store,
                clipped=clipped,
            )
            for scale in scales
        }

    assert without.data is not None
    data = without.data
    arms = [
        _Arm(
            key="without",
            title="no dropout",
            draws=draws(without, config.guidance_scales),
        )
    ]
    if _clips_elsewhere(without):
        clipped = draws(without, config.clipped_scales, clipped=True)
        arms += [
            _Arm(key="clipped", title="no dropout, x0 in [-1, 1]", draws=clipped),
            _Arm(
                key="stretched",
                title="no dropout, x0 in [-1, 1], min-max",
                draws=clipped,
                stretched=True,
            ),
        ]
    if early is not None:
        images = early.provenance["images_seen"]
        arms.append(
            _Arm(
                key="early",
                title=f"no dropout, after {images:,} images",
                draws=draws(early, (NONE, GUIDED)),
            )
        )
    if with_dropout is not None:
        share = with_dropout.provenance["caption_dropout"]
        arms.append(
            _Arm(
                key="with",
                title=f"dropout {100 * share:g} %",
                draws=draws(with_dropout, config.guidance_scales),
            )
        )
    return arms


def _asked(records: Records, config: FindingsConfig) -> Asked:
    return what_to_ask(
        records,
        count=config.count,
        labels="balanced",
        templates=(),
        first_seed=config.first_seed,
    )


def _clips_elsewhere(generator: ImageGenerator) -> bool:
    """Whether the paper's clipping to [-1, 1] is another than to the value range."""
    return tuple(generator.pipeline.config["value_range"]) != (-1.0, 1.0)


def _earlier(generator: ImageGenerator, run: Path, data: DataConfig) -> ImageGenerator | None:
    """The run's older checkpoint nearest `EARLY_EPOCHS`, with the same sampler; None if none is."""
    aim = EARLY_EPOCHS * len(load_records(data, "train"))
    older = [
        checkpoint.images_seen
        for checkpoint in Checkpoints(run / "checkpoints").all()
        if checkpoint.images_seen < generator.provenance["images_seen"]
    ]
    if not older:
        return None
    found = ImageGenerator.open(
        run,
        device=str(generator.pipeline.device),
        checkpoint=min(older, key=lambda images: abs(images - aim)),
    )
    config = generator.pipeline.config
    found.use(
        scheduler=sampler_of(generator.pipeline.scheduler)[0],
        timestep_spacing=generator.pipeline.scheduler.config["timestep_spacing"],
        steps=config["num_inference_steps"],
        guidance=generator.guidance,
    )
    return found


def _request(
    arms: Sequence[_Arm], config: FindingsConfig, real: RealImages, judge: str
) -> dict[str, Any]:
    """Everything that the findings depend on: equal requests have equal findings."""
    return {
        "format": FORMAT,
        "arms": {
            arm.key: [draws.parts.folder.name for draws in arm.draws.values()] for arm in arms
        },
        "config": config.model_dump(mode="json"),
        "reference": real.digest,
        "judge": judge,
    }


def _places(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The classes called `wanted`, all or none: "4", "4 - four"."""
    first = [str(name).split()[0] if str(name).split() else "" for name in names]
    return [first.index(name) for name in wanted] if set(wanted) <= set(first) else []


_NO_MATTER = {
    "name",
    "data.source",
    "data.held_out",
    "data.loading",
    "data.workers",
    "data.max_damaged",
    "training.caption_dropout",
    "training.micro_batches",
    "sampling.guidance_scale",
}
"""Settings that change no image, or of which it is known."""
_CADENCE = ("_every_images", "keep_checkpoints", "checkpoint_epochs", "also_halflives_images")


def _differences(first: ImageGenerator, second: ImageGenerator) -> list[str]:
    """What the two models differ in beside dropout, as "setting: value and value"."""

    def settings(generator: ImageGenerator) -> dict[str, Any]:
        assert generator.run_folder is not None
        flat: dict[str, Any] = {}

        def add(values: Mapping[str, Any], prefix: str) -> None:
            for name, value in values.items():
                if isinstance(value, dict):
                    add(value, f"{prefix}{name}.")
                else:
                    flat[prefix + name] = value

        add(run_sections(generator.run_folder).model_dump(mode="json"), "")
        scheduler = generator.pipeline.scheduler
        used = {
            "scheduler": sampler_of(scheduler)[0],
            "steps": generator.pipeline.config["num_inference_steps"],
            "timestep_spacing": scheduler.config["timestep_spacing"],
        }
        flat |= {f"sampling.{name}": value for name, value in used.items()}
        # Not what was asked for: how far the weights have come.
        flat = {k: v for k, v in flat.items() if k not in ("training.images", "training.epochs")}
        return flat | {"images seen": generator.provenance["images_seen"]}

    one, other = settings(first), settings(second)
    return [
        f"{name}: {_short(one.get(name))} and {_short(other.get(name))}"
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
        and name not in _NO_MATTER
        and not name.endswith(_CADENCE)
    ]


def _short(value: object) -> str:
    return f"{len(value)} of them" if isinstance(value, list) and len(value) > 4 else str(value)


def _notes(real: Measured, data: DataConfig) -> list[str]:
    blank = {
        px: float((real.pixels[name] == 0).double().mean())
        for px, name in ((BORDER_PX, "border_rms"), (EDGE_PX, "edge_rms"))
    }
    return [
        f"The outer {px} pixels are black in {100 * share:.0f} % of the real images of "
        f"{data.resolution} pixels."
        for px, share in blank.items()
    ] + [
        "The differences are of images with the same seed and caption; w = 0 is unconditional, so "
        "that its agreement is that of chance."
    ]


def _shown(
    arms: Sequence[_Arm],
    measured: Mapping[tuple[str, float], Measured],
    real: Measured,
    classes: int,
) -> dict[str, Tensor]:
    """One image of each class at w = 1 and 5 of each arm, and real ones: (classes, C, H, W)."""
    rows = {
        f"{arm.title}, w = {scale:g}": measured[arm.key, scale].images[:classes]
        for arm in arms
        for scale in (NONE, GUIDED)
    }
    first = [int((real.labels == label).nonzero()[0]) for label in real.labels.unique().tolist()]
    return rows | {"real": real.images[first][:classes]}
