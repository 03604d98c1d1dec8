"""The instant in which a leader falls asleep: whoever commits in it either notifies or is found by the last look."""

from __future__ import annotations

import psycopg
import pytest

from dispatcher.db import Connection
from dispatcher.queries import lease as statements
from tests.db.beating import Beating
from tests.db.contenders import contender, register
from tests.db.leading import A
from tests.db.running import enqueue, publish, session


def test_who_commits_while_the_leader_gives_its_lock_back_notifies(dsn: str, conn: Connection) -> None:
    """The leader may have looked for the last time before that commit."""
    publish(conn, A)
    with session(dsn) as leader, psycopg.connect(dsn, autocommit=True) as listening:
        listening.execute("listen dispatcher_1")
        assert statements.stay_awake(leader, 1)
        with leader.transaction():
            assert statements.doze(leader, 1, give_back=True)  # as it stands in the middle of that statement
            enqueue(conn, "a")
            assert list(listening.notifies(timeout=2, stop_after=1))


def test_job_that_was_committed_between_the_look_and_the_sleep_is_found_by_a_last_look(
    dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its enqueuer saw the leader awake and did not notify: until the next poll nothing else would find it."""
    publish(conn, A)
    replica, late = register(conn), list[int]()
    with contender(dsn, replica) as lease, psycopg.connect(dsn, autocommit=True) as listening:
        beating = Beating(conn, lease, replica)
        beating.lead()
        dispatch = beating.leading.dispatch
        assert lease.conn is not None
        dispatch.stay_awake(lease.conn)
        assert dispatch.awake
        listening.execute("listen dispatcher_1")
        doze, rests = statements.doze, list[list[int]]()

        def doze_late(own: Connection, number: int, *, give_back: bool) -> bool:
            if not late:
                late.append(enqueue(conn, "a"))
            return doze(own, number, give_back=give_back)

        monkeypatch.setattr(statements, "doze", doze_late)
        monkeypatch.setattr(dispatch, "rest", lambda _seconds: rests.append(beating.taken()))
        while dispatch.awake:
            beating.heart.step()
        assert not list(listening.notifies(timeout=0.2)), "else this tests nothing"
        while not rests:
            beating.heart.step()
        assert rests[0] == late, "it rests only once it has that job"
