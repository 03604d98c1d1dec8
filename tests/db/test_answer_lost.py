"""A statement that gives jobs back may commit although its answer is lost: those jobs may not run here afterwards."""

import psycopg
import pytest

from dispatcher.db import Connection
from dispatcher.executor import Executor, Registry
from dispatcher.inflight import Execution, InFlight
from dispatcher.metrics import Metrics
from dispatcher.pool import Backlog, Pools
from dispatcher.queries import claims
from dispatcher.queries.claims import Lane, Take
from dispatcher.services.dispatch import Dispatch
from tests.db.contenders import register


class Shelf(Backlog):
    """A pool that runs nothing."""

    def nudge(self) -> None:
        """Nothing to wake."""

    def submit(self, executions: list[Execution]) -> None:
        self._waiting.extend(executions)


SPEC = Executor("import", lambda job, ctx: None, "tests")


def test_jobs_whose_return_was_not_answered_are_not_run_here(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows may say pending, and another replica may have claimed them: running them here as well would overlap.

    Let go of, they are given back again by the look at what the database believes this replica to run.
    """
    conn.execute(
        "insert into dispatcher.type (name, timeout_s, max_attempts, max_payload_bytes) values ('import', 60, 5, 1000)"
    )
    conn.execute("select dispatcher.enqueue('import') from generate_series(1, 3)")
    replica, inflight, registry = register(conn), InFlight(), Registry([SPEC])
    pool = Shelf(name="thread", size=4, inflight=inflight, ended=lambda _execution: None)
    dispatch = Dispatch(
        replica=replica,
        lease_number=1,
        registry=registry,
        inflight=inflight,
        pools=Pools([pool], registry),
        before_run=lambda: None,
        metrics=Metrics(),
    )
    rows = claims.claim_jobs(conn, [Take(Lane("import", ""), 3)], owner=replica, term=1)
    executions = [Execution(row, SPEC, 0.0) for row in rows]
    inflight.add(executions)
    pool.submit(executions)
    release = claims.release_jobs

    def unanswered(*args: object) -> object:
        release(*args)  # type: ignore[arg-type]
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(claims, "release_jobs", unanswered)
    with pytest.raises(psycopg.OperationalError):
        dispatch.return_waiting(conn)
    assert conn.execute("select distinct state from dispatcher.job").fetchall() == [("pending",)]
    assert not pool.waiting
    assert len(inflight) == 0, "else it counts against the limits, and is never given back"
