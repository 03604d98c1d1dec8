"""The lease under attack: false answers, stacked locks, silent holders, foreign role defaults."""

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql

from dispatcher.db import Connection, SessionLimits, connect_session
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.queries import lease as statements
from dispatcher.queries.lease import Holder
from dispatcher.services.lease import EVICTION_MARGIN, Lease
from tests.db.contenders import Clock, backend, beat, closed, contender, gone, held_locks, register, waits

# Long enough for a waiter to be seen waiting, far below what a broken wait would need.
SHORT_MS = 60


@pytest.fixture
def leader(dsn: str, conn: Connection) -> Iterator[Lease]:
    """A replica that leads the lease 1 in its first term."""
    with contender(dsn, register(conn)) as lease:
        assert lease.connect()
        assert lease.contend()
        yield lease


@pytest.fixture
def standby(dsn: str, conn: Connection, leader: Lease) -> Iterator[Lease]:
    """A second one, on a clock of its own."""
    with contender(dsn, register(conn), clock=Clock()) as lease:
        assert lease.connect()
        yield lease


def unlock(conn: Connection, number: int = 1) -> bool:
    row = conn.execute("select pg_advisory_unlock(dispatcher.lease_lock(), %s)", [number]).fetchone()
    assert row is not None
    return bool(row[0])


def lease_row(conn: Connection, number: int = 1) -> Any:
    return conn.execute("select term, holder, timeline from dispatcher.lease where number = %s", [number]).fetchone()


# A wait that answers "no" while the server keeps the grant


def test_a_wait_whose_grant_races_with_its_timeout_answers_by_what_the_session_holds(
    dsn: str, conn: Connection
) -> None:
    """Aims a release at the very moment of the time-out, as experiments have shown the race to happen, for a second."""
    limits = SessionLimits()
    with (
        connect_session(dsn, name="holder", limits=limits) as holder,
        connect_session(dsn, name="waiter", limits=limits) as waiter,
    ):
        pid, delay, yes, no = waiter.info.backend_pid, 0.005, 0, 0
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            holder.execute("select pg_advisory_lock(dispatcher.lease_lock(), 1)")
            answer: list[bool] = []

            def wait(answer: list[bool] = answer) -> None:
                answer.append(statements.wait_lease(waiter, 1, 4)[0])

            thread = threading.Thread(target=wait)
            release = time.perf_counter() + delay + random.uniform(-0.0003, 0.0003)
            thread.start()
            while time.perf_counter() < release:
                pass
            unlock(holder)
            thread.join()
            assert held_locks(conn, pid) == int(answer[0]), "the answer is not what the session holds"
            if answer[0]:
                yes, delay = yes + 1, delay + 0.00002
                assert unlock(waiter)
                assert not held_locks(conn, pid), "the lock was stacked"
            else:
                no, delay = no + 1, delay - 0.00002
        assert yes, "no wait was granted: the race was not aimed at"
        assert no, "no wait timed out: the race was not aimed at"


def test_a_grant_kept_after_the_timeout_is_known_to_the_session(dsn: str, conn: Connection) -> None:
    """The stray grant by hand: the handler runs while the session holds the lock."""
    conn.execute(
        """
        create function public.stray(lease integer) returns boolean language plpgsql as $$
        declare held boolean;
        begin
            begin
                perform pg_advisory_lock(dispatcher.lease_lock(), lease);
                raise lock_not_available;
            exception when lock_not_available then
                held := dispatcher.holds_lock(dispatcher.lease_lock(), lease, pg_backend_pid());
            end;
            return held;
        end $$"""
    )
    with connect_session(dsn, name="waiter", limits=SessionLimits()) as waiter:
        assert waiter.execute("select public.stray(1)").fetchone() == (True,)
        assert held_locks(conn, waiter.info.backend_pid) == 1


def test_a_refused_wait_holds_nothing_and_names_the_holder(conn: Connection, leader: Lease, standby: Lease) -> None:
    assert standby.conn is not None
    held, holder = statements.wait_lease(standby.conn, 1, SHORT_MS)
    assert not held
    assert holder is not None
    assert holder.pid == backend(leader)
    assert held_locks(conn, standby) == 0


def test_resigning_leaves_nothing_held_however_often_the_lock_was_stacked(
    conn: Connection, leader: Lease, standby: Lease
) -> None:
    assert leader.conn is not None
    for _ in range(3):
        leader.conn.execute("select pg_advisory_lock(dispatcher.lease_lock(), 1)")
    leader.resign()
    assert held_locks(conn, leader) == 0
    assert leader.term is None
    assert leader.conn is not None, "its running jobs live by this session"
    assert standby.contend()


def test_an_error_while_waiting_closes_the_session(conn: Connection, leader: Lease, standby: Lease) -> None:
    """Cancelled from outside in the middle of the wait: nobody knows what the session holds, so it goes."""
    pid = backend(standby)
    standby._heartbeat_s = 1.0
    thread = threading.Thread(target=standby.contend)
    thread.start()
    assert waits(conn, pid, "advisory")
    conn.execute("select pg_cancel_backend(%s)", [pid])
    thread.join()
    assert standby.conn is None
    assert standby.term is None
    assert gone(conn, pid)


def test_an_error_while_taking_over_closes_the_session_and_frees_the_lock(dsn: str, conn: Connection) -> None:
    conn.execute("alter table dispatcher.lease add constraint broken check (term < 1)")
    with contender(dsn, register(conn)) as lease:
        assert lease.connect()
        pid = backend(lease)
        assert not lease.contend()
        assert lease.conn is None
        assert lease.term is None
        assert gone(conn, pid)
    conn.execute("alter table dispatcher.lease drop constraint broken")
    with contender(dsn, register(conn)) as other:
        assert other.connect()
        assert other.contend()


# Terms


def test_the_term_grows_with_each_take_over(conn: Connection, leader: Lease, standby: Lease) -> None:
    assert leader.term == 1
    leader.resign()
    assert standby.contend()
    assert standby.term == 2
    standby.drop()
    assert leader.contend()
    assert leader.term == 3
    assert lease_row(conn)[:2] == (3, leader._replica)


def test_no_term_begins_without_the_lock(conn: Connection, leader: Lease, standby: Lease) -> None:
    before = lease_row(conn)
    assert standby.conn is not None
    assert statements.begin_term(standby.conn, 1, standby._replica) is None
    assert lease_row(conn) == before


def test_no_timeline_is_noted_without_the_lock(conn: Connection, leader: Lease, standby: Lease) -> None:
    """Else a former leader could end the wait of the present one."""
    conn.execute("update dispatcher.lease set timeline = '000000FF'")
    assert standby.conn is not None
    assert leader.conn is not None
    noted = "select timeline <> '000000FF' from dispatcher.lease"
    statements.note_timeline(standby.conn, 1)
    assert conn.execute(noted).fetchone() == (False,)
    statements.note_timeline(leader.conn, 1)
    assert conn.execute(noted).fetchone() == (True,)


def test_leases_of_other_names_do_not_disturb_one_another(dsn: str, conn: Connection, leader: Lease) -> None:
    number = statements.ensure_lease(conn, "reports")
    assert number != 1
    assert statements.ensure_lease(conn, "reports") == number
    with contender(dsn, register(conn, lease=number), number=number) as other:
        assert other.connect()
        assert other.contend()
        assert (other.term, leader.term) == (1, 1)
        other.resign()
        assert held_locks(conn, leader) == 1


# The server ends a silent leader


def test_the_server_ends_a_silent_leader(dsn: str, conn: Connection) -> None:
    with contender(dsn, register(conn), duration_s=0.3) as silent, contender(dsn, register(conn)) as other:
        assert silent.connect()
        assert silent.contend()
        assert silent.conn is not None
        old = silent.conn
        assert other.connect()
        other._heartbeat_s = 1.0
        assert other.contend(), "the lock was not freed within deadlock_timeout"
        assert closed(old)
        beat(silent)
        assert silent.term is None
        assert silent.conn is None


def test_the_server_ends_a_leader_that_falls_silent_inside_a_transaction(dsn: str, conn: Connection) -> None:
    """idle_session_timeout does not count there."""
    with contender(dsn, register(conn), duration_s=0.3) as silent, contender(dsn, register(conn)) as other:
        assert silent.connect()
        assert silent.contend()
        assert silent.conn is not None
        silent.conn.execute("begin")
        assert other.connect()
        other._heartbeat_s = 1.0
        assert other.contend()
        assert closed(silent.conn)


def test_a_leader_that_beats_keeps_the_lease(dsn: str, conn: Connection) -> None:
    with contender(dsn, register(conn), duration_s=0.4) as alive, contender(dsn, register(conn)) as other:
        assert alive.connect()
        assert alive.contend()
        assert other.connect()
        other._heartbeat_s = 0.05
        for _ in range(12):  # about half a second, twelve beats
            beat(alive)
            assert not other.contend()
        assert alive.term == 1


# A standby ends a holder that the server's time-outs do not reach


def test_a_holder_stuck_in_a_statement_is_ended_by_a_standby(dsn: str, conn: Connection) -> None:
    clock = Clock()
    with contender(dsn, register(conn), limits=SessionLimits(statement_s=0)) as stuck:
        assert stuck.connect()
        assert stuck.contend()
        pid = backend(stuck)
        errors: list[psycopg.Error] = []

        def hang() -> None:
            assert stuck.conn is not None
            try:
                stuck.conn.execute("select pg_sleep(60)")
            except psycopg.Error as exc:
                errors.append(exc)

        thread = threading.Thread(target=hang)
        thread.start()
        with contender(dsn, register(conn), clock=clock, duration_s=5.0) as standby:
            assert standby.connect()
            assert waits(conn, pid, "PgSleep")
            assert not standby.contend()  # sees it
            clock.now += 5.0 * EVICTION_MARGIN - 0.1
            assert not standby.contend()  # not yet longer than the lease and its margin
            assert not errors
            clock.now += 0.2
            standby.contend()
            thread.join()
            assert standby.contend() or standby.term == 2
            assert isinstance(errors[0], psycopg.errors.AdminShutdown)


def test_a_holder_stuck_in_sending_over_a_unix_socket_is_ended_by_a_standby(dsn: str, conn: Connection) -> None:
    """Nobody reads what it sends: it is not idle, and no time-out of the server or of TCP reaches it."""
    clock = Clock()
    with contender(dsn, register(conn), limits=SessionLimits(statement_s=0)) as stuck:
        assert stuck.connect()
        assert stuck.contend()
        assert stuck.conn is not None
        pid = backend(stuck)
        stuck.conn.pgconn.send_query(b"select repeat('x', 1000000) from generate_series(1, 50)")
        stuck.conn.pgconn.flush()
        assert waits(conn, pid, "ClientWrite")
        with contender(dsn, register(conn), clock=clock, duration_s=5.0) as standby:
            assert standby.connect()
            assert not standby.contend()
            clock.now += 5.0 * EVICTION_MARGIN + 0.1
            standby.contend()
            assert gone(conn, pid)
            assert standby.contend() or standby.term == 2


def test_a_slow_holder_that_works_is_not_ended(conn: Connection, leader: Lease, standby: Lease) -> None:
    """Each statement it begins or ends starts the standby's count anew, however long the standby has been looking."""
    clock = standby._clock
    assert isinstance(clock, Clock)
    for _ in range(4):
        assert not standby.contend()
        clock.now += 5.0 * EVICTION_MARGIN - 0.1
        beat(leader)
    assert leader.term == 1
    assert held_locks(conn, leader) == 1


def test_an_idle_holder_is_left_to_the_server(conn: Connection, leader: Lease, standby: Lease) -> None:
    clock = standby._clock
    assert isinstance(clock, Clock)
    assert not standby.contend()
    clock.now += 100.0
    assert not standby.contend()
    assert held_locks(conn, leader) == 1


def test_only_exactly_the_session_that_was_seen_is_ended(conn: Connection, leader: Lease, standby: Lease) -> None:
    assert standby.conn is not None
    _, seen = statements.wait_lease(standby.conn, 1, SHORT_MS)
    assert seen is not None
    assert seen.state_change is not None
    beat(leader)
    assert not statements.evict_holder(standby.conn, 1, seen), "it has worked since"
    _, seen = statements.wait_lease(standby.conn, 1, SHORT_MS)
    assert seen is not None
    started_later = Holder(seen.pid, seen.backend_start.replace(year=2000), seen.state, seen.state_change)
    assert not statements.evict_holder(standby.conn, 1, started_later), "another backend under its number"
    assert not statements.evict_holder(standby.conn, 2, seen), "it does not hold that lease"
    assert leader.conn is not None
    assert not closed(leader.conn)
    _, seen = statements.wait_lease(standby.conn, 1, SHORT_MS)
    assert seen is not None
    assert statements.evict_holder(standby.conn, 1, seen)
    assert closed(leader.conn)


# The wait itself


def test_the_wait_stays_below_deadlock_timeout_and_leaves_no_line_in_the_servers_log(
    server: EmbeddedPostgres, dsn: str, conn: Connection, leader: Lease
) -> None:
    role = conninfo.conninfo_to_dict(dsn)["user"]
    with psycopg.connect(server.dsn, autocommit=True) as superuser:
        for setting in ("log_lock_waits = on", "deadlock_timeout = '100ms'"):
            superuser.execute(sql.SQL(f"alter role {{}} set {setting}").format(sql.Identifier(str(role))))
        try:
            before = server.log_file.stat().st_size
            with connect_session(dsn, name="waiter", limits=SessionLimits()) as waiter:
                assert waiter.execute("show deadlock_timeout").fetchone() == ("100ms",)
                began = time.monotonic()
                held, _ = statements.wait_lease(waiter, 1, 5000)
                waited = time.monotonic() - began
                assert not held
                # Another waiter that does wait past deadlock_timeout shows that the log would have it.
                assert waited < 4.0  # of the five seconds that it would
                assert str(waiter.info.backend_pid) not in _log_since(server, before)
                waiter.execute("set lock_timeout = '150ms'")
                with pytest.raises(psycopg.errors.LockNotAvailable):
                    waiter.execute("select pg_advisory_lock(dispatcher.lease_lock(), 1)")
                assert f"process {waiter.info.backend_pid} still waiting" in _log_since(server, before)
        finally:
            superuser.execute(sql.SQL("alter role {} reset all").format(sql.Identifier(str(role))))


def _log_since(server: EmbeddedPostgres, position: int) -> str:
    with server.log_file.open("rb") as log:
        log.seek(position)
        return log.read().decode()


def test_a_standby_is_granted_the_lease_the_moment_it_is_free(conn: Connection, leader: Lease, standby: Lease) -> None:
    standby._heartbeat_s = 0.9
    granted: list[float] = []

    def wait() -> None:
        assert standby.contend()
        granted.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    pid = backend(standby)
    assert waits(conn, pid, "advisory")
    freed = time.monotonic()
    leader.drop()
    thread.join()
    took_ms = (granted[0] - freed) * 1000
    print(f"granted after {took_ms:.1f} ms")
    assert took_ms < 500


# Promotion of another server


def test_a_leader_on_another_timeline_waits_before_its_first_claim(dsn: str, conn: Connection) -> None:
    conn.execute("update dispatcher.lease set timeline = '000000FF'")
    clock = Clock()
    with contender(dsn, register(conn), clock=clock) as lease:
        assert lease.connect()
        assert lease.contend()
        assert lease.claim_from == clock.now + 30.0


def test_the_first_leader_and_one_on_the_same_timeline_claim_at_once(dsn: str, conn: Connection) -> None:
    clock = Clock()
    with contender(dsn, register(conn), clock=clock) as lease:
        for _ in range(2):
            assert lease.connect()
            assert lease.contend()
            assert lease.claim_from == clock.now
            lease.drop()


def test_a_wait_after_a_promotion_is_not_cut_short_by_another_change_of_leader(dsn: str, conn: Connection) -> None:
    """The leader that waits dies before it has waited: the next one has to wait as well."""
    conn.execute("update dispatcher.lease set timeline = '000000FF'")
    clock = Clock()
    with contender(dsn, register(conn), clock=clock) as first:
        assert first.connect()
        assert first.contend()
        assert first.claim_from > clock.now
    with contender(dsn, register(conn), clock=clock) as second:
        assert second.connect()
        assert second.contend()
        assert second.claim_from > clock.now
        assert not second.may_claim()
        clock.now += 30.0
        assert second.may_claim()
    with contender(dsn, register(conn), clock=clock) as third:
        assert third.connect()
        assert third.contend()
        assert third.may_claim(), "it has been waited for"
