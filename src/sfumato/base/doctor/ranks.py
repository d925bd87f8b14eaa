"""The reports of all ranks on rank 0, whichever of them answer."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from sfumato.base.doctor.findings import Finding, Level
from sfumato.base.doctor.launch import Launch
from sfumato.base.doctor.report import Report, compare_reports, ranks_text, worst

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

_GRACE_SECONDS = 10.0
"""What other ranks wait for longer than rank 0, which waits for the slowest."""


@dataclass(frozen=True)
class Gathered:
    """The reports that arrived (all on rank 0, its own elsewhere) and what they add up to."""

    reports: dict[int, Report]
    findings: list[Finding] = field(default_factory=list)

    @property
    def level(self) -> Level:
        levels: list[Level] = [report.level for report in self.reports.values()]
        return worst(levels + [finding.level for finding in self.findings])


@contextmanager
def meeting(report: Report, launch: Launch, *, timeout_seconds: float) -> Iterator[Gathered]:
    """What rank 0 gathers within `timeout_seconds`; others are in the block once it has left its.

    A store says which rank is missing, where a collective only says that it timed out. All other
    ranks end after rank 0: torchrun ends every process as soon as one fails.
    """
    try:
        store = _store(launch, timeout_seconds)
        store.set(f"report/{launch.rank}", json.dumps(report.to_dict()))
    except Exception as error:  # torch has several of its own, with RuntimeError above them
        yield Gathered({launch.rank: report}, [_unreachable(launch, error)])
        return
    if launch.rank:
        yield _follow(store, report, launch, timeout_seconds)
        store.add("left", 1)
        return
    gathered = _collect(store, launch, timeout_seconds)
    try:
        yield gathered
    finally:
        store.set("verdict", gathered.level)
        _wait_for_others(store, len(gathered.reports) - 1)


def _store(launch: Launch, timeout_seconds: float) -> "Store":
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    store = TCPStore(
        launch.address,
        launch.port,
        world_size=launch.world_size,
        is_master=launch.rank == 0 and not launch.agent_serves,
        timeout=timedelta(seconds=timeout_seconds),
        wait_for_workers=False,
    )
    return PrefixStore("sfumato-doctor", store)


def _unreachable(launch: Launch, error: Exception) -> Finding:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    where = f"{launch.address}:{launch.port}"
    if launch.rank == 0 and not launch.agent_serves:
        text = f"Rank 0 cannot listen at {where}: {reason}"
        return Finding("wrong", text, "Set MASTER_ADDR to this machine, MASTER_PORT to a free port")
    text = f"Rank {launch.rank} cannot reach rank 0 at {where}: {reason}"
    return Finding("wrong", text, "Check MASTER_ADDR, MASTER_PORT and the firewall between nodes.")


def _collect(store: "Store", launch: Launch, timeout_seconds: float) -> Gathered:
    """On rank 0: the reports that come in time, their differences, and a sum over gloo."""
    until = time.monotonic() + timeout_seconds
    reports: dict[int, Report] = {}
    for rank in range(launch.world_size):
        if (text := _wait(store, f"report/{rank}", until - time.monotonic())) is not None:
            reports[rank] = Report.from_dict(json.loads(text))
    findings = compare_reports(reports)
    missing = [rank for rank in range(launch.world_size) if rank not in reports]
    store.set("missing", json.dumps(missing))
    if missing:
        text = f"{ranks_text(missing)} did not answer within {timeout_seconds:g} s"
        hint = "See the output of these processes; sfumato doctor on their machine alone."
        findings.append(Finding("wrong", text[0].upper() + text[1:], hint))
    else:
        findings.append(_sum_over_gloo(store, launch, timeout_seconds))
    return Gathered(reports, findings)


def _follow(store: "Store", report: Report, launch: Launch, timeout_seconds: float) -> Gathered:
    """On other ranks: take part in the sum, then wait for the verdict of rank 0."""
    own = {launch.rank: report}
    missing = _wait(store, "missing", timeout_seconds + _GRACE_SECONDS)
    if missing is None:
        hint = "See the output of rank 0."
        return Gathered(own, [Finding("wrong", "Rank 0 did not answer", hint)])
    if not json.loads(missing):
        _sum_over_gloo(store, launch, timeout_seconds)
    verdict = _wait(store, "verdict", timeout_seconds + _GRACE_SECONDS)
    if verdict == "wrong":
        return Gathered(own, [Finding("wrong", "Something is wrong; rank 0 has the report")])
    return Gathered(own)


def _sum_over_gloo(store: "Store", launch: Launch, timeout_seconds: float) -> Finding:
    """Whether the ranks reach one another: the store only shows that they reach rank 0."""
    import torch
    import torch.distributed as dist
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

    try:
        dist.init_process_group(
            "gloo",
            store=PrefixStore("gloo", store),
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timedelta(seconds=timeout_seconds),
        )
        total = torch.ones(1)
        dist.all_reduce(total)
        dist.destroy_process_group()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        text = f"The ranks cannot compute a sum over gloo: {reason}"
        hint = "export GLOO_SOCKET_IFNAME=INTERFACE (ip addr lists them), NCCL_SOCKET_IFNAME too"
        return Finding("wrong", text, hint)
    return Finding("ok", f"{total.item():.0f} ranks computed a sum over gloo")


def _wait(store: "Store", key: str, seconds: float) -> str | None:
    """The text under `key`, None where it does not come in time."""
    try:
        store.wait([key], timedelta(seconds=max(seconds, 0.1)))
        return store.get(key).decode()
    except Exception:
        return None


def _wait_for_others(store: "Store", count: int) -> None:
    """Rank 0 may keep the store, so it leaves last."""
    until = time.monotonic() + _GRACE_SECONDS
    while store.add("left", 0) < count and time.monotonic() < until:
        time.sleep(0.05)
