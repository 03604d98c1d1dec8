"""Waking the leader: no notification while it is awake, none missing while it sleeps."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dispatcher.db import Connection
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.queries import lease as statements
from tests import servers
from tests.db.leading import A, Leading
from tests.db.running import enqueue, job, publish, session, state, until, value
from tests.system.replicas import ONLY_NOTIFICATIONS, SOON_S, Fleet
from tests.timing import quickest

SILENTLY = "set dispatcher.signaled = '1'"  # a session that says so notifies nobody, like logical replication


def heard(listening: Connection, within_s: float = 0.2) -> int:
    """How many notifications arrive."""
    return len(list(listening.notifies(timeout=within_s)))


# The enqueuer's side, with a leader that is only a pair of locks.


@pytest.fixture
def leader(dsn: str, conn: Connection) -> Iterator[Connection]:
    """The leader's session, awake."""
    publish(conn, A)
    with session(dsn) as own:
        assert statements.stay_awake(own, 1)
        yield own


@pytest.fixture
def listening(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as own:
        own.execute("listen dispatcher_1")
        yield own


@pytest.mark.parametrize(
    ("options", "payload"), [({}, " a"), ({"tenant": "t"}, ""), ({"delay": 60}, ""), ({"priority": 5}, " a")]
)
def test_notification_names_the_type_that_can_be_claimed_at_once(
    conn: Connection, listening: Connection, options: dict[str, Any], payload: str
) -> None:
    """Not the tenant, which anybody who may connect could read."""
    publish(conn, A)
    enqueue(conn, "a", **options)
    assert [one.payload for one in listening.notifies(timeout=2, stop_after=1)] == [payload]


def test_awake_leader_is_not_notified_and_a_sleeping_one_is(
    conn: Connection, leader: Connection, listening: Connection
) -> None:
    for _ in range(10):
        enqueue(conn, "a")
    assert heard(listening) == 0
    assert statements.doze(leader, 1, give_back=True)
    enqueue(conn, "a")
    assert heard(listening) == 1
    assert statements.stay_awake(leader, 1)
    enqueue(conn, "a")
    assert heard(listening) == 0


def test_ended_leader_is_asleep(conn: Connection, leader: Connection, listening: Connection) -> None:
    leader.close()
    until(lambda: not value(conn, "select count(*) from pg_locks where locktype = 'advisory'"))
    enqueue(conn, "a")
    assert heard(listening) == 1


def test_one_notification_a_transaction(dsn: str, leader: Connection, listening: Connection) -> None:
    statements.doze(leader, 1, give_back=True)
    with psycopg.connect(dsn) as own:
        for _ in range(5):
            enqueue(own, "a")
            with own.transaction():
                enqueue(own, "a")
        own.execute("select dispatcher.enqueue_many('a', array_fill('{}'::jsonb, array[100]))")
    assert heard(listening) == 1
    with psycopg.connect(dsn) as own:
        enqueue(own, "a")
        own.rollback()
    assert heard(listening) == 0


def test_a_hundred_thousand_rows_queue_one_event(dsn: str, leader: Connection, listening: Connection) -> None:
    statements.doze(leader, 1, give_back=True)
    insert = (
        "insert into dispatcher.job (type, state, payload) select 'a', 'pending', '{}' from generate_series(1, 100000)"
    )
    with psycopg.connect(dsn) as own:
        own.execute(insert.encode())
    assert heard(listening) == 1


def test_event_of_a_rolled_back_savepoint_does_not_swallow_the_next(
    dsn: str, leader: Connection, listening: Connection
) -> None:
    statements.doze(leader, 1, give_back=True)
    with psycopg.connect(dsn) as own:
        for _ in range(3):
            with own.transaction(force_rollback=True):
                enqueue(own, "a")
        enqueue(own, "a")
    assert heard(listening) == 1


def test_every_way_to_become_due_notifies(
    dsn: str, conn: Connection, leader: Connection, listening: Connection
) -> None:
    statements.doze(leader, 1, give_back=True)
    id = enqueue(conn, "a", delay=3600)
    assert heard(listening) == 1
    assert value(conn, "select dispatcher.retry(%s)", id) == "pending"
    assert heard(listening) == 1
    conn.execute("update dispatcher.job set state = 'failed'")
    assert heard(listening, 0.05) == 0
    assert value(conn, "select dispatcher.retry(%s)", id) == "pending"
    assert heard(listening) == 1
    conn.execute("select dispatcher.enqueue_many('a', array['{}']::jsonb[])")
    assert heard(listening) == 1
    conn.execute("select dispatcher.enqueue_unique('a', '{}', '{\"unique_key\": \"k\"}')")
    assert heard(listening) == 1
    conn.execute("select dispatcher.enqueue_unique('a', '{}', '{\"unique_key\": \"k\"}')")
    assert heard(listening) == 0  # nothing new


def test_daemon_s_own_writes_notify_nobody(dsn: str, leader: Connection, listening: Connection) -> None:
    statements.doze(leader, 1, give_back=True)
    with session(dsn) as own:
        enqueue(own, "a")
    assert heard(listening) == 0


def test_each_lease_is_woken_for_itself(dsn: str, conn: Connection, leader: Connection, listening: Connection) -> None:
    other = value(conn, "insert into dispatcher.lease (name) values ('other') returning number")
    listening.execute(f"listen dispatcher_{other}".encode())
    enqueue(conn, "a")
    assert [n.channel for n in listening.notifies(timeout=0.2)] == [f"dispatcher_{other}"]  # the first is awake


# Falling asleep beside enqueuers that are about to commit.


def decided(dsn: str) -> psycopg.Connection[Any]:
    """An enqueuer that has looked whether the leader is awake, and commits later."""
    own = psycopg.connect(dsn)
    enqueue(own, "a")
    own.execute("set constraints all immediate")  # the trigger runs now, and not within the commit
    return own


def test_leader_does_not_fall_asleep_beside_an_enqueuer_that_saw_it_awake(
    dsn: str, conn: Connection, leader: Connection, listening: Connection
) -> None:
    with decided(dsn) as own:
        assert not statements.doze(leader, 1, give_back=True)
        own.commit()
        assert statements.doze(leader, 1, give_back=False)  # it looks after this, and finds the job
    assert heard(listening) == 0


def would_sleep(leading: Leading) -> bool:
    """Whether the heart, which found nothing to claim, would now wait for a notification."""
    return not leading.dispatch.awake or leading.dispatch.fall_asleep(leading.conn)


def test_leader_that_cannot_stay_awake_either_does_not_sleep(dsn: str, conn: Connection) -> None:
    """One enqueuer saw it awake and will not notify, a second saw it dozing and bars its way back: until the first has
    committed, going to sleep would lose the wake-up."""
    publish(conn, A)
    with session(dsn) as lease:
        leading = Leading(lease)
        leading.dispatch.stay_awake(lease)
        assert leading.dispatch.awake
        with decided(dsn) as first:
            assert not leading.dispatch.fall_asleep(lease)  # its awake lock is free now
            with decided(dsn) as second:
                assert not leading.dispatch.fall_asleep(lease)
                second.rollback()
            for _ in range(3):
                assert leading.rounds() == []
                assert not would_sleep(leading)
            first.commit()
        assert len(leading.rounds()) == 1
        leading.end([taken.claimed.id for taken in leading.pool.taken])
        assert leading.dispatch.fall_asleep(lease)


def test_frozen_leader_blocks_no_enqueuer(dsn: str, conn: Connection, leader: Connection) -> None:
    """Whatever locks it holds when it freezes: asleep, awake, or in the statement between."""
    conn.execute("set statement_timeout = '2s'")
    enqueue(conn, "a")
    with leader.transaction():
        assert statements.doze(leader, 1, give_back=True)  # frozen before the statement's end
        enqueue(conn, "a")
    enqueue(conn, "a")


# A real replica that only notifications can wake.


@pytest.fixture(scope="module")
def fleet(server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A leader that sleeps for a minute at a time."""
    name = servers.add_database(server, template=servers.MIGRATED)
    try:
        with Fleet(servers.role_dsn(server, name), tmp_path_factory.mktemp("wakeup")) as fleet:
            fleet.start_leader(**ONLY_NOTIFICATIONS)
            yield fleet
    finally:
        servers.drop_database(server, name)


@pytest.fixture
def asleep(fleet: Fleet) -> Fleet:
    """The same, asleep."""
    sleep(fleet)
    return fleet


def sleep(fleet: Fleet) -> None:
    """Waits until it neither holds the awake lock nor does anything."""
    until(
        lambda: (
            not fleet.value(
                """select count(*) from pg_locks l
               where l.locktype = 'advisory'
               and l.classid = dispatcher.awake_lock()::oid
               and l.database = (select oid from pg_database where datname = current_database())"""
            )
        )
    )


def picked_up(fleet: Fleet, ids: list[int]) -> None:
    fleet.until_all(ids, timeout_s=SOON_S)


def test_first_job_after_a_sleep_is_picked_up_at_once(asleep: Fleet) -> None:
    took_s = []
    for _ in range(20):
        began = time.monotonic()
        picked_up(asleep, [enqueue(asleep.conn, "quick")])
        took_s.append(time.monotonic() - began)
        sleep(asleep)
    assert min(took_s) < 1


def test_scheduled_job_runs_on_time(asleep: Fleet) -> None:
    enqueue(asleep.conn, "quick", delay=3600)

    def late_s() -> float:
        sleep(asleep)
        id = enqueue(asleep.conn, "quick", delay=0.5)
        picked_up(asleep, [id])
        row = job(asleep.conn, id)
        late = float((row["started_at"] - row["run_at"]).total_seconds())
        assert late >= 0
        return late

    assert quickest(late_s, within_s=1.0) < 1


def test_retry_wakes(asleep: Fleet) -> None:
    id = enqueue(asleep.conn, "quick", delay=3600)
    sleep(asleep)
    assert value(asleep.conn, "select dispatcher.retry(%s)", id) == "pending"
    picked_up(asleep, [id])
    asleep.conn.execute("update dispatcher.job set state = 'failed' where id = %s", (id,))
    sleep(asleep)
    assert value(asleep.conn, "select dispatcher.retry(%s)", id) == "pending"
    picked_up(asleep, [id])


def test_rounds_of_enqueuers_lose_no_wake_up(fleet: Fleet) -> None:
    """In each round some enqueue at about the same time, and the leader falls asleep after it: whoever's notification
    were lost would keep the round waiting."""
    rng, failed = random.Random(20), threading.Event()
    stop = time.monotonic() + 5
    sessions = [psycopg.connect(fleet.dsn) for _ in range(5)]

    def enqueue_one(own: psycopg.Connection[Any], pause_s: float, kind: float, ids: list[int]) -> None:
        try:
            failed.wait(pause_s)
            if kind < 0.3:
                with own.transaction(), own.transaction(force_rollback=True):
                    enqueue(own, "quick")
            with own.transaction():
                if kind > 0.6:
                    with own.transaction(force_rollback=True):
                        enqueue(own, "quick")
                id = enqueue(own, "quick")
                if kind > 0.9:
                    failed.wait(0.005)
            ids.append(id)
        except psycopg.Error:
            failed.set()

    rounds = 0
    while time.monotonic() < stop:
        ids: list[int] = []
        callers = [
            threading.Thread(target=enqueue_one, args=(own, rng.choice((0, 0.003)) * rng.random(), rng.random(), ids))
            for own in sessions[: rng.randint(1, 5)]
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        picked_up(fleet, ids)
        assert not failed.is_set()
        rounds += 1
    for own in sessions:
        own.close()
    assert rounds > 20


def test_slow_committer_beside_a_leader_that_falls_asleep_is_found(fleet: Fleet) -> None:
    """It saw the leader awake, so it will not notify; the leader must not sleep before it has committed."""
    ids = [enqueue(fleet.conn, "quick") for _ in range(300)]  # a burst: the leader takes the awake lock
    with psycopg.connect(fleet.dsn) as slow:
        for _ in range(20):
            ids.append(enqueue(fleet.conn, "quick"))
            late = enqueue(slow, "quick")
            slow.execute("set constraints all immediate")
            picked_up(fleet, ids)
            slow.commit()
            fleet.until_all([late], timeout_s=10.0)
    sleep(fleet)


def test_lost_notification_is_made_good_by_a_reconnect(asleep: Fleet) -> None:
    asleep.conn.execute(SILENTLY.encode())
    try:
        id = enqueue(asleep.conn, "quick")
        threading.Event().wait(0.3)
        assert state(asleep.conn, id) == "pending"  # nothing else would wake it: so the tests above prove something
        asleep.query(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'dispatcher listener'"
            " and datname = current_database()"
        )
        picked_up(asleep, [id])
    finally:
        asleep.conn.execute("reset dispatcher.signaled")


def test_lost_notification_costs_one_poll_interval(dsn: str, tmp_path: Path) -> None:
    with Fleet(dsn, tmp_path) as fleet:
        fleet.start_leader(poll_interval="300ms", heartbeat_interval="20s", lease_duration="50s", orphan_after="100s")
        fleet.conn.execute(SILENTLY.encode())
        for delay in (None, 0.01):
            id = enqueue(fleet.conn, "quick", delay=delay)
            picked_up(fleet, [id])
