"""Commands of `sfumato data`: parse and call."""

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.options import Settings

data_app = typer.Typer(help="Look at a data set, or make a synthetic one.", no_args_is_help=True)


@data_app.command("show", epilog="Example: `sfumato data show my-photos --out my-photos.png`")
def data_show(
    source: Annotated[str, typer.Argument(help="A folder, a Hub name OWNER/NAME, or digits.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("data.png"),
    settings: Settings = None,
) -> None:
    """What is in a data set: counts, classes, sizes, captions, damage; and a grid of samples."""
    from sfumato.cli.data import show_data

    show_data(source, settings or [], out=out)


@data_app.command(
    "synthesize", epilog="Example: `sfumato data synthesize synthetic-wikiart --files 2`"
)
def data_synthesize(
    folder: Annotated[Path, typer.Argument(help="A new folder, or one to go on with.")],
    like: Annotated[str, typer.Option(help="What to imitate: wikiart.")] = "wikiart",
    files: Annotated[int, typer.Option(help="Parquet files; WikiArt has 72.")] = 72,
    rows: Annotated[int, typer.Option(help="Paintings in a file.")] = 1100,
    row_group: Annotated[int, typer.Option(help="Paintings in a row group.")] = 100,
    order: Annotated[str, typer.Option(help="sorted (by style) or mixed.")] = "mixed",
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Make a synthetic data set in the form of a real one. Killed, the same command goes on."""
    from sfumato.cli.data import make_synthetic

    make_synthetic(
        folder, like=like, files=files, rows=rows, row_group=row_group, order=order, seed=seed
    )
