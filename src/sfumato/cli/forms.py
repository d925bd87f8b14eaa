"""What `sfumato guidance` prints: progress, a row for each form and scale, choice and claims."""

import re
import textwrap
from collections.abc import Sequence
from itertools import groupby, zip_longest
from pathlib import Path

from rich.table import Table

from sfumato.cli.evaluation import CallsLine, use_data
from sfumato.cli.show import (
    open_generator,
    parse_forms,
    parse_scales,
    print_table,
    say,
    say_wrapped,
)
from sfumato.config.overrides import build
from sfumato.evaluation.arms import MEASURES
from sfumato.studies.guidance_forms import FormsCard, FormsConfig, compare_forms
from sfumato.studies.guidance_forms_page import write_forms
from sfumato.studies.scale_charts import effect_told, real_rows, value_told

SHOWN = {
    "agreement": "agreement",
    "frechet": "Frechet",
    "diversity": "diversity",
    "saturated": "saturated",
    "brightness": "bright",
}
"""Columns of the table: figures by their key."""
_LABEL_WIDTH = 13
"""Beside it the figures fit in a terminal of 80 columns."""


def compare_and_print(
    run: str,
    *,
    forms: Sequence[str] | None,
    scales: str | None,
    count: int,
    judge: str,
    seed: int,
    sampler: str | None,
    steps: int | None,
    data: str | None,
    out: Path | None,
    device: str,
) -> None:
    """Draw, measure, write pictures, print the table."""
    generator = open_generator(run, device=device, scheduler=sampler, steps=steps)
    use_data(generator, Path(run), data)
    chosen: dict[str, object] = {"count": count, "first_seed": seed, "judge": judge}
    if wanted := parse_forms(forms):
        chosen["forms"] = [str(form) for form in wanted]
    if (at := parse_scales(scales)) is not None:
        chosen["guidance_scales"] = at
    config = build(FormsConfig, chosen, [], source="sfumato guidance")
    found = compare_forms(
        generator,
        config,
        base=out or Path(run) / "guidance",
        say=say,
        on_calls=CallsLine(),
    )
    if found.before:
        say(f"Found before, {found.card.date}; --out FOLDER measures again.")
    else:
        write_forms(found)
    print_forms(found.card)
    say(f"\nGuidance {found.folder}")


def print_forms(card: FormsCard) -> None:
    """Figures of every form and scale, real images, the choice, each claim with its verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("w", "calls", *SHOWN.values(), "burnt"):
        table.add_column(name, justify="right", no_wrap=True)
    for label, rows in groupby(card.rows, key=lambda row: row.label):
        told = [
            (
                f"{row.guidance_scale:g}",
                str(row.calls),
                *(MEASURES[name].told(row.figures[name].value) for name in SHOWN),
                "" if row.burnt is None else f"{row.burnt.value:.2f}",
            )
            for row in rows
        ]
        for line, cells in zip_longest(_lines(label), told, fillvalue=""):
            table.add_row(line, *cells)
    for title, *cells in real_rows(card, list(SHOWN), told=value_told, before=2, after=1):
        table.add_row("\n".join(_lines(title)), *cells)
    print_table(table)
    chosen = card.rows[card.choice]
    say("")
    say_wrapped(
        f"To draw with: {chosen.label} at w = {chosen.guidance_scale:g}. Of the settings whose "
        "agreement is within 0.01 of the best, or of real images' where that is lower, it has the "
        + (
            f"saturation nearest to real images' among the {card.alike + 1} whose distances are "
            "not told from the smallest."
            if card.alike
            else "smallest distance, told apart from all others."
        )
        + f" Draw so with --guidance {chosen.guidance_scale:g} --guidance-form {chosen.label} "
        f"--sampler {card.scheduler} --steps {card.steps}; `sfumato tune` writes a choice into the "
        "run."
    )
    tested = [claim for claim in card.claims if claim.effects]
    if len(tested) < len(card.claims):
        say_wrapped(
            f"{len(card.claims) - len(tested)} of the paper's {len(card.claims)} claims are not "
            "tested: --scales 0,2,5,10 draws what they need."
        )
    for claim in tested:
        say_wrapped(f"{claim.verdict.upper()}: {claim.claim}.")
        for told in (claim.sentence, *(effect_told(effect) for effect in claim.effects)):
            say_wrapped(told, indent=4)
    say("")
    say_wrapped(
        f"{card.config.count:,} images of each form and scale, the same seeds and captions; "
        f"{card.scheduler} in {card.steps} steps. burnt: excess of saturated values over real "
        "images, as a multiple of plain guidance's at the same w; empty where that has none, "
        "negative below real images. guidance.md has every interval and the yardsticks."
    )
    if tested:
        say_wrapped(card.rule)


def _lines(label: str) -> list[str]:
    """A label over several lines, broken after `_`, `:` and `,` too."""
    breakable = re.sub(r"([_:,])(?=\S)", r"\1 ", label)
    lines = textwrap.wrap(breakable, width=_LABEL_WIDTH, break_on_hyphens=False)
    return [re.sub(r"([_:]) ", r"\1", line) for line in lines]
