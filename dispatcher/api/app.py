"""The ASGI application: routes, errors, bounds, and the page that shows them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from dispatcher.api import problems
from dispatcher.api.context import Api, authenticate
from dispatcher.api.database import Database
from dispatcher.api.guard import Guard
from dispatcher.api.hub import Hub
from dispatcher.api.jobs import Jobs
from dispatcher.api.pending import PendingLimit
from dispatcher.api.routes import batches, bulk, callbacks, events, fleet, jobs, schedules, stats, types
from dispatcher.api.tokens import Tokens
from dispatcher.api.views import Problem
from dispatcher.errors import DispatcherError
from dispatcher.operations import Operations
from dispatcher.version import __version__

SPARE_BYTES = 16 * 1024  # of a body, for what is not the payload
MANY = ("/jobs:batch", "/batches")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the server takes."""

    max_payload_bytes: int
    max_body_bytes: int
    """Of a request that brings many jobs."""
    max_pending: int
    """Of a tenant; 0 for any number."""
    connections: int


def create_app(dsn: str, bounds: Bounds) -> FastAPI:
    """The application; it connects as it is started, and keeps nothing that another process would need."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        db = Database(dsn, connections=bounds.connections)
        hub = Hub(db)
        app.state.api = Api(
            db=db,
            jobs=Jobs(db),
            tokens=Tokens(db),
            hub=hub,
            pending=PendingLimit(db, bounds.max_pending),
            operations=Operations(),
        )
        await db.open()
        hub.open()
        yield
        await hub.close()
        await db.close()

    app = FastAPI(
        title="pg-dispatcher",
        version=__version__,
        summary="Background jobs on PostgreSQL",
        description=(
            "Times are ISO 8601 in UTC, durations seconds. Errors are problems as in RFC 9457. A token of a tenant "
            "sees what is that tenant's; anything else does not exist for it."
        ),
        license_info={"name": "MIT", "identifier": "MIT"},
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.routes.insert(0, jobs.PlainRead())
    for router in (jobs, callbacks, bulk, batches, events, types, schedules, stats, fleet):
        app.include_router(router.router)
    app.add_route("/healthz", fleet.healthz, methods=["GET"], include_in_schema=False)
    app.add_route("/readyz", fleet.readyz, methods=["GET"], include_in_schema=False)
    _handle_errors(app)
    _add_docs(app)
    app.add_middleware(Guard, most=lambda path: _most(bounds, path), admit=_admit)
    return app


def _most(bounds: Bounds, path: str) -> int:
    return bounds.max_body_bytes if path in MANY else bounds.max_payload_bytes + SPARE_BYTES


async def _admit(scope: Scope) -> Response | None:
    """Refuses who has no token before many jobs are read: their JSON takes 20 times the room of its text."""
    if scope["path"] not in MANY:
        return None
    request = Request(scope)
    try:
        await authenticate(request)
    except problems.ApiError as exc:
        return await problems.on_api_error(request, exc)
    except DispatcherError as exc:
        return await problems.on_dispatcher_error(request, exc)
    return None


def _handle_errors(app: FastAPI) -> None:
    for kind, handler in (
        (DispatcherError, problems.on_dispatcher_error),
        (problems.ApiError, problems.on_api_error),
        (HTTPException, _on_http_error),
        (RequestValidationError, problems.on_misfit),
        (Exception, problems.on_crash),
    ):
        app.add_exception_handler(kind, handler)


async def _on_http_error(request: Request, exc: Exception) -> Response:
    """As problems.on_http_error; a 405 names all methods of the path, whichever routes they are."""
    assert isinstance(exc, HTTPException)
    if exc.status_code == 405 and (methods := _methods(request.app.openapi()["paths"], request.url.path)):
        exc.headers = {**(exc.headers or {}), "Allow": ", ".join(methods)}
    return await problems.on_http_error(request, exc)


def _methods(paths: dict[str, Any], path: str) -> list[str]:
    for template in sorted(paths, key=len, reverse=True):  # of several that fit, the one with most in it
        pattern = re.sub(r"\\{(\w+)\\}", lambda part: r"\d+" if part[1] == "id" else ".+", re.escape(template))
        if re.fullmatch(pattern, path):
            return sorted(method.upper() for method in paths[template])
    return []


def _add_docs(app: FastAPI) -> None:
    """A page that asks nobody outside: its scripts are those of a package."""
    folder = str(resources.files("fastapi_offline") / "static")
    app.mount("/assets", StaticFiles(directory=folder), name="assets")

    async def docs(_request: Request) -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="pg-dispatcher",
            swagger_js_url="assets/swagger-ui-bundle.js",
            swagger_css_url="assets/swagger-ui.css",
            swagger_favicon_url="assets/favicon.png",
        )

    app.add_route("/docs", docs, methods=["GET"], include_in_schema=False)
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document["components"]["schemas"]
        schemas.setdefault("Problem", Problem.model_json_schema(ref_template="#/components/schemas/{model}"))
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's own guide does it
