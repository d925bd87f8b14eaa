"""What the servers for people share: where they listen, limits, files and errors.

Needs the extra `studio`. A server listens on this machine alone unless told; for any other address,
and where what it shows is for one user, it asks for a token. A page of it asks nothing of other
machines, and the browser enforces that.
"""

import asyncio
import re
import secrets
import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from uvicorn.protocols.http.h11_impl import H11Protocol

from sfumato.base.errors import InputError, SfumatoError
from sfumato.base.files import make_private, write_text
from sfumato.interactive.guard import LOCAL, Guard, error_response, is_local

BODY_BYTES = 8_000_000
"""Of a request, unless an application says otherwise."""
CONNECTIONS = 200
"""At once; for one more, that is closed which waits longest for a whole request."""
TOKEN = "token.txt"
_GRACE_SECONDS = 2
_NAME_BYTES = 255
"""Of a file; the systems take no longer ones."""
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


class Refusal(SfumatoError):
    """What a server does not do, with the status of HTTP that says so."""

    def __init__(self, what: str, *, status: int, hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.status = status


# Applications -------------------------------------------------------------------------------------


def application(
    routes: Sequence[BaseRoute],
    *,
    token: str | None,
    body_bytes: int = BODY_BYTES,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    """An application with the guard in front and errors as JSON: `{"error", "hint"}`. Streams end
    once its `state.stopping` is true.

    `token`: see `listen`; None for this machine alone, where names of other hosts are refused, so
    that no page of another site reaches the server by a name that it lets point here.
    """
    handlers: dict[Any, Any] = {
        SfumatoError: _answer_error,
        HTTPException: _answer_http_error,
        ClientDisconnect: _answer_nobody,
        Exception: _answer_bug,
    }
    guard = Middleware(Guard, token=token, body_bytes=body_bytes)
    app = Starlette(
        routes=list(routes), middleware=[guard], exception_handlers=handlers, lifespan=lifespan
    )
    app.state.stopping = False
    app.state.once = None
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SfumatoError)
    return error_response(getattr(error, "status", 400), error.what, error.hint)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, f"{error.detail}.")


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """The client went away before its request was whole: nothing for the terminal."""
    return error_response(400, "The request is not whole.")


async def _answer_bug(request: Request, error: Exception) -> Response:
    """Nothing of an unexpected error goes out; the terminal has all of it."""
    return error_response(500, "The server failed.", "Its terminal says why.")


# Files --------------------------------------------------------------------------------------------


def static_file(package: str, folder: str) -> Callable[[Request], Awaitable[Response]]:
    """Answers `{name}` from a folder of a package: its files are read here, once, so no name can
    lead out of it."""
    found = {
        one.name: (one.read_bytes(), _TYPES[Path(one.name).suffix])
        for one in (files(package) / folder).iterdir()
        if one.is_file() and Path(one.name).suffix in _TYPES
    }

    async def answer(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in found:
            raise HTTPException(404, "There is no such file")
        content, kind = found[name]
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return answer


def page(package: str, template: str, **values: Any) -> Response:
    """A page of a package by Jinja2, with every value escaped."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = files(package).joinpath(template).read_text("utf-8")
    return Response(environment.from_string(text).render(**values), media_type=_TYPES[".html"])


def inside(folder: Path, name: str) -> Path:
    """The path of an entry of `folder`; `Refusal` (404) for a name that could lead out of it."""
    path = folder / name
    plain = re.fullmatch(r"[\w][\w .,+=@-]*", name) and len(name.encode()) <= _NAME_BYTES
    if not plain or path.is_symlink() or path.resolve().parent != folder.resolve():
        raise Refusal(f"There is no '{name[:80]}'.", status=404)
    return path


# Listening ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server listens: an open socket, its host, and the token that is asked for."""

    socket: socket.socket
    host: str
    token: str | None

    @property
    def url(self) -> str:
        """The address for a browser, with the token where there is one."""
        return self.url_with(self.token)

    def url_with(self, token: str | None) -> str:
        """The address with another token."""
        port = self.socket.getsockname()[1]
        host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(
            self.host, self.host
        )
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{port}/" + (f"?token={token}" if token else "")


def kept_token(file: Path) -> str:
    """The token in a file, which this user alone can read; a new one where there is none. So an
    address is good after the server was started again, until the file is removed."""
    token = file.read_text("utf-8").strip() if file.is_file() else ""
    if not token:
        token = secrets.token_urlsafe(24)
        write_text(file, token + "\n", private=True)
    make_private(file)  # one that was copied here
    return token


def listen(
    host: str = LOCAL, port: int | None = None, *, usual: int = 7878, token: str | None = None
) -> Place:
    """Listen on `port`, or on `usual` or any free one. Without a `token`, another host than this
    machine gets a random one. `InputError` for a host that is not of this machine and a port that
    is taken."""
    if token is None and not is_local(host):
        token = secrets.token_urlsafe(24)
    refused = OSError()
    for wanted in (usual, 0) if port is None else (port,):
        try:
            return Place(socket=_bound(host, wanted), host=host, token=token)
        except socket.gaierror as error:
            raise InputError(
                f"'{host}' is not an address of this machine.",
                hint=f"Give {LOCAL} for this machine alone, 0.0.0.0 for all that reach it.",
            ) from error
        except OSError as error:
            refused = error
    raise InputError(
        f"Cannot listen on {host}, port {port or usual}: {refused.strerror}.",
        hint="Leave --port out for a free one, or give another --host.",
    ) from refused


def _bound(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(CONNECTIONS)  # without it another server could take the same port
    except BaseException:
        made.close()
        raise
    return made


_INCOMPLETE = (h11.IDLE, h11.SEND_BODY)
"""States of a client before its request has all headers, and all of its body."""


class _Connection(H11Protocol):
    """One of at most `CONNECTIONS`: requests that are half sent make way, so they hold no place."""

    since = 0.0
    """When it began to wait for a request."""

    def connection_made(self, transport: Any) -> None:
        self.since = self.loop.time()
        if len(self.connections) >= CONNECTIONS:
            waiting = _waiting(self.connections)
            if waiting:
                _abort(min(waiting, key=lambda one: one.since))
            else:
                self.app = error_response(503, "The server is busy.", "Try again.")
                self.app.headers["connection"] = "close"
        super().connection_made(transport)

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()


def _waiting(connections: Iterable[Any]) -> list[_Connection]:
    """Those whose client has not sent a whole request."""
    return [one for one in connections if one.conn.their_state in _INCOMPLETE]


def _abort(connection: _Connection) -> None:
    connection.connections.discard(connection)
    connection.transport.abort()


class _Server(uvicorn.Server):
    """Says when it answers, and when it stops: streams of an application end by its `stopping`."""

    def __init__(self, app: Starlette, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.stopping = True
        for one in _waiting(self.server_state.connections):
            _abort(one)
        await super().shutdown(sockets)


def server(app: Starlette, *, started: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """A server of an application; `run(sockets=[place.socket])` serves until it is told to stop."""
    config = uvicorn.Config(
        app,
        http=_Connection,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        ws="none",
    )
    return _Server(app, config, started)


def serve(app: Starlette, place: Place, *, browser: bool, started: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, then end what is open within two seconds. `started` is called
    once requests are answered; `browser` opens the page, with a token that is good once."""
    app.state.once = secrets.token_urlsafe(24) if browser and place.token else None

    def ready() -> None:
        started()
        if browser:  # one in a terminal would block the server
            address = place.url_with(app.state.once)
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    one = server(app, started=ready)
    try:
        one.run(sockets=[place.socket])
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass  # uvicorn hands the signal on when all is closed
    finally:
        place.socket.close()
