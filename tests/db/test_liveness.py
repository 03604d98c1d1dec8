"""A replica's sign of life: the lock on its lease session, and the incarnation that grows with each taking."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from dispatcher import fence
from dispatcher.db import Connection
from dispatcher.queries import claims, replicas
from dispatcher.queries import lease as statements
from dispatcher.queries.claims import Lane, Take
from dispatcher.services import lease as lease_module
from dispatcher.services.lease import ReplicaGone
from tests.db.contenders import Clock, backend, beat, closed, contender, gone, register


def row(conn: Connection, replica: int) -> Any:
    return conn.execute("select incarnation, backend_pid from dispatcher.replica where id = %s", [replica]).fetchone()


def present(conn: Connection, replica: int) -> bool:
    return {seen.id: seen.present for seen in replicas.list_replicas(conn, 1)}[replica]


def test_each_session_takes_the_lock_and_raises_the_incarnation(dsn: str, conn: Connection) -> None:
    replica = register(conn)
    assert not present(conn, replica)
    with contender(dsn, replica) as lease:
        for incarnation in (1, 2):
            assert lease.connect()
            assert row(conn, replica) == (incarnation, backend(lease))
            assert present(conn, replica)
            pid = backend(lease)
            lease.drop()
            assert gone(conn, pid)
            assert not present(conn, replica)


def test_an_earlier_session_of_its_own_is_ended_and_the_lock_retaken(dsn: str, conn: Connection) -> None:
    """The connection broke, and the server has not noticed: it would hold the lock until its time-outs."""
    replica = register(conn)
    with contender(dsn, replica) as cut_off, contender(dsn, replica) as anew:
        assert cut_off.connect()
        assert cut_off.contend()
        assert cut_off.conn is not None
        pid = backend(cut_off)
        assert not anew.connect()
        assert gone(conn, pid)
        assert anew.connect()
        assert closed(cut_off.conn)
        assert anew.contend()


def test_a_session_of_another_replica_is_not_ended(dsn: str, conn: Connection) -> None:
    with contender(dsn, register(conn)) as one, contender(dsn, register(conn)) as other:
        assert one.connect()
        assert other.connect()
        assert other.conn is not None
        replicas.end_own_session(other.conn, other._replica)
        assert one.conn is not None
        assert not closed(one.conn)


def test_a_backend_that_only_has_the_number_of_its_earlier_session_is_not_ended(dsn: str, conn: Connection) -> None:
    with contender(dsn, register(conn)) as one, contender(dsn, register(conn)) as other:
        assert one.connect()
        assert other.connect()
        assert one.conn is not None
        assert other.conn is not None
        conn.execute(
            "update dispatcher.replica set backend_pid = %s, backend_start = backend_start - interval '1 day'"
            " where id = %s",
            (backend(one), other._replica),
        )
        replicas.end_own_session(other.conn, other._replica)
        assert not closed(one.conn)


def test_a_replica_whose_row_has_gone_does_not_go_on(dsn: str, conn: Connection) -> None:
    replica = register(conn)
    with contender(dsn, replica) as lease:
        assert lease.connect()
        pid = backend(lease)
        conn.execute("delete from dispatcher.replica where id = %s", [replica])
        with pytest.raises(ReplicaGone, match=f"replica {replica} was removed"):
            beat(lease)
        assert gone(conn, pid)
        with pytest.raises(ReplicaGone):
            lease.connect()
        assert lease.conn is None


def test_a_lock_without_its_row_counts_no_incarnation(dsn: str, conn: Connection) -> None:
    with contender(dsn, register(conn)) as lease:
        assert lease.connect()
        assert lease.conn is not None
        assert replicas.raise_incarnation(conn, lease._replica) is None, "another session's lock"
        assert replicas.raise_incarnation(lease.conn, lease._replica) == 2


def test_a_slow_answer_does_not_stretch_trust(dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have begun to count when it was sent: the server was silent from then on for all that is known."""
    clock = Clock()
    monkeypatch.setattr(lease_module, "boottime", clock)

    def slow(ask: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*args: Any, **more: Any) -> Any:
            answer = ask(*args, **more)
            clock.now += 10.0
            return answer

        return asked

    for module, name in (
        (replicas, "registered_at"),
        (replicas, "take_liveness"),
        (replicas, "raise_incarnation"),
        (statements, "wait_lease"),
        (statements, "beat"),
    ):
        monkeypatch.setattr(module, name, slow(getattr(module, name)))
    with contender(dsn, register(conn)) as lease:
        for ask in (lease.connect, lease.contend, partial(beat, lease)):
            sent = clock.now
            ask()
            assert lease.trusted_from == sent
            assert clock.now > sent


def test_trust_is_counted_from_before_the_request_on_this_session_only(dsn: str, conn: Connection) -> None:
    with contender(dsn, register(conn)) as lease:
        before = fence.boottime()
        assert lease.connect()
        taken = lease.trusted_from
        assert taken is not None
        assert before <= taken <= fence.boottime()
        beat(lease)
        assert lease.trusted_from is not None
        assert lease.trusted_from > taken
        lease.contend()
        trusted = lease.trusted_from
        conn.execute("select pg_terminate_backend(%s, 5000)", [backend(lease)])
        beat(lease)
        assert lease.trusted_from == trusted, "a request that failed proves nothing"
        assert lease.conn is None


def test_a_refused_liveness_lock_is_no_answer_that_counts(dsn: str, conn: Connection) -> None:
    replica = register(conn)
    with conn.transaction(), contender(dsn, replica) as lease:
        conn.execute("select pg_advisory_xact_lock(dispatcher.liveness_lock(), %s)", [replica])
        assert not lease.connect()
        assert lease.trusted_from is None
        assert lease.conn is None


# A claim whose answer was lost


def enqueue(conn: Connection, count: int) -> list[int]:
    conn.execute(
        "insert into dispatcher.type (name, timeout_s, max_attempts, max_payload_bytes) values ('import', 60, 5, 1000)"
    )
    rows = conn.execute("select dispatcher.enqueue('import') from generate_series(1, %s)", [count]).fetchall()
    return [id for (id,) in rows]


def test_a_claim_whose_answer_was_lost_is_found_by_its_living_owner_and_given_back(dsn: str, conn: Connection) -> None:
    ids = enqueue(conn, 3)
    replica = register(conn)
    with contender(dsn, replica) as lease:
        assert lease.connect()
        assert lease.contend()
        assert lease.conn is not None
        took = claims.claim_jobs(lease.conn, [Take(Lane("import", ""), 3)], owner=replica, term=1)
        assert [claimed.id for claimed in took] == ids
        lease.drop()  # as if nobody had read the answer
        assert lease.connect() or lease.connect()
        assert lease.conn is not None
        unknown = [(id, attempt) for id, attempt, _ in claims.own_running(lease.conn, replica)]
        assert unknown == [(id, 1) for id in ids]
        assert claims.release_jobs(lease.conn, replica, unknown) == set(unknown)
    states = conn.execute("select state, attempt, failures, owner, started_at from dispatcher.job").fetchall()
    assert states == [("pending", 1, 0, None, None)] * 3


def test_a_claim_cannot_commit_once_its_session_is_ended(dsn: str, conn: Connection) -> None:
    """The replica's next session sees all claims of the one before: its lock is freed only after they committed."""
    ids = enqueue(conn, 1)
    replica = register(conn)
    with contender(dsn, replica) as lease, contender(dsn, replica) as anew:
        assert lease.connect()
        assert lease.conn is not None
        lease.conn.execute("begin")
        claims.claim_jobs(lease.conn, [Take(Lane("import", ""), 1)], owner=replica, term=1)
        assert not anew.connect()  # ends the session before it
        assert anew.connect() or anew.connect()
        assert anew.conn is not None
        assert claims.own_running(anew.conn, replica) == []
        lease.conn.close()
    assert conn.execute("select id, state, attempt from dispatcher.job").fetchall() == [(ids[0], "pending", 0)]


def test_a_job_canceled_while_its_claim_was_lost_is_canceled_not_run_again(dsn: str, conn: Connection) -> None:
    [id] = enqueue(conn, 1)
    replica = register(conn)
    with contender(dsn, replica) as lease:
        assert lease.connect()
        assert lease.conn is not None
        claims.claim_jobs(lease.conn, [Take(Lane("import", ""), 1)], owner=replica, term=1)
        assert conn.execute("select dispatcher.cancel(%s)", [id]).fetchone() == ("running",)
        claims.release_jobs(lease.conn, replica, [(id, 1)])
    assert conn.execute("select state from dispatcher.job").fetchone() == ("canceled",)


def test_who_finds_another_replica_under_its_id_ends_and_leaves_it_alone(dsn: str, conn: Connection) -> None:
    """A standby that lost the registration was promoted, and gave the id out again."""
    first = register(conn)
    with contender(dsn, first) as former:
        assert former.connect()
        former.drop()
        conn.execute("delete from dispatcher.replica where id = %s", [first])
        conn.execute(f"alter table dispatcher.replica alter id restart with {first}")
        assert register(conn) == first
        with contender(dsn, first) as other:
            assert other.connect()
            with pytest.raises(ReplicaGone):
                former.connect()
            beat(other)
            assert other.conn is not None, "its session stands"
