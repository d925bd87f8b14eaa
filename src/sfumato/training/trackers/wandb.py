"""Weights & Biases; without a key, or with `WANDB_MODE=offline`, into `wandb/` of the run folder.

Its client sends by a process of its own, which also keeps what a server does not take.
"""

import netrc
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sfumato.base.errors import ConfigError
from sfumato.training.trackers.protocol import End, Point, Sent, TrackedRun, without_secrets

INIT_SECONDS = 10


class WandB:
    """`Sent.mark` is the newest step: the client takes steps in their order alone."""

    _run: Any
    _images_seen: int

    def open(self, run: TrackedRun, sent: Sent) -> Sent:
        import wandb  # pyright: ignore

        settings = wandb.Settings(
            init_timeout=INIT_SECONDS, silent=True, console="off", disable_git=True
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sfumato"),
            id=run.key,
            name=run.name,
            dir=str(run.folder),
            config=dict(run.parameters),
            mode=_mode(),
            resume="allow",
            settings=settings,
        )
        self._images_seen = sent.mark
        return sent

    def metrics(self, points: Sequence[Point], sent: Sent) -> None:
        for point in points:
            self._log(point.images_seen, dict(point.values))
        sent.mark = self._images_seen

    def picture(self, images_seen: int, file: Path, sent: Sent) -> None:
        import wandb  # pyright: ignore

        self._log(images_seen, {"samples": wandb.Image(str(file))})
        sent.mark = self._images_seen

    def _log(self, images_seen: int, values: dict[str, Any]) -> None:
        """Numbers of another file may be of fewer images: they go with the newest step, and their
        own count with them."""
        self._images_seen = max(self._images_seen, images_seen)
        self._run.log({"images": images_seen, **values}, step=self._images_seen)

    def artifact(self, name: str, file: Path) -> None:
        # A copy: the client would link to a file that may be removed with its checkpoint.
        folder = Path(self._run.dir)
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        self._run.save(str(copy), base_path=str(folder), policy="now")

    def close(self, end: End) -> None:
        self._run.finish(exit_code=int(end == "failed"))


TRACKER = WandB


def address() -> str:
    """The address of the server, or where an offline run lies; `ConfigError` for a wrong one."""
    given = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if urlsplit(given).scheme not in ("http", "https") or not urlsplit(given).hostname:
        raise ConfigError(
            f"WANDB_BASE_URL is not the address of a server: '{without_secrets(given)}'.",
            hint="Unset it for wandb.ai, or give an address such as https://wandb.example.org.",
        )
    return given


def _mode() -> str:
    """As `WANDB_MODE` says; else online with a key alone, so that nobody is asked for one."""
    given = os.environ.get("WANDB_MODE")
    if given:
        return given
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    try:
        known = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        known = {}
    return "online" if urlsplit(address()).hostname in known else "offline"
