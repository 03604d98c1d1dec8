"""Cancel and retry decide by the guard of their own update, whatever the caller's snapshot says."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from dispatcher.db import Connection
from dispatcher.queries import outcomes, upkeep
from tests.db.running import OWNER, claim, enqueue, job, open_transaction, publish, session, state, until, value

FINAL = ("succeeded", "partial", "failed", "canceled")


@pytest.fixture
def lease(dsn: str, conn: Connection) -> Iterator[Connection]:
    publish(conn)
    with session(dsn) as claiming:
        yield claiming


def cancel(conn: Connection, id: int) -> str:
    return str(value(conn, "select dispatcher.cancel(%s)", id))


def retry(conn: Connection, id: int) -> str:
    return str(value(conn, "select dispatcher.retry(%s)", id))


def put(conn: Connection, id: int, state: str) -> None:
    conn.execute("update dispatcher.job set state = %s, run_at = now() where id = %s", (state, id))


@pytest.mark.parametrize("before", ["pending", "scheduled", "blocked"])
def test_cancel_ends_what_does_not_run(conn: Connection, lease: Connection, before: str) -> None:
    id = enqueue(conn, unique_key="k")
    put(conn, id, before)
    assert cancel(conn, id) == "canceled"
    row = job(conn, id)
    assert (row["state"], row["cancel_requested"]) == ("canceled", False)
    assert row["finished_at"] is not None
    assert claim(lease) == []
    assert enqueue(conn, unique_key="k") != id  # its key is free again


def test_cancel_asks_the_owner_of_what_runs(conn: Connection, lease: Connection) -> None:
    id = enqueue(conn)
    claim(lease, owner=7)
    conn.execute("listen dispatcher_replica_7")
    assert cancel(conn, id) == "running"
    row = job(conn, id)
    assert (row["state"], row["cancel_requested"]) == ("running", True)
    (word,) = conn.notifies(timeout=5, stop_after=1)
    assert word.payload == f"cancel {id}"
    assert cancel(conn, id) == "running"  # asking twice does no harm


@pytest.mark.parametrize("final", FINAL)
def test_cancel_answers_the_final_state_and_changes_nothing(conn: Connection, lease: Connection, final: str) -> None:
    id = enqueue(conn)
    put(conn, id, final)
    before = job(conn, id)
    assert cancel(conn, id) == final
    assert job(conn, id) == before


def test_no_such_job(conn: Connection, lease: Connection) -> None:
    for verb in (cancel, retry):
        with pytest.raises(psycopg.Error, match="there is no job 999") as caught:
            verb(conn, 999)
        assert caught.value.sqlstate == "DJ005"


@pytest.mark.parametrize("isolation", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
def test_old_snapshot_is_an_error_never_a_wrong_answer(
    dsn: str, conn: Connection, lease: Connection, isolation: psycopg.IsolationLevel
) -> None:
    """The caller looked when the job was pending; it runs since. "canceled" would be a lie."""
    for change in ("claim", "end", "promote"):
        id = enqueue(conn)
        if change == "promote":
            put(conn, id, "scheduled")
        with psycopg.connect(dsn) as old:
            old.isolation_level = isolation
            old.execute("select count(*) from dispatcher.job")
            match change:
                case "claim":
                    claim(lease)
                case "end":
                    put(conn, id, "failed")
                case _:
                    put(conn, id, "pending")
            before = job(conn, id)
            with pytest.raises(psycopg.errors.SerializationFailure):
                cancel(old, id)
            old.rollback()
            assert job(conn, id) == before
            assert cancel(old, id) in {"running", "failed", "canceled"}  # once more, with a fresh look
            assert cancel(old, id) == {"claim": "running", "end": "failed", "promote": "canceled"}[change]


def test_cancel_waits_for_a_claim_under_way_and_sees_it(dsn: str, conn: Connection, lease: Connection) -> None:
    id = enqueue(conn)
    with lease.transaction():
        claim(lease)
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("set lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                cancel(other, id)
    assert cancel(conn, id) == "running"


def test_rolled_back_cancel_cancels_nothing(dsn: str, conn: Connection, lease: Connection) -> None:
    id = enqueue(conn)
    with open_transaction(dsn, f"select dispatcher.cancel({id})") as user:
        user.rollback()
    assert [claimed.id for claimed in claim(lease)] == [id]
    assert not job(conn, id)["cancel_requested"]


@pytest.mark.parametrize("before", ["failed", "partial", "canceled", "scheduled"])
def test_retry_begins_anew(conn: Connection, lease: Connection, before: str) -> None:
    id = enqueue(conn)
    claim(lease)
    conn.execute(
        """update dispatcher.job set state = %s, owner = null, run_at = now() + interval '1 day', failures = 5,
           progress = 50, cancel_requested = true, timed_out = true, result = '1',
           errors = '[{"message": "old"}]' where id = %s""",
        (before, id),
    )
    assert retry(conn, id) == "pending"
    row = job(conn, id)
    assert (row["failures"], row["progress"], row["result"], row["cancel_requested"], row["timed_out"]) == (
        0,
        0,
        None,
        False,
        False,
    )
    assert row["errors"] == [{"message": "old"}]  # what happened stays visible
    (again,) = claim(lease)
    assert again.attempt == 2  # never goes down
    assert again.waited_s < 60


@pytest.mark.parametrize("before", ["pending", "blocked", "running", "succeeded"])
def test_retry_in_the_wrong_state_is_named(conn: Connection, lease: Connection, before: str) -> None:
    id = enqueue(conn)
    put(conn, id, before)
    with pytest.raises(psycopg.Error, match=f"job {id} is {before}") as caught:
        retry(conn, id)
    assert caught.value.sqlstate == "DJ006"
    assert state(conn, id) == before


def test_retry_of_a_timed_out_job_whose_thread_still_runs_is_refused(conn: Connection, lease: Connection) -> None:
    """A second attempt would overlap the first."""
    id = enqueue(conn)
    claim(lease)
    conn.execute("update dispatcher.job set timed_out = true, cancel_requested = true")
    with pytest.raises(psycopg.Error) as caught:
        retry(conn, id)
    assert caught.value.sqlstate == "DJ006"
    assert claim(lease) == []


def test_a_retry_starts_no_job_that_may_still_run_in_a_replica_that_ends(conn: Connection, lease: Connection) -> None:
    """A second attempt would overlap the first, which has a second until its process is gone."""
    id = enqueue(conn)
    claim(lease)
    assert outcomes.postpone_jobs(lease, OWNER, [(id, 1)], 3.0) == {(id, 1)}
    run_at = job(conn, id)["run_at"]
    assert retry(conn, id) == "scheduled"
    assert (job(conn, id)["run_at"], state(conn, id)) == (run_at, "scheduled")
    conn.execute("update dispatcher.job set run_at = now()")  # that is over
    assert retry(conn, id) == "pending"
    assert [again.attempt for again in claim(lease)] == [2]


def test_a_canceled_job_that_may_still_run_is_left_to_who_sees_its_process_dead(
    conn: Connection, lease: Connection
) -> None:
    id = enqueue(conn)
    claim(lease)
    assert cancel(conn, id) == "running"
    assert outcomes.postpone_jobs(lease, OWNER, [(id, 1)], 3.0) == set()
    assert state(conn, id) == "running"


@pytest.mark.parametrize("of_a_batch", [False, True])
def test_a_postponed_job_is_canceled_only_once_it_cannot_run_any_more(
    conn: Connection, lease: Connection, of_a_batch: bool
) -> None:
    """What was enqueued after it could begin beside it, in the second until its process is gone."""
    made = "select dispatcher.enqueue_batch('quick', array['{}'::jsonb])"
    asked = value(conn, made) if of_a_batch else enqueue(conn)
    [id] = [claimed.id for claimed in claim(lease)]
    assert outcomes.postpone_jobs(lease, OWNER, [(id, 1)], 3.0) == {(id, 1)}
    for _ in range(2):  # asking twice does no harm
        assert cancel(conn, asked) == "running"
        row = job(conn, id)
        assert (row["state"], row["cancel_requested"], row["finished_at"]) == ("scheduled", True, None)
    conn.execute("update dispatcher.job set run_at = now() where id = %s", (id,))  # that is over
    assert upkeep.promote_jobs(lease, 1000) == 1
    row = job(conn, id)
    assert (row["state"], row["finished_at"] is None) == ("canceled", False)
    assert claim(lease) == []


def test_a_postponed_job_that_cannot_run_any_more_is_canceled_at_once(conn: Connection, lease: Connection) -> None:
    id = enqueue(conn)
    claim(lease)
    outcomes.postpone_jobs(lease, OWNER, [(id, 1)], 0.0)
    assert cancel(conn, id) == "canceled"
    assert job(conn, id)["finished_at"] is not None


def test_a_postponed_job_that_was_canceled_and_is_wanted_again_runs_again(conn: Connection, lease: Connection) -> None:
    id = enqueue(conn)
    claim(lease)
    outcomes.postpone_jobs(lease, OWNER, [(id, 1)], 3.0)
    assert cancel(conn, id) == "running"
    assert retry(conn, id) == "scheduled"
    conn.execute("update dispatcher.job set run_at = now()")
    upkeep.promote_jobs(lease, 1000)
    assert [again.attempt for again in claim(lease)] == [2]


def test_retry_against_a_live_job_of_the_same_key_is_named(conn: Connection, lease: Connection) -> None:
    first = enqueue(conn, unique_key="k")
    put(conn, first, "failed")
    second = enqueue(conn, unique_key="k")
    with pytest.raises(psycopg.Error, match="another unfinished job has its unique key") as caught:
        retry(conn, first)
    assert caught.value.sqlstate == "DJ007"
    assert (state(conn, first), state(conn, second)) == ("failed", "pending")
    cancel(conn, second)
    assert retry(conn, first) == "pending"
    with pytest.raises(psycopg.Error) as caught:
        retry(conn, second)
    assert caught.value.sqlstate == "DJ007"


def test_retry_and_cancel_of_one_transaction(dsn: str, conn: Connection, lease: Connection) -> None:
    id = enqueue(conn)
    put(conn, id, "failed")
    with psycopg.connect(dsn) as own:
        assert retry(own, id) == "pending"
        assert cancel(own, id) == "canceled"
        assert retry(own, id) == "pending"
    assert [claimed.id for claimed in claim(lease)] == [id]


def test_retry_of_a_job_that_is_removed_meanwhile_says_so(dsn: str, conn: Connection, lease: Connection) -> None:
    id = enqueue(conn)
    put(conn, id, "failed")
    told: list[str] = []

    def retry_it() -> None:
        with psycopg.connect(dsn) as own, pytest.raises(psycopg.Error) as caught:
            retry(own, id)
        told.append(f"{caught.value.sqlstate} {caught.value.diag.message_primary}")

    waiting = threading.Thread(target=retry_it)
    with open_transaction(dsn, f"delete from dispatcher.job where id = {id}") as removing:
        waiting.start()
        until(lambda: value(conn, "select count(*) from pg_locks where not granted"))
        removing.commit()
    waiting.join()
    assert told == [f"DJ005 there is no job {id}"]
