"""What `sfumato curve` prints: a row for each kept checkpoint."""

from pathlib import Path

from rich.table import Table

from sfumato.cli.evaluation import CallsLine, use_data
from sfumato.cli.show import open_generator, print_table, say, say_wrapped
from sfumato.config.overrides import build
from sfumato.studies.scale_charts import figure_told, real_rows, value_told
from sfumato.studies.training_curve import CurveCard, CurveConfig, measure_curve
from sfumato.studies.training_curve_page import write_curve

SHOWN = {"agreement": "agreement", "frechet": "Frechet", "diversity": "diversity"}
"""Columns of the table: figures by their key."""


def curve_and_print(
    run: str,
    *,
    guidance: float | None,
    form: str | None,
    count: int,
    judge: str,
    seed: int,
    sampler: str | None,
    steps: int | None,
    data: str | None,
    out: Path | None,
    device: str,
) -> None:
    """Draw with every checkpoint, measure, write pictures, print the table."""
    chosen: dict[str, object] = {"count": count, "first_seed": seed, "judge": judge}
    config = build(CurveConfig, chosen, [], source="sfumato curve")
    generator = open_generator(
        run, device=device, scheduler=sampler, guidance=guidance, form=form, steps=steps
    )
    use_data(generator, Path(run), data)
    found = measure_curve(
        generator, config, base=out or Path(run) / "curve", say=say, on_calls=CallsLine()
    )
    if found.before:
        say(f"Found before, {found.card.date}; --out FOLDER measures again.")
    else:
        write_curve(found)
    print_curve(found.card)
    say(f"\nCurve   {found.folder}")


def print_curve(card: CurveCard) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("images seen", justify="right", no_wrap=True)
    for name in SHOWN.values():
        table.add_column(name, justify="right", no_wrap=True)
    for point in card.points:
        table.add_row(
            f"{point.images_seen:,}",
            *(figure_told(name, point.figures.get(name)).replace(" (", "\n(") for name in SHOWN),
        )
    for row in real_rows(card, list(SHOWN), told=value_told):
        table.add_row(*row)
    print_table(table)
    say("")
    say_wrapped(
        f"{card.config.count:,} images of each checkpoint, the same seeds and captions, "
        f"{card.guidance} at w = {card.guidance_scale:g}, {card.scheduler} in {card.steps} steps; "
        "in brackets 95 % intervals. Kept are the newest (training.keep_checkpoints) and those of "
        "training.checkpoint_epochs."
    )
