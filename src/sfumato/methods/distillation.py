"""Distillation: students of few network evaluations, each from the one before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from sfumato.base.errors import InputError
from sfumato.config.finetuning import DistillationConfig
from sfumato.config.schema import DiffusionExperiment
from sfumato.data.loaders import open_training
from sfumato.data.loading import SampleOrder, chosen_captions
from sfumato.data.records import Annotations
from sfumato.data.trajectories import PART_SIZE, Trajectories, open_trajectories, places_of
from sfumato.diffusion.guidance import scale_embedding
from sfumato.diffusion.solvers.registry import STUDENT_SAMPLERS
from sfumato.evaluation.store import digest_of
from sfumato.generation.model import Model
from sfumato.generation.origin import load_from
from sfumato.generation.trajectories import Request, check_steps, make_trajectories
from sfumato.training.features import FeatureDistance, bundled_stages
from sfumato.training.hooks import HeldOutHook
from sfumato.training.loop import Hook
from sfumato.training.objectives.diffusion import DiffusionObjective
from sfumato.training.objectives.distillation import (
    DistillationObjective,
    Levels,
)
from sfumato.training.records import HELD_OUT

PRESET = "student"
"""The preset that every student is trained by."""
FEWEST_SCALES = 16
"""Guidance scales that a student learns from, where it takes w as an input."""
SCALE_EMBEDDING = 32
"""Width of the embedding of w, where a student takes it as an input."""


# The run of a student -----------------------------------------------------------------------------


def trajectories_of(experiment: DiffusionExperiment) -> Trajectories | None:
    """What a student learns from; None for a model that learns from images."""
    student = experiment.distillation
    return None if student is None else open_trajectories(Path(student.trajectories))


def student_provenance(experiment: DiffusionExperiment) -> dict[str, str]:
    """`trajectories`: a digest of those that a student learns from, with their teacher and request;
    empty for a model that learns from images."""
    found = trajectories_of(experiment)
    if found is None:
        return {}
    made = {name: value for name, value in found.about.items() if name != "sfumato"}
    return {"trajectories": digest_of(made)}


def student_objective(
    parts: Sequence[Any],
    student: DistillationConfig,
    trajectories: Trajectories,
    *,
    device: torch.device,
) -> DistillationObjective:
    """`parts`: network, process, codec, bank and training, as of any diffusion run."""
    network, process, codec, _, _ = parts
    weighs, width = student.features > 0, network.config.time_cond_proj_dim
    scales = trajectories.scales.to(device)
    return DistillationObjective(
        *parts,
        levels=Levels.of(process, student.nfe, levels=trajectories.levels, device=device),
        features=FeatureDistance(codec.value_range, bundled_stages(device)) if weighs else None,
        features_weight=student.features,
        scales=None if width is None else scale_embedding(scales, width),
    )


def student_hooks(
    experiment: DiffusionExperiment, objective: DiffusionObjective, batches: Any, folder: Path
) -> list[Hook]:
    """The loss on held-out trajectories, which ends the training of a student."""
    student = experiment.distillation
    if student is None or not (held_out := batches.held_out()):
        return []
    assert isinstance(objective, DistillationObjective)
    return [
        HeldOutHook(
            folder / HELD_OUT,
            every_images=student.measure_every_images,
            patience=student.patience,
            measure=lambda: objective.held_out_loss(held_out),
        )
    ]


# Students in a row --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Students of `nfe` evaluations each, in a row, of `teacher`."""

    teacher: str
    nfe: tuple[int, ...]
    folder: Path
    count: int
    teacher_steps: int
    scales: tuple[float, float] | None = None
    """The range of guidance scales of a student that takes w as an input; None for the teacher's
    own scale alone."""

    def __post_init__(self) -> None:
        most, several = self.nfe[0], self.nfe
        if any(a <= b or most % b for a, b in pairwise(several)):
            raise InputError(
                f"--nfe {','.join(map(str, several))} is not a row of students.",
                hint="Give falling numbers that divide the first, such as 4,2,1.",
            )
        check_steps(self.teacher_steps, most)
        if self.scales is not None and self.count < FEWEST_SCALES * PART_SIZE:
            raise InputError(
                f"{self.count} trajectories are too few for --scales: every {PART_SIZE} have one "
                f"guidance scale, and a student learns from {FEWEST_SCALES} or more of these.",
                hint=f"Give --count {FEWEST_SCALES * PART_SIZE} or more.",
            )

    @property
    def trajectories(self) -> Path:
        return self.folder / "trajectories"

    def run(self, nfe: int) -> Path:
        """The run folder of the student of `nfe` evaluations."""
        return self.folder / f"nfe-{nfe}"

    def origin(self, nfe: int) -> str:
        """What the student begins with: the student before it, the teacher for the first."""
        place = self.nfe.index(nfe)
        return self.teacher if place == 0 else str(self.run(self.nfe[place - 1]))


def student_experiment(
    plan: Plan, teacher: Model, nfe: int, settings: Sequence[str]
) -> DiffusionExperiment:
    """The experiment of one student; `settings` are overrides of the preset."""
    low, high = scales_of(plan, teacher)
    own = min(max(teacher.sampling.guidance_scale, low), high)
    width = "null" if low == high else SCALE_EMBEDDING
    given = [
        f"model.scale_embedding={width}",
        f"name=student-{nfe}",
        f"distillation.teacher={plan.teacher}",
        f"distillation.trajectories={plan.trajectories}",
        f"distillation.nfe={nfe}",
        f"sampling.sampler={STUDENT_SAMPLERS[teacher.process.process]}",
        f"sampling.steps={nfe}",
        "sampling.timestep_spacing=trailing",
        f"sampling.guidance_scale={own!r}",
        f"sampling.guidance=folded:nfe={nfe},low={low!r},high={high!r}",
    ]
    experiment = load_from(plan.origin(nfe), PRESET, [*given, *settings], plan.run(nfe))
    evaluation, sampling = experiment.evaluation, experiment.sampling
    possible = {
        name: sampling.scales_among(getattr(evaluation, name))
        for name in ("guidance_scales", "quick_scales")
    }
    return experiment.model_copy(update={"evaluation": evaluation.model_copy(update=possible)})


def scales_of(plan: Plan, teacher: Model) -> tuple[float, float]:
    """The lowest and highest guidance scale of the students."""
    own = float(teacher.sampling.guidance_scale)
    return (own, own) if plan.scales is None else plan.scales


def teachers_trajectories(
    plan: Plan,
    teacher: Model,
    experiment: DiffusionExperiment,
    *,
    on_part: Callable[[int], None],
) -> Trajectories:
    """The trajectories of a plan, with captions drawn as training draws them."""
    for nfe in plan.nfe:  # before hours of sampling
        places_of(teacher.process, nfe, levels=plan.nfe[0])
    records = open_training(experiment.data)
    low, high = scales_of(plan, teacher)
    return make_trajectories(
        teacher,
        Request(
            levels=plan.nfe[0],
            count=plan.count,
            teacher_steps=plan.teacher_steps,
            low=low,
            high=high,
        ),
        plan.trajectories,
        captions=records.captions,
        rows=drawn_captions(records, plan.count),
        on_part=on_part,
    )


def drawn_captions(records: Annotations, count: int) -> list[int]:
    """Rows of `captions`: those of `count` images in random order, one caption each."""
    images = SampleOrder(len(records), seed=0).indices(0, count)
    counts = records.caption_counts
    chosen = chosen_captions(
        records.prompts.shape[1],
        None if counts is None else counts[images],
        seed=0,
        images_seen=0,
        batch_size=count,
        share=slice(None),
    )
    return records.prompts[images, chosen].tolist()
