"""PostgreSQL has no room for locks ("out of shared memory"): who leads goes on to lead, and nothing is lost."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from dispatcher.embedded import EmbeddedPostgres
from tests.system.exhausted import Watch
from tests.system.replicas import Fleet, overlaps, until

pytestmark = pytest.mark.system


@pytest.fixture
def fleet(postgres: EmbeddedPostgres, postgres_dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    postgres._options |= {"max_connections": "40", "max_locks_per_transaction": "10"}
    postgres.restart()
    with Fleet(postgres_dsn, tmp_path) as fleet:
        yield fleet


@contextlib.contextmanager
def no_room_for_locks(dsn: str) -> Iterator[psycopg.Connection]:
    """Takes advisory locks until there is no room for more; the session that has them."""
    with psycopg.connect(dsn, autocommit=True) as hog:
        for n in range(10):  # others give back some meanwhile
            with contextlib.suppress(psycopg.errors.OutOfMemory):
                hog.execute("select pg_advisory_lock(77, %s * 10000 + n) from generate_series(1, 10000) n", [n])
        yield hog
        hog.execute("select pg_advisory_unlock_all()")  # its session is gone only some time after it is closed


def until_refused(fleet: Fleet) -> list[int]:
    """Enqueues until there is no room for that; the jobs for which there was."""
    ids: list[int] = []
    for _ in range(1000):
        try:
            ids += fleet.enqueue("quick")
        except psycopg.errors.OutOfMemory:
            return ids
    raise AssertionError("there is always room")


def test_nothing_is_lost_while_there_is_no_room_for_locks(
    postgres: EmbeddedPostgres, postgres_dsn: str, fleet: Fleet
) -> None:
    leader, standby = fleet.start_pair()
    ids = fleet.enqueue("hold", 3, until=str(fleet.gate()))
    fleet.until_started(ids, pid=leader.pid)
    term, errors = fleet.term(), leader.metric("dispatcher_db_errors_total")
    watch = Watch(fleet, leader, standby)
    with no_room_for_locks(postgres_dsn):
        ids += until_refused(fleet)
        fleet.gate().touch()
        until(lambda: leader.metric("dispatcher_db_errors_total") > errors, "it has noticed")
        time.sleep(4.0)  # longer than orphan_after: no fence strikes
    watch.expect_calm(0.0)  # not before there is room, which it takes itself
    fleet.until_all(ids + fleet.enqueue("quick", 20))
    assert not overlaps(fleet.events())
    assert {fleet.job(id)["attempt"] for id in ids} == {1}
    assert leader.alive
    assert standby.alive
    assert fleet.leader_pid() in (leader.pid, standby.pid)
    assert fleet.term() <= term + 2


def test_an_enqueue_that_found_room_for_itself_does_not_fail_for_want_of_room_to_wake_the_leader(
    postgres_dsn: str, fleet: Fleet
) -> None:
    leader = fleet.start_leader()
    fleet.enqueue("quick")
    told, ids = "", list[int]()
    with no_room_for_locks(postgres_dsn) as hog:
        for n in range(1, 20):  # one more lock has room each time, until the enqueue has
            hog.execute("select pg_advisory_unlock(77, %s)", [n])
            try:
                ids += fleet.enqueue("quick")
            except psycopg.errors.OutOfMemory as exc:
                told += str(exc.diag.context)
    assert ids
    assert "wake_leaders" not in told
    fleet.until_all(ids)
    assert leader.alive
