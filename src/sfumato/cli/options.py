"""Options that several commands share, and how a command ends at Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

INTERRUPTED = 130
"""Exit code of a run that was asked to stop: the shell's for Ctrl-C."""
GOES_ON = "Stopped. The same command goes on from here."

Model = Annotated[
    str, typer.Argument(help="A run folder, an exported pipeline folder, or bundled:mnist.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change any setting; may be repeated."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Guidance = Annotated[
    float | None, typer.Option("--guidance", "-w", help="Guidance scale w; 0 is unconditional.")
]
FORM_HELP = "Form of guidance: cfg, interval, rescaled, dynamic_thresholding, apg, autoguidance."
Form = Annotated[
    str | None, typer.Option("--guidance-form", metavar="NAME[:KEY=VALUE,...]", help=FORM_HELP)
]
Forms = Annotated[
    list[str] | None,
    typer.Option(
        "--guidance-form",
        metavar="NAME[:KEY=VALUE,...]",
        help=f"{FORM_HELP} May be repeated to compare.",
    ),
]
Scales = Annotated[
    str | None, typer.Option("--scales", help="Guidance scales, with commas: 0,1,2,3,5.")
]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.")]
SamplerName = Annotated[
    str | None,
    typer.Option(help="DDPM, DDIM, DPMSolver++, UniPC, Euler, EulerAncestral or Heun."),
]
Seed = Annotated[int, typer.Option(help="Seed of the first image; the next ones count up.")]


@contextmanager
def stoppable(said: str) -> Iterator[None]:
    """Ctrl-C inside ends the command with `said` and the shell's exit code for it."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\n{said}")
        raise typer.Exit(INTERRUPTED) from None
