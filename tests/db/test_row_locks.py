"""Row locks of somebody's open transaction: what they may hold up, their own row, and what they may not hide."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from dispatcher.db import Connection
from dispatcher.outcome import JobError, Outcome
from dispatcher.queries import claims, outcomes, upkeep
from dispatcher.queries.claims import Claimed
from tests.db.linking import Linking, batch
from tests.db.running import (
    OWNER,
    as_job,
    claim,
    enqueue,
    job,
    open_transaction,
    publish,
    session,
    state,
    value,
)

ERROR = JobError("exception", "no")


@pytest.fixture
def linking(dsn: str, conn: Connection) -> Iterator[Linking]:
    publish(conn)
    linking = Linking(dsn)
    yield linking
    linking.close()


def write_orphans(conn: Connection, claimed: Claimed) -> object:
    with conn.transaction():
        return [orphan.job.id for orphan in upkeep.list_orphans(conn, OWNER)]


def show_timed_out(conn: Connection, claimed: Claimed) -> object:
    outcomes.mark_timed_out(conn, OWNER, {(claimed.id, claimed.attempt): '[{"kind": "timeout", "message": "late"}]'})
    return job(conn, claimed.id)["timed_out"]


# Each writes, or is about to write, the row of a running job, and answers whether it found it.
WRITES: dict[str, Callable[[Connection, Claimed], object]] = {
    "success": lambda conn, c: outcomes.finish_jobs(conn, OWNER, [Outcome.succeeded(as_job(c), None)], free_only=False),
    "success, busy": lambda conn, c: outcomes.finish_jobs(
        conn, OWNER, [Outcome.succeeded(as_job(c), None)], free_only=True
    ),
    "failure": lambda conn, c: outcomes.finish_jobs(conn, OWNER, [Outcome.failed(as_job(c), ERROR)], free_only=False),
    "retry": lambda conn, c: outcomes.reschedule_jobs(conn, OWNER, [Outcome.retry(as_job(c), 5.0, ERROR)]),
    "return": lambda conn, c: claims.release_jobs(conn, OWNER, [(c.id, c.attempt)]),
    "rescue": write_orphans,
    "progress": lambda conn, c: outcomes.write_progress(conn, OWNER, {(c.id, c.attempt): (50.0, None)}),
    "time-out": show_timed_out,
}


@pytest.mark.parametrize("what", WRITES)
def test_lock_of_a_foreign_key_hides_a_running_job_from_no_statement(
    dsn: str, conn: Connection, lease: Connection, what: str
) -> None:
    """A row of the user's that refers to the job holds it FOR KEY SHARE, for as long as that transaction is open."""
    id = enqueue(conn)
    (claimed,) = claim(lease)
    conn.execute("create table note (job bigint references dispatcher.job (id))")
    with open_transaction(dsn, f"insert into note values ({id})"):
        assert WRITES[what](lease, claimed)


@pytest.mark.parametrize("what", WRITES)
def test_lock_of_a_user_on_a_running_job_holds_no_statement_up(
    dsn: str, conn: Connection, lease: Connection, what: str
) -> None:
    """It is passed by, or waited for no longer than lock_timeout, and found again afterwards."""
    id = enqueue(conn)
    (claimed,) = claim(lease)
    lease.execute("set statement_timeout = '5s'")
    with open_transaction(dsn, f"select from dispatcher.job where id = {id} for update"):
        try:
            assert not WRITES[what](lease, claimed)
        except psycopg.errors.LockNotAvailable:
            assert what in ("success", "failure"), "only these have a second form"
    assert WRITES[what](lease, claimed)


def test_lock_of_a_foreign_key_hides_no_blocked_job_and_no_batch(dsn: str, conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 2)
    after = enqueue(conn, after=parent)
    conn.execute("create table note (job bigint references dispatcher.job (id))")
    with open_transaction(dsn, f"insert into note values ({parent}), ({after})"):
        linking.run()
        assert [state(conn, parent), state(conn, after)] == ["succeeded", "pending"]


def test_type_that_an_operator_holds_locked_holds_up_no_enqueuer_no_claim_and_no_outcome(
    dsn: str, conn: Connection, lease: Connection
) -> None:
    """A foreign key from jobs to types would: each INSERT would wait for that transaction."""
    with open_transaction(dsn, "select from dispatcher.type for update"):
        conn.execute("set lock_timeout = '2s'")
        id = enqueue(conn)
        (claimed,) = claim(lease)
        assert WRITES["success"](lease, claimed)
        assert state(conn, id) == "succeeded"


def test_jobs_refer_to_nothing_by_a_foreign_key(conn: Connection) -> None:
    """It would lock a row of the other table for each job that is written."""
    query = "select count(*) from pg_constraint where contype = 'f' and conrelid = 'dispatcher.job'::regclass"
    assert value(conn, query) == 0


def test_completion_in_an_open_transaction_holds_up_neither_siblings_nor_their_batch(
    dsn: str, conn: Connection, linking: Linking
) -> None:
    """It touches the job's own row alone: what follows is done by the leader, once it has committed."""
    parent = batch(conn, 3)
    after = enqueue(conn, after=parent)
    first, *rest = linking.claim().values()
    behind = enqueue(conn, after=first.id)
    linking.link()
    with session(dsn) as other, psycopg.connect(dsn) as own:
        own.execute("select dispatcher.complete(%s, %s)", (first.id, first.attempt))
        other.execute("set lock_timeout = '2s'")
        for each in rest:
            linking.end(each)
        linking.link()
        other.execute("update dispatcher.job set progress = 1 where id = any(%s)", ([parent, behind, after],))
        other.execute("update dispatcher.batch set total = total where job_id = %s", (parent,))
        assert value(other, "select succeeded from dispatcher.batch where job_id = %s", parent) == 2
        own.commit()
    linking.link()
    assert [state(conn, id) for id in (parent, behind, after)] == ["succeeded", "pending", "pending"]
