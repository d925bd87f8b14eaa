"""`sfumato export`."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.base.files import sibling
from sfumato.cli.checks import checked_folder
from sfumato.cli.options import (
    ModelPath,
    SamplingOptions,
)
from sfumato.cli.show import check_empty, log, open_model


def export(
    model: ModelPath,
    *,
    out: Annotated[Path, typer.Option(callback=checked_folder, help="A new or empty folder.")],
    space: Annotated[
        bool,
        typer.Option(
            "--space",
            help="With a page of Gradio and its requirements, for this machine or a Hugging Face "
            "Space; the diffusers folder is OUT/model.",
        ),
    ] = False,
    sampling: SamplingOptions,
) -> None:
    """Write a diffusers folder that samples with or without sfumato; no pickle.

    Of a CAN it is a folder for sfumato.load.
    """
    from sfumato.generation.bundle_names import is_can

    check_empty(out)
    open_model(model, "cpu", can=True, **sampling.changes()).export(out, space=space)
    if space:
        log(_how_to_start(out))
    elif is_can(out):
        log(
            f'Written to {out}.\n\n  import sfumato\n  sfumato.load("{out}").sample(seeds=range(4))'
        )
    else:
        log(_how_to_open(out))


def _how_to_start(out: Path) -> str:
    room = sibling(out, "env")
    return (
        f"Written to {out}, the model to {out / 'model'}.\n\n"
        "On this machine, in an environment of its own:\n"
        f"  python -m venv {room}\n"
        f"  {room}/bin/pip install -r {out / 'requirements.txt'}\n"
        f"  {room}/bin/python {out / 'app.py'}\n\n"
        f"On Hugging Face: {out / 'README.md'} says how."
    )


def _how_to_open(out: Path) -> str:
    return (
        f"Written to {out}.\n\n"
        "With sfumato:\n"
        "  from sfumato import TextToImagePipeline\n"
        f'  pipe = TextToImagePipeline.from_pretrained("{out}")\n\n'
        "Without sfumato, by diffusers and transformers alone (it runs the folder's pipeline.py):\n"
        "  from diffusers import DiffusionPipeline\n"
        "  pipe = DiffusionPipeline.from_pretrained(\n"
        f'      "{out}", custom_pipeline="{out}", trust_remote_code=True\n'
        "  )\n\n"
        "Then, the same picture from either:\n"
        '  pipe("a prompt", seeds=[0]).images[0].save("picture.png")'
    )
