"""Who may ask a server for people, and how much: the guard in front of its routes."""

import hmac
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = "127.0.0.1"
_COOKIE_SECONDS = 30 * 86_400
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


def error_response(status: int, what: str, hint: str = "") -> JSONResponse:
    return JSONResponse({"error": what, "hint": hint}, status_code=status, headers=_HEADERS)


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
        if self.token is None and not is_local(_parts(f"//{host}")[1]):
            return error_response(
                403, f"{host or 'No host'} is not this machine.", f"Use {LOCAL} or localhost."
            )
        origin = headers.get("origin")
        changes = scope["method"] not in ("GET", "HEAD")
        if changes and origin is not None and _parts(origin)[0] != host:
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
        given = dict(asked).get("token", "")
        if not self._is_token(given) and not _is_once(scope["app"], given):
            return error_response(
                401, "A token is needed.", "Open the address that the server printed."
            )
        rest = urlencode([(name, value) for name, value in asked if name != "token"])
        path = "/" + scope["path"].lstrip("/\\")  # never the address of another host
        response = RedirectResponse(path + (f"?{rest}" if rest else ""), status_code=303)
        response.set_cookie(
            cookie, self.token or "", httponly=True, samesite="lax", max_age=_COOKIE_SECONDS
        )
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


def _is_once(app: Starlette, given: str) -> bool:
    """Whether this is the token that the browser was opened with: it is taken once, since others
    on this machine see the command lines of processes."""
    once = app.state.once
    if once is None or not hmac.compare_digest(given.encode(), once.encode()):
        return False
    app.state.once = None
    return True


def _parts(address: str) -> tuple[str, str]:
    """Host with port, and host, of an address; empty where it has none or is damaged."""
    try:
        found = urlsplit(address)
        return found.netloc, found.hostname or ""
    except ValueError:
        return "", ""


def is_local(host: str) -> bool:
    """Whether a name or an address is that of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
