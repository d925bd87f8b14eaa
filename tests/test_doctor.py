"""`sfumato doctor` on simulated machines, and on two real processes."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sfumato.base.doctor import caches, devices, launch, machine, report, versions
from sfumato.base.doctor.findings import Check, Finding, Host, size
from sfumato.base.environment import code_digest

ROOT = Path(__file__).parents[1]
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what the machine of the tests happens to set."""
    for name in list(os.environ):
        if name in LAUNCHED or name.startswith(("SLURM_", "TORCHELASTIC", "HF_", "OMP_")):
            monkeypatch.delenv(name)


def host(folder: Path, files: dict[str, str] | None = None, **environ: str) -> Host:
    for name, text in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return Host(folder, environ)


def levels(found: Sequence[Finding] | Check | None) -> list[str]:
    assert found is not None
    findings = found.findings if isinstance(found, Check) else found
    return [finding.level for finding in findings]


def only(found: Sequence[Finding] | Check | None, level: str) -> Finding:
    assert found is not None
    findings = found.findings if isinstance(found, Check) else found
    (one,) = [finding for finding in findings if finding.level == level]
    return one


# The machine --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"proc/self/cgroup": "0::/job", "sys/fs/cgroup/job/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/job", "sys/fs/cgroup/job/cpu.max": "max 100000"}, None),
        (
            {  # a parent grants less
                "proc/self/cgroup": "0::/job/step",
                "sys/fs/cgroup/job/step/cpu.max": "800000 100000",
                "sys/fs/cgroup/job/cpu.max": "400000 100000",
            },
            4.0,
        ),
        (
            {
                "proc/self/cgroup": "7:memory:/x\n4:cpu,cpuacct:/a\n0::/",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        ({"proc/self/cgroup": "4:cpu:/../..", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"}, None),
        ({}, None),
    ],
)
def test_the_cpus_that_control_groups_grant(
    files: dict[str, str], cpus: float | None, tmp_path: Path
) -> None:
    assert machine.cpu_quota(host(tmp_path, files)) == cpus


def test_a_quota_below_the_processors_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "processors", lambda: 64)
    files = {
        "proc/self/cgroup": "0::/job",
        "sys/fs/cgroup/job/cpu.max": "400000 100000",
        "proc/cpuinfo": "processor : 0\nmodel name : Some CPU",
    }
    check = machine.check_cpus(host(tmp_path, files))
    assert check.facts == {"cpu": "Some CPU", "cpus": 4}
    assert "grants 4 CPUs" in only(check, "note").what
    assert only(check, "note").hint == "export OMP_NUM_THREADS=4"


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({}, (16 * 2**30, 12 * 2**30)),
        ({"memory.max": "max", "memory.current": "5"}, (16 * 2**30, 12 * 2**30)),
        ({"memory.max": str(2**30), "memory.current": str(2**28)}, (2**30, 3 * 2**28)),
        (
            {"memory.limit_in_bytes": str(2**30), "memory.usage_in_bytes": str(2**29)},
            (2**30, 2**29),
        ),
        ({"memory.limit_in_bytes": "9223372036854771712"}, (16 * 2**30, 12 * 2**30)),
    ],
)
def test_memory_is_within_the_limit_of_the_control_group(
    group: dict[str, str], expected: tuple[int, int], tmp_path: Path
) -> None:
    files = {
        "proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {12 * 2**20} kB\nHugePages: 0",
        "proc/self/cgroup": "0::/job",
    }
    files |= {f"sys/fs/cgroup/job/{name}": text for name, text in group.items()}
    found = host(tmp_path, files)
    assert machine.memory(found) == expected
    level = "note" if expected[1] < 2 * 2**30 else "ok"
    assert machine.check_memory(found).findings[0].level == level


def test_little_shared_memory_disk_and_few_files_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dev/shm").mkdir(parents=True)

    def usage(free: int, inodes: int) -> str:
        disk = SimpleNamespace(free=free, total=free)
        found = SimpleNamespace(f_files=10**6, f_favail=inodes)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: disk)
        monkeypatch.setattr(machine.os, "statvfs", lambda path: found)
        return machine.check_disk(tmp_path / "not" / "there", name="here").level

    assert usage(2**40, 10**6) == "ok"
    assert usage(2**30, 10**6) == "note"
    assert usage(2**20, 10**6) == "wrong"
    assert usage(2**40, 5000) == "note"
    assert usage(2**40, 5) == "wrong"
    usage(64 * 2**20, 10**6)
    shared = only(machine.check_memory(Host(tmp_path, {})).findings[1:], "note")
    assert "64.0 MiB" in shared.what
    assert "--shm-size" in shared.hint

    import resource

    for limit, level in {(1024, 4096): "ok", (256, 4096): "note", (32, 32): "wrong"}.items():
        monkeypatch.setattr(resource, "getrlimit", lambda which, limit=limit: limit)
        assert machine.check_process().findings[0].level == level


def test_an_encoding_other_than_utf8_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(encoding="ascii"))
    assert only(machine.check_process(), "note").hint == "export PYTHONUTF8=1"


def test_sizes() -> None:
    assert [size(one) for one in (12, 1536, 2**40 * 1.5)] == ["12 B", "1.5 KiB", "1.5 TiB"]


def test_caches_that_are_missing_read_only_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "own"))
    (tmp_path / "hf/hub").mkdir(parents=True)
    (tmp_path / "hf/hub/blob").write_bytes(bytes(2048))
    (tmp_path / "torch").write_text("a file")
    machine_ = host(tmp_path, HF_HOME=f"{tmp_path}/hf", TORCH_HOME=f"{tmp_path}/torch/hub")
    found = {
        finding.what: finding.level for finding in caches.check_storage(machine_, tmp_path).findings
    }
    assert any("2.0 KiB" in what and level == "ok" for what, level in found.items())
    assert any("own (sfumato), empty" in what and level == "ok" for what, level in found.items())
    assert any("is a file" in what and level == "wrong" for what, level in found.items())

    monkeypatch.setattr(caches.os, "access", lambda path, mode: False)
    refused = caches.check_storage(machine_, tmp_path)
    assert any("SFUMATO_CACHE" in finding.hint for finding in refused.findings)
    assert any("HF_HOME" in finding.hint for finding in refused.findings)


def test_offline_is_noted(tmp_path: Path) -> None:
    found = caches.check_storage(host(tmp_path, HF_HUB_OFFLINE="1"), tmp_path)
    assert "unset HF_HUB_OFFLINE" in only(found, "note").hint


# Versions -----------------------------------------------------------------------------------------


def test_missing_broken_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def importer(name: str) -> Any:
        if name == "torch":
            raise OSError("libtorch_cpu.so: cannot open shared object file\nmore")
        return import_module(name)

    monkeypatch.setattr(
        versions, "wanted", lambda: {"torch": ">=2.7", "numpy": ">=99", "pillow": ">=11"}
    )
    check, torch = versions.check_versions(importer)
    assert torch is None
    found = {finding.what.split()[0]: finding for finding in check.findings}
    assert found["torch"].level == "wrong"
    assert "cannot be imported: OSError: libtorch_cpu.so" in found["torch"].what
    assert "force-reinstall 'torch>=2.7'" in found["torch"].hint
    assert (found["numpy"].level, found["numpy"].hint) == ("wrong", "pip install 'numpy>=99'")
    assert found["pillow"].level == "ok"

    monkeypatch.setattr(
        versions, "PACKAGES", {"no-such-package": "no_such_package"} | versions.PACKAGES
    )
    check, _ = versions.check_versions(importer)
    assert check.findings[2].what == "no-such-package is not installed"
    assert check.facts["no-such-package"] is None


@pytest.mark.parametrize(
    ("needs", "level"),
    [("torch==2.12.1", "wrong"), ("torch (==2.13.0)", "ok"), ("torch>=2", "ok")],
)
def test_torchvision_of_another_torch(
    needs: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "version", lambda name: "0.27.1")
    monkeypatch.setattr(versions, "requires", lambda name: ["numpy", needs, "scipy; extra == 'x'"])
    assert levels(versions._check_torchvision("2.13.0+cpu")) == [level]


def test_the_code_digest_follows_the_code(tmp_path: Path) -> None:
    assert code_digest() == code_digest()
    (tmp_path / "a.py").write_text("x = 1\n")
    before = code_digest(tmp_path)
    (tmp_path / "a.pyc").write_text("not code")
    assert code_digest(tmp_path) == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert code_digest(tmp_path) != before


# Devices and threads ------------------------------------------------------------------------------


def fake_torch(
    *,
    cuda: str | None = None,
    count: int = 0,
    capability: tuple[int, int] = (9, 0),
    built: Sequence[str] = ("sm_80", "sm_90"),
    threads: int = 2,
) -> Any:
    properties = SimpleNamespace(
        name="Some GPU", total_memory=80 * 2**30, major=capability[0], minor=capability[1]
    )
    return SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda, hip=None),
        cuda=SimpleNamespace(
            is_available=lambda: count > 0,
            device_count=lambda: count,
            get_device_name=lambda index: "Some GPU",
            get_device_properties=lambda index: properties,
            get_arch_list=lambda: list(built),
        ),
        backends=SimpleNamespace(
            mps=SimpleNamespace(is_available=lambda: False),
            cpu=SimpleNamespace(get_cpu_capability=lambda: "AVX2"),
        ),
        get_num_threads=lambda: threads,
        get_num_interop_threads=lambda: 1,
    )


GPU = [devices.Gpu("Some GPU", "550.1")]


def test_a_gpu_is_described(tmp_path: Path) -> None:
    check = devices.check_devices(fake_torch(cuda="13.0", count=2), host(tmp_path), GPU)
    assert check.findings[0].what == (
        "cuda:0 Some GPU, 80.0 GiB, compute capability 9.0, bfloat16, driver 550.1"
    )
    assert check.facts["devices"] == ["Some GPU", "Some GPU"]
    assert set(levels(check)) == {"ok"}


@pytest.mark.parametrize(
    ("torch", "environ", "level", "words"),
    [
        (fake_torch(), {}, "wrong", "is a CPU build, but there is a Some GPU"),
        (fake_torch(cuda="13.0"), {"CUDA_VISIBLE_DEVICES": ""}, "note", "is hidden"),
        (fake_torch(cuda="13.0"), {}, "wrong", "cannot use Some GPU with driver 550.1"),
        (fake_torch(cuda="13.0", count=1, capability=(7, 0)), {}, "wrong", "no code for it"),
        (fake_torch(cuda="13.0", count=1), {"LOCAL_RANK": "1"}, "wrong", "this rank has none"),
    ],
)
def test_gpus_that_cannot_be_used(
    torch: Any, environ: dict[str, str], level: str, words: str, tmp_path: Path
) -> None:
    finding = only(devices.check_devices(torch, host(tmp_path, **environ), GPU), level)
    assert words in finding.what
    assert finding.hint


def test_a_cuda_build_without_a_gpu_is_noted(tmp_path: Path) -> None:
    assert levels(devices.check_devices(fake_torch(cuda="13.0"), host(tmp_path), [])) == [
        "note",
        "ok",
    ]


def test_nvidia_smi_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.nvidia_gpus() == []
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'Some GPU, 550.1'\necho 'Other GPU, 550.1'\n")
    command.chmod(0o755)
    assert devices.nvidia_gpus() == [*GPU, devices.Gpu("Other GPU", "550.1")]
    command.write_text("#!/bin/sh\nexit 9\n")
    assert devices.nvidia_gpus() == []


@pytest.mark.parametrize(
    ("environ", "level", "hint"),
    [
        ({"OMP_NUM_THREADS": "8"}, "wrong", "export OMP_NUM_THREADS=4"),
        ({"OMP_NUM_THREADS": "all"}, "wrong", "export OMP_NUM_THREADS=4"),
        ({"LOCAL_WORLD_SIZE": "2"}, "note", "export OMP_NUM_THREADS=2"),
        ({"LOCAL_WORLD_SIZE": "8"}, "note", "export OMP_NUM_THREADS=1"),
    ],
)
def test_more_threads_than_cpus(
    environ: dict[str, str], level: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "processors", lambda: 4)
    check = devices.check_threads(fake_torch(threads=4), host(tmp_path, **environ))
    assert only(check, level).hint == hint


# Ranks --------------------------------------------------------------------------------------------

WHOLE = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("environ", "level", "words"),
    [
        (WHOLE, "ok", "Rank 1 of 4"),
        ({"RANK": "0"}, "wrong", "RANK set without WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "wrong", "WORLD_SIZE set without RANK"),
        (WHOLE | {"MASTER_PORT": ""}, "wrong", "without MASTER_PORT"),
        (WHOLE | {"MASTER_PORT": "0"}, "wrong", "MASTER_PORT is 0"),
        (WHOLE | {"RANK": "4"}, "wrong", "ranks count from 0"),
        (WHOLE | {"WORLD_SIZE": "four"}, "wrong", "'four', not a number"),
        (WHOLE | {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "wrong", "LOCAL_WORLD_SIZE 2"),
        (WHOLE | {"MASTER_ADDR": "no.such.host.invalid"}, "wrong", "does not resolve"),
        (WHOLE | {"SLURM_NTASKS": "2"}, "note", "SLURM reserved 2"),
        (WHOLE | {"SLURM_STEP_NUM_TASKS": "2"}, "wrong", "srun started 2"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "wrong", "each is alone"),
    ],
)
def test_variables_of_launchers(
    environ: dict[str, str], level: str, words: str, tmp_path: Path
) -> None:
    assert words in only(launch.check_launch(host(tmp_path, **environ)), level).what


def test_torchrun_in_slurm_has_ranks_of_its_own(tmp_path: Path) -> None:
    """Two tasks of two ranks each are a world of four; what sbatch reserved does not matter."""
    torchrun = WHOLE | {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}
    for slurm in ({"SLURM_STEP_NUM_TASKS": "2"}, {"SLURM_NTASKS": "16"}):
        assert levels(launch.check_launch(host(tmp_path, **torchrun, **slurm))) == ["ok"]
    more = host(tmp_path, **torchrun, SLURM_STEP_NUM_TASKS="4")
    assert "4 processes of 2 ranks" in only(launch.check_launch(more), "wrong").what


def test_a_process_alone_has_no_launch(tmp_path: Path) -> None:
    assert launch.check_launch(host(tmp_path, SLURM_NTASKS="4", SLURM_PROCID="0")) is None
    assert launch.launch_of(host(tmp_path)) is None
    found = launch.launch_of(host(tmp_path, **WHOLE))
    assert found == launch.Launch(1, 4, "127.0.0.1", 29500)
    assert launch.launch_of(host(tmp_path, **WHOLE | {"RANK": "4"})) is None


def a_report(*, torch: str = "2.13.0", threads: int = 4, **facts: Any) -> report.Report:
    facts = {"code": "abc", "torch": torch, "threads": threads, "devices": ["cpu"]} | facts
    return report.Report("node", [Check("All", [Finding("ok", "fine")], facts)])


def test_differences_between_ranks_are_named() -> None:
    same = {rank: a_report() for rank in range(4)}
    assert report.compare_reports(same) == []
    found = report.compare_reports(same | {2: a_report(torch="2.12.0"), 3: a_report(threads=8)})
    texts = {finding.what: finding.level for finding in found}
    assert texts == {
        "torch differs: 2.13.0 (ranks 0-1, 3); 2.12.0 (rank 2)": "wrong",
        "threads differs: 4 (ranks 0-2); 8 (rank 3)": "note",
    }
    broken = report.Report("node", [Check("A", [Finding("wrong", "no disk", "buy")], {})])
    found = report.compare_reports({0: broken, 1: broken, 2: broken})
    assert found == [Finding("wrong", "ranks 1-2: no disk", "buy")]
    assert report.Report.from_dict(json.loads(json.dumps(broken.to_dict()))) == broken


# The command --------------------------------------------------------------------------------------


def test_the_report_fits_80_columns_and_json_has_the_same(sfumato) -> None:
    shown = sfumato("doctor")
    assert max(len(line) for line in shown.out.splitlines() if "/" not in line) <= 80
    for title in ("Versions", "Devices", "Processors", "Threads", "Memory", "Storage", "Process"):
        assert f"\n{title}\n" in shown.out
    asked = sfumato("doctor", "--json")
    found = json.loads(asked.out)
    assert found["level"] in ("ok", "note", "wrong")
    assert asked.code == shown.code == (found["level"] == "wrong")
    (only_rank,) = found["ranks"]
    assert only_rank["checks"][0]["facts"]["python"] == sys.version.split()[0]


def test_something_wrong_ends_with_1(sfumato, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4000")
    found = sfumato("doctor")
    assert found.code == 1
    assert re.search(r"wrong +OMP_NUM_THREADS is 4000.*\n.*-> export OMP", found.out)


def test_without_torch_there_is_a_report() -> None:
    """In a process of its own, in which torch cannot be imported."""
    code = """
import sys
sys.modules["torch"] = None
from sfumato.cli import main
sys.argv = ["sfumato", "doctor"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"wrong +torch \S+ cannot be imported: ModuleNotFoundError", done.stdout)
    assert "accelerators were not looked for" in done.stdout
    assert "/dev/shm" in done.stdout


RANK = """
import os, sys
rank = int(os.environ["RANK"])
if rank == 1 and "THREADS" in os.environ:
    os.environ["OMP_NUM_THREADS"] = os.environ["THREADS"]
sys.argv = ["sfumato", "doctor", "--json", "--timeout", os.environ["WAIT"]]
from sfumato.cli import main
main()
"""


def ranks(count: int, *, world: int = 2, **environ: str) -> list[tuple[int, str, str]]:
    """The exit code, output and errors of the first `count` ranks of a world."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"OMP_NUM_THREADS": "1", "WAIT": "60", **environ}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    return [(one.returncode, *texts) for one, texts in zip(started, ended, strict=True)]


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_rank_0_reports_for_two_processes() -> None:
    first, second = ranks(2, THREADS="2")
    assert first[0] == second[0] == 0, (first, second)
    assert second[1] == ""
    found = json.loads(first[1])
    assert [one["rank"] for one in found["ranks"]] == [0, 1]
    texts = [finding["what"] for finding in found["findings"]]
    assert texts == [
        "threads differs: 1 (rank 0); 2 (rank 1)",
        "2 ranks computed a sum over gloo",
    ]


@pytest.mark.slow
def test_a_missing_rank_is_named() -> None:
    ((code, out, _),) = ranks(1, WAIT="1")
    assert code == 1
    texts = [finding["what"] for finding in json.loads(out)["findings"]]
    assert texts == ["Rank 1 did not answer within 1 s"]


@pytest.mark.slow
def test_under_torchrun() -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--standalone", "-m", "sfumato", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ranks 0-1: " in done.stdout
    assert "2 ranks computed a sum over gloo" in done.stdout
    assert done.stdout.count("Versions") == 1


# Containers ---------------------------------------------------------------------------------------


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def test_the_cuda_constraints_are_the_same_torch() -> None:
    assert "-c constraints.txt" in (ROOT / "constraints-cuda.txt").read_text().splitlines()
    torch = pins("constraints-cuda.txt")["torch"]
    assert re.fullmatch(rf"{re.escape(pins('constraints.txt')['torch'])}\+cu\d+", torch)


def test_the_dockerfile_copies_what_exists_and_leaves_root() -> None:
    text = (ROOT / "container/Dockerfile").read_text()
    lines = [line.split() for line in text.replace("\\\n", " ").splitlines() if line[:1].isupper()]
    assert next(line for line in lines if line[0] == "FROM")[1].startswith("python:3.11")
    copied = [name for line in lines if line[0] == "COPY" for name in line[1:-1]]
    assert "src" in copied
    assert all((ROOT / name).exists() for name in copied)
    check_container(text, copied)
    instructions = [line[0] for line in lines]
    assert instructions.index("USER") < max(
        i for i, name in enumerate(instructions) if name == "RUN"
    )
    assert next(line for line in lines if line[0] == "USER")[1] != "root"


def test_the_apptainer_definition_copies_what_exists() -> None:
    text = (ROOT / "container/sfumato.def").read_text()
    sections = dict(re.findall(r"^%(\w+)\n(.*?)(?=^%|\Z)", text, flags=re.DOTALL | re.MULTILINE))
    assert re.search(r"^Bootstrap: docker\nFrom: python:3.11", text, flags=re.MULTILINE)
    copied = [line.split()[0] for line in sections["files"].splitlines() if line.strip()]
    assert all((ROOT / name).exists() for name in copied)
    check_container(text, copied)
    assert "sfumato-smoke" in sections["test"]


def check_container(text: str, copied: list[str]) -> None:
    """The constraints are copied with what they include; the smoke test is the one in docs."""
    constraints = set(re.findall(r"constraints[-a-z]*\.txt", text))
    assert constraints == {"constraints.txt", "constraints-cuda.txt"} <= set(copied)
    tag = re.search(r"\+(cu\d+)", pins("constraints-cuda.txt")["torch"])
    assert tag is not None
    assert f"https://download.pytorch.org/whl/{tag[1]}" in text
    assert "container/smoke.sh" in copied
    smoke = (ROOT / "container/smoke.sh").read_text()
    assert 'sfumato doctor && sfumato sample bundled:mnist "A handwritten digit 7"' in smoke


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_the_smoke_test_parses() -> None:
    subprocess.run(["sh", "-n", str(ROOT / "container/smoke.sh")], check=True)
