"""`survey serve`: the page, its pictures, and answers, on the disk before they are confirmed.

A person is known by a random name that the server gives, which the browser keeps. No address of the
page holds it, and nobody gets the answers of others: the server only says how many it has of yours.
"""

import json
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sfumato.base.files import make_private
from sfumato.interactive.serving import (
    TOKEN,
    Place,
    Refusal,
    application,
    is_local,
    kept_token,
    listen,
)
from sfumato.interactive.survey.answers import DATABASE, AnswerStore, Session, is_name
from sfumato.interactive.survey.build import PAGE, PAGE_FILES, PICTURES
from sfumato.interactive.survey.key import KEY, PLAN, PUBLIC, read_key

PORT = 7879
BODY_BYTES = 2_000
"""Of one answer."""
MOST_PEOPLE = 10_000
"""Who may begin: nobody fills the disk."""
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_MARK = b'name="survey-server" content="no"'


def survey_application(folder: Path, *, token: str | None = None) -> Starlette:
    """The server of a survey's folder. `InputError` where it is none."""
    key = read_key(folder)
    for private in (folder, folder / KEY):
        make_private(private)
    store = AnswerStore(folder / DATABASE, key)

    async def start(request: Request) -> Response:
        """A new person, or where one is who gives a name."""
        body = await _body(request)
        session = _session(store, body) if "session" in body else _new(store)
        answered = [answer.number for answer in session.answers]
        return JSONResponse({"session": session.name, "form": session.form, "answered": answered})

    async def answer(request: Request) -> Response:
        body = await _body(request)
        given = body.get("answer")
        try:
            saved = store.add(_session(store, body), given if isinstance(given, list) else [])
        except ValueError as error:
            raise Refusal(f"Not an answer: {error}.", status=400) from error
        return JSONResponse({"saved": saved})

    routes = [
        *_page_routes(folder / PUBLIC),
        Route("/api/start", start, methods=["POST"]),
        Route("/api/answer", answer, methods=["POST"]),
    ]
    return application(routes, token=token, body_bytes=BODY_BYTES)


def _page_routes(public: Path) -> list[Route]:
    """The page and its pictures, by names that are read here, once: no other file is served."""
    contents = {name: (public / name).read_bytes() for name in (*PAGE_FILES, PLAN)}
    contents[PAGE] = contents[PAGE].replace(_MARK, _MARK.replace(b'"no"', b'"yes"'))
    pictures = {path.name: path for path in (public / PICTURES).glob("*.png")}

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", PAGE)
        if name not in contents:
            raise Refusal("There is no such page.", status=404)
        return Response(contents[name], media_type=_TYPES[Path(name).suffix])

    async def picture(request: Request) -> Response:
        path = pictures.get(request.path_params["name"])
        if path is None:
            raise Refusal("There is no such picture.", status=404)
        kept = {"cache-control": "private, max-age=3600"}
        return Response(path.read_bytes(), media_type="image/png", headers=kept)

    return [Route("/", page), Route("/pictures/{name}", picture), Route("/{name}", page)]


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Refusal("The request is not JSON.", status=400) from error
    if not isinstance(body, dict):
        raise Refusal("The request is no object of JSON.", status=400)
    return body


def _session(store: AnswerStore, body: dict[str, Any]) -> Session:
    name = body.get("session")
    session = store.session(name) if is_name(name) else None
    if session is None:
        raise Refusal("Nobody of that name takes part.", status=404)
    return session


def _new(store: AnswerStore) -> Session:
    if store.people() >= MOST_PEOPLE:
        raise Refusal("This survey has all the people that it takes.", status=403)
    return store.start()


def place_of(folder: Path, host: str, port: int | None) -> Place:
    """Where a survey is served. Its token is kept in its folder, so that people go on with the
    address that they have after the server was started again."""
    token = None if is_local(host) else kept_token(folder / TOKEN)
    return listen(host, port, usual=PORT, token=token)
