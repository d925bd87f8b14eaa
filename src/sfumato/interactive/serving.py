"""What the servers for people share: where they listen, who may ask, limits, headers and errors.

Needs the extra `studio`. A server listens on this machine alone unless told; for any other address
it asks for a token. A page of it asks nothing of other machines, and the browser enforces that.
"""

import asyncio
import hmac
import re
import secrets
import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfumato.base.errors import InputError, SfumatoError

LOCAL = "127.0.0.1"
BODY_BYTES = 8_000_000
"""Of a request, unless an application says otherwise."""
CONNECTIONS = 200
"""At once; more are answered with 503."""
_GRACE_SECONDS = 2
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; manifest-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
"""Of every answer; an answer's own `cache-control` stays."""
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
        Exception: _answer_bug,
    }
    guard = Middleware(Guard, token=token, body_bytes=body_bytes)
    app = Starlette(
        routes=list(routes), middleware=[guard], exception_handlers=handlers, lifespan=lifespan
    )
    app.state.stopping = False
    return app


def error_response(status: int, what: str, hint: str = "") -> JSONResponse:
    return JSONResponse({"error": what, "hint": hint}, status_code=status, headers=_HEADERS)


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SfumatoError)
    return error_response(getattr(error, "status", 400), error.what, error.hint)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, f"{error.detail}.")


async def _answer_bug(request: Request, error: Exception) -> Response:
    """Nothing of an unexpected error goes out; the terminal has all of it."""
    return error_response(500, "The server failed.", "Its terminal says why.")


class Guard:
    """Refuses who may not ask and what is too large, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, *, token: str | None, body_bytes: int) -> None:
        self.app = app
        self.token = token
        self.body_bytes = body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refused(scope)
        if refused is not None:
            await refused(scope, receive, send_with_headers)
            return
        await self.app(scope, self._limited(receive), send_with_headers)

    def _refused(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further; None where it may."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.token is None and not is_local(urlsplit(f"//{host}").hostname or ""):
            return error_response(
                403, f"{host or 'No host'} is not this machine.", f"Use {LOCAL} or localhost."
            )
        origin = headers.get("origin")
        changes = scope["method"] not in ("GET", "HEAD")
        if changes and origin is not None and urlsplit(origin).netloc != host:
            return error_response(403, "The request comes from another site.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.body_bytes:
            return error_response(
                413, "The request is too large.", f"Send up to {self.body_bytes:,} bytes."
            )
        return None if self.token is None else self._without_token(scope, headers)

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        """A token in the address becomes a cookie, so that it is not in the page's address."""
        cookie = f"sfumato-{(scope.get('server') or ('', 0))[1]}"
        kept = cookie_parser(headers.get("cookie", "")).get(cookie, "")
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_token(kept) or self._is_token(bearer):
            return None
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if not self._is_token(dict(asked).get("token", "")):
            return error_response(
                401, "A token is needed.", "Open the address that the server printed."
            )
        rest = urlencode([(name, value) for name, value in asked if name != "token"])
        path = "/" + scope["path"].lstrip("/\\")  # never the address of another host
        response = RedirectResponse(path + (f"?{rest}" if rest else ""), status_code=303)
        response.set_cookie(cookie, self.token or "", httponly=True, samesite="lax")
        return response

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self.token or "").encode())

    def _limited(self, receive: Receive) -> Receive:
        """A body without a length is counted as it comes."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.body_bytes:
                raise HTTPException(413, "The request is too large")
            return message

        return counted


def is_local(host: str) -> bool:
    """Whether a name or an address is that of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


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
    plain = re.fullmatch(r"[\w][\w .,+=@-]*", name) is not None
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
        port = self.socket.getsockname()[1]
        host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(
            self.host, self.host
        )
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{port}/" + (f"?token={self.token}" if self.token else "")


def listen(host: str = LOCAL, port: int | None = None, *, usual: int = 7878) -> Place:
    """Listen on `port`, or on `usual` or any free one. Another host than this machine gets a random
    token. `InputError` for a host that is not of this machine and a port that is taken."""
    token = None if is_local(host) else secrets.token_urlsafe(24)
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
        await super().shutdown(sockets)


def server(app: Starlette, *, started: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """A server of an application; `run(sockets=[place.socket])` serves until it is told to stop."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        ws="none",
    )
    return _Server(app, config, started)


def serve(app: Starlette, place: Place, *, browser: bool, started: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, then end what is open within two seconds. `started` is called
    once requests are answered; `browser` opens the page."""

    def ready() -> None:
        started()
        if browser:  # a browser in a terminal would block the server
            threading.Thread(target=webbrowser.open, args=(place.url,), daemon=True).start()

    one = server(app, started=ready)
    try:
        one.run(sockets=[place.socket])
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass  # uvicorn hands the signal on when all is closed
    finally:
        place.socket.close()
