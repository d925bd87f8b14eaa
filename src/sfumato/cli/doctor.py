"""`sfumato doctor`."""

import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from sfumato.base.doctor.findings import Finding, Level
    from sfumato.base.doctor.ranks import Gathered
    from sfumato.base.doctor.report import Report

_WIDTH = 80
_STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}
_INDENT = " " * 9


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long rank 0 waits for the others.")
    ] = 30.0,
) -> None:
    """Check this environment: versions, devices, threads, memory, disks, ranks.

    Each finding is ok, note or wrong, with what to do. The exit code is 1 if anything is wrong.
    Under torchrun or srun, rank 0 reports for all ranks, with their differences.
    """
    from sfumato.base.doctor.findings import Host
    from sfumato.base.doctor.launch import launch_of
    from sfumato.base.doctor.report import examine

    host = Host()
    report = examine(host, Path.cwd())
    launch = launch_of(host)
    if launch is None or not report.torch_works:
        _print(report, None, as_json)
        raise typer.Exit(int(report.level == "wrong"))
    from sfumato.base.doctor.ranks import meeting

    with meeting(report, launch, timeout_seconds=timeout) as gathered:
        if launch.rank == 0:
            _print(report, gathered, as_json)
        elif gathered.level == "wrong":
            _print_own(launch.rank, report, gathered)
    raise typer.Exit(int(gathered.level == "wrong"))


def _print(report: "Report", gathered: "Gathered | None", as_json: bool) -> None:
    if as_json:
        print(json.dumps(_to_dict(report, gathered), indent=2), flush=True)
        return
    console = Console(highlight=False, soft_wrap=True)
    for check in report.checks:
        console.print(Text(f"\n{check.title}", style="bold"))
        _print_findings(console, check.findings)
    findings = [finding for check in report.checks for finding in check.findings]
    if gathered is not None:
        console.print(Text("\nAll ranks", style="bold"))
        _print_ranks(console, gathered)
        _print_findings(console, gathered.findings)
        findings += gathered.findings
    counts = [f"{sum(finding.level == level for finding in findings)} {level}" for level in _STYLES]
    console.print(f"\n{', '.join(counts)}.")
    sys.stdout.flush()


def _print_findings(console: Console, findings: "Sequence[Finding]") -> None:
    for finding in findings:
        first, *rest = _lines(finding.what, _INDENT)
        console.print(_level(finding.level), Text(first.strip()), sep="")
        for line in [*rest, *_lines(finding.hint, f"{_INDENT}   ", start=f"{_INDENT}-> ")]:
            console.print(Text(line))


def _level(level: "Level") -> Text:
    return Text(f"  {level:<7}", style=_STYLES[level])


def _lines(text: str, indent: str, *, start: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        width=_WIDTH,
        initial_indent=indent if start is None else start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _print_ranks(console: Console, gathered: "Gathered") -> None:
    """A line for each distinct summary, with the ranks that share it."""
    from sfumato.base.doctor.report import group

    summaries = {rank: report.summary() for rank, report in gathered.reports.items()}
    for summary, ranks in group(summaries).items():
        console.print(f"  {ranks}: {summary}", markup=False)


def _print_own(rank: int, report: "Report", gathered: "Gathered") -> None:
    """On other ranks, what rank 0 may not know."""
    sys.stderr.write(f"rank {rank}: {report.summary()}\n")
    for finding in gathered.findings:
        sys.stderr.write(f"rank {rank}: {finding.what}\n")


def _to_dict(report: "Report", gathered: "Gathered | None") -> dict[str, Any]:
    """The same form for one process and for many."""
    reports = {0: report} if gathered is None else gathered.reports
    return {
        "level": report.level if gathered is None else gathered.level,
        "findings": [] if gathered is None else [asdict(one) for one in gathered.findings],
        "ranks": [{"rank": rank, **one.to_dict()} for rank, one in sorted(reports.items())],
    }
