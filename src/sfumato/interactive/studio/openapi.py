"""The endpoints of the studio, once: routes, OpenAPI and the page of documentation follow."""

from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from sfumato import __version__
from sfumato.base.section import Section
from sfumato.interactive.studio.asked import Cells, NewEvolution, Picks, Picture, Sample
from sfumato.interactive.studio.png import MOST_BYTES

_JSON, _PNG, _STREAM = "application/json", "image/png", "text/event-stream"
_JOB = "`job`: its id; `ahead` and `wait_seconds`: of the queue. Then read its events."


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One method of a path. `gives`: kind of the answer; `answer`: what is in it."""

    name: str
    method: str = "GET"
    summary: str
    answer: str
    gives: str = _JSON
    body: type[Section] | str | None = None
    query: tuple[str, ...] = ()

    @property
    def status(self) -> int:
        """Of a request that goes well: 202 where the work is queued."""
        return 202 if self.answer.startswith("`job`") else 200


PATHS: dict[str, list[Endpoint]] = {
    "/api/models": [
        Endpoint(
            name="models",
            summary="The models, with the state of each, and the queue",
            answer="`state`: waiting, loading, ready or failed; once ready its defaults, samplers, "
            "forms of guidance and examples of prompts.",
        )
    ],
    "/api/picture": [
        Endpoint(
            name="picture",
            method="POST",
            summary="Make one picture and wait for it",
            answer="A PNG that carries its settings.",
            gives=_PNG,
            body=Picture,
        )
    ],
    "/api/check": [
        Endpoint(
            name="check",
            method="POST",
            summary="What a picture costs, and how to make it elsewhere",
            answer="`nfe`: network evaluations (null while the model loads); `command`; `python`.",
            body=Picture,
        )
    ],
    "/api/sample": [
        Endpoint(
            name="sample",
            method="POST",
            summary="Queue pictures of one prompt, one for each seed",
            answer=_JOB,
            body=Sample,
        )
    ],
    "/api/cells": [
        Endpoint(
            name="cells",
            method="POST",
            summary="Queue pictures of different settings; those made before are there at once",
            answer=_JOB,
            body=Cells,
        )
    ],
    "/api/cells/{name}": [
        Endpoint(name="cell", summary="A cell", answer="A PNG with its settings.", gives=_PNG)
    ],
    "/api/jobs/{job}": [
        Endpoint(
            name="cancel",
            method="DELETE",
            summary="Cancel a job: it ends at its next step",
            answer="Nothing; its events end with `cancelled`.",
        )
    ],
    "/api/jobs/{job}/events": [
        Endpoint(
            name="events",
            summary="The events of a job as they come; Last-Event-ID goes on after one",
            answer="`waiting` (ahead, wait_seconds), `started`, `step` (index, seed, step, of, and "
            "now and then png, the preview of x0), `picture` (index, seed, settings, name or png), "
            "`cell` (index, name, cached), `generation` (number), `note` (text); at last `done`, "
            "`cancelled` or `failed` (error, hint).",
            gives=_STREAM,
        )
    ],
    "/api/inspect": [
        Endpoint(
            name="inspect",
            method="POST",
            summary=f"The settings in a PNG of up to {MOST_BYTES // 1_000_000} MB",
            answer="`settings`: all of them; `picture`: what makes it again, with `model` null "
            "where that is not open; `notes`: what stands in the way.",
            body=_PNG,
        )
    ],
    "/api/gallery": [
        Endpoint(
            name="gallery",
            summary="The gallery, the newest first",
            answer="`count` of all, and `pictures`: name and settings.",
            query=("before", "limit"),
        )
    ],
    "/api/gallery/{name}": [
        Endpoint(name="gallery_picture", summary="A picture", answer="A PNG.", gives=_PNG),
        Endpoint(name="delete_picture", method="DELETE", summary="Delete it", answer="Nothing."),
    ],
    "/api/runs": [
        Endpoint(
            name="list_runs",
            summary="The runs in the folder of the train tab",
            answer="What `sfumato runs --json` prints.",
        )
    ],
    "/api/run": [
        Endpoint(
            name="run",
            summary="The curve of a run, and names of its newest grids of samples",
            answer="`losses` and `accuracies`: [images seen, value]; `samples`: the newest first.",
            query=("name",),
        )
    ],
    "/api/run/sample": [
        Endpoint(
            name="run_sample",
            summary="A grid of samples of a run",
            answer="A PNG.",
            gives=_PNG,
            query=("name", "file"),
        )
    ],
    "/api/evolutions": [
        Endpoint(
            name="list_evolutions",
            summary="The evolutions",
            answer="Name, prompts, generations; `measured`: whether class accuracy is.",
        ),
        Endpoint(
            name="new_evolution",
            method="POST",
            summary="Queue the first generation of a new evolution",
            answer=_JOB,
            body=NewEvolution,
        ),
    ],
    "/api/evolutions/{name}": [
        Endpoint(
            name="evolution",
            summary="All generations of an evolution",
            answer="Of each: parent, picks, kept, images, deviation of the noise, class accuracy.",
        )
    ],
    "/api/evolutions/{name}/advance": [
        Endpoint(
            name="advance",
            method="POST",
            summary="Queue the generation that follows from picks of any generation",
            answer=_JOB,
            body=Picks,
        )
    ],
    "/api/evolutions/{name}/images/{image}": [
        Endpoint(
            name="evolution_image", summary="A picture", answer="A PNG with its genome.", gives=_PNG
        )
    ],
    "/openapi.json": [Endpoint(name="openapi", summary="This document", answer="OpenAPI 3.1.")],
    "/docs": [Endpoint(name="docs", summary="This page", answer="HTML.", gives="text/html")],
}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    bodies = [
        one.body for endpoints in PATHS.values() for one in endpoints if isinstance(one.body, type)
    ]
    _, schemas = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    error = {"type": "object", "properties": {"error": _text(), "hint": _text()}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sfumato studio",
            "version": __version__,
            "description": "Pictures, grids, runs and evolutions. Every request takes the token "
            "in token.txt of the gallery, as `Authorization: Bearer TOKEN`.",
        },
        "paths": {
            path: {one.method.lower(): _operation(path, one) for one in endpoints}
            for path, endpoints in PATHS.items()
        },
        "components": {
            "schemas": {**schemas["$defs"], "Error": error},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _text() -> dict[str, str]:
    return {"type": "string"}


def _operation(path: str, one: Endpoint) -> dict[str, Any]:
    in_path = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    places = [(name, "path") for name in in_path] + [(name, "query") for name in one.query]
    error = {"schema": {"$ref": "#/components/schemas/Error"}}
    operation: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "parameters": [
            {"name": name, "in": place, "required": place == "path", "schema": _text()}
            for name, place in places
        ],
        "responses": {
            str(one.status): {"description": one.answer, "content": {one.gives: {}}},
            "default": {"description": "What is wrong.", "content": {_JSON: error}},
        },
    }
    if isinstance(one.body, str):
        binary = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"required": True, "content": {one.body: binary}}
    elif one.body is not None:
        schema = {"$ref": f"#/components/schemas/{one.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    return operation
