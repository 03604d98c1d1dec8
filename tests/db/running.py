"""What tests of claims and outcomes share: types, rows, sessions as the daemon's, and jobs in the state running."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from dispatcher.db import Connection, SessionLimits, connect_session
from dispatcher.executor import Executor
from dispatcher.inflight import Execution, InFlight
from dispatcher.job import Job
from dispatcher.metrics import Metrics
from dispatcher.outcome import Outcome
from dispatcher.queries import claims
from dispatcher.queries.claims import Claimed, Lane, Take
from dispatcher.queries.replicas import publish_types
from dispatcher.services.completer import Completer
from dispatcher.tally import Tally

OWNER = 1
TERM = 1


def nothing(_job: Job, _ctx: object) -> None:
    """The executor of types whose jobs these tests end themselves."""


QUICK = Executor("quick", nothing, "tests.quick")
SLOW = Executor("slow", nothing, "tests.slow")


def publish(conn: Connection, *specs: Executor, max_payload_bytes: int = 2**20) -> None:
    """Makes the types known, as a replica does."""
    publish_types(conn, specs or (QUICK, SLOW), limits={}, timeout_s=60.0, max_payload_bytes=max_payload_bytes)


def session(dsn: str, **limits: float) -> Connection:
    """A session pinned as the daemon's own are."""
    return connect_session(dsn, name="test", limits=SessionLimits(**limits))


def value(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    """The one value that a query answers."""
    row = conn.execute(query.encode(), params).fetchone()
    assert row is not None, query
    return row[0]


def enqueue(conn: psycopg.Connection[Any], type: str = "quick", payload: Any = None, **options: Any) -> int:
    """Enqueues by SQL, as any client."""
    return int(
        value(
            conn,
            "select dispatcher.enqueue(%s, %s::jsonb, %s::jsonb)",
            type,
            json.dumps(payload or {}),
            json.dumps(options),
        )
    )


def state(conn: psycopg.Connection[Any], id: int) -> str:
    """A job's state."""
    return str(value(conn, "select state from dispatcher.job where id = %s", id))


def job(conn: psycopg.Connection[Any], id: int) -> dict[str, Any]:
    """A job as the view shows it."""
    with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        row = cursor.execute("select * from dispatcher.jobs where id = %s", (id,)).fetchone()
    assert row is not None
    return row


def claim(
    conn: Connection,
    type: str = "quick",
    *,
    take: int = 1000,
    tenant: str = "",
    owner: int = OWNER,
    free_only: bool = True,
) -> list[Claimed]:
    """Claims from one lane."""
    return claims.claim_jobs(conn, [Take(Lane(type, tenant), take)], owner=owner, term=TERM, free_only=free_only)


def execution(claimed: Claimed, outcome: Outcome | None = None, spec: Executor = QUICK) -> Execution:
    """An attempt that has ended (with success, unless said otherwise) and is not yet recorded."""
    ended = Execution(claimed, spec, time.monotonic())
    ended.started_at = ended.ended_at = time.monotonic()
    ended.outcome = outcome or Outcome.succeeded(as_job(claimed), '{"done": true}')
    return ended


def as_job(claimed: Claimed) -> Job:
    """What an executor would be given."""
    return Job(
        claimed.id, claimed.type, None, {}, claimed.priority, claimed.attempt, claimed.failures, claimed.created_at
    )


class Settling:
    """A completer with what it needs, driven step by step."""

    def __init__(
        self,
        dsn: str,
        open_session: Callable[[], Connection] | None = None,
        *,
        changed: Callable[[Connection, Iterable[int]], None] = lambda _conn, _ids: None,
    ) -> None:
        self.metrics = Metrics()
        self.tally = Tally()
        self.inflight = InFlight()
        self.told: list[bool] = []
        self.completer = Completer(
            open_session=open_session or (lambda: session(dsn)),
            owner=OWNER,
            inflight=self.inflight,
            metrics=self.metrics,
            tally=self.tally,
            settled=lambda _conn, rescheduled, _marked: self.told.append(rescheduled),
            changed=changed,
            stop=threading.Event(),
        )

    def put(self, *executions: Execution) -> None:
        """As the pool hands ended executions over."""
        self.inflight.add(list(executions))
        for ended in executions:
            self.completer.put(ended)

    def settle(self, *executions: Execution) -> None:
        """Puts them, and takes one step."""
        self.put(*executions)
        self.completer.step()

    def stale(self) -> float:
        """Outcomes that came too late."""
        return self.metrics.registry.get_sample_value("dispatcher_stale_outcomes_total") or 0.0

    def finished(self, state: str) -> int:
        """Jobs of type quick that ended so, as counted."""
        return self.metrics.jobs.finished.get(("quick", state), 0)


@contextmanager
def open_transaction(dsn: str, *statements: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody's transaction that did these and stays open; rolled back at the end unless it was committed."""
    with psycopg.connect(dsn) as conn:
        for text in statements:
            conn.execute(text.encode())
        yield conn
        conn.rollback()


def until(true: Callable[[], Any], within_s: float = 30.0) -> None:
    """Waits for something that another process or the server does; a busy machine may take its time."""
    pause, deadline = threading.Event(), time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.01)
