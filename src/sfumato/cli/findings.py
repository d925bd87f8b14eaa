"""What `sfumato findings` prints: progress, the verdicts, the figures."""

from pathlib import Path

from rich.table import Table

from sfumato.cli.evaluation import CallsLine
from sfumato.cli.show import open_generator, parse_scales, print_table, say, say_wrapped
from sfumato.config.overrides import build
from sfumato.evaluation.arms import MEASURES
from sfumato.paper.findings import Findings, FindingsConfig, measure_findings
from sfumato.paper.findings_page import effect_told, write_findings

SHOWN = {
    "border_rms": "outer 4 px",
    "edge_rms": "outer 2 px",
    "high_frequency": "above N/2",
    "saturated": "saturated",
    "agreement": "agreement",
    "agreement_4_5": "of 4 and 5",
    "diversity": "diversity",
}
"""Columns of the table: figures by their key."""


def find_and_print(
    without: str,
    with_dropout: str | None,
    *,
    count: int,
    scales: str | None,
    judge: str,
    seed: int,
    sampler: str | None,
    steps: int | None,
    out: Path | None,
    device: str,
) -> None:
    """Open both runs, measure, write pictures, print the tables."""
    generators = [
        None if run is None else open_generator(run, device=device, scheduler=sampler, steps=steps)
        for run in (without, with_dropout)
    ]
    chosen = {"count": count, "first_seed": seed, "judge": judge}
    if (wanted := parse_scales(scales)) is not None:
        chosen["guidance_scales"] = wanted
    config = build(FindingsConfig, chosen, [], source="sfumato findings")
    assert generators[0] is not None
    found = measure_findings(
        generators[0],
        generators[1],
        config,
        base=out or Path(without) / "findings",
        say=say,
        on_calls=CallsLine(),
    )
    if found.before:
        say(f"Found before, {found.findings.date}; --out FOLDER measures again.")
    else:
        write_findings(found, Path(without))
    print_findings(found.findings)
    say(f"\nFindings {found.folder}")


def print_findings(findings: Findings) -> None:
    """Figures of every arm and scale, then each claim with its verdict."""
    names = [name for name in SHOWN if name in findings.real]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("w", justify="right", no_wrap=True)
    for name in names:
        table.add_column(SHOWN[name], justify="right", no_wrap=True)
    for arm in findings.arms:
        for place, one in enumerate(arm.scales):
            table.add_row(
                "" if place else arm.title,
                f"{one.guidance_scale:g}",
                *(MEASURES[name].told(one.figures[name].value) for name in names),
            )
    table.add_row("real", "", *(MEASURES[name].told(findings.real[name].value) for name in names))
    print_table(table)
    say("")
    for claim in findings.claims:
        say_wrapped(f"{claim.verdict.upper()}: {claim.claim}.")
        for told in (claim.sentence, *(effect_told(effect) for effect in claim.effects)):
            say_wrapped(told, indent=4)
    say("")
    say_wrapped(
        "outer: RMS of those pixels, white is 1; above N/2: share of spectral power above half "
        "Nyquist; docs/evaluation.md says more, findings.md has every interval."
    )
    say_wrapped(findings.rule)
    for note in findings.notes:
        say_wrapped(f"note: {note}")
