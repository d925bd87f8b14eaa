"""Accelerators and threads: what torch sees, against what the machine has."""

import subprocess
from dataclasses import dataclass
from types import ModuleType

from sfumato.base.doctor.findings import Check, Finding, Host, size
from sfumato.base.doctor.machine import usable_cpus


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi reports it."""

    name: str
    driver: str


def nvidia_gpus() -> list[Gpu]:
    """The GPUs that nvidia-smi finds, whatever torch is; empty without it."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.split(",") for line in done.stdout.splitlines())
    return [Gpu(row[0].strip(), row[1].strip()) for row in rows if len(row) == 2]


def check_devices(torch: ModuleType | None, host: Host, gpus: list[Gpu]) -> Check:
    """`gpus`: what `nvidia_gpus` found."""
    if torch is None:
        text = "torch cannot be imported: accelerators were not looked for"
        return Check("Devices", [Finding("note", text, "Solve what is wrong with torch first.")])
    names: list[str] = []
    findings: list[Finding] = []
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        findings = [_cuda_device(torch, index, gpus) for index in range(len(names))]
        findings += _rank_without_gpu(host, len(names))
    elif gpus:
        findings.append(_unused_gpu(torch, host, gpus))
    elif torch.version.cuda is not None:
        text = f"torch was built for CUDA {torch.version.cuda}, and there is no GPU"
        findings.append(Finding("note", text, "On a cluster, ask for one: srun --gpus=1"))
    if torch.backends.mps.is_available():
        names.append("mps")
        findings.append(Finding("ok", "MPS (Apple GPU)"))
    capability = torch.backends.cpu.get_cpu_capability()
    findings.append(Finding("ok", f"CPU, torch uses {capability}"))
    return Check("Devices", findings, {"devices": names or ["cpu"], "instruction_set": capability})


def _cuda_device(torch: ModuleType, index: int, gpus: list[Gpu]) -> Finding:
    found = torch.cuda.get_device_properties(index)
    driver = next((gpu.driver for gpu in gpus if gpu.name == found.name), "unknown")
    bf16 = "bfloat16" if found.major >= 8 or torch.version.hip else "no bfloat16"
    text = (
        f"cuda:{index} {found.name}, {size(found.total_memory)}, compute capability "
        f"{found.major}.{found.minor}, {bf16}, driver {driver}"
    )
    built = torch.cuda.get_arch_list()
    same = [one for one in built if one.removeprefix("sm_")[:-1] == str(found.major)]
    ahead = any(one.startswith("compute_") for one in built)  # code that a driver can compile
    if torch.version.cuda is not None and built and not same and not ahead:
        what = f"{text}: torch {torch.__version__} has no code for it ({', '.join(built)})"
        return Finding("wrong", what, "Install a build of torch for this GPU.")
    return Finding("ok", text)


def _rank_without_gpu(host: Host, count: int) -> list[Finding]:
    local = host.number("LOCAL_RANK")
    if local is None or local < count:
        return []
    text = f"LOCAL_RANK is {local}, and {count} GPU(s) are visible: this rank has none"
    return [Finding("wrong", text, f"torchrun --nproc-per-node {count}")]


def _unused_gpu(torch: ModuleType, host: Host, gpus: list[Gpu]) -> Finding:
    """A GPU that nvidia-smi finds and torch does not."""
    gpu, hidden = gpus[0], host.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None and torch.version.hip is None:
        text = f"torch {torch.__version__} is a CPU build, but there is a {gpu.name}"
        return Finding("wrong", text, "Install as constraints-cuda.txt says.")
    if hidden is not None and hidden.strip() in ("", "-1"):
        text = f"CUDA_VISIBLE_DEVICES is '{hidden}': {gpu.name} is hidden"
        return Finding("note", text, "unset CUDA_VISIBLE_DEVICES")
    text = (
        f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use {gpu.name} with "
        f"driver {gpu.driver}"
    )
    return Finding("wrong", text, "Update the driver, or install torch for an older CUDA.")


def check_threads(torch: ModuleType | None, host: Host) -> Check:
    """torch's threads and OMP_NUM_THREADS against the CPUs of this process."""
    cpus, findings = usable_cpus(host), []
    given = host.environ.get("OMP_NUM_THREADS")
    asked = host.number("OMP_NUM_THREADS")
    if given is not None and not asked:
        text = f"OMP_NUM_THREADS is '{given}', not a number of threads"
        findings.append(Finding("wrong", text, f"export OMP_NUM_THREADS={cpus}"))
    if asked and asked > cpus:
        text = f"OMP_NUM_THREADS is {asked}, more than the {cpus} CPUs of this process"
        findings.append(Finding("wrong", text, f"export OMP_NUM_THREADS={cpus}"))
    if torch is None:
        return Check("Threads", findings or [Finding("ok", f"{cpus} CPUs can be used")])
    threads, ranks = torch.get_num_threads(), host.number("LOCAL_WORLD_SIZE") or 1
    text = (
        f"torch computes on {threads} of {cpus} CPUs ({torch.get_num_interop_threads()} inter-op)"
    )
    findings.append(Finding("ok", text))
    if ranks > 1 and threads * ranks > cpus:
        each = max(1, cpus // ranks)
        what = f"{ranks} ranks of {threads} threads share {cpus} CPUs on this machine"
        hint = "Start fewer ranks." if threads == 1 else f"export OMP_NUM_THREADS={each}"
        findings.append(Finding("note", what, hint))
    return Check("Threads", findings, {"threads": threads})
