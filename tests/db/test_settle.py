"""Outcomes: each is recorded once, a late one changes nothing, and nobody's lock holds the others up."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from dispatcher.db import Connection
from dispatcher.executor import Partial
from dispatcher.job import State
from dispatcher.outcome import JobError, Outcome, Returned, settle
from dispatcher.queries import outcomes
from dispatcher.retry import RetryPolicy
from dispatcher.services import completer as completer_module
from tests.db.running import (
    OWNER,
    Settling,
    as_job,
    claim,
    enqueue,
    execution,
    job,
    open_transaction,
    session,
    state,
    until,
    value,
)
from tests.timing import quickest

ERROR = JobError("exception", "ValueError: no")


def test_outcome_is_in_the_row_and_counted(conn: Connection, lease: Connection, settling: Settling) -> None:
    id = enqueue(conn)
    settling.settle(*map(execution, claim(lease)))
    row = job(conn, id)
    assert (row["state"], row["result"], row["attempt"], row["failures"]) == ("succeeded", {"done": True}, 1, 0)
    assert row["finished_at"] >= row["started_at"]
    assert settling.finished("succeeded") == 1
    assert len(settling.inflight) == 0


@pytest.mark.parametrize("waits", [True, False])
def test_the_number_of_an_attempt_that_a_promoted_server_has_given_out_again_is_its_new_owners(
    conn: Connection, lease: Connection, settling: Settling, waits: bool
) -> None:
    """It had not received our claim, and our sessions come back one after another."""
    id = enqueue(conn)
    (lost,) = claim(lease)
    conn.execute("update dispatcher.job set owner = 2 where id = %s", (id,))
    outcomes_of_it = (
        Outcome.succeeded(as_job(lost), None),
        Outcome.succeeded(as_job(lost), '"late"'),
        Outcome.retry(as_job(lost), 5.0, ERROR),
    )
    settling.completer.report_progress(id, lost.attempt, 50.0, "half")
    settling.completer.note_timed_out(execution(lost))
    for outcome in outcomes_of_it:
        late = execution(lost, outcome)
        late.busy = not waits
        settling.settle(late)
    row = job(conn, id)
    assert (row["state"], row["owner"], row["result"], row["errors"]) == ("running", 2, None, [])
    assert (row["progress"], row["timed_out"]) == (0, False)
    assert settling.stale() == len(outcomes_of_it)
    assert len(settling.inflight) == 0, "nor is it sent again and again"


def test_late_attempt_changes_nothing_and_is_counted(conn: Connection, lease: Connection, settling: Settling) -> None:
    id = enqueue(conn)
    (late,) = claim(lease)
    conn.execute("update dispatcher.job set state = 'pending' where id = %s", (id,))  # as a rescue does
    (fresh,) = claim(lease, owner=2)
    assert fresh.attempt == late.attempt + 1
    for outcome in (
        Outcome.succeeded(as_job(late), '"late"'),
        Outcome.failed(as_job(late), ERROR),
        Outcome.retry(as_job(late), 5.0, ERROR),
        Outcome.snooze(as_job(late), 5.0),
        Outcome.release(as_job(late)),
    ):
        settling.settle(execution(late, outcome))
    row = job(conn, id)
    assert (row["state"], row["owner"], row["result"], row["errors"]) == ("running", 2, None, [])
    assert settling.stale() == 5
    assert not settling.metrics.jobs.finished
    assert len(settling.inflight) == 0


def test_one_group_holds_every_kind_of_end(conn: Connection, lease: Connection, settling: Settling) -> None:
    ids = [enqueue(conn) for _ in range(7)]
    jobs = {claimed.id: claimed for claimed in claim(lease)}
    ended = [
        lambda j: Outcome.succeeded(j, None),
        lambda j: Outcome.partial(j, "[1]", '[{"kind": "item", "message": "bad", "item": 17}]'),
        lambda j: Outcome.failed(j, ERROR),
        Outcome.canceled,
        lambda j: Outcome.retry(j, 60.0, ERROR),
        lambda j: Outcome.snooze(j, 60.0),
        Outcome.release,
    ]
    settling.settle(*(execution(jobs[id], end(as_job(jobs[id]))) for id, end in zip(ids, ended, strict=True)))
    rows = [job(conn, id) for id in ids]
    assert [row["state"] for row in rows] == [
        "succeeded",
        "partial",
        "failed",
        "canceled",
        "scheduled",
        "scheduled",
        "pending",
    ]
    assert [row["failures"] for row in rows] == [0, 0, 1, 0, 1, 0, 0]
    assert [row["result"] for row in rows] == [None, [1], None, None, None, None, None]
    assert rows[1]["errors"][0]["item"] == 17
    assert all(row["owner"] is None and row["started_at"] is None for row in rows[4:])
    assert value(conn, "select result is null from dispatcher.job where id = %s", ids[0])
    assert settling.told == [True]


def test_errors_are_appended_with_time_and_attempt(conn: Connection, lease: Connection, settling: Settling) -> None:
    id = enqueue(conn)
    for number in (1, 2, 3):
        (claimed,) = claim(lease)
        error = JobError("exception", f"error {number}")
        outcome = (Outcome.retry(as_job(claimed), 0.0, error), Outcome.failed(as_job(claimed), error))[number == 3]
        settling.settle(execution(claimed, outcome))
    row = job(conn, id)
    assert [(e["attempt"], e["message"]) for e in row["errors"]] == [
        (1, "error 1"),
        (2, "error 2"),
        (3, "error 3"),
    ]
    assert all(e["at"].startswith("2") for e in row["errors"])
    assert row["errors"][0]["at"] < row["errors"][2]["at"]
    assert (row["state"], row["failures"]) == ("failed", 3)


def test_partial_without_errors_keeps_those_of_earlier_tries(
    conn: Connection, lease: Connection, settling: Settling
) -> None:
    id = enqueue(conn)
    (claimed,) = claim(lease)
    settling.settle(execution(claimed, Outcome.retry(as_job(claimed), 0.0, ERROR)))
    (claimed,) = claim(lease)
    ending = Returned(Partial([1], []))
    settling.settle(execution(claimed, settle(as_job(claimed), ending, None, policy=RetryPolicy())))
    row = job(conn, id)
    assert (row["state"], row["result"], [e["message"] for e in row["errors"]]) == ("partial", [1], [ERROR.message])


def test_user_s_row_lock_does_not_hold_up_the_others(
    dsn: str, conn: Connection, lease: Connection, settling: Settling
) -> None:
    def took_s() -> float:
        before = settling.finished("succeeded")
        ids = [enqueue(conn) for _ in range(100)]
        claimed = claim(lease)
        with open_transaction(dsn, f"select dispatcher.cancel({ids[50]})") as user:
            settling.put(*map(execution, claimed))
            began = time.monotonic()
            settling.completer.step()
            took = time.monotonic() - began
            assert [state(conn, id) for id in ids].count("succeeded") == 99
            settling.completer.step()  # still busy: neither lost nor counted as late
            assert state(conn, ids[50]) == "running"
            assert (settling.finished("succeeded") - before, settling.stale()) == (99, 0)
            user.commit()
        settling.completer.step()
        assert state(conn, ids[50]) == "succeeded"  # it ended before it heeded
        assert (settling.finished("succeeded") - before, settling.stale(), len(settling.inflight)) == (100, 0, 0)
        return took

    assert quickest(took_s, within_s=0.5) < 0.5  # 50 ms of waiting, then the form that passes by


def test_user_s_row_lock_does_not_hold_up_retries(
    dsn: str, conn: Connection, lease: Connection, settling: Settling
) -> None:
    ids = [enqueue(conn) for _ in range(10)]
    claimed = claim(lease)
    ended = [execution(c, Outcome.retry(as_job(c), 60.0, ERROR)) for c in claimed]
    with open_transaction(dsn, f"select from dispatcher.job where id = {ids[3]} for update") as user:
        settling.settle(*ended)
        assert [state(conn, id) for id in ids].count("scheduled") == 9
        user.rollback()
    settling.completer.step()
    assert {state(conn, id) for id in ids} == {"scheduled"}


def test_locked_table_delays_and_loses_nothing(
    dsn: str, conn: Connection, lease: Connection, settling: Settling
) -> None:
    ids = [enqueue(conn) for _ in range(4)]
    claimed = claim(lease)
    ended = [execution(c) for c in claimed[:2]]
    ended += [execution(c, Outcome.retry(as_job(c), 60.0, ERROR)) for c in claimed[2:]]
    with open_transaction(dsn, "lock table dispatcher.job in share mode") as user:
        settling.settle(*ended)
        assert {state(conn, id) for id in ids} == {"running"}
        user.rollback()
    settling.completer.step()
    assert [state(conn, id) for id in ids] == ["succeeded", "succeeded", "scheduled", "scheduled"]
    assert settling.stale() == 0


@pytest.mark.parametrize(
    "poison",
    [
        '{"n": 1e200000}',  # PostgreSQL's numeric ends before
        '"\\u0000"',
        "[" * 50_000 + "]" * 50_000,  # deeper than its stack
        "no json at all",
    ],
    ids=["number", "nul", "depth", "syntax"],
)
def test_result_that_postgresql_refuses_fails_its_own_job_only(
    conn: Connection, lease: Connection, settling: Settling, poison: str
) -> None:
    ids = [enqueue(conn) for _ in range(9)]
    claimed = claim(lease)
    ended = [execution(c) for c in claimed]
    ended[4].outcome = Outcome.succeeded(as_job(claimed[4]), poison)
    settling.settle(*ended)
    states = [state(conn, id) for id in ids]
    assert states == ["succeeded"] * 4 + ["failed"] + ["succeeded"] * 4
    assert "PostgreSQL refuses the result" in job(conn, ids[4])["errors"][0]["message"]
    assert len(settling.inflight) == 0


@pytest.mark.parametrize("after", [1e300, float("inf"), float("nan"), 1e12])
def test_absurd_pause_harms_no_other_job_and_can_be_read(
    conn: Connection, lease: Connection, settling: Settling, after: float
) -> None:
    ids = [enqueue(conn) for _ in range(3)]
    claimed = claim(lease)
    settling.settle(
        *(execution(c, Outcome.retry(as_job(c), after if n == 1 else 60.0, ERROR)) for n, c in enumerate(claimed))
    )
    assert [state(conn, id) for id in (ids[0], ids[2])] == ["scheduled", "scheduled"]
    assert job(conn, ids[1])["state"] in {"scheduled", "pending"}
    assert len(settling.inflight) == 0


def test_answer_lost_on_the_way_is_recorded_once(dsn: str, conn: Connection, lease: Connection) -> None:
    """The server committed, the client saw the connection die: it sends again, and the guard makes that harmless."""
    opened: list[psycopg.Connection[Any]] = []

    class AnswerLost(psycopg.Connection[Any]):
        lose = True

        def execute(self, *args: Any, **kwargs: Any) -> Any:
            answer = super().execute(*args, **kwargs)
            if b"finish_jobs" in args[0] and self.lose:
                AnswerLost.lose = False
                self.close()
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            return answer

    def open_session() -> Connection:
        pinned = session(dsn)
        params = pinned.info.get_parameters()
        pinned.close()
        opened.append(AnswerLost.connect(**params, autocommit=True))  # type: ignore[arg-type]
        return opened[-1]

    settling = Settling(dsn, open_session)
    ids = [enqueue(conn) for _ in range(5)]
    settling.settle(*map(execution, claim(lease)))
    assert {state(conn, id) for id in ids} == {"succeeded"}  # the server has them, the completer does not know
    finished_at = job(conn, ids[0])["finished_at"]
    assert len(settling.inflight) == 5
    settling.completer.step()
    assert len(opened) == 2
    assert len(settling.inflight) == 0
    assert settling.stale() == 0
    assert job(conn, ids[0])["finished_at"] == finished_at
    assert job(conn, ids[0])["attempt"] == 1
    settling.completer.close()


def test_ended_session_is_replaced_and_nothing_lost(conn: Connection, lease: Connection, settling: Settling) -> None:
    ids = [enqueue(conn) for _ in range(6)]
    claimed = claim(lease)
    settling.settle(execution(claimed[0]))
    assert settling.completer._conn is not None
    conn.execute("select pg_terminate_backend(%s)", (settling.completer._conn.info.backend_pid,))
    settling.settle(*map(execution, claimed[1:]))
    settling.completer.step()
    assert {state(conn, id) for id in ids} == {"succeeded"}
    assert settling.stale() == 0


@pytest.mark.parametrize("outcome", ["retry", "snooze", "release"])
def test_retry_of_a_job_that_somebody_canceled_becomes_canceled(
    conn: Connection, lease: Connection, settling: Settling, outcome: str
) -> None:
    id = enqueue(conn)
    (claimed,) = claim(lease)
    assert value(conn, "select dispatcher.cancel(%s)", id) == "running"
    j = as_job(claimed)
    settling.settle(
        execution(
            claimed,
            {
                "retry": Outcome.retry(j, 5.0, ERROR),
                "snooze": Outcome.snooze(j, 5.0),
                "release": Outcome.release(j),
            }[outcome],
        )
    )
    row = job(conn, id)
    assert row["state"] == "canceled"
    assert row["finished_at"] is not None
    assert value(conn, "select live_key is null and listed = 'troubled' from dispatcher.job where id = %s", id)


def test_last_progress_is_written_before_the_end(conn: Connection, lease: Connection, settling: Settling) -> None:
    id = enqueue(conn)
    (claimed,) = claim(lease)
    for percent in range(100):
        settling.completer.report_progress(id, 1, float(percent), f"at {percent}")
    settling.completer.step()
    settling.completer.report_progress(id, 1, 100.0, "all")
    settling.settle(execution(claimed))
    row = job(conn, id)
    assert (row["state"], row["progress"], row["progress_message"]) == ("succeeded", 100.0, "all")


def test_progress_of_a_late_attempt_is_not_shown(conn: Connection, lease: Connection, settling: Settling) -> None:
    id = enqueue(conn)
    claim(lease)
    conn.execute("update dispatcher.job set state = 'pending' where id = %s", (id,))
    claim(lease)
    settling.completer.report_progress(id, 1, 77.0, "late")
    settling.completer.report_progress(id, 2, 7.0, "fresh")
    settling.completer.step()
    assert job(conn, id)["progress"] == 7.0


@pytest.mark.parametrize("newer", [False, True])
def test_progress_that_met_a_locked_row_is_written_later(
    dsn: str, conn: Connection, lease: Connection, settling: Settling, newer: bool
) -> None:
    """As of a job that calls ctx.checkpoint, then ctx.progress, and commits after a while."""
    id = enqueue(conn)
    claim(lease)
    with open_transaction(dsn, f"select 1 from dispatcher.job where id = {id} for no key update"):
        settling.completer.report_progress(id, 1, 50.0, "half")
        settling.completer.step()
        settling.completer.step()
        assert job(conn, id)["progress"] == 0
        if newer:
            settling.completer.report_progress(id, 1, 60.0, "more")

    def written() -> bool:
        settling.completer.step()
        return bool(job(conn, id)["progress"] == (60.0 if newer else 50.0))

    until(written)


@pytest.mark.parametrize("refused", [(1e-50, "tiny"), (50.0, "a\x00b")], ids=["underflow", "nul"])
def test_progress_that_postgresql_refuses_holds_up_nobody(
    conn: Connection, lease: Connection, settling: Settling, refused: tuple[float, str]
) -> None:
    ids = [enqueue(conn) for _ in range(3)]
    claimed = claim(lease)
    settling.completer.report_progress(ids[0], 1, 10.0, "one")
    settling.completer.report_progress(ids[1], 1, *refused)
    settling.completer.report_progress(ids[2], 1, 30.0, "three")
    settling.settle(*map(execution, claimed))
    rows = [job(conn, id) for id in ids]
    assert [row["state"] for row in rows] == ["succeeded"] * 3
    assert [row["progress_message"] for row in rows] == ["one", None, "three"]


def test_settled_claims_are_forgotten(conn: Connection, lease: Connection, settling: Settling) -> None:
    for _ in range(5):
        enqueue(conn)
    settling.settle(*map(execution, claim(lease)))
    settling.completer.step()
    assert value(conn, "select count(*) from dispatcher.claim") == 0


def test_waiting_form_names_only_what_it_changed(conn: Connection, lease: Connection, dsn: str) -> None:
    a, b = enqueue(conn), enqueue(conn)
    first, second = claim(lease)
    conn.execute("update dispatcher.job set attempt = attempt + 1 where id = %s", (b,))
    with session(dsn) as own:
        for free_only in (False, True):
            results = [Outcome.succeeded(as_job(first), None), Outcome.succeeded(as_job(second), None)]
            done = outcomes.finish_jobs(own, OWNER, results, free_only=free_only)
            assert set(done) == (set() if free_only else {(a, 1)})
    assert state(conn, b) == State.RUNNING


def test_settle_leaves_every_index_alone(conn: Connection, lease: Connection, settling: Settling) -> None:
    """The outcome's update is a HOT one: state stands in no index, and no index predicate changes with it."""
    for _ in range(200):
        enqueue(conn)
    claimed = claim(lease)
    conn.execute("vacuum dispatcher.job")  # room on the pages, as autovacuum makes it
    stats = "select n_tup_hot_upd from pg_stat_user_tables where relname = 'job'"

    def hot() -> int:
        conn.execute("select pg_stat_force_next_flush()")
        conn.execute("select pg_stat_clear_snapshot()")
        return int(value(conn, stats))

    before = hot()
    settling.settle(*map(execution, claimed))
    assert settling.completer._conn is not None
    settling.completer._conn.execute("select pg_stat_force_next_flush()")
    settling.completer._conn.execute("select 1")
    assert hot() - before > 100


def test_more_locked_rows_than_a_group_holds_do_not_starve_the_rest(
    dsn: str, conn: Connection, lease: Connection, settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody cancels all that runs of a type, and leaves that transaction open."""
    monkeypatch.setattr(completer_module, "MAX_GROUP", 10)
    locked = [enqueue(conn) for _ in range(15)]
    free = [enqueue(conn) for _ in range(30)]
    claimed = claim(lease)
    with open_transaction(dsn, f"select dispatcher.cancel(id) from dispatcher.job where id <= {locked[-1]}"):
        settling.put(*map(execution, claimed))
        for _ in range(8):
            settling.completer.step()
        assert {state(conn, id) for id in free} == {"succeeded"}
    for _ in range(8):
        settling.completer.step()
    assert {state(conn, id) for id in locked} == {"succeeded"}
    assert (settling.finished("succeeded"), settling.stale()) == (45, 0)


def test_groups_stay_small_where_results_or_errors_are_large(
    dsn: str, conn: Connection, lease: Connection, settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that is too large to be written within statement_timeout would be sent for ever; so would busy ones."""
    monkeypatch.setattr(completer_module, "MAX_GROUP_CHARS", 10_000)
    sizes: list[int] = []
    finish_jobs = outcomes.finish_jobs

    def noting(conn: Connection, owner: int, group: list[Outcome], *, free_only: bool) -> outcomes.Recorded:
        sizes.append(sum(len(o.result or "") + len(o.errors or "") for o in group))
        return finish_jobs(conn, owner, group, free_only=free_only)

    monkeypatch.setattr(outcomes, "finish_jobs", noting)
    ids = [enqueue(conn) for _ in range(40)]
    claimed = claim(lease)
    large = [
        Outcome.partial(as_job(c), None, f'[{{"message": "{"x" * 1000}"}}]')
        if c.id % 2
        else Outcome.succeeded(as_job(c), f'"{"y" * 1000}"')
        for c in claimed
    ]
    settling.put(*map(execution, claimed, large))
    with open_transaction(dsn, "lock table dispatcher.job in share mode"):
        for _ in range(8):
            settling.completer.step()
    while len(settling.inflight):
        settling.completer.step()
    assert {state(conn, id) for id in ids} == {"succeeded", "partial"}
    assert max(sizes) <= 12_000


def test_progress_waits_for_a_locked_table_and_comes_before_the_end(
    dsn: str, conn: Connection, lease: Connection, settling: Settling
) -> None:
    id = enqueue(conn)
    (claimed,) = claim(lease)
    settling.completer.report_progress(id, 1, 100.0, "all")
    with open_transaction(dsn, "lock table dispatcher.job in share mode"):
        settling.settle(execution(claimed))
        assert state(conn, id) == "running"
    settling.completer.step()
    row = job(conn, id)
    assert (row["state"], row["progress"], row["progress_message"]) == ("succeeded", 100.0, "all")
    assert settling.finished("succeeded") == 1
