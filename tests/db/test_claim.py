"""Claims: order, limits and locks, with a pool that only collects."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from dispatcher import lanes as lanes_module
from dispatcher.db import Connection
from dispatcher.executor import Executor
from dispatcher.queries import claims
from dispatcher.services import dispatch as dispatch_module
from tests.db.leading import LIMITED, A, B, Leading
from tests.db.running import (
    OWNER,
    TERM,
    Settling,
    claim,
    enqueue,
    execution,
    nothing,
    open_transaction,
    publish,
    session,
    state,
    until,
    value,
)


@pytest.fixture
def lease(dsn: str, conn: Connection) -> Iterator[Connection]:
    publish(conn, A, B, LIMITED, Executor("foreign", nothing, "elsewhere"))
    with session(dsn) as claiming:
        yield claiming


@pytest.fixture
def leading(lease: Connection) -> Leading:
    return Leading(lease)


def test_priority_then_age(conn: Connection, leading: Leading) -> None:
    leading.pool.size = 1
    last, first, second = enqueue(conn, "a", priority=5), enqueue(conn, "a", priority=-5), enqueue(conn, "a")
    third = enqueue(conn, "a")
    order = []
    for _ in range(4):
        (id,) = leading.rounds()
        order.append(id)
        leading.end([id])
    assert order == [first, second, third, last]


def test_priority_goes_over_the_border_of_lanes(conn: Connection, leading: Leading) -> None:
    leading.pool.size = 2
    for _ in range(5):
        enqueue(conn, "a", tenant="x", priority=5)
    urgent = [enqueue(conn, "b", tenant="y", priority=1), enqueue(conn, "a", tenant="z", priority=2)]
    assert sorted(leading.rounds()) == sorted(urgent)


def test_tenants_take_turns(conn: Connection, leading: Leading) -> None:
    big = [enqueue(conn, "a", tenant="big") for _ in range(20)]
    small = [enqueue(conn, "a", tenant="small") for _ in range(3)]
    leading.pool.size = 6
    assert sorted(leading.rounds()) == sorted(big[:3] + small)


def test_type_that_is_not_registered_is_never_claimed(conn: Connection, leading: Leading) -> None:
    foreign = enqueue(conn, "foreign")
    known = enqueue(conn, "a")
    assert leading.rounds() == [known]
    assert state(conn, foreign) == "pending"


def test_claim_numbers_the_attempt_and_names_the_owner(conn: Connection, leading: Leading) -> None:
    id = enqueue(conn, "a", {"n": 1})
    leading.rounds()
    (taken,) = leading.pool.taken
    row = conn.execute("select attempt, owner, state, started_at is not null from dispatcher.job").fetchone()
    assert row == (1, OWNER, "running", True)
    assert (taken.claimed.id, taken.claimed.attempt, taken.claimed.payload) == (id, 1, '{"n": 1}')
    assert 0 <= taken.claimed.waited_s < 10


@pytest.mark.parametrize(
    "lock", ["select dispatcher.cancel({})", "select from dispatcher.job where id = {} for update"]
)
def test_row_locked_by_an_open_transaction_is_passed_by(
    dsn: str, conn: Connection, leading: Leading, lock: str
) -> None:
    ids = [enqueue(conn, "a") for _ in range(4)]
    with open_transaction(dsn, lock.format(ids[0])):
        assert leading.rounds() == ids[1:]
    leading.dispatch.read_again()
    assert leading.rounds() == ids[:1]  # rolled back: it is claimed after all


def test_locked_front_of_one_lane_does_not_starve_the_others(dsn: str, conn: Connection, leading: Leading) -> None:
    """One free thread, and the best job of all is locked by somebody: the others must run meanwhile."""
    locked = enqueue(conn, "a", priority=-10)
    ids = [enqueue(conn, "b") for _ in range(3)]
    leading.pool.size = 1
    with open_transaction(dsn, f"select from dispatcher.job where id = {locked} for update"):
        for id in ids:
            assert leading.rounds() == [id]
            leading.end([id])
            leading.dispatch.read_again()


def test_foreign_key_s_lock_hides_nothing(dsn: str, conn: Connection, leading: Leading) -> None:
    """A table of the user's that refers to a job locks its row FOR KEY SHARE until the user commits."""
    id = enqueue(conn, "a")
    conn.execute("create table note (job bigint references dispatcher.job (id))")
    with open_transaction(dsn, f"insert into note values ({id})"):
        assert leading.rounds() == [id]
        with open_transaction(dsn, f"insert into note values ({id})"):
            settling = Settling(dsn)
            settling.settle(execution(leading.pool.taken[0].claimed))
            assert state(conn, id) == "succeeded"
            settling.completer.close()


# The cursor.


def burst(conn: Connection, leading: Leading) -> list[int]:
    """Claims two of four, so that the lane's cursor stands behind the second."""
    leading.pool.size = 2
    ids = [enqueue(conn, "a") for _ in range(4)]
    assert leading.round() == ids[:2]
    leading.end(ids[:2])
    return ids


def test_cursor_starts_behind_what_was_claimed(conn: Connection, leading: Leading) -> None:
    ids = burst(conn, leading)
    assert leading.round() == ids[2:]
    assert not leading.dispatch.looked_everywhere


@pytest.mark.parametrize("how", ["better priority", "committed late", "retried"])
def test_cursor_hides_nothing_for_longer_than_its_bound(dsn: str, conn: Connection, leading: Leading, how: str) -> None:
    retried = enqueue(conn, "a", run_at="2100-01-01T00:00:00Z")
    with open_transaction(dsn, "select dispatcher.enqueue('a')") as late:
        ids = burst(conn, leading)
        match how:
            case "better priority":
                hidden = enqueue(conn, "a", priority=-1)
            case "committed late":
                late.commit()
                hidden = retried + 1
            case _:
                hidden = retried
                assert value(conn, "select dispatcher.retry(%s)", hidden) == "pending"
    leading.pool.size = 1
    assert leading.round() == [ids[2]]  # within the burst the cursor may pass it by
    leading.end([ids[2]])
    leading.now += lanes_module.READ_AGAIN_S * 1.01  # here no time passes by itself, so a read takes none
    assert leading.round() == [hidden]


def test_lane_with_nothing_behind_its_cursor_is_read_anew_before_rest(conn: Connection, leading: Leading) -> None:
    burst(conn, leading)
    leading.end(leading.round())
    leading.pool.size = 2
    hidden = enqueue(conn, "a", priority=-7)
    assert leading.rounds() == [hidden]


def test_next_term_begins_without_cursors(conn: Connection, leading: Leading) -> None:
    ids = burst(conn, leading)
    hidden = enqueue(conn, "a", priority=-1)
    leading.dispatch.begin(leading.conn, TERM + 1)
    leading.pool.size = 3
    assert sorted(leading.round()) == sorted([hidden, *ids[2:]])
    terms = [term for (term,) in conn.execute("select term from dispatcher.claim order by id")]
    assert terms == [TERM, TERM + 1]


# A hint: the notification names the type.


def looks(leading: Leading, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Notes each look for lanes."""
    seen: list[bool] = []
    list_lanes = claims.list_lanes

    def noting(*args: Any) -> Any:
        seen.append(True)
        return list_lanes(*args)

    monkeypatch.setattr(claims, "list_lanes", noting)
    return seen


def test_named_type_is_claimed_before_a_look_and_looked_at_afterwards(
    conn: Connection, leading: Leading, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert leading.rounds() == []
    seen = looks(leading, monkeypatch)
    ids = [enqueue(conn, "a"), enqueue(conn, "b"), enqueue(conn, "a", tenant="t")]
    leading.dispatch.heard("a")
    assert leading.round() == ids[:1]
    assert not leading.dispatch.looked_everywhere
    assert not seen
    assert sorted(leading.rounds()) == ids[1:]
    assert seen


@pytest.mark.parametrize("hint", ["stranger", "limited", "b"])
def test_hint_is_not_believed_against_the_rules(conn: Connection, leading: Leading, hint: str) -> None:
    publish(conn, Executor("stranger", nothing, "tests.stranger"))
    conn.execute("select dispatcher.pause('b')")
    running = [enqueue(conn, "limited") for _ in range(3)]
    leading.dispatch.heard_control()
    assert leading.rounds() == running
    enqueue(conn, hint)
    other = enqueue(conn, "a")
    leading.dispatch.heard(hint)
    assert leading.rounds() == [other]


def test_hint_never_comes_before_what_waited_already(conn: Connection, leading: Leading) -> None:
    """Neither in a term's first round, nor while the leader knows of more than it has threads for."""
    leading.pool.size = 1
    urgent = [enqueue(conn, "a", priority=-1) for _ in range(3)]
    late = enqueue(conn, "b")
    for id in urgent:
        leading.dispatch.heard("b")
        assert leading.rounds() == [id]
        leading.end([id])
    leading.dispatch.heard("b")
    assert leading.rounds() == [late]


def test_hint_that_is_not_true_costs_nothing(conn: Connection, leading: Leading) -> None:
    assert leading.rounds() == []
    id = enqueue(conn, "b", tenant="t")
    leading.dispatch.heard("a")
    assert leading.rounds() == [id]


# Limits.


def running(conn: Connection) -> Counter[str]:
    return Counter(type for (type,) in conn.execute("select type from dispatcher.job where state = 'running'"))


def test_limit_of_a_type_holds_over_its_tenants(conn: Connection, leading: Leading) -> None:
    for tenant in "uvwxyz":
        for _ in range(3):
            enqueue(conn, "limited", tenant=tenant)
    seen = []
    for _ in range(6):
        ids = leading.rounds()
        assert running(conn)["limited"] <= 3
        seen += ids
        leading.end(ids)
    assert len(seen) == len(set(seen)) == 18


def test_limit_leaves_the_other_types_their_threads(conn: Connection, leading: Leading) -> None:
    for _ in range(50):
        enqueue(conn, "limited", priority=-5)
    others = [enqueue(conn, "a", priority=5) for _ in range(50)]
    leading.pool.size = 20
    ids = leading.rounds()
    assert running(conn) == {"limited": 3, "a": 17}
    assert set(ids) & set(others) == set(others[:17])


def test_limit_over_all_types(conn: Connection, leading: Leading) -> None:
    leading.dispatch.set_limits({"*": 5})
    for _ in range(10):
        enqueue(conn, "a")
        enqueue(conn, "b")
    ids = leading.rounds()
    assert running(conn).total() == 5
    assert leading.rounds() == []
    leading.end(ids[:2])
    leading.rounds()
    assert running(conn).total() == 5


def test_limits_change_at_run_time(conn: Connection, leading: Leading) -> None:
    for _ in range(20):
        enqueue(conn, "limited")
    assert len(leading.rounds()) == 3
    leading.dispatch.set_limits({"limited": 7})
    assert leading.dispatch.woken.is_set()
    assert len(leading.rounds()) == 4
    leading.dispatch.set_limits({"limited": 2})
    leading.end([taken.claimed.id for taken in leading.pool.taken[:3]])
    assert leading.rounds() == []  # four still run
    leading.dispatch.set_limits({"limited": 0})
    leading.end([taken.claimed.id for taken in leading.pool.taken])
    assert leading.rounds() == []
    leading.dispatch.set_limits({})
    assert len(leading.rounds()) == 3


def test_rows_that_run_elsewhere_are_counted(conn: Connection, lease: Connection) -> None:
    """A former leader drains: its rows count, until they end, and are not counted twice."""
    for _ in range(10):
        enqueue(conn, "limited")
    old = claim(lease, "limited", take=2, owner=2)
    leading = Leading(lease)
    assert len(leading.rounds()) == 1
    assert leading.rounds() == []
    conn.execute("update dispatcher.job set state = 'succeeded' where id = %s", (old[0].id,))
    leading.dispatch.heard()  # the old one notifies as it settles
    assert len(leading.rounds()) == 1
    conn.execute("update dispatcher.job set state = 'failed' where id = %s", (old[1].id,))
    leading.now += dispatch_module.RECOUNT_S * 1.01  # without a word, it is counted again soon
    assert len(leading.rounds()) == 1
    assert running(conn)["limited"] == 3
    leading.now += 1
    assert leading.rounds() == []


def test_rows_that_run_elsewhere_count_against_all(conn: Connection, lease: Connection) -> None:
    for _ in range(10):
        enqueue(conn, "a")
        enqueue(conn, "b")
    claim(lease, "a", take=3, owner=2)
    leading = Leading(lease)
    leading.dispatch.set_limits({"*": 4})
    assert len(leading.rounds()) == 1


def test_own_rows_of_an_earlier_term_are_counted_once(conn: Connection, leading: Leading) -> None:
    for _ in range(10):
        enqueue(conn, "limited")
    leading.rounds()
    leading.dispatch.begin(leading.conn, TERM + 1)
    assert leading.rounds() == []
    leading.end([taken.claimed.id for taken in leading.pool.taken])
    assert len(leading.rounds()) == 3


# The list of where running rows are.


def unnamed(conn: psycopg.Connection[Any]) -> int:
    """Running rows that no claim of their owner names."""
    return int(
        value(
            conn,
            """select count(*) from dispatcher.job j where j.state = 'running' and not exists (
                   select from dispatcher.claim c where c.owner = j.owner and j.id = any(c.job_ids))""",
        )
    )


def test_claims_name_every_running_row_at_every_instant(dsn: str, conn: Connection, lease: Connection) -> None:
    """Claims, outcomes, retries and the tidying of lists go on while another session looks again and again."""
    stop, looks, wrong = threading.Event(), itertools.count(), []

    def look() -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            while not stop.is_set():
                next(looks)
                if n := unnamed(own):
                    wrong.append(n)

    watcher = threading.Thread(target=look)
    watcher.start()
    settling, left = Settling(dsn), []
    for n in range(60):
        for _ in range(5):
            enqueue(conn, "a")
        *ended, slow = map(execution, claim(lease, "a"))
        settling.put(*ended)
        settling.inflight.add([slow])
        left.append(slow)
        if n % 3 == 0:
            for each in left:
                settling.completer.put(each)
            left.clear()
        settling.completer.step()
        settling.completer.wake()
        settling.completer.step()  # tidies
        if n % 10 == 9:
            conn.execute("update dispatcher.job set state = 'pending' where state = 'running'")
    stop.set()
    watcher.join()
    settling.completer.close()
    assert not wrong
    assert next(looks) > 20
    assert value(conn, "select count(*) from dispatcher.claim") < 60  # they are tidied


def test_only_the_owner_s_own_rows_are_given_back(conn: Connection, lease: Connection) -> None:
    ids = [enqueue(conn, "a") for _ in range(3)]
    first, second, third = claim(lease, "a")
    conn.execute("update dispatcher.job set owner = 2, attempt = 2 where id = %s", (ids[1],))
    assert claims.own_running(lease, OWNER) == [(ids[0], 1, ("a", "")), (ids[2], 1, ("a", ""))]
    keys = [(c.id, c.attempt) for c in (first, second, third)]
    assert claims.release_jobs(lease, OWNER, keys) == {keys[0], keys[2]}
    assert [state(conn, id) for id in ids] == ["pending", "running", "pending"]
    assert claims.own_running(lease, OWNER) == []


def test_given_back_job_that_somebody_canceled_is_canceled(conn: Connection, lease: Connection) -> None:
    id = enqueue(conn, "a")
    claim(lease, "a")
    assert value(conn, "select dispatcher.cancel(%s)", id) == "running"
    assert claims.release_jobs(lease, OWNER, [(id, 1)]) == {(id, 1)}
    assert state(conn, id) == "canceled"


# Races.


@pytest.mark.parametrize("free_only", [True, False])
def test_cancel_and_claim_exclude_each_other(dsn: str, conn: Connection, lease: Connection, *, free_only: bool) -> None:
    """Whatever cancel answered is what became of the job: canceled and never claimed, or running and asked to stop."""
    ids = [enqueue(conn, "a") for _ in range(300)]
    answers: dict[int, str] = {}
    go = threading.Barrier(3)

    def cancel(mine: list[int]) -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            go.wait()
            for id in mine:
                answers[id] = value(own, "select dispatcher.cancel(%s)", id)

    threads = [threading.Thread(target=cancel, args=(part,)) for part in (ids[::2], ids[1::2][::-1])]
    for thread in threads:
        thread.start()
    go.wait()
    claimed: set[int] = set()
    while any(thread.is_alive() for thread in threads):
        claimed |= {c.id for c in claim(lease, "a", take=7, free_only=free_only)}
    for thread in threads:
        thread.join()
    claimed |= {c.id for c in claim(lease, "a", free_only=free_only)}
    assert claimed == {id for id, answer in answers.items() if answer == "running"}
    assert set(answers.values()) <= {"running", "canceled"}
    asked = {id for (id,) in conn.execute("select id from dispatcher.job where cancel_requested")}
    assert asked == claimed
    assert value(conn, "select count(*) from dispatcher.job where state = 'canceled'") == 300 - len(claimed)


@pytest.mark.parametrize("free_only", [True, False])
def test_two_claimers_never_share_a_job(dsn: str, conn: Connection, *, free_only: bool) -> None:
    """The lease forbids it; should it happen all the same, the rows do too."""
    publish(conn, A)
    conn.execute("select dispatcher.enqueue_many('a', array_fill('{}'::jsonb, array[600]))")
    got: list[list[int]] = [[], []]

    def work(n: int) -> None:
        with session(dsn) as own:
            while value(own, "select exists (select from dispatcher.job where state = 'pending')"):
                got[n] += [row.id for row in claim(own, "a", take=13, owner=n + 1, free_only=free_only)]

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got[0]) + len(got[1]) == len(set(got[0]) | set(got[1])) == 600
    assert unnamed(conn) == 0


WHILE_IT_WAITS = {
    "update dispatcher.job set priority = 5 where id = {}": True,
    "select dispatcher.cancel({})": False,
    "update dispatcher.job set state = 'scheduled', run_at = now() + interval '1 day' where id = {}": False,
    "delete from dispatcher.job where id = {}": False,
}


@pytest.mark.parametrize("change", WHILE_IT_WAITS)
def test_row_that_changes_while_a_claim_waits_for_it(
    dsn: str, conn: Connection, lease: Connection, change: str
) -> None:
    """It is claimed as it is by then, or not at all if it is no longer pending."""
    ids = [enqueue(conn, "a") for _ in range(3)]
    lease.execute("set lock_timeout = '10s'")
    claimed: list[int] = []

    def wait_for_it() -> None:
        claimed.extend(row.id for row in claim(lease, "a", free_only=False))

    thread = threading.Thread(target=wait_for_it)
    with psycopg.connect(dsn) as changing:
        changing.execute(change.format(ids[1]).encode())
        thread.start()
        until(lambda: value(conn, "select count(*) from pg_locks where not granted"))
        changing.commit()
    thread.join()
    claimed += [row.id for row in claim(lease, "a", free_only=False)]  # what it may have left for the next round
    assert sorted(claimed) == (ids if WHILE_IT_WAITS[change] else [ids[0], ids[2]])
    running = conn.execute("select id from dispatcher.job where state = 'running' and attempt = 1 order by id")
    assert [id for (id,) in running] == sorted(claimed)


def test_row_that_is_locked_costs_a_wait_once_in_a_while(
    dsn: str, conn: Connection, leading: Leading, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[bool] = []

    def noting(*args: Any, free_only: bool = True, **more: Any) -> Any:
        waited.append(not free_only)
        return claim_jobs(*args, free_only=free_only, **more)

    claim_jobs = claims.claim_jobs
    monkeypatch.setattr(claims, "claim_jobs", noting)
    leading.pool.size = 1000
    ids = [enqueue(conn, "a") for _ in range(3)]
    with open_transaction(dsn, f"select from dispatcher.job where id = {ids[0]} for update"):
        assert leading.round() == ids[1:]
        assert waited == [True, False]  # and what is free was claimed in the same round
        for _ in range(2):
            enqueue(conn, "a")
            leading.dispatch.read_again()
            leading.round()
        assert waited == [True, False, False, False]
        leading.now += dispatch_module.CAREFUL_S
        enqueue(conn, "a")
        leading.dispatch.read_again()
        leading.round()
        assert waited[4:] == [True, False]


def test_uncommitted_claim_of_an_ended_session_is_no_claim(dsn: str, conn: Connection, lease: Connection) -> None:
    id = enqueue(conn, "a")
    with lease.transaction():
        assert claim(lease, "a")
        conn.execute("select pg_terminate_backend(%s)", (lease.info.backend_pid,))
        with pytest.raises(psycopg.OperationalError):
            lease.execute("select 1")
        lease.close()
    until(lambda: not value(conn, "select count(*) from pg_locks where relation = 'dispatcher.job'::regclass"))
    assert state(conn, id) == "pending"
    assert value(conn, "select attempt from dispatcher.job") == 0


# Gathering.


def test_in_a_burst_what_comes_one_by_one_is_let_come_together(conn: Connection, leading: Leading) -> None:
    """Each claim costs the same: under a stream of single jobs it would take the machine from those who enqueue."""
    clock = itertools.count(1000.0, 0.001)
    leading.dispatch._clock = lambda: next(clock)
    enqueue(conn, "a")
    leading.round()
    assert leading.dispatch.gather_s == 0.0, "the first job of all waits for nothing"
    for _ in range(3):
        enqueue(conn, "a")
        leading.dispatch.read_again()
        leading.round()
        assert 0.0 < leading.dispatch.gather_s <= dispatch_module.GATHER_S
    assert not leading.round()
    assert leading.dispatch.gather_s == 0.0, "nothing was found"


def test_nothing_is_gathered_while_more_waits_than_there_are_threads(conn: Connection, leading: Leading) -> None:
    clock = itertools.count(1000.0, 0.001)
    leading.dispatch._clock = lambda: next(clock)
    leading.pool.size = 2
    ids = [enqueue(conn, "a") for _ in range(8)]
    for start in range(0, 6, 2):
        assert leading.round() == ids[start : start + 2]
        leading.end(ids[start : start + 2])
        assert leading.dispatch.gather_s == 0.0


def test_stream_of_hints_hides_no_other_lane(conn: Connection, leading: Leading) -> None:
    """Each names a type that may be claimed unseen, and nothing waited when the lanes were read."""
    assert leading.rounds() == []
    urgent = enqueue(conn, "b", priority=-10)
    for _ in range(5):
        enqueue(conn, "a")
        leading.dispatch.heard("a")
        leading.end(leading.round())
        leading.now += 0.05
    assert state(conn, urgent) == "succeeded"


def test_bounds_that_leave_no_room_are_shown(conn: Connection, leading: Leading) -> None:
    """They are what people ask about then."""
    conn.execute("update dispatcher.lease set holder = %s", (OWNER,))
    for most in (2, 1):
        leading.dispatch.set_limits({"*": most})
        enqueue(conn, "a"), enqueue(conn, "a")
        leading.rounds()
        assert value(conn, "select max_running from dispatcher.lease") == most
