"""A type that only a standby can run must not wait for ever: the standby asks for the lease."""

from __future__ import annotations

import psycopg
import pytest

from dispatcher.heart import RECORD_WITHIN_S
from dispatcher.queries import lease, replicas
from dispatcher.queries.replicas import Process
from tests.db.beating import Beating
from tests.db.contenders import backend, contender, gone, register

NOBODY = Process("host", 1, None, None, None, None)


@pytest.mark.parametrize(
    ("leads", "stands_by", "asks"),
    [
        (["a"], ["a", "b"], True),
        (["a", "b"], ["a"], False),
        (["a", "b"], ["a", "b"], False),
        (["a", "b"], ["b", "c"], False),  # neither can run everything: handing over would only go back and forth
    ],
)
def test_only_a_standby_that_can_run_more_asks_for_the_lease(
    conn: psycopg.Connection, leads: list[str], stands_by: list[str], asks: bool
) -> None:
    number = lease.ensure_lease(conn, "default")
    leader = replicas.register_replica(conn, lease=number, process=NOBODY, version="0", types=leads, remote_types=[])
    standby = replicas.register_replica(
        conn, lease=number, process=NOBODY, version="0", types=stands_by, remote_types=[]
    )
    conn.execute("update dispatcher.lease set holder = %s", (leader,))
    conn.execute(f"listen dispatcher_replica_{leader}")
    assert lease.ask_for_handover(conn, number, standby) is asks
    heard = [note.payload for note in conn.notifies(timeout=0.2, stop_after=1)]
    assert heard == (["resign 0"] if asks else [])


@pytest.mark.parametrize("knows", ["less", "as much", "more"])
def test_a_newer_standby_asks_an_older_leader_for_the_lease(conn: psycopg.Connection, knows: str) -> None:
    number = lease.ensure_lease(conn, "default")
    leader, standby = (
        replicas.register_replica(conn, lease=number, process=NOBODY, version="0", types=["a"], remote_types=[])
        for _ in range(2)
    )
    step = {"less": -1, "as much": 0, "more": 1}[knows]
    conn.execute("update dispatcher.replica set schema_version = schema_version + %s where id = %s", (step, standby))
    conn.execute("update dispatcher.lease set holder = %s", (leader,))
    assert lease.ask_for_handover(conn, number, standby) is (knows == "more")


@pytest.mark.parametrize(
    ("newer", "hands_on"),
    [
        ("lives", True),
        ("is gone", False),
        ("leaves", False),  # it drains: waiting for it would keep every job waiting
        ("lacks a type", False),  # whose jobs would wait for as long as it leads
        ("has another lease", False),
    ],
)
def test_an_older_replica_hands_the_lease_on_to_a_newer_one_that_could_lead(
    dsn: str, conn: psycopg.Connection, newer: str, hands_on: bool
) -> None:
    number, other = lease.ensure_lease(conn, "default"), lease.ensure_lease(conn, "other")
    with contender(dsn, register(conn)) as old, contender(dsn, register(conn)) as new:
        ids = {"old": old._replica, "new": new._replica}
        conn.execute("update dispatcher.replica set schema_version = 1, types = '{a}' where id = %(old)s", ids)
        conn.execute("update dispatcher.replica set types = '{a,b}' where id = %(new)s", ids)
        assert old.connect()
        assert new.connect()
        match newer:
            case "is gone":
                pid = backend(new)
                new.drop()
                assert gone(conn, pid)
            case "leaves":
                assert replicas.set_leaving(conn, new._replica, leaving=True)
            case "lacks a type":
                conn.execute("update dispatcher.replica set types = '{b}' where id = %(new)s", ids)
            case "has another lease":
                conn.execute("update dispatcher.replica set lease = %s where id = %s", (other, new._replica))
        assert old.contend() is not hands_on
        assert new.conn is None or new.contend() is hands_on
    assert number == 1


def test_an_older_replica_leads_while_the_newer_ones_can_record_no_outcome_and_hands_on_again_afterwards(
    dsn: str, conn: psycopg.Connection
) -> None:
    lease.ensure_lease(conn, "default")
    with contender(dsn, register(conn)) as old, contender(dsn, register(conn)) as new:
        conn.execute("update dispatcher.replica set schema_version = 1 where id = %s", (old._replica,))
        assert old.connect()
        newer = Beating(conn, new, new._replica)
        newer.lead()
        newer.behind_s = 2 * RECORD_WITHIN_S
        newer.until(lambda: new.term is None)
        newer.heart.step()  # it stands by from now on
        assert old.contend()  # or nobody would lead for as long as that lasts
        newer.behind_s = 0.0
        newer.heart.step()
        old.resign()
        assert not old.contend()
