"""All checks of one process as a report, and the differences between the reports of ranks."""

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfumato.base.doctor.caches import check_storage
from sfumato.base.doctor.devices import check_devices, check_threads, nvidia_gpus
from sfumato.base.doctor.findings import Check, Finding, Host, Level
from sfumato.base.doctor.launch import check_launch
from sfumato.base.doctor.machine import check_cpus, check_memory, check_process
from sfumato.base.doctor.versions import PACKAGES, check_versions

_MUST_AGREE = ("code", "world_size", *PACKAGES)
_MAY_DIFFER = ("python", "cpu", "cpus", "threads", "devices", "instruction_set")
_LEVELS: tuple[Level, ...] = ("ok", "note", "wrong")


def worst(levels: Sequence[Level]) -> Level:
    return max((_LEVELS[0], *levels), key=_LEVELS.index)


@dataclass(frozen=True)
class Report:
    """What one process found. Plain values, so that ranks can send it as JSON."""

    host: str
    checks: list[Check]

    @property
    def level(self) -> Level:
        return worst([finding.level for check in self.checks for finding in check.findings])

    @property
    def facts(self) -> dict[str, Any]:
        return {name: value for check in self.checks for name, value in check.facts.items()}

    @property
    def torch_works(self) -> bool:
        return "threads" in self.facts

    def to_dict(self) -> dict[str, Any]:
        checks = [asdict(check) for check in self.checks]
        return {"host": self.host, "level": self.level, "checks": checks}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        checks = [
            Check(one["title"], [Finding(**each) for each in one["findings"]], one["facts"])
            for one in values["checks"]
        ]
        return cls(values["host"], checks)

    def summary(self) -> str:
        """One line: machine, torch, threads, devices, code, level."""
        facts, devices = self.facts, self.facts.get("devices", [])
        shown = devices[0] if devices else "no device"
        more = f" x {len(devices)}" if len(devices) > 1 else ""
        threads = f"{facts.get('threads', '?')}/{facts.get('cpus', '?')} threads"
        torch = f"torch {facts.get('torch')}"
        return "  ".join([self.host, torch, threads, shown + more, facts["code"][:7], self.level])


def examine(host: Host, folder: Path) -> Report:
    """Every check of this process, with `folder` as its working directory; imports torch."""
    versions, torch = check_versions()
    checks = [
        versions,
        check_devices(torch, host, nvidia_gpus()),
        check_cpus(host),
        check_threads(torch, host),
        check_memory(host),
        check_storage(host, folder),
        check_process(),
        check_launch(host),
    ]
    return Report(socket.gethostname(), [check for check in checks if check is not None])


# Ranks --------------------------------------------------------------------------------------------


def compare_reports(reports: Mapping[int, Report]) -> list[Finding]:
    """What differs between ranks, and what is wrong on others than rank 0."""
    findings: list[Finding] = []
    for name in (*_MUST_AGREE, *_MAY_DIFFER):
        values = {rank: report.facts.get(name) for rank, report in reports.items()}
        texts = group({rank: _text(value) for rank, value in values.items()})
        if len(texts) > 1:
            what = "; ".join(f"{text} ({ranks})" for text, ranks in texts.items())
            level, hint = "note", "The slowest rank sets the pace."
            if name in _MUST_AGREE:
                level, hint = "wrong", "Give every machine the same environment and code."
            findings.append(Finding(level, f"{name} differs: {what}", hint))
    return findings + _wrong_elsewhere(reports)


def _wrong_elsewhere(reports: Mapping[int, Report]) -> list[Finding]:
    """What is wrong on other ranks; rank 0 shows its own in full."""
    found: dict[Finding, list[int]] = {}
    for rank, report in reports.items():
        for check in report.checks if rank else []:
            for finding in check.findings:
                if finding.level == "wrong":
                    found.setdefault(finding, []).append(rank)
    return [
        Finding("wrong", f"{ranks_text(ranks)}: {finding.what}", finding.hint)
        for finding, ranks in found.items()
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def group(texts: Mapping[int, str]) -> dict[str, str]:
    """The ranks of each distinct text: {"2.13.0": "ranks 0-3"}."""
    found: dict[str, list[int]] = {}
    for rank, text in sorted(texts.items()):
        found.setdefault(text, []).append(rank)
    return {text: ranks_text(ranks) for text, ranks in found.items()}


def ranks_text(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0-3, 6`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(parts)}"
