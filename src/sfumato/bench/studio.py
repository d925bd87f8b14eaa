"""The studio measured as somebody meets it: from the command to the page and to pictures."""

import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sfumato.base.errors import SfumatoError

BARS = {"page": 1.5, "first picture": 8.0, "next pictures": 1.2}
"""Seconds on two quiet cores."""
_PATIENCE_SECONDS = 600
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, kw_only=True)
class StudioTimes:
    """Seconds since the command: `page` is there, `first` picture. `following`: of each later
    picture, from its request."""

    page: float
    first: float
    following: tuple[float, ...]

    def measured(self) -> dict[str, float]:
        """By the names of `BARS`."""
        return {
            "page": self.page,
            "first picture": self.first,
            "next pictures": median(self.following),
        }


def measure_studio(model: str, prompt: str, *, pictures: int) -> StudioTimes:
    """Start `sfumato studio` in a process of its own and ask for a picture, then for `pictures`
    more. `SfumatoError` where it does not start."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, _started(model, Path(folder)) as url:
        _answer(url, "")
        page = time.monotonic() - began
        _picture(url, model, prompt, 0)
        first = time.monotonic() - began
        following = tuple(
            _seconds_of_picture(url, model, prompt, seed) for seed in range(1, pictures + 1)
        )
    return StudioTimes(page=page, first=first, following=following)


@contextmanager
def _started(model: str, folder: Path) -> Iterator[str]:
    """Its address, as it prints it."""
    command = [sys.executable, "-m", "sfumato", "studio", model, "--no-browser"]
    gallery = ["--gallery", str(folder / "gallery")]
    with subprocess.Popen([*command, *gallery], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url.startswith("http://"):
            raise SfumatoError("The studio did not start.", hint=f"Try: sfumato studio {model}")
        try:
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.stdout.read()


def _seconds_of_picture(url: str, model: str, prompt: str, seed: int) -> float:
    began = time.monotonic()
    _picture(url, model, prompt, seed)
    return time.monotonic() - began


def _picture(url: str, model: str, prompt: str, seed: int) -> bytes:
    body = json.dumps({"model": model, "prompt": prompt, "seed": seed}).encode()
    return _answer(url, "api/picture", body)


def _answer(url: str, path: str, body: bytes | None = None) -> bytes:
    """Of a GET, or of a POST of JSON, to a path below the address that was printed; `SfumatoError`
    with what the studio says is wrong."""
    base, _, token = url.partition("?token=")
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    request = urllib.request.Request(base + path, data=body, headers=headers)
    try:
        with _OPENER.open(request, timeout=_PATIENCE_SECONDS) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        with error:
            told = json.loads(error.read())
        raise SfumatoError(told["error"], hint=told["hint"]) from error
