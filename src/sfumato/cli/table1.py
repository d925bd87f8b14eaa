"""What `sfumato table1` prints: both protocols side by side."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sfumato.base.errors import InputError
from sfumato.base.files import write_text
from sfumato.cli.evaluation import ImagesLine, model_to_measure
from sfumato.cli.show import print_table, say, say_wrapped
from sfumato.evaluation.measure import evaluate
from sfumato.evaluation.pictures import write_pictures
from sfumato.evaluation.target import is_model
from sfumato.generation.bundle_names import beside
from sfumato.paper.table1 import Tools, measure_table1
from sfumato.paper.table1_page import columns, markdown, rows_of, told


def table1_and_print(
    model: Path,
    *,
    settings: Sequence[str],
    form: str | None,
    seed: int,
    out: Path | None,
    device: str,
) -> None:
    """Evaluate, measure the same images by the paper's protocol too, print and write both."""
    if not is_model(model):
        raise InputError(f"{model} is no model.", hint="Give a run, a pipeline or bundled:NAME.")
    target, config, where = model_to_measure(
        model, settings=settings, form=form, seed=seed, held_out=False, device=device
    )
    tools = Tools.open(target, config)
    evaluated = evaluate(
        target,
        config,
        base=out or beside(model, "evaluation"),
        device=where,
        say=say,
        on_images=ImagesLine(),
    )
    write_pictures(evaluated)
    table = measure_table1(target, config, evaluated, tools, say=say)
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    rows = rows_of(table)
    kept = [place for place in range(len(rows[0])) if any(row[place] for row in rows)]
    for place in kept:
        name = textwrap.fill(columns(table)[place], width=14)
        shown.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        # Intervals under their figures: beside them the table is wider than a terminal.
        shown.add_row(*(row[place].replace(" (", "\n(") for place in kept))
    print_table(shown)
    say("")
    for sentence in told(table):
        say_wrapped(sentence)
    write_text(evaluated.folder / "table1.md", markdown(table))
    say(f"Table   {evaluated.folder / 'table1.md'}")
