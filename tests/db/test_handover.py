"""A type that only a standby can run must not wait for ever: the standby asks for the lease."""

from __future__ import annotations

import psycopg
import pytest

from dispatcher.queries import lease, replicas
from dispatcher.queries.replicas import Process

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
