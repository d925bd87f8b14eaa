"""The studio as an application: its routes, by name what each does."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sfumato import __version__
from sfumato.base.section import Section
from sfumato.interactive import serving
from sfumato.interactive.serving import Refusal
from sfumato.interactive.studio import drawing, evolving, runs
from sfumato.interactive.studio.asked import Cells, NewEvolution, Picks, Picture, Sample
from sfumato.interactive.studio.gallery import EVOLUTIONS, Gallery
from sfumato.interactive.studio.openapi import PATHS, document
from sfumato.interactive.studio.png import settings_of
from sfumato.interactive.studio.settings import as_command, as_python, restored
from sfumato.interactive.studio.shelf import Shelf
from sfumato.interactive.studio.work import Job, Worker

if TYPE_CHECKING:
    from sfumato.evaluation.classifier import ImageClassifier
    from sfumato.generation.model import Model

PACKAGE, STATIC = "sfumato", "interactive/static/studio"
LIVE = "bundled:mnist-1"
"""One network evaluation a picture: fast enough for pictures as somebody types."""
_POLL_SECONDS = 0.04
_PAGE = 60
S = TypeVar("S", bound=Section)
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class Studio:
    """What the routes work with. `runs`: the folder of the train tab; `classifier`: what
    `load_classifier` takes, None where class accuracy is not measured."""

    shelf: Shelf
    gallery: Gallery
    runs: Path
    classifier: str | None = None
    worker: Worker = field(default_factory=Worker)
    _classifiers: dict[int, Any] = field(default_factory=dict)

    @property
    def evolutions(self) -> Path:
        return self.gallery.folder / EVOLUTIONS

    def classify(self, model: "Model") -> "ImageClassifier | None":
        """The classifier of a model's data set; the worker's thread alone asks."""
        if self.classifier is None or model.data is None:
            return None
        if id(model.network) not in self._classifiers:
            from sfumato.evaluation.classifier import load_classifier

            found = load_classifier(model.data, self.classifier, log=print)
            self._classifiers[id(model.network)] = found
        return self._classifiers[id(model.network)]


def application(studio: Studio, *, token: str | None) -> Starlette:
    """The studio; its worker and its loading begin with the server."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        studio.worker.start()
        studio.shelf.start()
        yield
        await run_in_threadpool(studio.worker.stop)

    static = serving.static_file(PACKAGE, STATIC)
    routes = [Route("/static/{name}", static), Route("/", _page)]
    routes += [
        Route(path, HANDLERS[one.name], methods=[one.method])
        for path, endpoints in PATHS.items()
        for one in endpoints
    ]
    app = serving.application(routes, token=token, lifespan=lifespan)
    app.state.studio = studio
    return app


def _of(request: Request) -> Studio:
    return request.app.state.studio


async def _page(request: Request) -> Response:
    return serving.page(PACKAGE, f"{STATIC}/studio.html", version=__version__)


async def _body(request: Request, section: type[S]) -> S:
    """The body of a request; `Refusal` (415, 422) for what is not that."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":
        raise Refusal(
            "The body is not JSON.", status=415, hint="Send content-type: application/json."
        )
    try:
        return section.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "The body"
        raise Refusal(f"{where}: {first['msg']}.", status=422, hint="See /docs.") from error


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise Refusal(f"{name} is no number.", status=422)
    return min(int(text), most)


# Documents ----------------------------------------------------------------------------------------


async def openapi(request: Request) -> Response:
    return JSONResponse(document())


async def docs(request: Request) -> Response:
    return serving.page(PACKAGE, f"{STATIC}/docs.html", paths=PATHS, version=__version__)


# Models and pictures ------------------------------------------------------------------------------


async def models(request: Request) -> Response:
    studio = _of(request)
    known = studio.shelf.about()
    live = LIVE if any(one["name"] == LIVE for one in known) else None
    state = studio.worker.state()
    return JSONResponse({"models": known, "live": live, "queue": state, "version": __version__})


def _checked(studio: Studio, picture: Picture) -> dict[str, Any]:
    model = studio.shelf.ready(picture.model)
    return {
        "nfe": None if model is None else model.with_(**picture.changes()).nfe(),
        "command": as_command(picture, studio.shelf.device),
        "python": as_python(picture, studio.shelf.device),
    }


async def check(request: Request) -> Response:
    asked = await _body(request, Picture)
    return JSONResponse(await run_in_threadpool(_checked, _of(request), asked))


async def sample(request: Request) -> Response:
    asked, studio = await _body(request, Sample), _of(request)
    return _queued(studio, lambda job: drawing.draw(job, asked, studio.shelf, studio.gallery))


async def picture(request: Request) -> Response:
    """Waits, for who asks with curl."""
    asked, studio = await _body(request, Picture), _of(request)

    def run(job: Job) -> None:
        model = studio.shelf.get(asked.model, check=job.check)
        made = drawing.drawn(model, asked, drawing.stopping(job))
        job.tell("png", content=made.png(0))

    job = studio.worker.add(run)
    try:
        while not job.ended:
            if await request.is_disconnected() or request.app.state.stopping:
                studio.worker.cancel(job)
            await asyncio.sleep(_POLL_SECONDS)
    except asyncio.CancelledError:
        studio.worker.cancel(job)
        raise
    told = {name: values for _, name, values in job.after(0)}
    if "png" in told:
        return Response(told["png"]["content"], media_type="image/png")
    failed = told.get("failed", {"error": "It was cancelled.", "hint": ""})
    return serving.error_response(400, failed["error"], failed["hint"])


async def cells(request: Request) -> Response:
    asked, studio = await _body(request, Cells), _of(request)
    return _queued(studio, lambda job: drawing.draw_cells(job, asked, studio.shelf, studio.gallery))


async def cell(request: Request) -> Response:
    return _png(_of(request).gallery.cell(request.path_params["name"]))


async def inspect(request: Request) -> Response:
    settings = settings_of(await request.body())
    return JSONResponse({"settings": settings, **restored(settings, _of(request).shelf)})


def _png(path: Path) -> Response:
    """A file that never changes under its name."""
    return FileResponse(
        path, media_type="image/png", headers={"cache-control": "private, max-age=31536000"}
    )


# Jobs ---------------------------------------------------------------------------------------------


def _queued(studio: Studio, run: Callable[[Job], None]) -> Response:
    job = studio.worker.add(run)
    ahead = studio.worker.ahead(job) or 0
    told = {"job": job.id, "ahead": ahead, "wait_seconds": studio.worker.wait_seconds(ahead)}
    return JSONResponse(told, status_code=202)


async def events(request: Request) -> Response:
    job = _of(request).worker.job(request.path_params["job"])
    last = request.headers.get("last-event-id", "0")
    after = int(last) if last.isascii() and last.isdecimal() and len(last) < 10 else 0
    return StreamingResponse(_stream(request, job, after), media_type="text/event-stream")


async def _stream(request: Request, job: Job, after: int) -> AsyncIterator[str]:
    """The events of a job as they come, and its place in the queue while it waits."""
    worker, place = _of(request).worker, None
    while not request.app.state.stopping:
        ended = job.ended  # before the events are read, so that none is missed
        for after, name, values in job.after(after):  # noqa: B020
            yield f"id: {after}\nevent: {name}\ndata: {json.dumps(values)}\n\n"
        if ended:
            return
        ahead = worker.ahead(job)
        if ahead != place:
            place = ahead
            if ahead is not None:
                told = {"ahead": ahead, "wait_seconds": round(worker.wait_seconds(ahead), 1)}
                yield f"event: waiting\ndata: {json.dumps(told)}\n\n"
        await asyncio.sleep(_POLL_SECONDS)


async def cancel(request: Request) -> Response:
    worker = _of(request).worker
    worker.cancel(worker.job(request.path_params["job"]))
    return JSONResponse({}, status_code=202)


# Gallery ------------------------------------------------------------------------------------------


async def gallery(request: Request) -> Response:
    before = request.query_params.get("before", "")
    limit = _number(request, "limit", _PAGE, 500)
    page = partial(_of(request).gallery.page, before=before, limit=limit)
    return JSONResponse(await run_in_threadpool(page))


async def gallery_picture(request: Request) -> Response:
    return _png(_of(request).gallery.path(request.path_params["name"]))


async def delete_picture(request: Request) -> Response:
    _of(request).gallery.delete(request.path_params["name"])
    return JSONResponse({})


# Runs ---------------------------------------------------------------------------------------------


async def list_runs(request: Request) -> Response:
    folder = _of(request).runs
    found = await run_in_threadpool(runs.listed, folder)
    return JSONResponse({"folder": str(folder), "runs": found})


async def run(request: Request) -> Response:
    folder, name = _of(request).runs, request.query_params.get("name", "")
    return JSONResponse(await run_in_threadpool(lambda: runs.curve(runs.run_path(folder, name))))


async def run_sample(request: Request) -> Response:
    asked = request.query_params
    path = await run_in_threadpool(runs.run_path, _of(request).runs, asked.get("name", ""))
    file = runs.sample_path(path, asked.get("file", ""))
    return FileResponse(file, media_type="image/png")


# Evolutions ---------------------------------------------------------------------------------------


async def list_evolutions(request: Request) -> Response:
    studio = _of(request)
    found = await run_in_threadpool(evolving.listed, studio.evolutions)
    return JSONResponse({"evolutions": found, "measured": studio.classifier is not None})


async def new_evolution(request: Request) -> Response:
    asked, studio = await _body(request, NewEvolution), _of(request)
    evolving.check_new(studio.evolutions, asked)
    return _queued(
        studio,
        lambda job: evolving.begin(job, asked, studio.shelf, studio.evolutions, studio.classify),
    )


async def evolution(request: Request) -> Response:
    studio, name = _of(request), request.path_params["name"]
    told = partial(evolving.told, studio.evolutions, name, studio.shelf)
    return JSONResponse(await run_in_threadpool(told))


async def advance(request: Request) -> Response:
    asked, studio = await _body(request, Picks), _of(request)
    name, folder = request.path_params["name"], studio.evolutions
    evolving.told(folder, name, studio.shelf)  # 404 now, not in the events
    return _queued(
        studio,
        lambda job: evolving.advance(job, name, asked, studio.shelf, folder, studio.classify),
    )


async def evolution_image(request: Request) -> Response:
    asked = request.path_params
    return _png(evolving.image_path(_of(request).evolutions, asked["name"], asked["image"]))


HANDLERS: dict[str, Handler] = {
    one.__name__: one
    for one in (
        openapi, docs, models, check, sample, picture, cells, cell, inspect, events, cancel,
        gallery, gallery_picture, delete_picture, list_runs, run, run_sample, list_evolutions,
        new_evolution, evolution, advance, evolution_image,
    )
}  # fmt: skip
