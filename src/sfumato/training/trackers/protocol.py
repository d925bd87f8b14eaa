"""What a tracker is, and what it is told."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

End = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run as trackers know it. `key` is drawn once and stays, however often it is resumed."""

    key: str
    name: str
    folder: Path
    parameters: Mapping[str, Any]
    """Settings by dotted name."""


@dataclass(frozen=True)
class Point:
    """Numbers by name after so many images; `time` in seconds of the epoch, when it was read."""

    images_seen: int
    values: Mapping[str, float]
    time: float


@dataclass
class Sent:
    """What one tracker has of a run."""

    records: dict[str, int] = field(default_factory=dict)
    """Images seen at the newest point that was sent, by the file it is from."""
    pictures: int = -1
    """Images seen at the newest picture."""
    artifacts: dict[str, str] = field(default_factory=dict)
    """sha256 of files by name."""
    mark: int = 0
    """A number that the tracker itself keeps."""


class Tracker(Protocol):
    """Where a run is sent: five methods, called on a thread that does nothing else.

    Each may take seconds and may raise anything: the tracker is then closed, and another one is
    opened later and told again what failed. `sent` is the state that holds once the call is done.
    """

    def open(self, run: TrackedRun, sent: Sent) -> Sent:
        """Begin the run, or continue it. `sent`: what the run folder says that this tracker has;
        returned is what it really has, where it can tell."""
        ...

    def metrics(self, points: Sequence[Point], sent: Sent) -> None: ...
    def picture(self, images_seen: int, file: Path, sent: Sent) -> None: ...
    def artifact(self, name: str, file: Path) -> None: ...
    def close(self, end: End) -> None: ...


def without_secrets(text: str) -> str:
    """A text for a log, without the users and passwords of addresses in it."""
    return re.sub(r"(?<=//)[^/\s]*@", "", text)
