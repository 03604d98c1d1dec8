"""What the OpenAPI document cannot say: which types are known, what cron knows, and that other jobs must exist."""

from __future__ import annotations

import itertools
import json
from typing import Any

import schemathesis

TYPES = ("quick", "slow", "hello")
_number = itertools.count()
ZONES = ("UTC", "Europe/Berlin", "America/New_York")


@schemathesis.serializer("application/x-ndjson")
def write_lines(_context: Any, value: Any) -> bytes:
    """A job a line."""
    lines = value if isinstance(value, list) else [value]
    return "\n".join(json.dumps(line) for line in lines).encode()


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Bodies that fit the document are made to fit the database as well; those that are wrong on purpose stay so."""
    if case.meta is None or case.meta.generation.mode.is_positive:
        if "idempotency-key" in case.headers:
            case.headers["idempotency-key"] = f"{next(_number)}"  # new for each request that is meant, as it is to be
        for body in case.body if isinstance(case.body, list) else [case.body]:
            if isinstance(body, dict):
                fit(body)


def fit(body: dict[str, Any]) -> None:
    """Other jobs do not exist, two ways to say one thing contradict each other, and a text may be no cron."""
    for name in ("after", "parent", "on_failure"):
        body.pop(name, None)
    if body.get("run_at") is not None:
        body["run_at"] = "2030-01-31T12:00:00Z"
        body.pop("delay", None)
    if "type" in body:
        body["type"] = TYPES[len(body["type"]) % len(TYPES)]
    if "cron" in body:
        body["cron"] = "0 3 * * *"
    if "zone" in body:
        body["zone"] = ZONES[len(body["zone"]) % len(ZONES)]
    if "tenant" in body and {"tenant_limit", "rate", "burst"} & body.keys():
        del body["tenant"]  # a tenant has a limit of its own, and no more
    if body.get("burst") is not None and body.get("rate") is None:
        body["rate"] = 1.0
    if body.get("callback") is not None:
        fit(body["callback"])
