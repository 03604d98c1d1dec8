"""Jobs that run after others: nobody waits for ever, whatever happens at the same time."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from dispatcher.sql import statement

from dispatcher.db import Connection
from dispatcher.job import State
from dispatcher.outcome import Outcome
from dispatcher.queries import outcomes
from tests.db.contenders import waits
from tests.db.linking import Linking, batch, in_threads
from tests.db.running import OWNER, as_job, enqueue, job, open_transaction, publish, session, state, value


@pytest.fixture
def linking(dsn: str, conn: Connection) -> Iterator[Linking]:
    publish(conn)
    linking = Linking(dsn)
    yield linking
    linking.close()


def states(conn: psycopg.Connection[Any], *ids: int) -> list[str]:
    return [state(conn, id) for id in ids]


def test_chain_runs_link_by_link(conn: Connection, linking: Linking) -> None:
    a = enqueue(conn)
    b = enqueue(conn, after=a)
    c = enqueue(conn, after=[b])
    linking.link()
    assert states(conn, a, b, c) == ["pending", "blocked", "blocked"]
    assert linking.run() == [a]
    assert linking.run() == [b]
    assert linking.run() == [c]
    assert linking.released == 2
    assert value(conn, "select count(*) from dispatcher.follow_up") == 0


def test_diamond_joins_once_both_sides_have_ended(conn: Connection, linking: Linking) -> None:
    top = enqueue(conn)
    left, right = enqueue(conn, after=top), enqueue(conn, after=top)
    bottom = enqueue(conn, after=[left, right, left])
    linking.run()
    claimed = linking.claim()
    assert sorted(claimed) == [left, right]
    linking.end(claimed[left])
    linking.link()
    assert state(conn, bottom) == State.BLOCKED
    linking.end(claimed[right], State.PARTIAL)  # partial is good enough
    linking.link()
    assert linking.run() == [bottom]


def test_last_two_predecessors_that_end_at_once_release_the_dependent(
    dsn: str, conn: Connection, linking: Linking
) -> None:
    """Neither transaction sees the other's end."""
    others = [Linking(dsn), Linking(dsn)]
    for _ in range(20):
        a, b = enqueue(conn), enqueue(conn)
        after = enqueue(conn, after=[a, b])
        claimed = linking.claim()
        in_threads(
            partial(others[0].end, claimed[a]),
            partial(others[1].end, claimed[b]),
            others[0].link,
            others[1].link,
        )
        linking.link()
        assert state(conn, after) == State.PENDING
        assert linking.run() == [after]
    for other in others:
        other.close()


def test_enqueued_after_a_job_that_ends_at_that_instant(dsn: str, conn: Connection, linking: Linking) -> None:
    """Neither the end of the first nor the enqueueing of the second sees the other."""
    for _ in range(30):
        a = enqueue(conn)
        claimed = linking.claim()[a]

        def follow(a: int = a) -> int:
            with psycopg.connect(dsn, autocommit=True) as own:
                return enqueue(own, after=a)

        after, *_ = in_threads(follow, partial(linking.end, claimed))
        linking.link()
        assert linking.run() == [after]


def test_enqueued_in_an_open_transaction_while_the_first_ends(dsn: str, conn: Connection, linking: Linking) -> None:
    """Ordered on purpose: the predecessor is being followed, uncommitted, while its outcome is written."""
    a, b = enqueue(conn), enqueue(conn)
    claimed = linking.claim()
    enqueue(conn, after=b)  # b is followed already, a is not
    linking.link()
    with psycopg.connect(dsn) as own:
        behind_b = enqueue(own, after=b)
        linking.end(claimed[b])  # nobody who follows needs to hold it back any more
        linking.link()
        behind_a = enqueue(own, after=a)
        with session(dsn) as settling, pytest.raises(psycopg.errors.LockNotAvailable):
            settling.execute("update dispatcher.job set state = 'succeeded' where id = %s", (a,))
        own.commit()
    linking.end(claimed[a])
    linking.link()
    assert {behind_a, behind_b} <= set(linking.run())


def test_enqueued_after_jobs_that_have_ended(conn: Connection, linking: Linking) -> None:
    a, b = enqueue(conn), enqueue(conn)
    claimed = linking.claim()
    linking.end(claimed[a])
    linking.end(claimed[b], State.FAILED)
    good, bad, anyway = enqueue(conn, after=a), enqueue(conn, after=b), enqueue(conn, after=b, on_failure="run")
    linking.link()
    assert states(conn, good, bad, anyway) == ["pending", "canceled", "pending"]


@pytest.mark.parametrize("end", [State.FAILED, State.CANCELED])
def test_failure_cancels_what_comes_after_it(conn: Connection, linking: Linking, end: State) -> None:
    a, other = enqueue(conn), enqueue(conn, "slow")
    b = enqueue(conn, after=[a, other])
    c = enqueue(conn, after=b)
    anyway = enqueue(conn, after=[a, other], on_failure="run")
    last = enqueue(conn, after=[b], on_failure="run")
    linking.run(end)
    assert states(conn, b, c) == ["canceled", "canceled"]  # at once: the other one may take hours
    (error,) = job(conn, b)["errors"]
    assert (error["kind"], error["attempt"]) == ("dependency", 0)
    assert error["message"] == f"job {a}, after which this one was to run, did not succeed"
    assert job(conn, b)["finished_at"] is not None
    assert states(conn, anyway, last) == ["blocked", "pending"]
    linking.run(State.SUCCEEDED, type="slow")
    assert state(conn, anyway) == State.PENDING


def test_due_time_counts_as_well(conn: Connection, linking: Linking) -> None:
    a = enqueue(conn)
    later = enqueue(conn, after=a, delay="1h")
    linking.run()
    assert state(conn, later) == State.SCHEDULED
    assert value(conn, "select run_at > now() + interval '59 min' from dispatcher.job where id = %s", later)


def test_ten_thousand_are_released_in_one_statement(conn: Connection, linking: Linking) -> None:
    a = enqueue(conn)
    count = 10_000
    ids = value(
        conn,
        "select array_agg(id) from dispatcher.enqueue_many('quick', array_fill('{}'::jsonb, array[%s]), %s::jsonb) id",
        count,
        json.dumps({"after": a}),
    )
    linking.link()
    assert len(ids) == count
    conn.execute("create table seen (n bigint)")
    conn.execute(
        "create function see() returns trigger language plpgsql security definer as $$ begin"
        " insert into public.seen select count(*) from changed where state = 'pending'; return null; end $$"
    )
    conn.execute(
        "create trigger see after update on dispatcher.job referencing new table as changed"
        " for each statement execute function see()"
    )
    linking.run()
    assert value(conn, "select max(n) from seen") == count
    assert value(conn, "select count(*) from dispatcher.job where state = 'pending'") == count


def test_more_than_a_statement_may_hold_are_released_bit_by_bit(
    conn: Connection, linking: Linking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.services.linker.EDGES", 10)
    a = enqueue(conn)
    waiting = [enqueue(conn, after=a) for _ in range(35)]
    linking.run()
    for _ in range(10):
        linking.link()
    assert set(states(conn, *waiting)) == {"pending"}


def test_edges_that_a_statement_may_not_hold_are_seen_to_bit_by_bit(
    conn: Connection, linking: Linking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many jobs after many that have ended: in one statement they could exceed its time-out, again and again."""
    monkeypatch.setattr("dispatcher.services.linker.EDGES", 50)
    query = (
        "select array_agg(id) from dispatcher.enqueue_many('quick', array_fill('{}'::jsonb, array[%s]), %s::jsonb) id"
    )
    before = value(conn, query, 20, "{}")
    for one in linking.claim().values():
        linking.end(one, State.FAILED if one.id == before[-1] else State.SUCCEEDED)
    behind = value(conn, query, 30, json.dumps({"after": before[:-1]}))
    broken = value(conn, query, 10, json.dumps({"after": before}))
    conn.execute("create table seen (n bigint)")
    conn.execute(
        "create function see() returns trigger language plpgsql security definer as $$ begin"
        " insert into public.seen select count(*) from changed; return null; end $$"
    )
    conn.execute(
        "create trigger see after update on dispatcher.dependency referencing new table as changed"
        " for each statement execute function see()"
    )
    for _ in range(40):
        linking.link()
    assert value(conn, "select max(n) from seen") == 50
    assert (set(states(conn, *behind)), set(states(conn, *broken))) == ({"pending"}, {"canceled"})
    assert value(conn, "select count(*) from dispatcher.follow_up") == 0


def test_dependent_that_a_user_holds_is_passed_by(dsn: str, conn: Connection, linking: Linking) -> None:
    a = enqueue(conn)
    held, free = enqueue(conn, after=a), enqueue(conn, after=a)
    with open_transaction(dsn, f"select from dispatcher.job where id = {held} for update") as holder:
        linking.run()
        assert states(conn, held, free) == ["blocked", "pending"]
        holder.rollback()
    linking.link()
    assert state(conn, held) == State.PENDING


def test_blocked_job_can_be_canceled(conn: Connection, linking: Linking) -> None:
    a = enqueue(conn)
    b = enqueue(conn, after=a)
    assert value(conn, "select dispatcher.cancel(%s)", b) == "canceled"
    linking.run()
    assert state(conn, b) == State.CANCELED


def test_retried_dependent_waits_again_for_what_has_not_ended(conn: Connection, linking: Linking) -> None:
    a = enqueue(conn)
    b = enqueue(conn, after=a)
    linking.run(State.FAILED)
    assert state(conn, b) == State.CANCELED
    assert value(conn, "select dispatcher.retry(%s)", a) == "pending"
    assert value(conn, "select dispatcher.retry(%s)", b) == "blocked"
    linking.link()
    assert state(conn, b) == State.BLOCKED
    linking.run()
    assert linking.run() == [b]
    linking_failed = enqueue(conn)
    c = enqueue(conn, after=linking_failed)
    linking.run(State.FAILED)
    assert value(conn, "select dispatcher.retry(%s)", c) == "pending"  # the operator wants it: nothing is open
    assert linking.run() == [c]


def test_pending_job_waits_again_for_a_job_before_it_that_runs_again(conn: Connection, linking: Linking) -> None:
    """Whichever of the two is retried first, the second does not run before the first."""
    a = enqueue(conn)
    b, anyway = enqueue(conn, after=a), enqueue(conn, after=a, on_failure="run")
    linking.run(State.FAILED)
    assert states(conn, b, anyway) == ["canceled", "pending"]
    assert value(conn, "select dispatcher.retry(%s)", b) == "pending"
    assert value(conn, "select dispatcher.retry(%s)", a) == "pending"
    assert states(conn, b, anyway) == ["blocked", "blocked"]
    linking.link()
    assert linking.run() == [a]
    assert sorted(linking.run()) == [b, anyway]


@pytest.mark.parametrize("end", [State.FAILED, State.PARTIAL])
def test_blocked_job_waits_again_for_a_job_before_it_that_runs_again(
    conn: Connection, linking: Linking, end: State
) -> None:
    """It waits for another one as well, and has seen this one end."""
    a, other = enqueue(conn), enqueue(conn, "slow")
    b = enqueue(conn, after=[a, other], on_failure="run")
    linking.run(end)
    assert value(conn, "select dispatcher.retry(%s)", a) == "pending"
    linking.run(type="slow")
    assert states(conn, a, b) == ["pending", "blocked"]
    assert linking.run() == [a]
    assert linking.run() == [b]


def test_scheduled_job_waits_again_for_a_job_before_it_that_runs_again(conn: Connection, linking: Linking) -> None:
    a = enqueue(conn)
    b = enqueue(conn, after=a, on_failure="run", delay="1h")
    linking.run(State.FAILED)
    due = value(conn, "select run_at from dispatcher.job where id = %s", b)
    assert state(conn, b) == State.SCHEDULED
    assert value(conn, "select dispatcher.retry(%s)", a) == "pending"
    assert states(conn, a, b) == ["pending", "blocked"]
    linking.link()
    assert linking.run() == [a]
    assert state(conn, b) == State.SCHEDULED
    assert value(conn, "select run_at from dispatcher.job where id = %s", b) == due


def test_job_between_tries_goes_on_when_one_before_it_runs_again(conn: Connection, linking: Linking) -> None:
    a = enqueue(conn)
    b = enqueue(conn, after=a, on_failure="run")
    linking.run(State.FAILED)
    (claimed,) = linking.claim().values()
    outcomes.reschedule_jobs(conn, OWNER, [Outcome.snooze(as_job(claimed), 3600.0)])
    assert value(conn, "select dispatcher.retry(%s)", a) == "pending"
    assert states(conn, a, b) == ["pending", "scheduled"]


def test_retry_between_the_look_at_a_job_and_its_release(
    conn: Connection, linking: Linking, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, other = enqueue(conn), enqueue(conn, "slow")
    b = enqueue(conn, after=[a, other], on_failure="run")
    linking.run(State.FAILED)
    (claimed,) = linking.claim("slow").values()
    linking.end(claimed)

    def retry_first(name: str) -> Any:
        if name == "release_dependents":
            conn.execute("select dispatcher.retry(%s)", (a,))
        return statement(name)

    with monkeypatch.context() as patch:
        patch.setattr("dispatcher.queries.marks.statement", retry_first)
        linking.linker.turn()
    assert states(conn, a, b) == ["pending", "blocked"]
    linking.link()
    assert linking.run() == [a]
    assert linking.run() == [b]


def test_retry_by_filter_keeps_the_order_of_a_chain(conn: Connection, linking: Linking) -> None:
    """It goes from the newest to the oldest."""
    chain = [enqueue(conn)]
    for _ in range(3):
        chain.append(enqueue(conn, after=chain[-1]))
    linking.run(State.FAILED)
    assert states(conn, *chain) == ["failed", "canceled", "canceled", "canceled"]
    assert value(conn, 'select retried from dispatcher.retry_where(\'{"state": ["failed", "canceled"]}\')') == 4
    linking.link()
    assert [linking.run() for _ in chain] == [[id] for id in chain]


def test_retry_of_a_batch_keeps_the_order_of_its_jobs(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 1)
    (a,) = linking.claim().values()
    b = enqueue(conn, parent=parent, after=a.id)
    linking.end(a, State.FAILED)
    linking.link()
    assert states(conn, parent, b) == ["failed", "canceled"]
    assert value(conn, "select dispatcher.retry(%s)", parent) == "running"
    assert states(conn, parent, a.id, b) == ["running", "pending", "blocked"]
    assert linking.run() == [a.id]
    assert linking.run() == [b]
    assert state(conn, parent) == State.SUCCEEDED


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"after": 999}, "option 'after': there is no job 999"),
        ({"after": [1, 999]}, "option 'after': there is no job 999"),
        ({"after": 1, "tenant": "other"}, "option 'after': there is no job 1 of tenant 'other'"),
        ({"after": 2}, "option 'after': there is no job 2 without a tenant"),
        ({"after": "1"}, "option 'after' takes the id of a job"),
        ({"after": [1, None]}, "option 'after' takes the id of a job"),
        ({"after": 10**30}, "option 'after' takes the id of a job"),
        ({"after": True}, "option 'after' takes the id of a job"),
        ({"after": 1, "on_failure": "retry"}, 'option \'on_failure\' must be "cancel" or "run"'),
        ({"on_failure": "run"}, "option 'on_failure' goes with 'after'"),
    ],
)
def test_bad_predecessor_is_refused(conn: Connection, linking: Linking, options: dict[str, Any], reason: str) -> None:
    enqueue(conn)
    enqueue(conn, tenant="shop")
    for call in ("enqueue('quick', '{}', ", "enqueue_many('quick', '{\"{}\"}', "):
        with pytest.raises(psycopg.Error, match=reason) as caught:
            conn.execute(f"select dispatcher.{call} %s::jsonb)".encode(), (json.dumps(options),))
        assert caught.value.sqlstate == "DJ004"
    assert value(conn, "select count(*) from dispatcher.job") == 2
    assert value(conn, "select count(*) from dispatcher.dependency") == 0


def test_cycle_is_refused(conn: Connection, linking: Linking) -> None:
    """Only a batch can come to wait for a job that is newer than itself."""
    p, q = batch(conn, 1), batch(conn, 1)
    after_p = enqueue(conn, after=p)
    deeper = enqueue(conn, after=after_p)
    in_q = enqueue(conn, parent=q, after=deeper)
    for after in (p, after_p, deeper, q):  # q waits for its child in_q
        with pytest.raises(psycopg.Error, match="a cycle") as caught:
            enqueue(conn, parent=p, after=after)
        assert caught.value.sqlstate == "DJ004"
    with pytest.raises(psycopg.Error, match="a cycle"):
        enqueue(conn, parent=q, after=q)
    first = enqueue(conn, parent=q)
    second = enqueue(conn, parent=q, after=[first, in_q])  # within a batch: no cycle
    assert states(conn, first, second) == ["pending", "blocked"]
    conn.execute("begin isolation level repeatable read")
    with pytest.raises(psycopg.Error, match="READ COMMITTED"):
        enqueue(conn, parent=q, after=first)
    conn.execute("rollback")


def test_two_halves_of_a_cycle_at_the_same_instant(dsn: str, conn: Connection, linking: Linking) -> None:
    for _ in range(10):
        p, q = batch(conn, 1), batch(conn, 1)

        def join(parent: int, after: int) -> int:
            with psycopg.connect(dsn, autocommit=True) as own:
                return enqueue(own, parent=parent, after=after)

        results = in_threads(partial(join, p, q), partial(join, q, p))
        refused = [result for result in results if isinstance(result, psycopg.Error)]
        assert len(refused) == 1
        assert "a cycle" in str(refused[0])


def test_new_job_cannot_run_after_itself(conn: Connection, linking: Linking) -> None:
    """Its row is there when predecessors are looked up, and ids can be guessed: it would wait for ever."""
    for call in (
        "enqueue('quick', '{}', '{\"after\": 1}')",
        "enqueue_many('quick', array_fill('{}'::jsonb, array[3]), '{\"after\": 3}')",
        "enqueue_many('quick', array_fill('{}'::jsonb, array[3]), '{\"after\": [7, 5]}')",
        "enqueue_batch('quick', array_fill('{}'::jsonb, array[3]), '{\"after\": 10}')",
    ):
        with pytest.raises(psycopg.Error, match="there is no job") as caught:
            conn.execute(f"select dispatcher.{call}".encode())
        assert caught.value.sqlstate == "DJ004"
    assert value(conn, "select last_value from dispatcher.job_id_seq") == 11  # each of them was one of its own
    assert value(conn, "select count(*) from dispatcher.job") == 0


def test_two_who_add_jobs_to_one_batch_do_not_lock_each_other_out(dsn: str, conn: Connection, linking: Linking) -> None:
    p = batch(conn, 1)
    (child,) = linking.claim()
    with psycopg.connect(dsn) as one, psycopg.connect(dsn, autocommit=True) as two:
        first = enqueue(one, parent=p)
        answers: list[int] = []
        other = threading.Thread(target=lambda: answers.append(enqueue(two, parent=p, after=child)))
        other.start()
        assert waits(conn, two.info.backend_pid, "transactionid")
        second = enqueue(one, parent=p, after=first)
        one.commit()
        other.join()
    assert states(conn, first, second, *answers) == ["pending", "blocked", "blocked"]


def test_job_waits_again_for_both_predecessors_that_two_retry_at_once(
    dsn: str, conn: Connection, linking: Linking
) -> None:
    """The second to retry finds the job that comes after both locked by the first."""
    a, b = enqueue(conn), enqueue(conn)
    last = enqueue(conn, "slow", after=[a, b], on_failure="run")
    linking.run(State.FAILED)
    assert state(conn, last) == State.PENDING
    with psycopg.connect(dsn) as one, psycopg.connect(dsn, autocommit=True) as two:
        one.execute("select dispatcher.retry(%s)", (a,))
        other = threading.Thread(target=two.execute, args=("select dispatcher.retry(%s)", (b,)))
        other.start()
        assert waits(conn, two.info.backend_pid, "transactionid")
        one.commit()
        other.join()
    claimed = linking.claim()
    linking.end(claimed[a])
    linking.link()
    assert states(conn, a, b, last) == ["succeeded", "running", "blocked"]
    linking.end(claimed[b])
    linking.link()
    assert state(conn, last) == State.PENDING


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_new_batch_after_others_holds_nobody_up(dsn: str, conn: Connection, linking: Linking, level: str) -> None:
    """Nobody can wait for it yet, so there is no cycle to be kept out, and no turn to be waited for."""
    a = enqueue(conn)
    with psycopg.connect(dsn) as own:
        own.execute(f"set transaction isolation level {level}".encode())
        p = batch(own, 2, after=a)
        behind = enqueue(own, after=p)
        with pytest.raises(psycopg.Error, match="a cycle"), own.transaction():
            enqueue(own, parent=p, after=behind)
        conn.execute("set lock_timeout = '2s'")
        batch(conn, 2, after=enqueue(conn))
        own.commit()
    linking.link()
    assert len(linking.run()) == 2
    assert len(linking.run()) == 4
    assert states(conn, p, behind) == ["succeeded", "pending"]


def test_predecessor_that_somebody_deletes_holds_nobody_up(conn: Connection, linking: Linking) -> None:
    a, b = enqueue(conn), enqueue(conn)
    after_a, after_b = enqueue(conn, after=a), enqueue(conn, after=b)
    linking.link()
    linking.end(linking.claim()[a])
    conn.execute("delete from dispatcher.job where id in (%s, %s)", (a, b))
    linking.link()
    assert states(conn, after_a, after_b) == ["pending", "canceled"]
    conn.execute("delete from dispatcher.job")
    assert value(conn, "select count(*) from dispatcher.dependency") == 0


def test_mark_wakes_a_leader_that_sleeps(dsn: str, conn: Connection, linking: Linking) -> None:
    """Somebody's transaction ends a job that others wait for, and no leader is awake to look by itself."""
    a = enqueue(conn)
    enqueue(conn, after=a)
    linking.link()
    with psycopg.connect(dsn, autocommit=True) as listening:
        listening.execute("listen dispatcher_1")
        conn.execute("select dispatcher.cancel(%s)", (a,))
        assert [note.channel for note in listening.notifies(timeout=10, stop_after=1)] == ["dispatcher_1"]
