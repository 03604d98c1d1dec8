"""A linker driven step by step, and jobs that end as a leader would end them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from dispatcher.job import State
from dispatcher.metrics import Metrics
from dispatcher.outcome import JobError, Outcome
from dispatcher.queries import claims, outcomes
from dispatcher.queries.claims import Claimed, Lane, Take
from dispatcher.services.linker import Linker
from tests.db.running import OWNER, TERM, as_job, session, value


class Linking:
    """Claims, settles and links on sessions as the daemon's; `released` counts what it told of new work."""

    def __init__(self, dsn: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.conn = session(dsn)
        self.released = 0
        self.metrics = Metrics()
        self.linker = Linker(
            open_session=lambda: session(dsn),
            leading=lambda: True,
            released=self._count,
            metrics=self.metrics,
            stop=threading.Event(),
            clock=clock,
        )

    def _count(self) -> None:
        self.released += 1

    def close(self) -> None:
        self.linker.close()
        self.conn.close()

    def link(self) -> None:
        """Until nothing is left to do, or what is left is locked."""
        while self.linker.turn() == 0.0:
            pass

    def claim(self, type: str = "quick", *, tenant: str = "", take: int = 1000) -> dict[int, Claimed]:
        lane = Lane(type, tenant)
        return {row.id: row for row in claims.claim_jobs(self.conn, [Take(lane, take)], owner=OWNER, term=TERM)}

    def end(self, claimed: Claimed, state: State = State.SUCCEEDED, result: Any = None) -> None:
        """Settles one attempt."""
        job = as_job(claimed)
        match state:
            case State.SUCCEEDED:
                outcome = Outcome.succeeded(job, json.dumps(result))
            case State.PARTIAL:
                outcome = Outcome.partial(job, json.dumps(result), "[]")
            case State.CANCELED:
                outcome = Outcome.canceled(job)
            case _:
                outcome = Outcome.failed(job, JobError("exception", "broken"))
        assert outcomes.finish_jobs(self.conn, OWNER, [outcome], free_only=False)

    def run(self, state: State = State.SUCCEEDED, **lane: Any) -> list[int]:
        """Claims what is pending and ends it so; then links."""
        claimed = self.claim(**lane)
        for one in claimed.values():
            self.end(one, state)
        self.link()
        return list(claimed)


def batch(conn: psycopg.Connection[Any], count: int, type: str = "quick", **options: Any) -> int:
    """Enqueues a batch by SQL."""
    payloads = [json.dumps({"n": n}) for n in range(count)]
    query = "select dispatcher.enqueue_batch(%s, %s::jsonb[], %s::jsonb)"
    return int(value(conn, query, type, payloads, json.dumps(options)))


def children(conn: psycopg.Connection[Any], parent: int) -> list[int]:
    """The children's ids."""
    rows = conn.execute("select id from dispatcher.job where parent_id = %s order by id", (parent,))
    return [id for (id,) in rows]


def counts(conn: psycopg.Connection[Any], parent: int) -> dict[str, int]:
    """What the view says, without zeros; and that it is what the rows say."""
    names = ("scheduled", "blocked", "pending", "running", "succeeded", "partial", "failed", "canceled")
    row = conn.execute(
        f"select {', '.join(names)}, total from dispatcher.batches where id = %s".encode(), (parent,)
    ).fetchone()
    assert row is not None
    seen = {name: count for name, count in zip((*names, "total"), row, strict=True) if count}
    rows = conn.execute("select state, count(*) from dispatcher.job where parent_id = %s group by state", (parent,))
    true = dict(rows.fetchall())
    assert seen == {**true, "total": sum(true.values())}
    return {name: count for name, count in seen.items() if name != "total"}


def in_threads(*acts: Callable[[], Any]) -> list[Any]:
    """Lets several go at the same instant; what each returned, or raised."""
    gate = threading.Barrier(len(acts))
    results: list[Any] = [None] * len(acts)

    def run(at: int) -> None:
        gate.wait()
        try:
            results[at] = acts[at]()
        except Exception as exc:  # noqa: BLE001 - for the test to look at
            results[at] = exc

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
