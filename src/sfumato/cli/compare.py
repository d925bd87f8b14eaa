"""`sfumato compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.base.errors import InputError
from sfumato.cli.evaluate import checked_settings, evaluate_model
from sfumato.cli.options import Guidance, HeldOut, MeasureOptions, stoppable
from sfumato.cli.show import log, log_wrapped, new_table, open_model, percent, print_table, unused
from sfumato.generation.bundle_names import is_model, model_folder

if TYPE_CHECKING:
    from sfumato.evaluation.compare import Comparison

CARD = "card.json"


def compare(
    first: Annotated[
        str,
        typer.Argument(help="A run, a pipeline, bundled:mnist, an evaluation; PATH@3: w = 3."),
    ],
    second: Annotated[str, typer.Argument(help="What it is compared with.")],
    *,
    measure: MeasureOptions,
    guidance: Guidance = None,
    held_out: HeldOut = False,
    out: Annotated[Path, typer.Option(help="A new folder for the page.")] = Path("comparison"),
) -> None:
    """Two models on the same seeds and captions: paired tests and one page, side by side."""
    overrides = measure.overrides()
    checked_settings(overrides)
    given = [path_and_scale(name) for name in (first, second)]
    for path, _ in given:
        _check(path)
    from sfumato.evaluation.compare import Side
    from sfumato.evaluation.compare import compare as compare_sides
    from sfumato.evaluation.comparison_page import write_comparison

    sides = []
    with stoppable():
        for path, own_scale in given:
            scale = guidance if own_scale is None else own_scale
            if (path / CARD).is_file():
                folder, title = path, _row_title(path, scale)
            else:
                scale = _own_scale(path) if scale is None else scale
                title = f"w = {scale:g}"
                log(f"{path}, {title}:")
                folder = evaluate_model(
                    path, measure, overrides, held_out=held_out, scale=scale
                ).folder
            sides.append(Side.open(folder, title, name=_short_name(path)))
    found = compare_sides(*sides)
    folder = unused(out)
    page = write_comparison(folder, found, *sides)
    print_comparison(found)
    log(f"Pairs   {folder / 'pairs.png'}\nPage    {page}")


def path_and_scale(name: str) -> tuple[Path, float | None]:
    """`PATH@3` is the path and w = 3."""
    path, at, scale = name.rpartition("@")
    if not at or Path(name).exists():
        return Path(name), None
    try:
        return Path(path), float(scale)
    except ValueError as error:
        raise InputError(
            f"{name}: '{scale}' is no guidance scale.", hint="For example: runs/demo@3"
        ) from error


def _check(path: Path) -> None:
    model_folder(path)  # InputError for an unknown bundled model
    if not (path / CARD).is_file() and not is_model(path):
        wrong = "is neither a model nor an evaluation" if path.exists() else "does not exist"
        raise InputError(
            f"{path} {wrong}.",
            hint="Give runs, pipelines or folders with a card.json; PATH@3 names w = 3.",
        )


def _own_scale(path: Path) -> float:
    return open_model(path, "cpu").sampling.guidance_scale


def _row_title(folder: Path, scale: float | None) -> str:
    from sfumato.evaluation.card import read_card

    if scale is not None:
        return f"w = {scale:g}"
    titles = [row.title for row in read_card(folder).rows]
    if len(titles) > 1:
        raise InputError(
            f"{folder} has several rows: {', '.join(titles)}.",
            hint=f"Name one: {folder}@3 for w = 3, or --guidance 3 for both.",
        )
    return titles[0]


def _short_name(path: Path) -> str:
    """A run's name, for an evaluation inside it as well."""
    resolved = path.resolve()
    inside = (resolved / CARD).is_file() and is_model(resolved.parent)
    return f"{resolved.parent.name}/{resolved.name}" if inside else resolved.name


def _side_names(found: "Comparison") -> list[str]:
    """What tells the two sides apart: their names, their rows, or both."""
    sides = (found.first, found.second)
    if found.first["row"] == found.second["row"]:
        return [side["name"] for side in sides]
    if found.first["name"] == found.second["name"]:
        return [side["row"] for side in sides]
    return [f"{side['name']}, {side['row']}" for side in sides]


def print_comparison(found: "Comparison") -> None:
    """The table of what differs."""
    from sfumato.evaluation.compare import MEANINGS

    names = _side_names(found)
    columns = ["", *names, "real", "difference", "better"]
    table = new_table(columns, left=(0, 5), padding=(0, 1, 0, 0))
    if found.agreement is not None:
        pair = found.agreement
        better = names[0] if pair.only_first > pair.only_second else names[1]
        table.add_row(
            "accuracy",
            percent(pair.first),
            percent(pair.second),
            "",
            f"{pair.only_first} to {pair.only_second}, p = {pair.p_value:.2g}",
            better if pair.p_value < 0.05 else "",
        )
    for one in found.differences:
        where = f" ({one.extractor})" if one.extractor else ""
        table.add_row(
            MEANINGS[one.name] + where,
            f"{one.first:.3g}",
            f"{one.second:.3g}",
            "" if one.real is None else f"{one.real:.3g}",
            f"{one.difference:+.2g} ({one.low:.2g}, {one.high:.2g})",
            {"first": names[0], "second": names[1]}.get(one.better, ""),
        )
    print_table(table)
    log_wrapped(
        f"{found.count:,} pairs of the same seed and caption; class accuracy by McNemar's exact "
        "test over the images that only one got right, the rest by a paired bootstrap, in brackets "
        "95 % intervals. Nearest real: an image's distance to the nearest real one; diversity: the "
        "distance of two images of a class. Difference: first less second. Diversity and "
        "saturation are read beside real images."
    )
