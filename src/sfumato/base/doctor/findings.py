"""What `sfumato doctor` finds: statements with a level, grouped by subject."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Level = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """A sentence, and what to do where it is a `note` (works, with a limit) or `wrong`."""

    level: Level
    what: str
    hint: str = ""


@dataclass(frozen=True)
class Check:
    """The findings on one subject, and the plain values (`facts`) that they were drawn from."""

    title: str
    findings: list[Finding]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """Where the machine is read from; tests give a folder of files and an environment."""

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def read(self, path: str | Path) -> str:
        """The text of a file under `root`; empty where it cannot be read."""
        try:
            return (self.root / str(path).lstrip("/")).read_text("utf-8", errors="replace").strip()
        except OSError:
            return ""

    def number(self, name: str) -> int | None:
        """An environment variable as an integer; None where it is absent or something else."""
        text = self.environ.get(name, "")
        return int(text) if text.strip().isdecimal() else None


def size(count: float) -> str:
    """Bytes in the largest binary unit that leaves at least 1: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
