"""`sfumato distil`."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sfumato.base.errors import InputError
from sfumato.base.progress import Progress
from sfumato.cli.checks import checked_folder
from sfumato.cli.evaluate import data_of
from sfumato.cli.options import Data, Device, Form, Guidance, ModelPath, Settings, stoppable
from sfumato.cli.show import log, open_model
from sfumato.cli.train import HowOptions, train_experiment


def _numbers(text: str) -> str:
    if not all(part.strip().isdecimal() and int(part) > 0 for part in text.split(",")):
        raise typer.BadParameter("give numbers of network evaluations, such as 4,2,1")
    return text


def _range(text: str | None) -> str | None:
    try:
        low, high = map(float, (text or "1,2").split(","))
    except ValueError:
        low, high = 0.0, -1.0
    if not 0 <= low < high:
        raise typer.BadParameter("give two rising guidance scales, such as 1,3")
    return text


@dataclass(frozen=True, kw_only=True)
class StudentOptions:
    """Which students, and of which trajectories."""

    nfe: Annotated[
        str,
        typer.Option(
            callback=_numbers,
            help="Network evaluations of each student; each begins with the one before it.",
        ),
    ] = "4,2,1"
    count: Annotated[int, typer.Option(min=10, help="Trajectories of the teacher.")] = 1500
    teacher_steps: Annotated[int, typer.Option(min=1, help="Steps of a trajectory.")] = 16
    guidance: Guidance = None
    form: Form = None
    scales: Annotated[
        str | None,
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

    Interrupted and started again with the same --out, it resumes exactly.
    """
    from sfumato.methods.distillation import Plan, student_experiment, teachers_trajectories
    from sfumato.training.distributed import world_of

    if (size := world_of(os.environ).size) > 1:
        raise InputError(
            f"Students are trained in one process, not in {size}.", hint="Start it without torchrun."
        )
    nfe = tuple(int(part) for part in students.nfe.split(","))
    name = model.replace("bundled:", "").rstrip("/").rsplit("/", 1)[-1]
    plan = Plan(
        teacher=model,
        nfe=nfe,
        folder=out or Path("runs") / f"{name}-students",
        count=students.count,
        teacher_steps=students.teacher_steps,
        scales=None if students.scales is None else tuple(map(float, students.scales.split(","))),
    )
    teacher = open_model(model, device, guidance=students.guidance, form=students.form)
    if teacher.sampling.form.folded:
        raise InputError(f"{model} is a student itself.", hint="Give its teacher.")
    known = data_of(teacher, data).model_dump(mode="json")
    held = ("resolution", "channels", "value_range")
    given = [
        f"data.{key}={json.dumps(value)}" for key, value in known.items() if key not in held
    ] + list(settings or [])
    resumes = f"The same command with --out {plan.folder} resumes from here."
    progress = Progress().of("trajectories")
    for number in nfe:
        experiment = student_experiment(plan, teacher, number, given)
        if number == nfe[0]:
            log(f"Trajectories of {model} in {plan.trajectories}")
            with stoppable(f"Stopped. {resumes}"):
                teachers_trajectories(
                    plan, teacher, experiment, on_part=lambda made: progress(made, plan.count)
                )
        log(f"\nStudent of {number} network evaluation{'' if number == 1 else 's'}")
        train_experiment(experiment, plan.run(number), HowOptions(device=device))
