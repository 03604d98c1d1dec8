"""A server that is out of something refuses what the lease session asks: it stays, and holds no lock too many."""

import time

import psycopg
import pytest

from dispatcher.client import Client
from dispatcher.errors import UnsupportedServer
from dispatcher.queries import lease as statements
from tests.db.beating import Beating
from tests.db.contenders import backend, beat, contender, gone, held_locks, register
from tests.db.running import open_transaction, publish

REFUSE = """
create function public.refuse() returns trigger language plpgsql as $$
begin raise exception using errcode = '{kind}', message = 'refused'; end $$;
create trigger refuse before update on dispatcher.lease for each statement execute function public.refuse()
"""

LOCK_ALL = [f"lock table dispatcher.{table} in access exclusive mode" for table in ("type", "job", "lease", "replica")]


def refuse(conn: psycopg.Connection, kind: str) -> None:
    """Whoever takes the lease over cannot say so in its row."""
    conn.execute(REFUSE.format(kind=kind).encode())


@pytest.mark.parametrize("kind", ["disk_full", "out_of_memory"])
def test_a_take_over_that_is_refused_keeps_the_session_and_gives_the_lock_back(
    dsn: str, conn: psycopg.Connection, kind: str
) -> None:
    """Who holds the lock and does not lead would keep all from leading; without its session its jobs would die."""
    with contender(dsn, register(conn)) as lease:
        lease.connect()
        session = backend(lease)
        refuse(conn, kind)
        assert not lease.contend()
        assert lease.term is None
        assert held_locks(conn, session) == 0
        beat(lease)
        assert backend(lease) == session
        conn.execute("drop trigger refuse on dispatcher.lease")
        assert lease.contend()
        lease.resign()
        assert held_locks(conn, session) == 0


def test_a_take_over_that_is_canceled_closes_the_session(dsn: str, conn: psycopg.Connection) -> None:
    with contender(dsn, register(conn)) as lease:
        lease.connect()
        session = backend(lease)
        refuse(conn, "query_canceled")
        assert not lease.contend()
        assert lease.conn is None
        assert gone(conn, session)


def test_a_leader_s_canceled_statement_closes_the_session_only_where_it_may_have_been_its_time_out(
    dsn: str, conn: psycopg.Connection
) -> None:
    canceled = psycopg.errors.QueryCanceled("canceled")
    with contender(dsn, register(conn), duration_s=5.0) as lease:
        lease.connect()
        assert lease.contend()
        lease.failed(canceled, took_s=0.1)
        assert lease.term is not None
        lease.failed(canceled, took_s=3.0)
        assert lease.term is None
        assert lease.conn is None


def test_a_migration_s_locks_on_all_tables_cost_a_leader_neither_its_session_nor_the_lease(
    dsn: str, conn: psycopg.Connection
) -> None:
    with contender(dsn, register(conn)) as lease:
        beating = Beating(conn, lease, lease._replica)
        beating.lead()
        stands, trusted = beating.stands, lease.trusted_from
        with open_transaction(dsn, *LOCK_ALL):
            for _ in range(5):
                lease._last_beat = float("-inf")  # a beat is due
                beating.heart.step()
        assert beating.stands == stands
        beating.until(lambda: lease.trusted_from != trusted)
        assert beating.stands == stands


def test_a_standby_that_is_granted_the_lease_behind_a_migration_s_locks_keeps_its_session_and_gives_it_back(
    dsn: str, conn: psycopg.Connection
) -> None:
    with contender(dsn, register(conn)) as lease:
        lease.connect()
        session = backend(lease)
        with open_transaction(dsn, *LOCK_ALL):
            assert not lease.contend()
            assert held_locks(conn, session) == 0
        assert lease.contend()
        assert backend(lease) == session


def test_a_leader_whose_beats_are_refused_for_long_beats_no_more_often(
    dsn: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a sleep of the machine, no answer has come for long; but it was asked a moment ago."""
    refused: list[float] = []

    def refuse_beat(*_: object, **__: object) -> bool:
        refused.append(time.monotonic())
        raise psycopg.errors.DiskFull("refused")

    with contender(dsn, register(conn)) as lease:
        beating = Beating(conn, lease, lease._replica)
        beating.lead()
        stands = beating.stands
        monkeypatch.setattr(statements, "beat", refuse_beat)
        began = time.monotonic()
        while time.monotonic() - began < 1.0:
            beating.heart.step()
        assert beating.stands == stands
    assert 2 <= len(refused) <= 11, "once a heartbeat"


def test_a_leader_that_is_told_to_stop_behind_a_migration_s_locks_gives_the_lease_away_at_once(
    dsn: str, conn: psycopg.Connection
) -> None:
    with contender(dsn, register(conn)) as lease:
        beating = Beating(conn, lease, lease._replica)
        beating.lead()
        session = backend(lease)
        with open_transaction(dsn, *LOCK_ALL):
            beating.heart.drain()
            beating.until(lambda: held_locks(conn, session) == 0)
            assert backend(lease) == session


def test_a_client_of_a_database_that_takes_no_writes_is_told_so_in_one_line(dsn: str, conn: psycopg.Connection) -> None:
    """As tools set it while a disk is full."""
    publish(conn)
    name = conn.info.dbname
    conn.execute(f"alter database {name} set default_transaction_read_only = on".encode())
    with Client(dsn) as client, pytest.raises(UnsupportedServer, match="takes no writes") as caught:
        client.enqueue("quick")
    assert len(str(caught.value).splitlines()) == 1
