"""`sfumato sample`."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.base.memory import collection_paused
from sfumato.cli.options import Device, ModelPath, SamplingOptions, Seed
from sfumato.cli.show import open_model, unused, warn_of_sampling

BATCH = 64
"""Images that are sampled before they are written."""


def sample(
    model: ModelPath,
    prompts: Annotated[list[str], typer.Argument(help="Prompts, each in quotes.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for the PNGs.")] = Path("samples"),
    count: Annotated[int, typer.Option(min=1, help="Images for each prompt.")] = 1,
    sampling: SamplingOptions,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Sample images from prompts. Each PNG carries its settings; see `sfumato inspect`."""
    with collection_paused(freeze=True):  # imports take longer than to sample one image
        from sfumato.base.files import write_bytes

        opened = open_model(model, device, **sampling.changes())
    warn_of_sampling(opened)
    wanted = [(prompt, seed + index) for prompt in prompts for index in range(count)]
    for start in range(0, len(wanted), BATCH):
        part = wanted[start : start + BATCH]
        images = opened.sample(
            [prompt for prompt, _ in part], [own for _, own in part], alone=len(wanted) == 1
        )
        for index, settings in enumerate(images.settings):
            path = unused(out / file_name(settings))
            write_bytes(path, images.png(index))
            print(path, flush=True)


def file_name(settings: dict[str, Any]) -> str:
    """`a-handwritten-digit-7-w3-apg-seed0.png`; plain guidance is not named."""
    words = re.sub(r"[^\w]+", "-", settings["prompt"].lower()).strip("-")[:60] or "empty"
    form = settings["guidance"].partition(":")[0]
    guidance = f"w{settings['guidance_scale']:g}" + ("" if form == "cfg" else f"-{form}")
    return f"{words}-{guidance}-seed{settings['seed']}.png"
