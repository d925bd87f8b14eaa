"""Caches: where they lie, how large they are, whether they can be written."""

import os
from pathlib import Path

from sfumato.base.doctor.findings import Check, Finding, Host, size
from sfumato.base.doctor.machine import check_disk, nearest_existing
from sfumato.base.files import cache_folder

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_ON = ("1", "ON", "YES", "TRUE")
_MOST_FILES = 20_000
"""Files whose size is added up; a larger cache is "at least" that size."""


def cache_folders(host: Host) -> dict[str, Path]:
    """The folders of downloads and of sfumato's own cache."""
    environ = host.environ
    base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = Path(environ.get("HF_HOME") or base / "huggingface").expanduser()
    torch = Path(environ.get("TORCH_HOME") or base / "torch").expanduser()
    hub_cache = Path(environ.get("HF_HUB_CACHE") or hub / "hub").expanduser()
    return {"Hugging Face": hub_cache, "torch": torch, "sfumato": cache_folder()}


def check_storage(host: Host, folder: Path) -> Check:
    """The working directory `folder` and the caches."""
    findings = [check_disk(folder, name="the working directory")]
    if not os.access(folder, os.W_OK):
        text = "The working directory cannot be written"
        findings.append(Finding("wrong", text, "Change to a folder of your own."))
    devices = {os.stat(folder).st_dev}
    for name, path in cache_folders(host).items():
        findings.append(_check_cache(name, path))
        device = os.stat(nearest_existing(path)).st_dev
        if device not in devices:
            findings.append(check_disk(path, name=f"the cache of {name}"))
        devices.add(device)
    return Check("Storage", findings + _offline(host))


def _check_cache(name: str, path: Path) -> Finding:
    shown, place = _short(path), nearest_existing(path)
    if not place.is_dir():
        text = f"{shown} ({name}): {_short(place)} is a file"
        return Finding("wrong", text, "Move the file, or name another folder.")
    text = f"{shown} ({name}), {_size_of(path) if path.exists() else 'empty'}"
    if os.access(place, os.W_OK):
        return Finding("ok", text)
    if name == "sfumato":
        return Finding("wrong", f"{text}, cannot be written", "export SFUMATO_CACHE=FOLDER")
    variable = "HF_HOME" if name == "Hugging Face" else "TORCH_HOME"
    hint = f"Enough where all is there; else export {variable}=FOLDER"
    return Finding("note", f"{text}, cannot be written", hint)


def _size_of(path: Path) -> str:
    total = count = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # removed meanwhile
                continue
        count += len(names)
        if count > _MOST_FILES:
            return f"at least {size(total)}"
    return size(total)


def _short(path: Path) -> str:
    """`path` with ~ for the home folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _offline(host: Host) -> list[Finding]:
    on = [name for name in _OFFLINE if host.environ.get(name, "").upper() in _ON]
    if not on:
        return []
    text = f"{' and '.join(on)} set: only what the cache of Hugging Face has can be loaded"
    return [Finding("note", text, f"unset {' '.join(on)} where there is a network")]
