"""Errors as RFC 9457 problems: which error is which status, and how it is written."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dispatcher import errors
from dispatcher.api.database import AWAY
from dispatcher.trouble import Sparing

MEDIA_TYPE = "application/problem+json"
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}  # RFC 9110's, which Python has from 3.13 on
RETRY_AFTER_S = 1
_STATUS: dict[type[errors.DispatcherError], int] = {
    errors.JobNotFound: 404,
    errors.ScheduleNotFound: 404,
    errors.TokenNotFound: 404,
    errors.WrongState: 409,
    errors.UniqueConflict: 409,
    errors.JobFailed: 409,
    errors.PayloadTooLarge: 413,
    errors.EnqueueError: 422,  # the others of that kind
    errors.DatabaseUnavailable: 503,
    errors.DispatcherError: 503,  # a schema that is behind, a right that is missing: somebody else's to mend
}

REFUSED = "the database cannot do this now; try again in a moment"

log = logging.getLogger("dispatcher.api")
_sparing = Sparing(log)


class ApiError(Exception):
    """An answer of 4xx that no error of the dispatcher's stands for."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}


def problem(
    status: int, detail: str, *, kind: str = "about:blank", headers: dict[str, str] | None = None, wrong: Any = None
) -> Response:
    """A problem as a response."""
    body = {"type": kind, "title": _TITLES.get(status) or HTTPStatus(status).phrase, "status": status, "detail": detail}
    if wrong is not None:
        body["errors"] = wrong
    text = json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(text, status, headers, MEDIA_TYPE)


def status_of(exc: errors.DispatcherError) -> int:
    """The status that an error is answered with."""
    return next(_STATUS[kind] for kind in type(exc).__mro__ if kind in _STATUS)


async def on_dispatcher_error(_request: Request, exc: Exception) -> Response:
    """One of the dispatcher's own: its line is for people, and its name for programs."""
    assert isinstance(exc, errors.DispatcherError)
    status, detail = status_of(exc), str(exc)
    if status == 503 and not isinstance(exc, errors.DatabaseUnavailable):
        _sparing.say(str(exc), "%s", exc, level=logging.ERROR)
        detail = "the dispatcher is not set up properly; its log says more"
    elif status == 503 and detail != AWAY:  # of that the pulse tells
        _sparing.say(type(exc).__name__, "a request was refused: %s", detail)
        detail = REFUSED
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return problem(status, detail, kind=f"urn:dispatcher:{type(exc).__name__}", headers=headers)


async def on_api_error(_request: Request, exc: Exception) -> Response:
    """One of the API's own."""
    assert isinstance(exc, ApiError)
    return problem(exc.status, str(exc), headers=exc.headers)


async def on_http_error(_request: Request, exc: Exception) -> Response:
    """No such path, a method that it has not, a body that is no JSON."""
    assert isinstance(exc, HTTPException)
    return problem(exc.status_code, exc.detail or "", headers=dict(exc.headers or {}))


async def on_misfit(_request: Request, exc: Exception) -> Response:
    """A body or a query that does not fit: 400 where it is no JSON at all, else 422 and where."""
    assert isinstance(exc, RequestValidationError)
    found = exc.errors()
    wrong = [{"loc": list(one["loc"]), "msg": one["msg"].removeprefix("Value error, ")} for one in found[:20]]
    status = 400 if any(one["type"] == "json_invalid" for one in found) else 422
    where = ".".join(str(part) for part in wrong[0]["loc"][1:]) if wrong else ""
    detail = f"{where}: {wrong[0]['msg']}" if where else "the request does not fit"
    return problem(status, detail if status == 422 else "the body is not JSON", wrong=wrong)


async def on_crash(_request: Request, _exc: Exception) -> Response:
    """What should not occur; the server logs it."""
    return problem(500, "an error that should not occur; the log has it")
