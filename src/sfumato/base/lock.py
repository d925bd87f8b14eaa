"""One process at a time in a folder."""

import errno
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sfumato.base.environment import command, now
from sfumato.base.errors import InputError, SfumatoWarning
from sfumato.base.files import make_folder, writing

LOCK = ".lock"
"""The file in a folder in use; it names the process that uses it."""
WAIT_SECONDS = 5
"""How long a folder in use is waited for: a run that was just told to end saves first."""
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process while the block runs; `InputError` if another process has it
    and does not end within seconds.

    The operating system ends the lock with the process, however that ends, so a killed process
    leaves no lock behind. A folder that was made for the lock and stays empty is removed.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    file = folder / LOCK
    handle = _take(file)
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        handle.close()
        for place in new:
            with suppress(OSError):  # not empty
                place.rmdir()


def is_locked(folder: Path) -> bool:
    """Whether a process holds `folder`. Nothing is written; a lock that a killed process left does
    not count, where the system tells them apart."""
    try:
        handle = (folder / LOCK).open(encoding="utf-8")
    except OSError:
        return False
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def _take(file: Path) -> IO[str]:
    """`file`, open and locked, with the name of this process in it."""
    try:
        import fcntl
    except ImportError:  # Windows
        make_folder(file.parent)
        return file.open("w", encoding="utf-8")
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        make_folder(file.parent)  # the holder before us may have removed it
        with writing(file):
            handle = file.open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(handle)
            handle.close()
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise InputError(
                f"{file.parent} is in use by {holder}.",
                hint="Wait until that process ends, or give another folder.",
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            warnings.warn(
                f"The file system of {file.parent} has no locks: a second process on this folder "
                "would not be noticed. Start one at a time.",
                SfumatoWarning,
                stacklevel=4,
            )
        # The holder before us may have removed the file between our open and our lock.
        with suppress(FileNotFoundError):
            if os.fstat(handle.fileno()).st_ino == file.stat().st_ino:
                break
        handle.close()
    handle.truncate(0)
    json.dump(
        {"host": platform.node(), "process": os.getpid(), "since": now(), "command": command()},
        handle,
    )
    handle.flush()
    return handle


def _holder(handle: IO[str]) -> str:
    """`process 123 on host since DATE: COMMAND`."""
    handle.seek(0)
    try:
        known = json.load(handle)
        text = f"process {known['process']} on {known['host']} since {known['since']}"
        return f"{text} ({known['command']})" if known["command"] else text
    except (json.JSONDecodeError, KeyError):  # it has locked the file and not written yet
        return "another process"
