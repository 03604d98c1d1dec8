"""Two leases in one database: a type that both serve would be claimed by two leaders, each up to its limit."""

from __future__ import annotations

import psycopg

from dispatcher.queries import lease, replicas
from dispatcher.queries.replicas import Process

NOBODY = Process("host", 1, None, None, None, None)


def test_a_type_that_another_lease_serves_is_found_while_its_replica_lives(dsn: str, conn: psycopg.Connection) -> None:
    ours, theirs = lease.ensure_lease(conn, "default"), lease.ensure_lease(conn, "other")
    with psycopg.connect(dsn, autocommit=True) as other:
        replica = replicas.register_replica(
            other, lease=theirs, process=NOBODY, version="0", types=["a", "b"], remote_types=[]
        )
        assert replicas.find_overlap(conn, lease=ours, types=["b"]) is None  # not alive yet
        assert replicas.take_liveness(other, replica)
        assert replicas.raise_incarnation(other, replica) == 1
        assert replicas.find_overlap(conn, lease=ours, types=["b", "c"]) == ("other", "b")
        assert replicas.find_overlap(conn, lease=ours, types=["c"]) is None
        assert replicas.find_overlap(conn, lease=theirs, types=["b"]) is None
