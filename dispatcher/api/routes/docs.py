"""How answers other than the good one are described in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from dispatcher.api.views import Problem

_TEXT = {
    400: "The body is no JSON.",
    401: "No token, or one that does not count.",
    403: "The token's role or tenant does not allow this.",
    404: "There is no such thing that this token may see.",
    405: "The path has no such method.",
    408: "The body did not arrive in time.",
    409: "The state does not allow this; or the Idempotency-Key came with another request.",
    413: "The body, or a payload in it, is too large.",
    415: "The body is of another kind.",
    422: "The request does not fit; nothing was done.",
    429: "Too much waits already.",
    503: "The database is away.",
}
RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
REPLAYED = {
    "Idempotency-Replayed": {"description": "`true`: this is the first answer again.", "schema": {"type": "string"}}
}
LOCATION = {"Location": {"description": "Where it is.", "schema": {"type": "string"}}}
ETAG = {"ETag": {"description": "Of what is shown; for If-None-Match.", "schema": {"type": "string"}}}
JOB_ID = "^[1-9][0-9]{0,18}$"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These, and what any route may answer."""
    return {status: _problem(status) for status in sorted({401, 422, 503, *statuses})}


def _problem(status: int) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    example = {"type": "about:blank", "title": "…", "status": status, "detail": "one line for a person"}
    shown: dict[str, Any] = {
        "description": _TEXT[status],
        "content": {"application/problem+json": {"schema": schema, "example": example}},
    }
    if status in (429, 503):
        shown["headers"] = RETRY
    return shown


def good(description: str, model: Any = None, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    """A good answer beside or in place of the one that the signature tells."""
    shown: dict[str, Any] = {"description": description}
    if model is not None:
        shown["model"] = model
    if headers:
        shown["headers"] = headers
    return shown


__all__ = ["ETAG", "JOB_ID", "LOCATION", "REPLAYED", "RETRY", "Problem", "good", "problems"]
