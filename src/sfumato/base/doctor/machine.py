"""Processors, memory, disks, shared memory, open files and encodings of this process."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from sfumato.base.doctor.findings import Check, Finding, Host, Level, size
from sfumato.base.environment import processors

_NO_LIMIT_BYTES = 2**60
"""cgroup v1 writes "no limit" as a number of this order."""
_LITTLE_MEMORY_BYTES = 2 * 2**30
_LITTLE_SHARED_BYTES = 2**30
_LITTLE_DISK_BYTES = 5 * 2**30
_NO_DISK_BYTES = 2**28
_FEW_INODES = 10_000
_NO_INODES = 100
_FEW_OPEN_FILES = 1024


# Processors ---------------------------------------------------------------------------------------


def cpu_quota(host: Host) -> float | None:
    """CPUs that the control groups grant, v1 or v2; None without a limit."""
    limits: list[float] = []
    for folder in _groups(host, "cpu"):
        quota, _, period = host.read(folder / "cpu.max").partition(" ")
        if not quota:
            quota = host.read(folder / "cpu.cfs_quota_us")
            period = host.read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # not "max" or -1, which mean no limit
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def usable_cpus(host: Host) -> int:
    """Threads that can run at once: visible CPUs within the quota, at least one."""
    quota = cpu_quota(host)
    return max(1, min(processors(), round(quota) if quota is not None else processors()))


def check_cpus(host: Host) -> Check:
    model, visible, quota = cpu_model(host), processors(), cpu_quota(host)
    total = os.cpu_count() or visible
    findings = [Finding("ok", f"{model}, {visible} of {total} CPUs visible")]
    if quota is not None and quota < visible:
        findings.append(
            Finding(
                "note",
                f"The control group grants {quota:g} CPUs; {visible} are visible",
                f"export OMP_NUM_THREADS={usable_cpus(host)}",
            )
        )
    return Check("Processors", findings, {"cpu": model, "cpus": usable_cpus(host)})


def cpu_model(host: Host) -> str:
    for line in host.read("proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _groups(host: Host, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of its parents, of v1 or v2."""
    for line in host.read("proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        base = Path("sys/fs/cgroup")
        if controllers:  # v1: a tree for each controller
            if controller not in controllers.split(","):
                continue
            base /= controller
        parts = [part for part in Path(path).parts if part not in ("/", "..")]
        for count in range(len(parts), -1, -1):
            yield base.joinpath(*parts[:count])


# Memory -------------------------------------------------------------------------------------------


def memory(host: Host) -> tuple[int | None, int | None]:
    """Total and available memory in bytes, within the control group's limit; None if unknown."""
    values = {
        name: 1024 * int(rest.split()[0])
        for name, _, rest in (
            line.partition(":") for line in host.read("proc/meminfo").splitlines()
        )
        if rest.split()[:1] and rest.split()[0].isdecimal()
    }
    total, available = values.get("MemTotal"), values.get("MemAvailable")
    for limit, used in _memory_limits(host):
        total = limit if total is None else min(total, limit)
        free = max(limit - used, 0)
        available = free if available is None else min(available, free)
    return total, available


def _memory_limits(host: Host) -> Iterator[tuple[int, int]]:
    """(limit, used) of each control group with a limit, in bytes."""
    for folder in _groups(host, "memory"):
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = host.read(folder / limit_file), host.read(folder / used_file)
            if limit.isdecimal() and int(limit) < _NO_LIMIT_BYTES:
                yield int(limit), int(used) if used.isdecimal() else 0


def check_memory(host: Host) -> Check:
    total, available = memory(host)
    findings = []
    if total is None or available is None:
        findings.append(Finding("note", "The system does not tell how much memory there is"))
    else:
        limits = [limit for limit, _ in _memory_limits(host)]
        group = f", limit of the control group {size(min(limits))}" if limits else ""
        text = f"{size(available)} of {size(total)} available{group}"
        little = available < _LITTLE_MEMORY_BYTES
        hint = "End other programs, or ask the scheduler for more (sbatch --mem=16G)."
        findings.append(Finding("note", text, hint) if little else Finding("ok", text))
    findings.append(_shared_memory(host))
    return Check("Memory", findings, {"memory_bytes": total})


def _shared_memory(host: Host) -> Finding:
    """/dev/shm, through which the workers of data loading hand over batches."""
    path = host.root / "dev/shm"
    if not path.is_dir():
        return Finding("ok", "No /dev/shm on this system; data workers use files")
    total = shutil.disk_usage(path).total
    if total >= _LITTLE_SHARED_BYTES:
        return Finding("ok", f"/dev/shm has {size(total)}")
    return Finding(
        "note",
        f"/dev/shm has {size(total)}: data workers may end with a bus error",
        "docker run --shm-size=8g, or --set data.workers=0",
    )


# Files --------------------------------------------------------------------------------------------


def check_disk(path: Path, *, name: str) -> Finding:
    """Free bytes and inodes of the file system that holds `path`, which need not exist."""
    place = nearest_existing(path)
    free, found = shutil.disk_usage(place).free, os.statvfs(place)
    inodes = found.f_favail if found.f_files else None  # some file systems count none
    text = f"{size(free)} free in {name}"
    if inodes is not None:
        text += f", {inodes:,} inodes"
    level: Level = "ok"
    if free < _NO_DISK_BYTES or (inodes is not None and inodes < _NO_INODES):
        level = "wrong"
    elif free < _LITTLE_DISK_BYTES or (inodes is not None and inodes < _FEW_INODES):
        level = "note"
    hint = "" if level == "ok" else "Free some space, or work in a folder on another disk."
    return Finding(level, text, hint)


def nearest_existing(path: Path) -> Path:
    """`path`, or the nearest of its parents that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def check_process() -> Check:
    """The limit of open files, and the encodings of output and of file names."""
    findings = [_open_files()]
    encodings = {
        "output": getattr(sys.stdout, "encoding", None) or "utf-8",
        "file names": sys.getfilesystemencoding(),
    }
    for name, encoding in encodings.items():
        if encoding.lower().replace("-", "").replace("_", "") != "utf8":
            text = f"The encoding of {name} is {encoding}: other characters cannot be written"
            findings.append(Finding("note", text, "export PYTHONUTF8=1"))
    if len(findings) == 1:
        findings.append(Finding("ok", "Output and file names are UTF-8"))
    return Check("Process", findings)


def _open_files() -> Finding:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (resource.RLIM_INFINITY, -1):
        return Finding("ok", "No limit on open files")
    if soft >= _FEW_OPEN_FILES:
        return Finding("ok", f"Up to {soft:,} open files")
    wanted = 4096 if hard in (resource.RLIM_INFINITY, -1) else min(4096, hard)
    text = f"Only {soft} open files are allowed: many data workers and shards need more"
    return Finding("wrong" if soft < 64 else "note", text, f"ulimit -n {wanted}")
