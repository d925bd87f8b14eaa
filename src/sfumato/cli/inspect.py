"""`sfumato inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.base.errors import InputError
from sfumato.cli.show import log


def inspect(
    file: Annotated[Path, typer.Argument(help="A PNG that sfumato wrote.")],
) -> None:
    """Print the settings that a PNG carries: prompt, seed, guidance, sampler, checkpoint."""
    from sfumato.base.images import settings_in_png

    settings = settings_in_png(file)
    if not settings:
        raise InputError(
            f"{file} carries no settings of sfumato.",
            hint="Only PNGs that sfumato wrote do; other programs may have removed them.",
        )
    width = max(len(key) for key in settings)
    for key, value in settings.items():
        log(f"{key:<{width}}  {value}")
