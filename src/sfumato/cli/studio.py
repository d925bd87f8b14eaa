"""`sfumato studio`."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.checks import check_server_packages, checked_folder, checked_model
from sfumato.cli.options import Device
from sfumato.cli.show import log

DEFAULT_MODELS = ("bundled:mnist", "bundled:mnist-1")


def studio(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Runs, exported folders or bundled models; else bundled:mnist and its student.",
        ),
    ] = None,
    *,
    gallery: Annotated[
        Path, typer.Option(callback=checked_folder, help="Folder of the pictures that are made.")
    ] = Path("studio"),
    runs: Annotated[Path, typer.Option(help="Folder of the runs that the train tab shows.")] = Path(
        "runs"
    ),
    classifier: Annotated[
        str | None,
        typer.Option(
            help="Measure the class accuracy of evolved pictures: auto, or a run of a classifier."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; 0.0.0.0 for all machines that reach this one.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Else 7878, or a free one.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    device: Device = "auto",
) -> None:
    """Make, compare and evolve pictures on a page in the browser, on this machine alone."""
    for name in models or ():
        checked_model(name)
    check_server_packages("studio")
    from sfumato.base.lock import locked
    from sfumato.interactive.serving import TOKEN, kept_token, listen, serve
    from sfumato.interactive.studio.app import Studio, application
    from sfumato.interactive.studio.gallery import Gallery, private_folder
    from sfumato.interactive.studio.shelf import Shelf

    with locked(private_folder(gallery)):
        place = listen(host, port, token=kept_token(gallery / TOKEN))
        made = Studio(
            shelf=Shelf(models or DEFAULT_MODELS, device=device),
            gallery=Gallery(gallery),
            runs=runs,
            classifier=classifier,
        )
        app = application(made, token=place.token)
        serve(app, place, browser=browser, started=lambda: log(f"{place.url}\nCtrl-C ends it."))
    log(f"Ended. The pictures are in {gallery}.")
