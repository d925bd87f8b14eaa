"""Data sets of the Hugging Face Hub: downloaded once, checked, and used only when complete."""

import glob
import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sfumato.base.errors import DamagedDataError, InputError
from sfumato.base.files import cache_folder, make_folder, read_json, sha256_of_file, write_json
from sfumato.base.hub import LOOKUP_SECONDS, reach
from sfumato.data.files import SUFFIXES
from sfumato.data.sources.metadata import NAMES

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

T = TypeVar("T")

NAME = re.compile(r"^([\w.-]+)/([\w.-]+)((?:/[\w.-]+)*)$")
MANIFEST = "sfumato-download.json"
CONVERTED = "refs/convert/parquet"
"""The branch where the Hub keeps a Parquet copy of data sets in other formats."""


def is_hub_name(source: str) -> bool:
    """Whether `source` could be OWNER/NAME, or OWNER/NAME/FOLDER within it."""
    return NAME.match(source) is not None and not source.startswith(".")


def hub_folder(source: str) -> Path:
    """The local folder of a Hub data set: from the cache, or downloaded.

    A manifest, written after every file was compared with the checksum that the Hub states, marks a
    whole download. Raises `InputError` where the Hub cannot be reached, `DamagedDataError` for a
    wrong checksum.
    """
    match = NAME.match(source)
    assert match is not None
    repository, below = f"{match[1]}/{match[2]}", match[3].strip("/")
    folder = cache_folder() / "hub" / f"{match[1]}--{match[2]}"
    if not (folder / MANIFEST).is_file():
        from huggingface_hub.utils import WeakFileLock

        with WeakFileLock(make_folder(folder) / ".lock"):  # all ranks of a run come here
            if not (folder / MANIFEST).is_file():
                _download(repository, folder)
    for name, size in read_json(folder / MANIFEST)["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise DamagedDataError(
                f"{path} is not as it was downloaded.",
                hint=f"Remove {folder / MANIFEST}; the next command fetches what is missing.",
            )
    if below and not (folder / below).is_dir():
        folders = (path.name for path in folder.iterdir() if path.is_dir())
        inside = sorted(name for name in folders if not name.startswith("."))
        raise InputError(
            f"{repository} has no folder '{below}'.", hint=f"It has: {', '.join(inside)}."
        )
    return folder / below


def _download(repository: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    revision, wanted = _list_files(repository)
    for partial in folder.rglob("*.incomplete"):  # of a killed process; the library leaves them
        partial.unlink()
    for item in wanted:  # the library does not look at files that it downloaded before
        if (path := folder / item.rfilename).is_file() and _size(path) != item.size:
            path.unlink()
    total_bytes = sum(item.size or 0 for item in wanted)
    free_bytes = shutil.disk_usage(folder).free
    if total_bytes - sum(map(_size, folder.rglob("*"))) > free_bytes:
        raise InputError(
            f"The download takes {total_bytes / 1e9:.1f} GB, but {folder} has "
            f"{free_bytes / 1e9:.1f} GB left.",
            hint="Free some space, or let SFUMATO_CACHE name a folder on another disk.",
        )
    sys.stderr.write(f"Downloading {repository} ({total_bytes / 1e6:,.1f} MB)\n")
    _reach(
        repository,
        lambda: snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            local_dir=folder,
            allow_patterns=[glob.escape(item.rfilename) for item in wanted],
        ),
    )
    for item in wanted:
        _check(repository, item, folder / item.rfilename)
    sys.stderr.write(f"Downloaded and checked {repository}\n")
    files = {item.rfilename: _size(folder / item.rfilename) for item in wanted}
    record = {"repository": repository, "revision": revision, "files": files}
    write_json(folder / MANIFEST, record)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _list_files(repository: str) -> tuple[str, "list[RepoSibling]"]:
    """The revision and the files to fetch: of the repository, or of its Parquet copy."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    def look_up(revision: str | None) -> Any:
        return HfApi().dataset_info(
            repository, revision=revision, files_metadata=True, timeout=LOOKUP_SECONDS
        )

    def look_up_copy() -> Any:
        try:
            return look_up(CONVERTED)
        except HfHubHTTPError:
            return None

    info = _reach(repository, lambda: look_up(None))
    wanted = _wanted(info.siblings or [])
    if not any(item.rfilename.endswith(".parquet") for item in wanted):
        copy = _reach(repository, look_up_copy)
        if copy is not None:
            info, wanted = copy, _wanted(copy.siblings or [])
    if not wanted:
        raise InputError(
            f"{repository} holds no Parquet files and no images.",
            hint="Download it by hand and bring it into one of the layouts of docs/data.md.",
        )
    return info.sha, wanted


def _wanted(files: "Sequence[RepoSibling]") -> "list[RepoSibling]":
    """The Parquet files of a repository; without any, its images, captions and IDX files."""
    visible = [
        item
        for item in files
        if not any(part.startswith((".", "/")) for part in Path(item.rfilename).parts)
    ]  # which also leaves out names that lead out of the folder
    parquet = [item for item in visible if item.rfilename.endswith(".parquet")]
    return parquet or [
        item
        for item in visible
        if Path(item.rfilename).suffix.lower() in {*SUFFIXES, ".txt", ".caption"}
        or Path(item.rfilename).name in NAMES
        or ("idx" in item.rfilename and "ubyte" in item.rfilename)
    ]


def _check(repository: str, item: "RepoSibling", path: Path) -> None:
    """Compare a file with the checksum that the Hub states, which the library does not."""
    if not path.is_file():  # without a network, the library returns the folder as it is
        _reach(repository, lambda: _raise(OSError("the connection was lost")))
    if item.lfs is not None:
        right = sha256_of_file(path) == item.lfs.sha256
    else:
        content = path.read_bytes()  # not in LFS: git hashes a file with its length
        right = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == item.blob_id
    if not right and (item.lfs or item.blob_id):
        path.unlink()
        raise DamagedDataError(
            f"{repository}: {item.rfilename} has a wrong checksum after download.",
            hint="It was removed. The same command fetches it again; if that fails too, a proxy "
            "may be changing it: download it another way and give its folder.",
        )


def _raise(error: Exception) -> None:
    raise error


def _reach(repository: str, request: Callable[[], T]) -> T:
    """The answer of the Hub; a clear message where there is none."""
    return reach(
        request,
        name=repository,
        kind="data set",
        ways="Three ways out: give the command again where there is a network (what is whole "
        "is kept); download the repository's files by hand and give their folder; or start "
        "with --data digits, which comes with sfumato.",
    )
