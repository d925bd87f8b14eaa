"""Data sets of the Hugging Face Hub: downloaded once, checked, and never taken for whole before."""

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import (
    TEMPORARY_PREFIX,
    cache_folder,
    make_folder,
    read_json,
    sha256_of_file,
    sync,
    write_json,
    writing,
)
from sfumato.base.hub import LOOKUP_SECONDS, is_of_network, reach
from sfumato.data.sources.folder import SUFFIXES
from sfumato.data.sources.metadata import NAMES

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

T = TypeVar("T")

NAME = re.compile(r"^([\w.-]+)/([\w.-]+)((?:/[\w.-]+)*)$")
MANIFEST = "sfumato-download.json"
CONVERTED = "refs/convert/parquet"
"""The branch where the Hub keeps a Parquet copy of data sets that are stored otherwise."""
_TELL_SECONDS = 3.0
_ATTEMPTS, _PAUSE_SECONDS = 3, 1.0


def is_hub_name(source: str) -> bool:
    """Whether `source` could be OWNER/NAME, or OWNER/NAME/FOLDER within it."""
    found = NAME.match(source)
    return found is not None and not source.startswith(".")


def hub_folder(source: str) -> Path:
    """The local folder of a Hub data set: from the cache, or downloaded.

    Files are resumed where a download stopped; each is compared with the checksum that the Hub
    states; a manifest written last says that all are there. `InputError` with the ways out where
    the Hub cannot be reached, `DamagedDataError` for a wrong checksum.
    """
    found = NAME.match(source)
    assert found is not None
    repository, below = f"{found[1]}/{found[2]}", found[3].strip("/")
    folder = cache_folder() / "hub" / f"{found[1]}--{found[2]}"
    if not (folder / MANIFEST).is_file():
        from huggingface_hub.utils import WeakFileLock

        with WeakFileLock(make_folder(folder) / ".lock"):  # the ranks of a run all come here
            if not (folder / MANIFEST).is_file():
                _download(repository, folder)
    _check_is_whole(folder)
    if below and not (folder / below).is_dir():
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise InputError(
            f"{repository} has no folder '{below}'.", hint=f"It has: {', '.join(inside)}."
        )
    return folder / below


def _check_is_whole(folder: Path) -> None:
    for name, about in read_json(folder / MANIFEST)["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != about["size"]:
            raise DamagedDataError(
                f"{path} is not as it was downloaded.",
                hint=f"Remove {folder / MANIFEST}; the next command fetches what is missing.",
            )


def _download(repository: str, folder: Path) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    info = _reach(repository, lambda: _look_up(api, repository))
    wanted = _wanted(info.siblings or [])
    if not any(item.rfilename.endswith(".parquet") for item in wanted):
        converted = _reach(repository, lambda: _converted(api, repository))
        if converted is not None:
            info, wanted = converted, _wanted(converted.siblings or [])
    if not wanted:
        raise InputError(
            f"{repository} holds no Parquet files and no images.",
            hint="Download it by hand and bring it into one of the layouts of docs/data.md.",
        )
    total = sum(item.size or 0 for item in wanted)
    _refuse_a_full_disk(folder, wanted, total)
    progress = _Progress(repository, total=total)
    for item in wanted:
        if _is_right(folder / item.rfilename, item):
            progress.add(item.size or 0)
        else:
            _fetch(repository, info.sha, item, folder / item.rfilename, progress)
    progress.finish()
    write_json(
        folder / MANIFEST,
        {
            "repository": repository,
            "revision": info.sha,
            "files": {
                item.rfilename: {
                    "size": (folder / item.rfilename).stat().st_size,
                    "sha256": item.lfs.sha256 if item.lfs else None,
                }
                for item in wanted
            },
        },
    )


def _look_up(api: "HfApi", repository: str, revision: str | None = None) -> Any:
    return api.dataset_info(
        repository, revision=revision, files_metadata=True, timeout=LOOKUP_SECONDS
    )


def _converted(api: "HfApi", repository: str) -> Any:
    """The Hub's own Parquet copy, None where it has none."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return _look_up(api, repository, CONVERTED)
    except HfHubHTTPError:
        return None


def _wanted(files: Sequence["RepoSibling"]) -> list["RepoSibling"]:
    """The Parquet files of a repository; without any, its images, captions and IDX files."""
    visible = [
        item
        for item in files
        if not any(part.startswith((".", "/")) for part in Path(item.rfilename).parts)
    ]  # which leaves out what would lead out of the folder, too
    parquet = [item for item in visible if item.rfilename.endswith(".parquet")]
    if parquet:
        return parquet
    return [
        item
        for item in visible
        if Path(item.rfilename).suffix.lower() in {*SUFFIXES, ".txt"}
        or Path(item.rfilename).name in NAMES
        or ("idx" in item.rfilename and "ubyte" in item.rfilename)
    ]


def _fetch(
    repository: str, revision: str, item: "RepoSibling", path: Path, progress: "_Progress"
) -> None:
    """One file, going on where an earlier attempt stopped; it gets its name when it is right.

    Differs from `hf_hub_download`, which begins a file again after its process was killed.
    """
    partial = path.with_name(f"{TEMPORARY_PREFIX}{revision[:8]}-{path.name}")
    make_folder(path.parent)
    if partial.is_file():
        progress.add(partial.stat().st_size)
    broken = 0
    while not partial.is_file() or partial.stat().st_size < (item.size or 0):
        before = partial.stat().st_size if partial.is_file() else 0
        try:
            _append(repository, revision, item.rfilename, partial, progress)
            break
        except Exception as error:
            grown = partial.is_file() and partial.stat().st_size > before
            broken = 0 if grown else broken + 1
            if broken >= _ATTEMPTS or not is_of_network(error):
                _reach(repository, lambda error=error: _raise(error))
            time.sleep(_PAUSE_SECONDS)
    if not _is_right(partial, item):
        partial.unlink()
        raise DamagedDataError(
            f"{repository}: {item.rfilename} has a wrong checksum after download.",
            hint="It was removed. The same command fetches it again; if that fails too, a proxy "
            "may be changing it: download it by another way and give its folder.",
        )
    sync(partial)
    os.replace(partial, path)


def _append(
    repository: str, revision: str, name: str, partial: Path, progress: "_Progress"
) -> None:
    """Fetch what is missing of `partial`."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    url = hf_hub_url(repository, name, repo_type="dataset", revision=revision)
    there = partial.stat().st_size if partial.is_file() else 0
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with (
        get_session().stream(
            "GET", url, headers=headers, timeout=timeout, follow_redirects=True
        ) as answer,
        writing(partial),
    ):
        hf_raise_for_status(answer)
        with partial.open("ab" if answer.status_code == 206 else "wb") as file:
            for chunk in answer.iter_raw():
                file.write(chunk)
                progress.add(len(chunk))


def _raise(error: Exception) -> None:
    raise error


def _is_right(path: Path, item: "RepoSibling") -> bool:
    """Whether the file is there with the checksum that the Hub states."""
    if not path.is_file() or (item.size is not None and path.stat().st_size != item.size):
        return False
    if item.lfs is not None:
        return sha256_of_file(path) == item.lfs.sha256
    if item.blob_id is None:
        return True
    content = path.read_bytes()  # small files are not in LFS; git hashes them with their length
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == item.blob_id


def _reach(repository: str, request: Callable[[], T]) -> T:
    """The answer of the Hub; a clear message where there is none."""
    return reach(
        request,
        name=repository,
        kind="data set",
        ways="Three ways out: give the command again where there is a network (it goes on where "
        "it stopped); download the repository's files by hand and give their folder; or start "
        "with --data digits, which comes with sfumato.",
    )


def _refuse_a_full_disk(folder: Path, wanted: Sequence["RepoSibling"], total: int) -> None:
    there = sum(
        (folder / i.rfilename).stat().st_size for i in wanted if (folder / i.rfilename).exists()
    )
    free = shutil.disk_usage(folder).free
    if total - there > free:
        raise InputError(
            f"The download takes {total / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB left.",
            hint="Free some space, or let SFUMATO_CACHE name a folder on another disk.",
        )


class _Progress:
    """Lines on the error stream: what is being fetched, how far it is and how fast."""

    def __init__(self, repository: str, *, total: int) -> None:
        self._name, self._total, self._done = repository, total, 0.0
        self._started = self._told = time.monotonic()
        self._say(f"Downloading {repository} ({total / 1e6:,.1f} MB)")

    def add(self, size: float) -> None:
        self._done += size
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            speed = self._done / (now - self._started)
            left = (self._total - self._done) / max(speed, 1)
            self._say(
                f"  {self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB, "
                f"{speed / 1e6:.1f} MB/s, {left:,.0f} s left"
            )

    def finish(self) -> None:
        seconds = time.monotonic() - self._started
        self._say(f"Downloaded and checked {self._name} in {seconds:,.0f} s")

    def _say(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
