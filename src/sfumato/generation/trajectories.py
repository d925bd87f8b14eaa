"""Making trajectories of a teacher, whose students learn from them (`data.trajectories`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.base.errors import ConfigError, InputError
from sfumato.base.files import (
    make_folder,
    read_json,
    remove_incomplete,
    sha256_of_file,
    whole_file,
    write_json,
)
from sfumato.base.lock import locked
from sfumato.config.overrides import flattened
from sfumato.data.trajectories import (
    INDEX,
    PART_SIZE,
    Trajectories,
    generator_of,
    open_trajectories,
    student_times,
)
from sfumato.diffusion.process import Process
from sfumato.diffusion.sampling import Change, Step
from sfumato.diffusion.solvers.build import build_solver
from sfumato.diffusion.solvers.registry import Sampling
from sfumato.generation.model import Model

TEACHER_SAMPLERS = {
    "variance_preserving": "DPMSolver++",
    "rectified_flow": "Euler",
    "edm": "Euler",
}
"""One network evaluation a level, and deterministic."""


def check_steps(teacher_steps: int, levels: int) -> None:
    """`InputError` where a teacher of so many steps cannot pass so many levels."""
    if teacher_steps % levels:
        raise InputError(
            f"A teacher of {teacher_steps} steps does not pass {levels} levels.",
            hint=f"Give --teacher-steps as a multiple of {levels}.",
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """What trajectories are to be made: `count` of `levels` levels each, by a teacher that takes
    `teacher_steps` steps at guidance scales from `low` to `high`; `seed` draws their noise."""

    levels: int
    count: int
    teacher_steps: int
    low: float
    high: float
    seed: int = 0

    def __post_init__(self) -> None:
        check_steps(self.teacher_steps, self.levels)


def make_trajectories(
    teacher: Model,
    request: Request,
    folder: Path,
    *,
    captions: Sequence[str],
    rows: Sequence[int],
    on_part: Callable[[int], None] = lambda made: None,
) -> Trajectories:
    """Trajectories of `teacher` in `folder`, as many as `rows` says: trajectory i has caption
    `captions[rows[i]]`. What is there already is kept; `on_part` gets how many there are.

    `ConfigError` where the folder holds those of another teacher or request, `InputError` while
    another process makes them.
    """
    model = _as_teacher(teacher, request)
    settings = model.settings(nfe=model.nfe())
    version = settings.pop("sfumato")  # another may go on: it is recorded, not compared
    about = {
        "teacher": settings,
        "request": asdict(request),
        "times": student_times(model.process, request.levels).tolist(),
        "captions": list(captions),
    }
    with locked(make_folder(folder)):
        index = folder / INDEX
        found = read_json(index) if index.is_file() else {**about, "sfumato": version, "parts": {}}
        _check_same(folder, found, about)
        remove_incomplete(folder)
        model.text_encoder.check([captions[own] for own in rows])  # one warning for all parts
        for start in range(0, request.count, PART_SIZE):
            name = f"part-{start // PART_SIZE:05d}.safetensors"
            if name not in found["parts"] or not (folder / name).is_file():
                part = range(start, min(start + PART_SIZE, request.count))
                with whole_file(folder / name) as temporary:
                    own = model.with_(guidance=_scale_of(request, start // PART_SIZE))
                    _write_part(own, request, temporary, captions, [(i, rows[i]) for i in part])
                found["parts"][name] = sha256_of_file(folder / name)
                write_json(index, found)
            on_part(min(start + PART_SIZE, request.count))
    return open_trajectories(folder)


_LONG = ("captions", "teacher.weights_sha256")
_TITLES = {
    "request.levels": "the number of levels",
    "request.count": "--count",
    "request.teacher_steps": "--teacher-steps",
    "request.low": "the lowest w",
    "request.high": "the highest w",
    "request.seed": "the seed",
    "teacher.images_seen": "the teacher's training in images",
    "teacher.weights_sha256": "the teacher's weights",
}


def _check_same(folder: Path, found: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """`ConfigError` that names what differs: of the request, else of the teacher."""
    theirs, own = flattened({name: found[name] for name in about}), flattened(about)
    changed = [name for name in {**theirs, **own} if theirs.get(name) != own.get(name)]
    if not changed:
        return
    asked = [name for name in changed if name.startswith("request.")]
    shown = []
    for name in asked or changed:
        title = _TITLES.get(name, name)
        values = f"{theirs.get(name)!r} there, {own.get(name)!r} here"
        # Captions and hashes are too long to be read.
        shown.append(title if name in _LONG else f"{title} is {values}")
    raise ConfigError(
        f"{folder} holds other trajectories: {'; '.join(shown)}.",
        hint="Choose another --out, or give the teacher and the settings that they were made with.",
    )


def _as_teacher(model: Model, request: Request) -> Model:
    """The model with the sampler that passes every level of the students."""
    process = model.process
    teacher = model.with_(
        sampler=TEACHER_SAMPLERS[process.process],
        steps=request.teacher_steps,
        timestep_spacing="trailing",
    )
    passed = build_solver(process, teacher.sampling).times.tolist()
    if not set(student_times(process, request.levels).tolist()) <= set(passed):
        raise InputError(
            f"In {request.teacher_steps} steps the teacher does not pass the {request.levels} "
            "levels of the student.",
            hint=f"Give another --teacher-steps: {process.process} passes them in "
            f"{_fitting_steps(process, request.levels)}.",
        )
    return teacher


def _fitting_steps(process: Process, levels: int) -> str:
    """Numbers of steps, multiples of `levels`, in which a teacher passes the student's levels."""
    wanted = set(student_times(process, levels).tolist())
    teacher = Sampling(sampler=TEACHER_SAMPLERS[process.process])
    fitting = []
    for steps in range(levels, 16 * levels + 1, levels):
        passed = build_solver(process, replace(teacher, steps=steps)).times.tolist()
        fitting += [f"{steps}"] * (wanted <= set(passed))
    return " or ".join(fitting[:3]) or "no number of steps"


def _scale_of(request: Request, part: int) -> float:
    """The guidance scale of a part: the lowest, the highest, then others over the range, in no
    order. They are denser towards the lowest, where images change most with the scale."""
    if part < 2:
        return (request.low, request.high)[part]
    golden = 0.6180339887498949
    return request.low + (request.high - request.low) * ((part - 1.5) * golden % 1) ** 2


def _write_part(
    model: Model,
    request: Request,
    file: Path,
    captions: Sequence[str],
    rows: Sequence[tuple[int, int]],
) -> None:
    from safetensors.torch import save_file

    wanted = student_times(model.process, request.levels).tolist()[1:]
    passed = build_solver(model.process, model.sampling).times.tolist()
    states: list[Tensor] = []

    def keep(step: Step) -> Change | None:
        after = step.index + 1
        if after < step.count and passed[after] in wanted:
            states.append(step.x_t.clone())
        return None

    generators = [generator_of(request.seed, row) for row, _ in rows]
    tokens = model.tokens([captions[own] for _, own in rows])
    states.append(model.denoise(tokens, generators, on_step=keep).x0)
    stored = {
        "states": torch.stack(states, dim=1).half().cpu().contiguous(),
        "captions": torch.tensor([own for _, own in rows]),
        "scales": torch.full((len(rows),), model.sampling.guidance_scale),
    }
    save_file(stored, file)
