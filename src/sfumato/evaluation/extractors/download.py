"""One file from a URL: goes on where it stopped, and gets its name when its checksum is right."""

import os
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from sfumato.base.errors import DamagedDataError
from sfumato.base.files import TEMPORARY_PREFIX, make_folder, sha256_of_file, sync, writing
from sfumato.evaluation.extractors.extractor import WeightsNotAtHandError

_CHUNK_BYTES = 1 << 20
_ATTEMPTS, _PAUSE_SECONDS, _TIMEOUT_SECONDS = 3, 1.0, 20.0


def download(url: str, path: Path, *, sha256: str, hint: str) -> Path:
    """`path`, fetched from `url` where it is not there yet.

    `WeightsNotAtHandError` with `hint` where it cannot be reached; what was fetched is kept for the
    next call. `DamagedDataError` where the bytes are not those of `sha256`; they are removed.
    """
    from huggingface_hub.utils import WeakFileLock

    partial = make_folder(path.parent) / f"{TEMPORARY_PREFIX}{sha256[:8]}-{path.name}"
    with WeakFileLock(path.with_name(f".{path.name}.lock")):  # the ranks of a run all come here
        if path.is_file():
            return path
        _say(f"Downloading {url}")
        _fetch(url, partial, hint)
        if sha256_of_file(partial) != sha256:
            partial.unlink()
            raise DamagedDataError(
                f"{url} has a wrong checksum after download.",
                hint=f"It was removed; the same command fetches it again. {hint}",
            )
        sync(partial)
        os.replace(partial, path)
        _say(f"Downloaded and checked {path}")
    return path


def _fetch(url: str, partial: Path, hint: str) -> None:
    """Append what is missing of `partial`; a broken connection is taken up again."""
    broken = 0
    while True:
        before = _size(partial)
        try:
            _append(url, partial)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # nothing lies beyond: the file was whole already
                return
            raise _unreachable(url, f"{error.code} {error.reason}", hint) from error
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            broken = 0 if _size(partial) > before else broken + 1
            if broken >= _ATTEMPTS:
                raise _unreachable(url, getattr(error, "reason", error), hint) from error
            time.sleep(_PAUSE_SECONDS)


def _append(url: str, partial: Path) -> None:
    there = _size(partial)
    headers = {"User-Agent": "sfumato", **({"Range": f"bytes={there}-"} if there else {})}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer, writing(partial):
        expected = int(answer.headers.get("Content-Length") or 0)
        with partial.open("ab" if answer.status == 206 else "wb") as file:
            got = 0
            while chunk := answer.read(_CHUNK_BYTES):
                got += file.write(chunk)
        if got < expected:  # urllib takes a connection that ended early for the end of the file
            raise ConnectionError(f"ended after {got} of {expected} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _unreachable(url: str, reason: object, hint: str) -> WeightsNotAtHandError:
    return WeightsNotAtHandError(f"{url} could not be fetched ({reason}).", hint=hint)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
