"""Files that are either whole or absent, and hashes that say which ones they are."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sfumato.base.errors import DamagedDataError, InputError, SfumatoError

TEMPORARY_PREFIX = ".incomplete-"
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
REQUEST = "request.json"
JOB = "slurm"
"""Inside a run folder: the batch script of a run that is a job of a queue, and its output."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing `path` into messages with a hint."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise SfumatoError(
                f"No space left on the device while writing {path}.",
                hint="What was written before is whole. Free some space, or give another "
                "folder, and start the same command again: it goes on from the last checkpoint.",
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise SfumatoError(
                f"No permission to write {path}.",
                hint="Choose a folder of your own, or change its permissions.",
            ) from error
        if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT):
            raise SfumatoError(
                f"Cannot write {path}: {os.strerror(number)}.",
                hint="A part of the path is a file, or does not exist. Choose another folder.",
            ) from error
        raise


def _errno(error: Exception) -> int | None:
    """The operating system's error number; safetensors hides it in the text of its own error."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def is_lfs_pointer(path: Path) -> bool:
    """Whether Git LFS left a few lines of text where the file itself should be."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(20).startswith(b"version https://git-")


def make_folder(path: Path) -> Path:
    """Create `path` and its parents; a clear message where that is refused."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def whole_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A temporary file in the same folder that becomes `path` in one rename when the block ends
    well; a reader sees the whole file or none. `private`: no other user can read it."""
    make_folder(path.parent)
    with writing(path):
        handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
        os.close(handle)
        try:
            yield Path(name)
            # mkstemp makes files that only their owner can read
            os.chmod(name, PRIVATE_FILE if private else 0o644)
            sync(Path(name))
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a whole file or nothing: temporary file in the same folder, fsync, rename."""
    with whole_file(path, private=private) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    write_bytes(path, text.encode("utf-8"), private=private)


def make_private(path: Path) -> None:
    """Take from other users what they may do with a file or folder of ours, where it is there."""
    with suppress(OSError):
        if path.stat().st_uid == os.getuid():
            os.chmod(path, PRIVATE_FOLDER if path.is_dir() else PRIVATE_FILE)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # Bytes of a path that are not UTF-8 are surrogates; escaped, JSON gives them back.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """The value in a JSON file; `DamagedDataError` names the file that is not JSON."""
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    try:
        return json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedDataError(f"{path} is not valid JSON: {error}.") from error


@contextmanager
def whole_folder(path: Path, *, private: Collection[str] = ()) -> Iterator[Path]:
    """A temporary folder that becomes `path` in one rename when the block ends well.

    A folder already at `path` is replaced; a reader sees the old one or the new one. Files named
    in `private` and a folder that has some are for their owner alone.
    """
    make_folder(path.parent)
    with writing(path):
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    # safetensors writes files that only their owner reads
                    os.chmod(file, PRIVATE_FILE if file.name in private else 0o644)
                    sync(file)
            # mkdtemp makes folders that only their owner can enter
            os.chmod(temporary, PRIVATE_FOLDER if private else 0o755)
            if path.exists():
                old = _set_aside(path)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def sibling(folder: Path, ending: str) -> Path:
    """`folder`-`ending`, beside it; of "." too, which has no name of its own."""
    named = folder if folder.name else folder.resolve()
    return named.with_name(f"{named.name}-{ending}")


def folder_for(
    base: Path, request: dict[str, Any], *, log: Callable[[str], None] = lambda text: None
) -> Path:
    """`base`, or `base`-2, ...: the first that is free, or was made for this very `request`.

    `request` is plain values, everything that the folder's content depends on; it is kept there as
    `request.json`. `log` gets a line where it is not `base`. `InputError` where `base` is a file.
    """
    folder = _folder_for(base, request)
    if folder != base:
        log(f"{base} was made with other settings and stays as it is; these have {folder}")
    return folder


def _folder_for(base: Path, request: dict[str, Any]) -> Path:
    if base.exists() and not base.is_dir():
        raise InputError(f"{base} is a file.", hint="Give --out a new folder.")
    number = 1
    while True:
        folder = base if number == 1 else sibling(base, str(number))
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            write_json(folder / REQUEST, request)
            return folder
        if (folder / REQUEST).is_file():
            try:
                if read_json(folder / REQUEST) == request:
                    return folder
            except DamagedDataError:
                pass  # whatever it was made for cannot be known any more
        number += 1


def remove_folder(path: Path) -> None:
    """Remove a folder such that a kill at any moment leaves it whole or absent."""
    with writing(path):
        shutil.rmtree(_set_aside(path), ignore_errors=True)


def _set_aside(path: Path) -> Path:
    """Move `path` in one rename into a new temporary folder beside it, which is returned."""
    aside = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
    os.replace(path, aside / path.name)
    return aside


def sync(path: Path) -> None:
    """fsync of a file or folder, so that a rename cannot outlive the bytes it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_temporary(path: Path) -> bool:
    """Whether `path` is one that a killed process left half written, or is being written."""
    return path.name.startswith(TEMPORARY_PREFIX)


def remove_incomplete(folder: Path) -> None:
    """Remove what a killed process left half written in `folder`, which need not exist."""
    with writing(folder):
        for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where things worth keeping between runs lie: `$SFUMATO_CACHE`, or the user's cache."""
    given = os.environ.get("SFUMATO_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sfumato"
