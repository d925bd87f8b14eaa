"""`sfumato guidance`."""

import re
import textwrap
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.base.progress import Progress
from sfumato.cli.evaluate import data_of
from sfumato.cli.options import (
    Data,
    Forms,
    ModelPath,
    Scales,
    SolverOptions,
    StudyOptions,
    stoppable,
)
from sfumato.cli.show import (
    log,
    log_where_from,
    log_wrapped,
    new_table,
    open_model,
    print_claims,
    print_table,
)

if TYPE_CHECKING:
    from sfumato.studies.guidance_forms import FormsCard

SHOWN = {
    "class_accuracy": "accuracy",
    "frechet.classifier": "Frechet",
    "diversity.classifier": "diversity",
    "saturated": "saturated",
    "brightness": "bright",
}
"""Columns of the table: metrics by their key."""
_LABEL_WIDTH = 13
"""Beside it the metrics fit in a terminal of 80 columns."""


def guidance(
    run: ModelPath,
    *,
    forms: Forms = None,
    scales: Scales = None,
    study: StudyOptions,
    solver: SolverOptions,
    data: Data = None,
) -> None:
    """Forms of guidance on the same seeds and captions: quality, diversity, saturation, cost.

    Interrupted and started again, it resumes.
    """
    from sfumato.studies.guidance_forms import FormsConfig, compare_forms

    config = study.config(FormsConfig, forms=forms or None, guidance_scales=scales)
    model = open_model(run, study.device, student=False, **solver.changes())
    with stoppable():
        card = compare_forms(
            model,
            config,
            base=study.out or Path(run) / "guidance",
            data=data_of(model, data),
            log=log,
            on_images=Progress(),
        )
    log_where_from(card.from_cache, card.date)
    print_table(_table(card))
    log("")
    _print_choice(card)
    _print_claims(card)
    log(f"\nGuidance {card.folder}")


def _table(card: "FormsCard"):
    """A row for each form and scale, then real images."""
    from sfumato.studies.charts import format_value, real_rows

    table = new_table(["", "w", "NFE", *SHOWN.values(), "burnt"], padding=(0, 1, 0, 0))
    for label, rows in groupby(card.rows, key=lambda row: row.label):
        cells_of_rows = [
            (
                f"{row.guidance_scale:g}",
                str(row.nfe),
                *(format_value(key, row.metrics[key]) for key in SHOWN),
                "" if row.burnt is None else f"{row.burnt.value:.2f}",
            )
            for row in rows
        ]
        for line, cells in zip_longest(_lines(label), cells_of_rows, fillvalue=""):
            table.add_row(line, *cells)
    for title, *cells in real_rows(card, list(SHOWN), format_of=format_value, before=2, after=1):
        table.add_row("\n".join(_lines(title)), *cells)
    return table


def _print_choice(card: "FormsCard") -> None:
    chosen = card.rows[card.choice]
    why = (
        f"the saturation nearest to real images' among the {card.alike + 1} whose distances do not "
        "differ from the smallest"
        if card.alike
        else "the smallest distance, and the others differ from it"
    )
    log_wrapped(
        f"Recommended: {chosen.label} at w = {chosen.guidance_scale:g}. Of the settings whose "
        "class accuracy is within 0.01 of the best, or of real images' where that is lower, it has "
        f"{why}. Sample with --guidance {chosen.guidance_scale:g} --guidance-form {chosen.label} "
        f"--sampler {card.sampler} --steps {card.steps}; `sfumato tune` writes a choice into the "
        "run."
    )


def _print_claims(card: "FormsCard") -> None:
    tested = [claim for claim in card.claims if claim.effects]
    if len(tested) < len(card.claims):
        log_wrapped(
            f"{len(card.claims) - len(tested)} of the paper's {len(card.claims)} claims are not "
            "tested: they need --scales 0,2,5,10."
        )
    print_claims(tested)
    log("")
    log_wrapped(
        f"{card.config.count:,} images of each form and scale, the same seeds and captions; "
        f"{card.sampler} in {card.steps} steps. burnt: excess of saturated values over real "
        "images, as a multiple of plain guidance's at the same w; empty where that has none, "
        "negative below real images. guidance.md has every interval and the baselines."
    )
    if tested:
        log_wrapped(card.rule)


def _lines(label: str) -> list[str]:
    """A label over several lines, broken after `_`, `:` and `,` too."""
    breakable = re.sub(r"([_:,])(?=\S)", r"\1 ", label)
    lines = textwrap.wrap(breakable, width=_LABEL_WIDTH, break_on_hyphens=False)
    return [re.sub(r"([_:]) ", r"\1", line) for line in lines]
