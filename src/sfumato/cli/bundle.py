"""`sfumato bundle`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sfumato.base.errors import InputError
from sfumato.cli.checks import checked_folder
from sfumato.cli.options import (
    ModelPath,
)
from sfumato.cli.show import check_empty, log


def bundle(
    model: ModelPath,
    out: Annotated[
        Path | None, typer.Option(callback=checked_folder, help="Of a run: a new or empty folder.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Where others find the data: a Hub name OWNER/NAME.")
    ] = None,
    note: Annotated[str, typer.Option(help="A sentence on the data, for the model card.")] = "",
    cards: Annotated[
        list[Path] | None,
        typer.Option("--card", metavar="FOLDER", help="An evaluation of it; may be repeated."),
    ] = None,
) -> None:
    """Write a run as a model that sfumato can carry: rounded to float16, hashed, with its card.

    Then `sfumato evaluate OUT`, and `sfumato bundle OUT --card OUT-evaluation` adds the metrics.
    """
    if out is not None:
        _bundle_run(Path(model), out, cards or [], source=source, note=note)
        return
    for option, given in {"--source": source, "--note": note}.items():
        if given:
            raise InputError(f"{option} goes with a run and --out.", hint="Leave it out here.")
    _add_cards(model, cards or [])


def _bundle_run(
    run: Path, out: Path, cards: Sequence[Path], *, source: str | None, note: str
) -> None:
    check_empty(out)
    from sfumato.evaluation.bundling import write_bundle
    from sfumato.generation.bundle_names import beside
    from sfumato.generation.bundles import CARD

    write_bundle(run, out, source=source, note=note, cards=cards)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    log(f"Bundle  {out}, {size / 1e6:.1f} MB\nCard    {out / CARD}")
    if not cards:
        log(
            "Not evaluated yet. Evaluate what is shipped:\n"
            f"  sfumato evaluate {out}\n  sfumato bundle {out} --card {beside(out, 'evaluation')}"
        )


def _add_cards(model: str, cards: Sequence[Path]) -> None:
    """Add the evaluations `cards` to the README of a bundle that is there."""
    from sfumato.generation.bundle_names import is_bundle, model_folder

    if not is_bundle(model):
        raise InputError(f"{model} is not a bundle.", hint="Of a run, name the folder with --out.")
    if not cards:
        raise InputError(
            "No evaluations are named.", hint="Give --card FOLDER, what `sfumato evaluate` wrote."
        )
    from sfumato.evaluation.bundling import add_cards
    from sfumato.generation.bundles import CARD

    folder = model_folder(model)
    add_cards(folder, cards)
    log(f"Card    {folder / CARD}")
