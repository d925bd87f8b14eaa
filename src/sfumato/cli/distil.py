"""`sfumato distil`."""

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.base.errors import InputError
from sfumato.base.progress import Progress
from sfumato.cli.checks import checked_folder, parsed_scales
from sfumato.cli.evaluate import data_of
from sfumato.cli.options import (
    Data,
    Device,
    Evaluations,
    Form,
    Guidance,
    ModelPath,
    Settings,
    stoppable,
)
from sfumato.cli.show import beside, log, open_model
from sfumato.cli.train import HowOptions, train_experiment
from sfumato.config.sections import DataConfig


def _range(text: str | None) -> tuple[float, ...] | None:
    scales = parsed_scales(text)
    if scales is not None and (len(scales) != 2 or scales[0] >= scales[1]):
        raise InputError(
            f"--scales {text} is not a range.", hint="Give two rising guidance scales, such as 1,3."
        )
    return scales


@dataclass(frozen=True, kw_only=True)
class StudentOptions:
    """Which students, and of which trajectories."""

    nfe: Evaluations = "4,2,1"
    count: Annotated[int, typer.Option(min=10, help="Trajectories of the teacher.")] = 1500
    teacher_steps: Annotated[int, typer.Option(min=1, help="Steps of a trajectory.")] = 16
    guidance: Guidance = None
    form: Form = None
    scales: Annotated[
        Any,
        typer.Option(
            metavar="LOW,HIGH",
            callback=_range,
            help="Students that take w as an input, from LOW to HIGH; else at the model's own w.",
        ),
    ] = None


def distil(
    model: ModelPath,
    *,
    out: Annotated[
        Path | None,
        typer.Option(callback=checked_folder, help="Folder for trajectories and students."),
    ] = None,
    students: StudentOptions,
    data: Data = None,
    device: Device = "auto",
    settings: Settings = None,
) -> None:
    """Distil a model into students of few network evaluations, with its guidance in their weights.

    Each student begins with the one before it, the first with the model.
    Interrupted and started again with the same --out, it resumes exactly.
    """
    from sfumato.methods.distillation import Plan, student_experiment, teachers_trajectories

    _check_alone()
    plan = Plan(
        teacher=model,
        nfe=students.nfe,
        folder=out or beside(model, "students"),
        count=students.count,
        teacher_steps=students.teacher_steps,
        scales=students.scales,
    )
    guidance, form = students.guidance, students.form
    teacher = open_model(model, device, student=False, guidance=guidance, form=form)
    given = [*_data_settings(data_of(teacher, data)), *(settings or [])]
    again = f"The same command with --out {plan.folder} resumes from here."
    progress = Progress().of("trajectories")
    on_part = partial(progress, total=plan.count)
    for number in plan.nfe:
        experiment = student_experiment(plan, teacher, number, given)
        if number == plan.nfe[0]:
            log(f"Trajectories of {model} in {plan.trajectories}")
            with stoppable(f"Stopped. {again}"):
                teachers_trajectories(plan, teacher, experiment, on_part=on_part)
        log(f"\nStudent of {number} network evaluation{'' if number == 1 else 's'}")
        how = HowOptions(device=device)
        train_experiment(experiment, plan.run(number), how, given=plan.folder)


def _check_alone() -> None:
    """`InputError` in one of several processes."""
    from sfumato.training.distributed import world_of

    if (size := world_of(os.environ).size) > 1:
        raise InputError(
            f"Students are trained in one process, not in {size}.",
            hint="Start it without torchrun.",
        )


def _data_settings(data: DataConfig) -> list[str]:
    """Overrides of the section data, without what a student has from its teacher."""
    known = data.model_dump(mode="json")
    held = ("resolution", "channels", "value_range")
    return [f"data.{key}={json.dumps(value)}" for key, value in known.items() if key not in held]
