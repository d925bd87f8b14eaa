"""Pictures in a folder: a gallery that is there after a restart, and cells that are made once."""

import hashlib
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from sfumato.base.errors import InputError, SfumatoError
from sfumato.base.files import make_folder, make_private, remove_incomplete, write_bytes
from sfumato.interactive.serving import Refusal, inside
from sfumato.interactive.studio.png import settings_of

MOST_PICTURES = 10_000
MOST_CELLS = 5_000
"""Kept for grids and comparisons; the oldest go."""
CELLS, EVOLUTIONS = "cells", "evolutions"
_NAME = re.compile(r"[0-9]{19}-[0-9a-f]{8}\.png")


def private_folder(folder: Path) -> Path:
    """A folder that no other user can enter, made where it is not there. One that belongs to
    another user stays as it is."""
    make_private(make_folder(folder))
    return folder


class Gallery:
    """A folder of PNGs, each with its settings. Their names sort by time; the files are all that
    is kept, and one that somebody removes is gone from the gallery too."""

    def __init__(self, folder: Path) -> None:
        """Clears what a killed studio left behind."""
        self.folder = private_folder(folder)
        remove_incomplete(folder)
        self._cells = make_folder(folder / CELLS)
        remove_incomplete(self._cells)
        self._settings: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The newest first."""
        return sorted(
            (one for one in os.listdir(self.folder) if _NAME.fullmatch(one)), reverse=True
        )

    def page(self, *, before: str, limit: int) -> dict[str, Any]:
        """Pictures older than `before`, all of them for an empty one, with their settings."""
        names = self.names()
        chosen = [name for name in names if not before or name < before][:limit]
        pictures = [{"name": name, "settings": self.settings(name)} for name in chosen]
        return {"pictures": pictures, "count": len(names)}

    def settings(self, name: str) -> dict[str, str]:
        """Of a picture; empty for a file that is not what the studio wrote."""
        if name not in self._settings:
            try:
                self._settings[name] = settings_of(self.path(name).read_bytes())
            except SfumatoError:
                return {}
        return self._settings[name]

    def path(self, name: str) -> Path:
        """Of a picture in the gallery; `Refusal` (404) for one that is not there."""
        return _existing(self.folder, name, _NAME)

    def add(self, png: bytes) -> str:
        """Write a picture; its name. `InputError` where the gallery is full."""
        if len(self.names()) >= MOST_PICTURES:
            raise InputError(
                f"The gallery has {MOST_PICTURES:,} pictures.",
                hint="Delete some, or give another --gallery.",
            )
        digest = hashlib.sha256(png).hexdigest()[:8]
        with self._lock:
            name = f"{time.time_ns():019d}-{digest}.png"
        write_bytes(self.folder / name, png)
        return name

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)
        self._settings.pop(name, None)

    # Cells ----------------------------------------------------------------------------------------

    def cell_name(self, known: dict[str, Any]) -> str:
        """The name of a cell by everything that it depends on."""
        text = json.dumps(known, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32] + ".png"

    def has_cell(self, name: str) -> bool:
        return (self._cells / name).is_file()

    def cell(self, name: str) -> Path:
        return _existing(self._cells, name, re.compile(r"[0-9a-f]{32}\.png"))

    def add_cell(self, name: str, png: bytes) -> None:
        """Write a cell; the oldest go where there are too many."""
        there = sorted(self._cells.glob("*.png"), key=lambda one: one.stat().st_mtime)
        for old in there[: max(len(there) - MOST_CELLS + 1, 0)]:
            old.unlink(missing_ok=True)
        write_bytes(self._cells / name, png)


def _existing(folder: Path, name: str, form: re.Pattern[str]) -> Path:
    path = inside(folder, name)
    if not form.fullmatch(name) or not path.is_file():
        raise Refusal(f"There is no picture '{name[:80]}'.", status=404)
    return path
