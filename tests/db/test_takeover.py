"""From one leader to the next: what the wait may hide, what the former leader did last, and who may end whom."""

import math
import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import conninfo, sql

from dispatcher import fence
from dispatcher.db import Connection, SessionLimits, connect_session
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.executor import Registry
from dispatcher.queries import lease as statements
from dispatcher.replica import Replica
from dispatcher.services.lease import EVICTION_MARGIN
from dispatcher.settings import Settings
from tests.db.beating import Beating
from tests.db.contenders import NOWHERE, Clock, backend, beat, closed, contender, held_locks, register, waits
from tests.db.leading import LIMITED, A
from tests.db.running import QUICK, claim, enqueue, publish
from tests.timing import quickest

# Takes the lock for good, and says that it did not: what the server does when the time-out strikes as it grants.
STRAY_GRANT = """
create function public.pg_advisory_lock(class integer, number integer) returns void language plpgsql as $$
begin
    perform pg_catalog.pg_advisory_lock(class, number);
    raise lock_not_available;
end $$
"""


def test_wait_that_was_refused_as_it_was_granted_answers_that_the_session_leads(dsn: str, conn: Connection) -> None:
    """ "No" would leave a lock that nobody knows of: the next wait would stack on it, and one unlock not free it."""
    conn.execute(STRAY_GRANT.encode())
    conn.execute("alter function dispatcher.wait_lease(integer, integer) set search_path = public, pg_catalog")
    with connect_session(dsn, name="waiter", limits=SessionLimits()) as waiter:
        assert statements.wait_lease(waiter, 1, 50) == (True, None)
        assert held_locks(conn, waiter.info.backend_pid) == 1
        statements.resign_lease(waiter, 1)
        assert held_locks(conn, waiter.info.backend_pid) == 0


def test_lock_that_stayed_with_a_session_whose_statement_was_rolled_back_goes_with_the_session(
    dsn: str, conn: Connection
) -> None:
    """A rollback gives no session lock back: a replica that went on with this session would bar all others."""
    with contender(dsn, register(conn)) as one, contender(dsn, register(conn)) as other:
        assert one.connect()
        assert other.connect()
        assert one.conn is not None
        with one.conn.transaction(force_rollback=True):
            assert statements.wait_lease(one.conn, 1, 50)[0]
        assert held_locks(conn, one) == 1, "else this tests nothing"
        assert not other.contend()
        one.failed(psycopg.OperationalError("its statement failed"))
        other._heartbeat_s = 1.0
        assert other.contend()


def test_last_claim_of_the_former_leader_counts_although_it_committed_while_the_next_one_waited(
    dsn: str, conn: Connection
) -> None:
    """A snapshot from before the grant would miss it, and the limit would be passed."""
    publish(conn, A, LIMITED)
    ids = [enqueue(conn, "limited") for _ in range(6)]
    former, replica = register(conn), register(conn)
    with contender(dsn, former) as old, contender(dsn, replica) as new:
        assert old.connect()
        assert old.contend()
        assert old.conn is not None
        assert new.connect()
        assert new.conn is not None
        new._heartbeat_s = 1.0
        beating = Beating(conn, new, replica)
        waiting = threading.Thread(target=beating.heart.step)
        with old.conn.transaction():
            assert len(claim(old.conn, "limited", take=3, owner=former)) == 3
            waiting.start()
            assert waits(conn, backend(new), "advisory")
        old.resign()
        waiting.join()
        assert new.term == 2
        for _ in range(3):
            beating.heart.step()
        assert beating.taken() == [], "three of three run elsewhere"
        conn.execute("update dispatcher.job set state = 'succeeded' where id = any(%s)", (ids[:1],))
        beating.leading.dispatch.heard()
        beating.until(beating.taken)
        assert beating.taken() == ids[3:4]


def test_standby_waits_no_longer_than_its_heartbeat(dsn: str, conn: Connection) -> None:
    """It pins the vacuum horizon while it waits, and its own sign of life comes after it."""
    with contender(dsn, register(conn)) as leader, contender(dsn, register(conn), heartbeat_s=0.15) as standby:
        assert leader.connect()
        assert leader.contend()
        assert standby.connect()
        assert standby.conn is not None
        # By the server's clock, which a busy machine does not stretch by as much as ours.
        began = (
            "select extract(epoch from clock_timestamp() - query_start)::float8 from pg_stat_activity where pid = %s"
        )

        def waited_s() -> float:
            thread = threading.Thread(target=standby.contend)
            thread.start()
            longest = 0.0
            while thread.is_alive():
                row = conn.execute(began + " and wait_event = 'advisory'", [backend(standby)]).fetchone()
                longest = max(longest, row[0] if row else 0.0)
            thread.join()
            return longest or math.inf  # it was not seen to wait

        assert quickest(waited_s, within_s=0.15) < 0.15


# Who may end whom


@pytest.fixture
def stranger_dsn(server: EmbeddedPostgres, dsn: str) -> Iterator[str]:
    """Our database as another role with all rights on the schema: it sees little of our sessions, and ends none."""
    database = str(conninfo.conninfo_to_dict(dsn)["dbname"])
    role = f"stranger_{database}"
    with psycopg.connect(conninfo.make_conninfo(server.dsn, dbname=database), autocommit=True) as superuser:
        name = sql.Identifier(role)
        superuser.execute(sql.SQL("create role {} login").format(name))
        for what in ("schema dispatcher", "all tables in schema dispatcher", "all functions in schema dispatcher"):
            superuser.execute(sql.SQL(f"grant all on {what} to {{}}").format(name))
        yield conninfo.make_conninfo(dsn, user=role)
        superuser.execute(sql.SQL("drop owned by {}").format(name))
        superuser.execute(sql.SQL("drop role {}").format(name))


def test_standby_that_may_not_see_the_leader_s_session_does_not_take_it_for_silent(
    dsn: str, conn: Connection, stranger_dsn: str
) -> None:
    """To another role all sessions of ours look alike at all times: no state, and never a change of it."""
    clock = Clock()
    with contender(dsn, register(conn)) as leader, contender(stranger_dsn, register(conn), clock=clock) as standby:
        assert leader.connect()
        assert leader.contend()
        assert standby.connect()
        for _ in range(4):
            assert not standby.contend()
            assert standby.conn is not None, "nothing failed"
            clock.now += 5.0 * EVICTION_MARGIN + 1
            beat(leader)
        assert leader.term == 1
        assert leader.conn is not None
        assert not closed(leader.conn)


def test_slow_statement_of_a_leader_ends_before_a_standby_would_end_the_leader(dsn: str, conn: Connection) -> None:
    """Else a slow database would cost each leader its session in turn: canceled, it fails with the session in hand."""
    timings = {"dsn": dsn, "lease_duration": "1s", "heartbeat_interval": "100ms"}
    replica = Replica(Settings.model_validate(timings), Registry([QUICK]), NOWHERE, halt=threading.Event())
    leader = replica.heart._lease
    with contender(dsn, register(conn), duration_s=1.0) as standby:
        assert leader.connect()
        assert leader.contend()
        slow, errors = leader.conn, list[psycopg.Error]()
        assert slow is not None
        assert standby.connect()

        def work() -> None:
            try:
                slow.execute("select pg_sleep(60)")
            except psycopg.Error as exc:
                errors.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            assert not standby.contend()
        thread.join()
        assert isinstance(errors[0], psycopg.errors.QueryCanceled), "ended by a standby or by the server"
        assert not closed(slow)
        leader.drop()


# A machine that slept


def test_beat_is_due_at_once_after_a_sleep_of_the_machine(dsn: str, conn: Connection) -> None:
    """The clock that heartbeats go by stood still meanwhile, and the server's did not."""
    clock = Clock()
    with contender(dsn, register(conn), clock=clock, heartbeat_s=5.0) as lease:
        assert lease.connect()
        assert lease.beat_in() > 0
        assert not lease.beat()
        assert lease.trusted_from is not None
        lease._asked_at -= 60.0
        lease.trusted_from -= 60.0
        assert lease.beat_in() == 0.0
        assert lease.beat()
        assert fence.boottime() - lease.trusted_from < 30.0
