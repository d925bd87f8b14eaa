"""`sfumato figures`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.cli.checks import checked_folder
from sfumato.cli.options import (
    Device,
    Form,
    ModelPath,
    Seed,
    SolverOptions,
)
from sfumato.cli.show import log, open_model


def figures(
    run: ModelPath,
    *,
    out: Annotated[
        Path | None,
        typer.Option(callback=checked_folder, help="Folder for the PNGs; else RUN/figures."),
    ] = None,
    seed: Seed = 422,
    like: Annotated[
        Literal["mnist", "cifar10"] | None,
        typer.Option(help="mnist: figures 1-7; cifar10: 8-13; else by the images' colour."),
    ] = None,
    form: Form = None,
    solver: SolverOptions,
    device: Device = "auto",
) -> None:
    """The paper's figures from a run, 1 to 7 of MNIST or 8 to 13 of CIFAR-10: PNGs and one page."""
    from sfumato.paper.figures import write_figures

    model = open_model(run, device, form=form, **solver.changes())
    folder = out or Path(run) / "figures"
    page = write_figures(model, folder, like=like, seed=seed, on_figure=lambda p: log(str(p)))
    log(f"Page    {page}")
