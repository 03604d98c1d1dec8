"""The blocking call answers as psycopg's own does, and fails as it does."""

from __future__ import annotations

import psycopg
import pytest

from dispatcher.db import Connection
from dispatcher.queries.claims import Claimed, Lane, Take, claim_jobs
from tests.db.running import OWNER, TERM, enqueue, open_transaction, session

ODD = ["", "a,b", '"quoted"', "back\\slash", "{braces}", "null", " ", "Zürich ☃ 日本", "it's %s"]


def test_odd_names_arrive_as_they_are(conn: Connection, lease: Connection) -> None:
    ids = {tenant: enqueue(conn, "quick", payload={"t": tenant}, tenant=tenant) for tenant in ODD if tenant}
    takes = [Take(Lane("quick", tenant), 5) for tenant in ODD]
    rows = claim_jobs(lease, takes, owner=OWNER, term=TERM)
    assert {row.tenant: row.id for row in rows} == ids
    assert all(isinstance(row, Claimed) for row in rows)


def test_a_row_is_read_as_psycopg_reads_it(conn: Connection, lease: Connection) -> None:
    id = enqueue(conn, "quick", payload={"n": 1}, priority=-3, max_attempts=7, timeout="90s")
    (row,) = claim_jobs(lease, [Take(Lane("quick", ""), 5)], owner=OWNER, term=TERM)
    stored = conn.execute(
        "select id, type, tenant, priority, attempt, failures, max_attempts, timeout_s, created_at, payload::text,"
        " checkpoint::text from dispatcher.job where id = %s",
        (id,),
    ).fetchone()
    assert row[:11] == stored
    assert row.created_at.utcoffset() is not None
    assert 0 <= row.waited_s < 60


def test_errors_are_those_of_psycopg(dsn: str, conn: Connection, lease: Connection) -> None:
    enqueue(conn, "quick")
    take = [Take(Lane("quick", ""), 5)]
    with (
        open_transaction(dsn, "lock table dispatcher.job in access exclusive mode"),
        pytest.raises(psycopg.errors.LockNotAvailable, match="lock timeout"),
    ):
        claim_jobs(lease, take, owner=OWNER, term=TERM)
    assert len(claim_jobs(lease, take, owner=OWNER, term=TERM)) == 1  # the session goes on


@pytest.mark.parametrize("before", [True, False])
def test_a_session_that_is_gone_is_an_operational_error(dsn: str, conn: Connection, *, before: bool) -> None:
    with session(dsn) as own:
        if before:
            claim_jobs(own, [Take(Lane("quick", ""), 5)], owner=OWNER, term=TERM)
        conn.execute("select pg_terminate_backend(%s, 5000)", (own.info.backend_pid,))
        for _ in range(2):
            with pytest.raises(psycopg.OperationalError):
                claim_jobs(own, [Take(Lane("quick", ""), 5)], owner=OWNER, term=TERM)
        own.close()
        with pytest.raises(psycopg.OperationalError):
            claim_jobs(own, [Take(Lane("quick", ""), 5)], owner=OWNER, term=TERM)
