"""Two leases in one database: a type that both serve would be claimed by two leaders, each up to its limit."""

from __future__ import annotations

import psycopg

from dispatcher.queries import claims, lease, outcomes, replicas
from dispatcher.queries.replicas import Process

NOBODY = Process("host", 1, None, None, None, None)


def test_a_type_that_another_lease_serves_is_found_while_its_replica_lives(dsn: str, conn: psycopg.Connection) -> None:
    ours, theirs = lease.ensure_lease(conn, "default"), lease.ensure_lease(conn, "other")
    with psycopg.connect(dsn, autocommit=True) as other:
        replica = replicas.register_replica(
            other, lease=theirs, process=NOBODY, version="0", types=["a", "b"], remote_types=[]
        )
        assert replicas.find_overlap(conn, lease=ours, types=["b"]) == ("other", "b"), "it is about to live"
        other.execute("update dispatcher.replica set started_at = now() - interval '2 minutes'")
        assert replicas.find_overlap(conn, lease=ours, types=["b"]) is None, "it died before it lived"
        assert replicas.take_liveness(other, replica)
        assert replicas.raise_incarnation(other, replica) == 1
        assert replicas.find_overlap(conn, lease=ours, types=["b", "c"]) == ("other", "b")
        assert replicas.find_overlap(conn, lease=ours, types=["c"]) is None
        assert replicas.find_overlap(conn, lease=theirs, types=["b"]) is None


def test_a_type_that_was_moved_here_counts_what_still_runs_under_its_former_lease(conn: psycopg.Connection) -> None:
    """Else its limit is exceeded until those jobs have ended; what the other lease serves is none of ours."""
    ours, theirs = lease.ensure_lease(conn, "default"), lease.ensure_lease(conn, "other")
    former = register(conn, theirs, ["moved", "theirs"])
    own = register(conn, ours, ["moved", "ours"])
    mate = register(conn, ours, ["moved", "ours"])
    for owner, types in ((former, ("moved", "theirs", "moved")), (mate, ("ours", "gone")), (own, ("ours",))):
        for type in types:
            run(conn, owner, type)
    assert claims.count_running(conn, own) == {("moved", ""): 2, ("ours", ""): 1, ("gone", ""): 1}


def test_what_a_replica_that_ends_has_postponed_counts_until_it_cannot_run_any_more(conn: psycopg.Connection) -> None:
    """Else a next leader passes the limit while the process of the last one comes to its end."""
    number = lease.ensure_lease(conn, "default")
    own, ending = register(conn, number, ["a"]), register(conn, number, ["a"])
    run(conn, ending, "a")
    [(id,)] = conn.execute("select id from dispatcher.job").fetchall()
    outcomes.postpone_jobs(conn, ending, [(id, 1)], 3.0)
    assert claims.count_running(conn, own) == {("a", ""): 1}
    conn.execute("update dispatcher.job set run_at = now()")
    assert claims.count_running(conn, own) == {}


def register(conn: psycopg.Connection, number: int, types: list[str]) -> int:
    return replicas.register_replica(conn, lease=number, process=NOBODY, version="0", types=types, remote_types=[])


def run(conn: psycopg.Connection, owner: int, type: str) -> None:
    """A job that runs, as its owner's claim says."""
    conn.execute(
        "with made as (insert into dispatcher.job (type, state, attempt, owner, started_at, payload)"
        " values (%s, 'running', 1, %s, now(), '{}') returning id)"
        " insert into dispatcher.claim (owner, term, job_ids) select %s, 1, array_agg(id) from made",
        [type, owner, owner],
    )
