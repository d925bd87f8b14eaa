"""A server of an application for a test, and plain requests to it."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any

from starlette.applications import Starlette

from sfumato.interactive.serving import LOCAL, Place, listen, server


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def running(app: Starlette, place: Place | None = None) -> Iterator[str]:
    """Serve in a thread; gives `http://127.0.0.1:PORT`."""
    place = place or listen(LOCAL, 0)
    ready = threading.Event()
    one = server(app, started=ready.set)
    thread = threading.Thread(target=one.run, kwargs={"sockets": [place.socket]}, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{place.socket.getsockname()[1]}"
    finally:
        one.should_exit = True
        thread.join(30)
        place.socket.close()
        assert not thread.is_alive()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


def ask(
    url: str,
    value: Any = None,
    *,
    body: bytes | None = None,
    method: str | None = None,
    **headers: str,
) -> Answer:
    """GET, or POST of a JSON `value` or a `body`; header names with `_` for `-`."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    if value is not None:
        body = json.dumps(value).encode()
        named.setdefault("content-type", "application/json")
    request = urllib.request.Request(url, data=body, headers=named, method=method)
    try:
        with _OPENER.open(request, timeout=240) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())
