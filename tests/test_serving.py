"""What the servers share: who may ask, limits, headers, errors, files."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `studio` is not installed")

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sfumato.base.errors import InputError
from sfumato.interactive import serving
from sfumato.interactive.serving import (
    CONNECTIONS,
    LOCAL,
    Refusal,
    application,
    inside,
    kept_token,
    listen,
    serve,
    static_file,
)
from tests.servers import ask, running


async def echo(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body()), "query": dict(request.query_params)})


async def wrong(request: Request) -> Response:
    raise InputError("That is wrong.", hint="Do it right.")


async def bug(request: Request) -> Response:
    raise RuntimeError("a secret")


ROUTES = [
    Route("/", echo, methods=["GET", "POST"]),
    Route("/wrong", wrong),
    Route("/bug", bug),
    Route("/style/{name}", static_file("sfumato", "report")),
]


def test_every_answer_has_the_headers_and_errors_are_json():
    with running(application(ROUTES, token=None)) as url:
        answers = [ask(url + path) for path in ("/", "/wrong", "/bug", "/nowhere", "/style/no.css")]
        style = ask(url + "/style/style.css")
    assert [one.status for one in answers] == [200, 400, 500, 404, 404]
    for one in [*answers, style]:
        assert "default-src 'none'" in one.headers["content-security-policy"]
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["server"] is None
    assert answers[1].json == {"error": "That is wrong.", "hint": "Do it right."}
    assert b"secret" not in answers[2].body
    assert style.status == 200
    assert style.headers["content-type"].startswith("text/css")


@pytest.mark.parametrize(
    "name", ["../pyproject.toml", "..%2f..%2fpage.py", "%2e%2e/page.py", "page.py", "a%00b", ""]
)
def test_no_name_leads_out_of_the_static_files(name):
    with running(application(ROUTES, token=None)) as url:
        assert ask(f"{url}/style/{name}").status == 404


def test_bodies_have_a_limit_with_and_without_a_length():
    with running(application(ROUTES, token=None, body_bytes=1000)) as url:
        assert ask(url, body=b"x" * 1000).json["bytes"] == 1000
        assert ask(url, body=b"x" * 1001).status == 413
        port = int(url.rpartition(":")[2])
        with socket.create_connection((LOCAL, port), 30) as raw:
            raw.sendall(
                b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                + (b"258\r\n" + b"x" * 0x258 + b"\r\n") * 2
                + b"0\r\n\r\n"
            )
            assert raw.recv(1000).startswith(b"HTTP/1.1 413")


def test_another_site_may_not_ask():
    with running(application(ROUTES, token=None)) as url:
        assert ask(url, Host="evil.example").status == 403  # a name that points here
        assert ask(url, body=b"", Origin="http://evil.example").status == 403
        assert ask(url, body=b"", Origin=url).status == 200


def test_damaged_names_of_hosts_are_refused():
    with running(application(ROUTES, token=None)) as url:
        for damaged in ("[::1", "[", "]", "a]b[c"):
            assert ask(url, Host=damaged).status == 403
            assert ask(url, body=b"", Origin=f"http://{damaged}").status == 403


HALVES = {
    "headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n",
    "body": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf",
}


@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize("half", HALVES)
def test_requests_that_are_half_sent_hold_no_place(half, leave, capfd):
    """As many connections as there may be, and more; the terminal is told nothing of them."""
    with running(application(ROUTES, token=None)) as url, ExitStack() as held:
        port = int(url.rpartition(":")[2])
        for _ in range(CONNECTIONS + 5):
            raw = held.enter_context(socket.create_connection((LOCAL, port), 30))
            raw.sendall(HALVES[half])
        for _ in range(3):
            assert ask(url).status == 200
        if leave:
            held.close()
            assert ask(url).status == 200
        began = time.monotonic()
    assert time.monotonic() - began < 5  # nor do they hold up the end
    assert capfd.readouterr().err == ""


async def slow(request: Request) -> Response:
    request.app.state.slow += 1
    while not request.app.state.stopping:
        await asyncio.sleep(0.01)
    return JSONResponse({})


def test_whole_requests_beyond_the_limit_are_told_to_come_again(monkeypatch):
    monkeypatch.setattr(serving, "CONNECTIONS", 2)
    app = application([*ROUTES, Route("/slow", slow)], token=None)
    app.state.slow = 0
    with ThreadPoolExecutor(2) as pool, running(app) as url:
        asked = [pool.submit(ask, url + "/slow") for _ in range(2)]
        while app.state.slow < 2:
            time.sleep(0.01)
        refused = ask(url)
    assert (refused.status, refused.json["hint"]) == (503, "Try again.")
    assert [one.result().status for one in asked] == [200, 200]


def test_another_host_takes_a_token_once_in_the_address_then_as_a_cookie():
    with running(application(ROUTES, token="s3cret")) as url:
        assert ask(url).status == 401
        assert ask(url + "/?token=wrong").status == 401
        first = ask(url + "//evil.example/?a=1&token=s3cret")
        assert (first.status, first.headers["location"]) == (303, "/evil.example/?a=1")
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert ask(url + "/?a=1", Cookie=cookie.partition(";")[0]).json["query"] == {"a": "1"}
        assert ask(url, Authorization="Bearer s3cret").status == 200
        assert ask(url, Authorization="Bearer s3cre\u00e9").status == 401


def test_the_token_that_the_browser_is_opened_with_is_taken_once():
    app = application(ROUTES, token="s3cret")
    with running(app) as url:
        assert ask(url + "/?token=").status == 401
        app.state.once = "0nce"
        assert ask(url, Authorization="Bearer 0nce").status == 401
        first = ask(url + "/?token=0nce")
        assert first.status == 303
        assert ask(url + "/?token=0nce").status == 401
        cookie = first.headers["set-cookie"].partition(";")[0]
        assert cookie.endswith("=s3cret")
        assert ask(url, Cookie=cookie).status == 200


def test_the_browser_is_opened_with_another_token_than_the_printed_one(monkeypatch):
    opened: list[str] = []
    seen = threading.Event()

    def open_page(address: str) -> None:
        opened.append(address)
        seen.set()

    monkeypatch.setattr(webbrowser, "open", open_page)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: self._started())
    place = listen(LOCAL, 0, token="s3cret")
    printed = place.url
    app = application(ROUTES, token="s3cret")
    serve(app, place, browser=True, started=lambda: None)
    assert seen.wait(30)
    assert opened == [printed.replace("s3cret", app.state.once)]
    assert app.state.once not in (None, "s3cret")


def test_a_kept_token_is_for_this_user_alone():
    file = Path("token.txt")
    file.write_text("\n")  # an empty one would let everybody in
    token = kept_token(file)
    assert len(token) >= 32
    assert kept_token(file) == token
    file.chmod(0o644)
    assert kept_token(file) == token
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_place_is_this_machine_and_a_free_port_unless_told(refused):
    first = listen()
    second = listen()
    everyone = listen("0.0.0.0", 0)
    private = listen(LOCAL, 0, token="s3cret")
    try:
        assert first.token is second.token is None
        assert first.url.startswith("http://127.0.0.1:")
        assert first.socket.getsockname()[1] != second.socket.getsockname()[1]
        assert len(everyone.token or "") > 20
        assert everyone.url.endswith(f"/?token={everyone.token}")
        assert private.url.startswith("http://127.0.0.1:")
        assert private.url.endswith("/?token=s3cret")
        with pytest.raises(InputError, match="Cannot listen"):
            listen(port=first.socket.getsockname()[1])
    finally:
        for one in (first, second, everyone, private):
            one.socket.close()
    with refused(InputError):
        listen("nowhere.invalid")


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "a/b", "/etc/passwd", "a\\b", ".hidden", "a\0b", "a" * 300, "\u00e4" * 200],
)
def test_a_name_does_not_lead_out_of_its_folder(name):
    with pytest.raises(Refusal):
        inside(Path.cwd(), name)


def test_a_link_out_of_a_folder_is_not_followed():
    Path("folder").mkdir()
    Path("folder/link").symlink_to("/etc")
    with pytest.raises(Refusal):
        inside(Path("folder"), "link")
    assert inside(Path("folder"), "a-picture.png") == Path("folder/a-picture.png")


def test_a_server_ends_quietly_on_sigint():
    code = (
        "from sfumato.interactive.serving import application, listen, serve\n"
        "serve(application([], token=None), listen('127.0.0.1', 0), browser=False,"
        " started=lambda: print('ready', flush=True))\n"
        "print('ended')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    with process.stdout as out:
        assert out.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert out.read() == "ended\n"
    assert process.wait(30) == 0
