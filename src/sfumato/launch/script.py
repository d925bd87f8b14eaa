"""The batch script of a job: one template, `job.sh`, and what is written into it."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sfumato.base.environment import command
from sfumato.base.errors import InputError
from sfumato.base.files import JOB

_TIMES = (
    r"(?P<minutes>\d+)(:(?P<seconds>\d+))?",
    r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?",
)
_OWN = {
    *("--job-name", "--chdir", "--output", "--open-mode", "--array", "--nodes", "-N", "-J", "-o"),
    *("--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "-c", "--mem", "--time", "-t"),
    *("--requeue", "--no-requeue", "--signal", "-D", "-a"),
}
"""Options of sbatch that the script has already."""
_UNITS = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks for. `cpus` and `memory` (GB) are those of one process; a process has one
    GPU, and without GPUs a node has one process. `time` is a limit as SLURM writes it, None for
    that of the partition; `save_seconds` before it the run is told to save. `options` are further
    ones of sbatch."""

    nodes: int = 1
    gpus_per_node: int = 1
    cpus: int = 4
    memory: int = 32
    time: str | None = None
    save_seconds: int = 120
    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        """`InputError` for a time that SLURM does not know, or that leaves none to train, and for
        an option of sbatch that is none, or that the script sets itself."""
        for option in self.options:
            name = re.split("[= ]", option)[0]
            if name.startswith("-") and name not in _OWN:
                continue
            problem = "is set by sfumato" if name in _OWN else "does not begin with a dash"
            raise InputError(
                f"--sbatch {option}: {name} {problem}.",
                hint="Write options as sbatch has them: --sbatch=--qos=long. Nodes, GPUs, CPUs, "
                "memory and time have options of their own.",
            )
        if self.time is None:
            return
        seconds = time_seconds(self.time)
        if seconds < 2 * self.save_seconds:
            raise InputError(
                f"--time {self.time} is {seconds} seconds, of which the last {self.save_seconds} "
                "are for saving.",
                hint="Give a longer --time, or fewer --save-seconds.",
            )

    @property
    def processes(self) -> int:
        """Processes of a node."""
        return max(1, self.gpus_per_node)

    @property
    def memory_per_node(self) -> int:
        """Gigabytes."""
        return self.memory * self.processes


def time_seconds(text: str) -> int:
    """A time limit of SLURM in seconds; `InputError` for what is none."""
    for pattern in _TIMES:
        if found := re.fullmatch(pattern, text):
            seconds = sum(
                _UNITS[unit] * int(number) for unit, number in found.groupdict(default="0").items()
            )
            if seconds:
                return seconds
    raise InputError(
        f"--time {text}: not a time limit of SLURM.",
        hint="Write minutes, HOURS:MINUTES:SECONDS, DAYS-HOURS or DAYS-HOURS:MINUTES: "
        "--time 90, --time 4:00:00, --time 1-12.",
    )


def job_script(
    folder: Path,
    arguments: Sequence[str],
    resources: Resources,
    *,
    runs: Mapping[str, Sequence[str]] | None = None,
    parallel: int | None = None,
) -> str:
    """The script of a run in `folder`, trained by `sfumato train ARGUMENTS`.

    With `runs` it is an array: a task for each, in the folder of that name inside `folder`, with
    these settings more; at most `parallel` at once.
    """
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"word": _word, "words": shlex.join, "directive": _directive}
    folder = folder.absolute()
    output = str(folder / JOB).replace("%", "%%") + ("/%A_%a.out" if runs else "/%j.out")
    template = environment.from_string((files("sfumato.launch") / "job.sh").read_text("utf-8"))
    return template.render(
        name=f"sfumato-{re.sub(r'[^A-Za-z0-9_.-]', '-', folder.name)}",
        here=Path.cwd(),
        output=output,
        folder=folder,
        jobs=folder / JOB,
        runs=[(folder / name, settings) for name, settings in (runs or {}).items()],
        tasks=_tasks(len(runs), parallel) if runs else None,
        arguments=arguments,
        resources=resources,
        python=sys.executable,
        command=command().replace("\n", " "),
    )


def _tasks(count: int, parallel: int | None) -> str:
    return f"0-{count - 1}" + ("" if parallel is None else f"%{parallel}")


def _word(value: object) -> str:
    """One word of the shell."""
    return shlex.quote(str(value))


def _directive(value: object) -> str:
    """The value of an option in a #SBATCH line, which has quotes of its own kind."""
    text = str(value)
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text) else '"' + text.replace('"', r"\"") + '"'
