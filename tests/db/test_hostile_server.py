"""What users may do to the database we live in: notify at will, set an encoding, lock a table, start all at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from dispatcher import db
from dispatcher.client import Client
from dispatcher.context import Context
from dispatcher.db import Connection
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.executor import Executor
from dispatcher.outcome import Outcome
from dispatcher.runtime import JobRuntime
from dispatcher.services.dispatch import MAX_CLAIM, MAX_CLAIM_CHARS
from tests import servers
from tests.db.beating import Beating
from tests.db.contenders import contender, register
from tests.db.leading import LIMITED, A, Leading
from tests.db.running import (
    OWNER,
    Settling,
    as_job,
    claim,
    enqueue,
    execution,
    job,
    nothing,
    open_transaction,
    publish,
    session,
    state,
    value,
)
from tests.system.replicas import Fleet

LOCK_CLAIMS = "lock table dispatcher.claim in share mode"
LOCK_JOBS = "lock table dispatcher.job in share mode"  # as `create index` does
LOCK_JOBS_WHOLLY = "lock table dispatcher.job in access exclusive mode"  # as `vacuum full` does
SELDOM = {"poll_interval": "60s", "heartbeat_interval": "20s", "lease_duration": "50s", "orphan_after": "100s"}
DIGITS = "9" * 5000
JUNK = [
    "cancel ²",
    f"cancel {DIGITS}",
    "cancel",
    "cancel -1",
    "check x",
    "check ²",
    "resign ²",
    f"resign {DIGITS}",
    "resign -1",
    "resign x",
    "unheard of",
    " ",
    "\n",
    "x" * 7999,
]


# Notifications, which anybody may send.


@pytest.fixture(scope="module")
def fleet(server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A leader that hears of things by notifications only."""
    name = servers.add_database(server, template=servers.MIGRATED)
    try:
        with Fleet(servers.role_dsn(server, name), tmp_path_factory.mktemp("hostile")) as fleet:
            fleet.start_leader(**SELDOM)
            yield fleet
    finally:
        servers.drop_database(server, name)


def tell(fleet: Fleet, payload: str) -> None:
    fleet.query("select pg_notify('dispatcher_replica_' || %s, %s)::text", fleet.replicas[0].id, payload)


def listener(fleet: Fleet) -> list[tuple[Any, ...]]:
    """Its session on the server."""
    return fleet.query(
        """select pid from pg_stat_activity
           where application_name = 'dispatcher listener' and datname = current_database()"""
    )


def test_junk_on_a_replica_s_channel_ends_neither_the_listener_nor_the_replica(fleet: Fleet) -> None:
    before, term = listener(fleet), fleet.term()
    for payload in JUNK:
        tell(fleet, payload)
    fleet.until_all([enqueue(fleet.conn, "quick")], timeout_s=4.0)  # heard after them, in the order of sending
    assert len(before) == 1
    assert listener(fleet) == before
    assert fleet.replicas[0].alive
    assert (fleet.leader_pid(), fleet.term()) == (fleet.replicas[0].pid, term)


def test_junk_for_all_replicas_leaves_them_listening(fleet: Fleet) -> None:
    before = listener(fleet)
    for payload in JUNK:
        fleet.query("select pg_notify('dispatcher_1', %s)::text", payload)
    fleet.until_all([enqueue(fleet.conn, "quick")], timeout_s=4.0)
    assert listener(fleet) == before


def test_notified_cancel_of_a_job_that_nobody_canceled_does_not_stop_it(fleet: Fleet) -> None:
    """The row decides: the notification only says where to look."""
    gate = fleet.gate("cancel")
    ids = fleet.enqueue("hold", 2, until=str(gate))
    fleet.until_started(ids)
    tell(fleet, f"cancel {ids[0]}")
    assert value(fleet.conn, "select dispatcher.cancel(%s)", ids[1]) == "running"
    fleet.until_all([ids[1]], "canceled", timeout_s=4.0)  # so the first notification was acted on as well
    assert fleet.states([ids[0]]) == {ids[0]: "running"}
    gate.touch()
    fleet.until_all([ids[0]], timeout_s=4.0)
    assert not [event for event in fleet.events("end", job=ids[0]) if event.why]


# Encodings, which a role, a database, the environment or a DSN may set.


@pytest.fixture(params=["database", "role", "environment", "dsn"])
def latin1_dsn(
    request: pytest.FixtureRequest, dsn: str, conn: Connection, superuser_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A DSN whose sessions would speak LATIN1, which has no euro sign."""
    name = conn.info.dbname
    match request.param:
        case "database":
            conn.execute(f'alter database "{name}" set client_encoding = LATIN1'.encode())
        case "role":
            with psycopg.connect(superuser_dsn, autocommit=True) as own:
                own.execute(f'alter role app in database "{name}" set client_encoding = LATIN1'.encode())
        case "environment":
            monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        case _:
            return psycopg.conninfo.make_conninfo(dsn, client_encoding="LATIN1")
    return dsn


def test_a_euro_goes_through_claim_and_settle_whatever_the_encoding(conn: Connection, latin1_dsn: str) -> None:
    publish(conn)
    with psycopg.connect(latin1_dsn) as plain:
        assert value(plain, "show client_encoding") == "LATIN1", "else this tests nothing"
    with db.connect(latin1_dsn) as own:
        assert value(own, "show client_encoding") == "UTF8"
    id = int(value(conn, """select dispatcher.enqueue('quick', '{"price": "5 €"}')"""))
    settling = Settling(latin1_dsn)
    with session(latin1_dsn) as lease:
        (claimed,) = claim(lease)
    assert "5 €" in claimed.payload
    settling.settle(execution(claimed, Outcome.succeeded(as_job(claimed), '{"paid": "5 €"}')))
    settling.completer.close()
    row = job(conn, id)
    assert (row["state"], row["payload"], row["result"]) == ("succeeded", {"price": "5 €"}, {"paid": "5 €"})


def test_a_job_completes_with_a_euro_whatever_the_encoding(conn: Connection, latin1_dsn: str) -> None:
    """In its own session, which has the user's encoding."""
    publish(conn)
    id = enqueue(conn)
    with session(latin1_dsn) as lease:
        (claimed,) = claim(lease)
    runtime = JobRuntime(
        dsn=latin1_dsn, installation=value(conn, "select id from dispatcher.installation"), owner=OWNER
    )
    ctx = Context(as_job(claimed), timeout_s=60.0, runtime=runtime)
    with ctx.connect() as own:
        ctx.complete(own, {"paid": "5 €"})
    runtime.close()
    row = job(conn, id)
    assert (row["state"], row["result"]) == ("succeeded", {"paid": "5 €"})


def test_client_enqueues_and_reads_a_euro_whatever_the_encoding(conn: Connection, latin1_dsn: str) -> None:
    publish(conn)
    with Client(latin1_dsn) as client:
        id = client.enqueue("quick", {"price": "5 €"})
        assert job(conn, id)["payload"] == {"price": "5 €"}
        assert client.get(id).payload == {"price": "5 €"}


# Locks on whole tables, which DDL takes.


@pytest.fixture
def beating(dsn: str, conn: Connection) -> Iterator[Beating]:
    publish(conn, A, LIMITED)
    replica = register(conn)
    with contender(dsn, replica) as lease:
        yield Beating(conn, lease, replica)


@pytest.mark.parametrize("lock", [LOCK_CLAIMS, LOCK_JOBS])
def test_claim_that_meets_a_table_lock_keeps_the_session_and_the_term(
    dsn: str, conn: Connection, beating: Beating, lock: str
) -> None:
    beating.lead()
    before = beating.stands
    id = enqueue(conn, "a")
    with open_transaction(dsn, lock):
        for _ in range(4):
            beating.heart.step()
        assert beating.taken() == []
        assert beating.stands == before
    beating.until(beating.taken)
    assert (beating.taken(), beating.stands) == ([id], before)


def test_look_at_unknown_jobs_that_meets_a_table_lock_is_made_again(
    dsn: str, conn: Connection, beating: Beating
) -> None:
    """The session is kept, so no reconnect would repeat it: the job would run nowhere for ever."""
    beating.lead()
    id = enqueue(conn, "a")
    with session(dsn) as own:
        claim(own, "a", owner=beating.heart._replica)
    assert state(conn, id) == "running"
    beating.heart.look_at_own()
    with open_transaction(dsn, LOCK_JOBS):
        beating.heart.step()
        assert state(conn, id) == "running"
    beating.until(beating.taken)
    assert beating.taken() == [id]


def test_return_that_meets_a_table_lock_is_made_again(
    dsn: str, conn: Connection, beating: Beating, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that no thread has taken leave this replica, be it that a lock has to go first."""
    beating.lead()
    id = enqueue(conn, "a")
    beating.until(beating.taken)
    waiting = list(beating.leading.pool.taken)

    def take_waiting() -> list[Any]:
        taken, waiting[:] = list(waiting), []
        return taken

    monkeypatch.setattr(beating.leading.pool, "take_waiting", take_waiting)
    monkeypatch.setattr(beating.leading.pool, "submit", waiting.extend)
    beating.heart.drain()
    with open_transaction(dsn, LOCK_JOBS):
        beating.heart.step()
        assert state(conn, id) == "running"
    beating.until(lambda: state(conn, id) == "pending")


def test_term_that_begins_under_a_table_lock_still_counts_what_runs_elsewhere(
    dsn: str, conn: Connection, beating: Beating
) -> None:
    """Else the limit is broken for the whole term."""
    for _ in range(5):
        enqueue(conn, "limited")
    with session(dsn) as own:
        assert len(claim(own, "limited", take=2, owner=OWNER + 1000)) == 2
    with open_transaction(dsn, LOCK_JOBS_WHOLLY):
        for _ in range(6):
            beating.heart.step()
    beating.until(beating.taken)
    for _ in range(3):
        beating.heart.step()
    assert (len(beating.taken()), beating.began >= 1) == (1, True)  # the limit is 3, and two run elsewhere


# Claims that take too long.


def test_claim_that_timed_out_asks_for_far_fewer_the_next_time(dsn: str, conn: Connection) -> None:
    """The same claim would time out again and again, and no job would ever run."""
    publish(conn, A)
    conn.execute("select count(*) from dispatcher.enqueue_many('a', array_fill('{}'::jsonb, array[2000]))")
    with session(dsn, statement_s=0.1, lock_s=0.0) as lease:
        leading = Leading(lease, threads=3000)
        with open_transaction(dsn, LOCK_CLAIMS), pytest.raises(psycopg.errors.QueryCanceled):
            leading.dispatch.step(lease)
        once = len(leading.round())
        assert 0 < once <= 64
        assert len(leading.round()) == MAX_CLAIM, "a claim that succeeds tells what is typical"
        with open_transaction(dsn, LOCK_CLAIMS):
            for _ in range(2):
                with pytest.raises(psycopg.errors.QueryCanceled):
                    leading.dispatch.step(lease)
        assert 0 < len(leading.round()) <= once // 8


def test_claim_after_large_payloads_stays_within_what_a_claim_may_read(dsn: str, conn: Connection) -> None:
    publish(conn, A)
    large = 200_000
    conn.execute(
        "insert into dispatcher.job (type, state, payload) "
        "select 'a', 'pending', jsonb_build_object('x', repeat('x', %s)) from generate_series(1, 150)",
        (large,),
    )
    with session(dsn) as lease:
        leading = Leading(lease, threads=20)
        leading.round()
        leading.pool.size = 1000
        assert 0 < len(leading.round()) <= MAX_CLAIM_CHARS // large


# Replicas that start together.


def test_ten_replicas_publish_the_same_thousand_types_at_once(dsn: str, conn: Connection) -> None:
    """None of them waits longer than a lock may last, for what is known already."""
    specs = [Executor(f"type-{n}", nothing, "tests") for n in range(1000)]
    publish(conn, *specs)
    together = threading.Barrier(10)
    sessions = [session(dsn, lock_s=0.05) for _ in range(10)]

    def start(own: Connection) -> None:
        together.wait(5)
        publish(own, *specs)

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(start, sessions))
    for own in sessions:
        own.close()
    assert value(conn, "select count(*) from dispatcher.type where name like 'type-%%'") == 1000


def test_unchanged_types_are_published_beside_somebody_who_holds_their_rows(dsn: str, conn: Connection) -> None:
    publish(conn)
    with open_transaction(dsn, "select from dispatcher.type for update"), session(dsn) as own:
        publish(own)
