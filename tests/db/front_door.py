"""Types of jobs for the tests of the front doors, published as a replica would, and ends of jobs without a daemon."""

from __future__ import annotations

import json
from typing import Any

import psycopg
from pydantic import BaseModel, Field

from dispatcher.executor import Executor
from dispatcher.queries.replicas import publish_types

MAX_BYTES = 1000
UNNOTICED = "do $$ begin execute 'deallocate all'; end $$"
"""Forgets a session's prepared statements so that psycopg does not see it."""


class Row(BaseModel):
    """A part of a payload, to see whether the field is named."""

    name: str
    size: int = 0


class Import(BaseModel):
    """The payload of the type `import`."""

    table: str = Field(default="t", alias="into")
    rows: list[Row] = []


def run(_job: object, _ctx: object) -> None:
    """Never called."""


IMPORT = Executor("import", run, "tests.import", payload=Import)
ANY = Executor("any", run, "tests.any")


def publish(conn: psycopg.Connection[Any], *specs: Executor) -> None:
    """Makes the types known."""
    publish_types(conn, specs or (IMPORT, ANY), limits={}, timeout_s=60.0, max_payload_bytes=MAX_BYTES)


def end(conn: psycopg.Connection[Any], id: int, state: str, *, result: Any = None, error: str | None = None) -> None:
    """Ends a job as a leader would."""
    errors = None if error is None else json.dumps([{"attempt": 1, "kind": "exception", "message": error}])
    conn.execute(
        "update dispatcher.job set state = %s, attempt = 1, started_at = now(), finished_at = now(), result = %s,"
        " errors = %s where id = %s",
        (state, json.dumps(result), errors, id),
    )


def count(conn: psycopg.Connection[Any]) -> int:
    """How many jobs there are."""
    row = conn.execute("select count(*) from dispatcher.job").fetchone()
    assert row is not None
    return int(row[0])
