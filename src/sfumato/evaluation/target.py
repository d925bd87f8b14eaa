"""Opening what `sfumato evaluate` is given: a run, a pipeline, a folder of images, an .npz file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sfumato.base.errors import InputError
from sfumato.config.sections import DataConfig, EvaluationConfig
from sfumato.data.records import Records, load_records
from sfumato.evaluation.subjects import (
    Subject,
    drawn_subject,
    folder_subject,
    npz_subject,
    what_to_ask,
)
from sfumato.generation.model import ImageGenerator

Kind = Literal["run", "pipeline", "folder", "npz"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is measured, and the real images that it is measured against."""

    kind: Kind
    name: str
    subjects: Sequence[Subject]
    data: DataConfig
    provenance: dict[str, object]
    captions: Sequence[str] = ()
    labels: Literal["balanced", "random", "as found"] = "as found"


def model_target(
    generator: ImageGenerator,
    path: Path,
    config: EvaluationConfig,
    *,
    first_seed: int = 0,
    held_out: bool = False,
) -> Target:
    """Images to be drawn at each guidance scale of `config`, with the captions of the data."""
    data = generator.data
    if data is None:
        raise InputError(
            "This model does not say which data set it was trained on.",
            hint="Evaluate the run folder it came from.",
        )
    if held_out and not data.held_out:
        raise InputError(
            "This model's data set names no held-out captions (data.held_out).",
            hint="Evaluate without --held-out.",
        )
    asked = what_to_ask(
        load_records(data, "reference"),
        count=config.count,
        labels=config.labels,
        templates=data.held_out if held_out else (),
        first_seed=first_seed,
    )
    return Target(
        kind="run" if generator.run_folder is not None else "pipeline",
        name=path.resolve().name,
        subjects=[
            drawn_subject(generator, asked, guidance_scale=scale, first_seed=first_seed)
            for scale in config.guidance_scales
        ],
        data=data,
        provenance=dict(generator.provenance),
        captions=asked.templates or (data.caption[:1] if asked.labels is not None else ()),
        labels=config.labels if asked.labels is not None else "random",
    )


def files_target(path: Path, data: DataConfig) -> Target:
    """A folder of images or an .npz file, against the data set that they were made for.

    The real images are brought to the size of the given ones. `InputError` where they are neither.
    """
    resolved: list[DataConfig] = []

    def reference(height: int, width: int, channels: int) -> Records:
        if height != width:
            raise InputError(
                f"The images of {path} are not square: {width} x {height}.",
                hint="Real images are brought to squares; cut or squash these the same way.",
            )
        sized = data.model_copy(update={"resolution": height, "channels": channels})
        resolved.append(sized)
        return load_records(sized, "reference")

    if path.is_dir():
        subject, kind = folder_subject(path, reference), "folder"
    elif path.suffix == ".npz" and path.is_file():
        subject, kind = npz_subject(path, reference), "npz"
    else:
        wrong = "is neither a folder nor an .npz file" if path.exists() else "does not exist"
        raise InputError(
            f"{path} {wrong}.",
            hint="Give a run, an exported pipeline, bundled:mnist, a folder of images or an .npz.",
        )
    return Target(
        kind=kind,
        name=path.resolve().name,
        subjects=[subject],
        data=resolved[0],
        provenance={"files": subject.settings["files"]},
    )
