"""Why a job does not run: each reason, told from rows and locks as they are."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from dispatcher.async_client import AsyncClient
from dispatcher.cli import main
from dispatcher.client import Client
from dispatcher.db import Connection
from dispatcher.errors import JobNotFound
from dispatcher.executor import Executor
from dispatcher.job import State
from dispatcher.metrics import Metrics
from dispatcher.queries.explain import Explanation, Reason
from dispatcher.services.gauges import NOTE_EVERY_S, Gauges
from dispatcher.services.lease import Lease
from tests.db.contenders import Clock, backend, contender, gone, register
from tests.db.linking import Linking
from tests.db.running import claim, enqueue, nothing, publish, session, state, value

LIMITED = Executor("limited", nothing, "tests.limited", limit=2)
QUICK = Executor("quick", nothing, "tests.quick")


@pytest.fixture(autouse=True)
def types(conn: Connection) -> None:
    publish(conn, QUICK, LIMITED)


@pytest.fixture
def replica(conn: Connection) -> int:
    """A replica's row, for the types that these tests know."""
    return serving(conn, "quick", "limited")


@pytest.fixture
def leader(dsn: str, replica: int) -> Iterator[Lease]:
    """It leads."""
    with contender(dsn, replica, duration_s=30) as lease:
        assert lease.connect()
        assert lease.contend()
        yield lease


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with Client(dsn) as client:
        yield client


def serving(conn: Connection, *types: str) -> int:
    id = register(conn)
    conn.execute("update dispatcher.replica set types = %s where id = %s", (list(types), id))
    return id


def kinds(found: Explanation) -> list[str]:
    return [reason.kind for reason in found.reasons]


def only(found: Explanation) -> Reason:
    assert len(found.reasons) == 1, found.reasons
    return found.reasons[0]


def at(moment: Any) -> datetime:
    return datetime.fromisoformat(str(moment))


def running(conn: Connection, dsn: str, type: str, count: int, *, owner: int, **options: Any) -> list[int]:
    """Jobs of a type that an owner has claimed."""
    for _ in range(count):
        enqueue(conn, type, **options)
    with session(dsn) as claiming:
        tenant = options.get("tenant", "")
        return [one.id for one in claim(claiming, type, take=count, tenant=tenant, owner=owner)]


def test_unknown_job_is_an_error_of_its_own(conn: Connection, client: Client) -> None:
    with pytest.raises(JobNotFound, match="there is no job 17"):
        client.explain(17)
    with pytest.raises(JobNotFound):
        client.explain(2**70)
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("select dispatcher.explain(null)")
    assert caught.value.sqlstate == "DJ005"


def test_nothing_holds_a_job_back_while_a_leader_has_room(conn: Connection, client: Client, leader: Lease) -> None:
    id = enqueue(conn)
    found = client.explain(id)
    assert (found.id, found.state, found.ahead) == (id, State.PENDING, 0)
    assert only(found).kind == "next"
    assert found.summary == f"job {id} (quick) is pending: {only(found).text}"


# Who could run it.


def test_type_that_nobody_registers(conn: Connection, client: Client) -> None:
    found = client.explain(enqueue(conn))
    assert kinds(found) == ["no_replica", "no_leader"]
    assert found.reasons[0].details == {"type": "quick", "gone": []}
    assert found.reasons[0].text == "no living replica runs jobs of type 'quick': start one that has its executor"
    assert found.reasons[1].details == {"leases": ["default"], "since": None}
    assert "none ever has" in found.reasons[1].text


def test_replicas_that_are_gone_are_named(conn: Connection, client: Client, replica: int) -> None:
    conn.execute(
        "update dispatcher.lease set holder = %s, taken_at = '2024-05-01Z', seen_at = '2024-05-02Z'", [replica]
    )
    gone, no_leader = client.explain(enqueue(conn)).reasons
    assert gone.kind == "no_replica"
    assert gone.details["gone"] == [{"replica": replica, "host": "elsewhere", "pid": 1}]
    assert f"; replica {replica} on elsewhere did, but is gone" in gone.text
    assert at(no_leader.details["since"]) == datetime(2024, 5, 2, tzinfo=UTC)


def test_replica_whose_liveness_lock_a_rescue_holds_is_gone(
    dsn: str, conn: Connection, client: Client, replica: int
) -> None:
    with session(dsn) as rescue:
        rescue.execute("select pg_advisory_lock(dispatcher.liveness_lock(), %s)", [replica])
        assert kinds(client.explain(enqueue(conn)))[0] == "no_replica"


def test_standby_that_does_not_lead_yet(dsn: str, conn: Connection, client: Client, replica: int) -> None:
    with contender(dsn, replica, duration_s=30) as lease:
        assert lease.connect()
        reason = only(client.explain(enqueue(conn)))
        assert (reason.kind, reason.details["leases"]) == ("no_leader", ["default"])


def test_leader_of_another_lease_is_no_leader_of_this_type(
    dsn: str, conn: Connection, client: Client, leader: Lease
) -> None:
    conn.execute("insert into dispatcher.lease (name) values ('other')")
    other = register(conn, lease=2)
    conn.execute("update dispatcher.replica set types = '{special}' where id = %s", [other])
    publish(conn, Executor("special", nothing, "tests.special"))
    with contender(dsn, other, number=2, duration_s=30) as lease:
        assert lease.connect()
        assert only(client.explain(enqueue(conn, "special"))).details["leases"] == ["other"]
        assert lease.contend()
        assert only(client.explain(enqueue(conn))).kind == "next"


def test_type_that_only_a_standby_has(dsn: str, conn: Connection, client: Client, leader: Lease, replica: int) -> None:
    publish(conn, Executor("special", nothing, "tests.special"))
    standby = serving(conn, "special")
    id = enqueue(conn, "special")
    with contender(dsn, standby, duration_s=30) as lease:
        assert lease.connect()
        pid = backend(lease)
        reason = only(client.explain(id))
    assert reason.kind == "leader_lacks_type"
    assert gone(conn, pid)
    assert reason.details == {"leader": replica, "host": "elsewhere", "standbys": [standby]}
    assert kinds(client.explain(id)) == ["no_replica"]


# What holds it back.


def test_paused_type(conn: Connection, client: Client, leader: Lease) -> None:
    conn.execute("insert into dispatcher.control (type, paused_at, paused_by) values ('quick', '2024-05-01Z', 'ada')")
    reason = only(client.explain(enqueue(conn)))
    assert (reason.kind, reason.details["by"]) == ("paused", "ada")
    assert at(reason.details["since"]) == datetime(2024, 5, 1, tzinfo=UTC)
    assert reason.text.endswith(", by ada")


def test_job_of_a_paused_type_that_waits_for_something_else_first_tells_both(
    conn: Connection, client: Client, leader: Lease
) -> None:
    first = enqueue(conn, "limited")
    later, behind = enqueue(conn, delay="1h"), enqueue(conn, after=first)
    assert [kinds(client.explain(id)) for id in (later, behind)] == [["scheduled"], ["waits_for"]]
    client.pause("quick")
    assert [kinds(client.explain(id)) for id in (later, behind)] == [["scheduled", "paused"], ["waits_for", "paused"]]
    assert "scheduled" in client.explain(later).summary


def test_full_limit_names_the_jobs_that_fill_it(
    dsn: str, conn: Connection, client: Client, leader: Lease, replica: int
) -> None:
    busy = running(conn, dsn, "limited", 2, owner=replica)
    running(conn, dsn, "quick", 3, owner=replica)
    id = enqueue(conn, "limited")
    reason = only(client.explain(id))
    assert reason.kind == "limit"
    assert reason.details == {"limit": 2, "running": 2, "by": busy, "source": "code"}
    assert reason.text == f"the limit of the type 'limited' is reached: 2 of 2 run (jobs {busy[0]}, {busy[1]})"
    conn.execute("update dispatcher.job set state = 'succeeded', finished_at = now() where id = %s", [busy[0]])
    assert only(client.explain(id)).kind == "next"  # the list of claims still names it


def test_limit_of_the_database_goes_before_that_of_the_code(
    dsn: str, conn: Connection, client: Client, leader: Lease, replica: int
) -> None:
    busy = running(conn, dsn, "quick", 30, owner=replica)
    id = enqueue(conn)
    assert only(client.explain(id)).kind == "next"
    conn.execute("insert into dispatcher.control (type, max_running) values ('quick', 30)")
    reason = only(client.explain(id))
    assert reason.details == {"limit": 30, "running": 30, "by": busy[:20], "source": "database"}
    assert reason.text.endswith(f"({'jobs ' + ', '.join(map(str, busy[:5]))} and 25 more)")


@pytest.mark.parametrize(
    ("rows", "source"),
    [
        ("update dispatcher.type set tenant_max_running = 1", "code"),
        ("insert into dispatcher.control (type, tenant_max_running) values ('quick', 1)", "database"),
        (
            """insert into dispatcher.control (type, tenant, max_running, tenant_max_running)
               values ('quick', '', null, 9), ('quick', 'acme', 1, null)""",
            "database",
        ),
    ],
)
def test_full_limit_of_a_tenant_holds_back_that_tenant_only(
    dsn: str, conn: Connection, client: Client, leader: Lease, replica: int, rows: str, source: str
) -> None:
    conn.execute(rows.encode())
    busy = running(conn, dsn, "quick", 1, owner=replica, tenant="acme")
    running(conn, dsn, "quick", 2, owner=replica)
    reason = only(client.explain(enqueue(conn, tenant="acme")))
    assert reason.kind == "tenant_limit"
    assert reason.details == {"tenant": "acme", "limit": 1, "running": 1, "by": busy, "source": source}
    assert only(client.explain(enqueue(conn, tenant="other"))).kind == "next"
    assert only(client.explain(enqueue(conn))).kind == "next"


def test_rate(conn: Connection, client: Client, leader: Lease) -> None:
    conn.execute("insert into dispatcher.control (type, rate) values ('quick', 0.5)")
    conn.execute("insert into dispatcher.throttle (type, held_until) values ('quick', now() + interval '1 hour')")
    id = enqueue(conn)
    reason = only(client.explain(id))
    assert (reason.kind, reason.details["rate"], reason.details["source"]) == ("rate", 0.5, "database")
    assert at(reason.details["until"]) > datetime.now(UTC)
    assert "(30 a minute)" in reason.text
    conn.execute("update dispatcher.throttle set held_until = now() - interval '1 second'")
    assert only(client.explain(id)).kind == "next"


@pytest.mark.parametrize("rate", [None, 100.0])
def test_rate_that_was_changed_holds_nothing_back_any_more(
    conn: Connection, client: Client, leader: Lease, rate: float | None
) -> None:
    client.set_limit("quick", rate="1/hour")
    conn.execute("insert into dispatcher.throttle (type, held_until) values ('quick', now() + interval '1 hour')")
    id = enqueue(conn)
    assert only(client.explain(id)).kind == "rate"
    client.set_limit("quick", limit=7)
    assert only(client.explain(id)).kind == "rate"
    client.set_limit("quick", rate=rate)
    assert only(client.explain(id)).kind == "next"


def test_bounds_of_the_leader(dsn: str, conn: Connection, client: Client, leader: Lease, replica: int) -> None:
    conn.execute("update dispatcher.lease set max_running = 3, pools = '{\"thread\": 2}'")
    running(conn, dsn, "quick", 2, owner=replica)
    running(conn, dsn, "limited", 1, owner=replica + 1)  # of a former leader
    overall, threads = client.explain(enqueue(conn)).reasons
    assert (overall.kind, overall.details) == ("overall", {"limit": 3, "running": 3, "lease": "default"})
    assert (threads.kind, threads.details) == ("threads", {"threads": 2, "running": 2, "leader": replica})


def test_a_full_pool_is_told_to_those_who_wait_for_it_alone(
    dsn: str, conn: Connection, client: Client, leader: Lease, replica: int
) -> None:
    conn.execute('update dispatcher.lease set pools = \'{"thread": 1, "process": 2}\'')
    conn.execute("update dispatcher.type set pool = 'process' where name = 'quick'")
    running(conn, dsn, "quick", 2, owner=replica)
    full = only(client.explain(enqueue(conn)))
    assert full.kind == "pool"
    assert full.text == f"all 2 places in the pool 'process' of the leader, replica {replica}, are taken"
    assert full.details == {"pool": "process", "places": 2, "running": 2, "leader": replica}
    assert only(client.explain(enqueue(conn, "limited"))).kind == "next"
    conn.execute('update dispatcher.lease set pools = \'{"thread": 1, "process": 0}\'')
    assert "has no place: its workers have not been found" in client.explain(enqueue(conn)).reasons[0].text


def test_all_reasons_are_told_the_most_decisive_first(dsn: str, conn: Connection, client: Client) -> None:
    running(conn, dsn, "limited", 2, owner=1)
    conn.execute("insert into dispatcher.control (type, paused_at) values ('limited', now())")
    first, id = enqueue(conn, "limited"), enqueue(conn, "limited")
    found = client.explain(id)
    assert kinds(found) == ["no_replica", "no_leader", "paused", "limit", "ahead"]
    assert found.reasons[0].text in found.summary
    assert kinds(client.explain(first)) == ["no_replica", "no_leader", "paused", "limit"]


def test_jobs_ahead_are_those_of_its_lane_by_priority_and_age(conn: Connection, client: Client, leader: Lease) -> None:
    for options in ({}, {"priority": -5}, {"priority": 5}, {"tenant": "acme"}):
        enqueue(conn, **options)
    enqueue(conn, "limited")
    id = enqueue(conn)
    enqueue(conn)
    found = client.explain(id)
    assert found.ahead == 2
    assert only(found).details == {"ahead": 2, "more": False}
    assert only(found).text == "2 pending jobs of its type come before it"


def test_jobs_ahead_are_counted_up_to_a_bound(conn: Connection, client: Client, leader: Lease) -> None:
    conn.execute(
        "insert into dispatcher.job (type, state, payload)"
        " select 'quick', 'pending', '{}' from generate_series(1, 10001)"
    )
    found = client.explain(enqueue(conn))
    assert found.ahead == 10_000
    assert only(found).details == {"ahead": 10_000, "more": True}
    assert only(found).text.startswith("10000+ pending jobs")


# Jobs that are not pending.


def test_postponed_job_that_is_canceled_once_its_replica_is_gone(conn: Connection, client: Client) -> None:
    id = client.enqueue("quick", delay=60)
    assert "canceled" not in only(client.explain(id)).text
    conn.execute("update dispatcher.job set owner = 1 where id = %s", [id])
    assert client.cancel(id) == "running"
    assert only(client.explain(id)).text.endswith("it was asked to stop, and is canceled then")


def test_scheduled_job(conn: Connection, client: Client) -> None:
    found = client.explain(enqueue(conn, run_at="2099-01-01T00:00:00Z"))
    assert (only(found).kind, found.ahead) == ("scheduled", None)
    assert at(only(found).details["until"]) == datetime(2099, 1, 1, tzinfo=UTC)
    assert not only(found).details["between_tries"]


def test_job_between_two_tries_tells_its_last_error(conn: Connection, client: Client) -> None:
    id = enqueue(conn, delay=600, max_attempts=3)
    errors = [{"message": "first"}, {"message": "no route\nto host"}]
    conn.execute("update dispatcher.job set failures = 2, errors = %s where id = %s", (json.dumps(errors), id))
    reason = only(client.explain(id))
    assert (reason.details["between_tries"], reason.details["error"]) == (True, "no route\nto host")
    assert reason.text.endswith("after 2 of 3 failures; the last one: no route to host")


def test_due_job_that_nobody_makes_pending(conn: Connection, client: Client) -> None:
    id = enqueue(conn, delay=600)
    conn.execute("update dispatcher.job set run_at = now() - interval '1 minute' where id = %s", [id])
    assert kinds(client.explain(id)) == ["no_replica", "no_leader", "scheduled"]


def test_blocked_job_names_what_it_waits_for(conn: Connection, client: Client, leader: Lease) -> None:
    ended, first, gone = enqueue(conn), enqueue(conn), 999
    id = enqueue(conn)
    conn.execute("update dispatcher.job set state = 'blocked' where id = %s", [id])
    for after, outcome in ((ended, "succeeded"), (first, None), (gone, None)):
        conn.execute("insert into dispatcher.dependency values (%s, %s, 'cancel', %s)", (id, after, outcome))
    reason = only(client.explain(id))
    assert reason.kind == "waits_for"
    assert reason.details == {"count": 2, "jobs": [{"id": first, "state": "pending"}, {"id": gone, "state": None}]}
    assert reason.text == f"it runs after jobs {first}, {gone}"
    conn.execute("update dispatcher.dependency set outcome = 'succeeded' where job_id = %s", [id])
    assert "about to release" in only(client.explain(id)).text


def test_blocked_job_with_very_many_before_it_names_a_few(conn: Connection, client: Client, leader: Lease) -> None:
    id = enqueue(conn)
    conn.execute("update dispatcher.job set state = 'blocked' where id = %s", [id])
    conn.execute("insert into dispatcher.dependency select %s, n, 'cancel' from generate_series(10, 1009) n", [id])
    reason = only(client.explain(id))
    assert reason.details["count"] == 1000
    assert [one["id"] for one in reason.details["jobs"]] == list(range(10, 30))
    assert reason.text.endswith("and 995 more")


def test_running_job(dsn: str, conn: Connection, client: Client, leader: Lease, replica: int) -> None:
    [id] = running(conn, dsn, "quick", 1, owner=replica)
    found = client.explain(id)
    details = only(found).details
    assert (only(found).kind, found.ahead) == ("running", None)
    assert (details["replica"], details["host"], details["alive"], details["attempt"]) == (
        replica,
        "elsewhere",
        True,
        1,
    )
    assert not details["cancel_requested"]
    assert not details["past_timeout"]
    conn.execute(
        "update dispatcher.job set cancel_requested = true, timed_out = true, started_at = now() - interval '1 hour'"
    )
    late = only(client.explain(id))
    assert (late.details["cancel_requested"], late.details["timed_out"], late.details["past_timeout"]) == (True,) * 3
    assert "past its timeout" in late.text
    assert "asked to stop" in late.text


def test_running_job_of_a_replica_that_is_gone(dsn: str, conn: Connection, client: Client) -> None:
    [id] = running(conn, dsn, "quick", 1, owner=77)
    reason = only(client.explain(id))
    assert (reason.details["alive"], reason.details["host"]) == (False, None)
    assert "that replica is gone" in reason.text


def test_batch_counts_its_open_jobs_with_the_marks_not_yet_dealt_with(
    dsn: str, conn: Connection, client: Client
) -> None:
    id = client.batch("quick", [{}] * 10)
    linking = Linking(dsn)
    first, second, *_ = linking.claim(take=3).values()
    linking.end(first)
    linking.end(second, State.FAILED)
    linking.close()
    reason = only(client.explain(id))
    assert (reason.kind, reason.text) == ("batch", "8 of its 10 jobs are open")
    counts = {name: count for name, count in reason.details.items() if count}
    assert counts == {"total": 10, "open": 8, "pending": 7, "running": 1, "succeeded": 1, "failed": 1}


@pytest.mark.parametrize("ended", ["succeeded", "partial", "failed", "canceled"])
def test_ended_job(conn: Connection, client: Client, ended: str) -> None:
    id = enqueue(conn)
    conn.execute(
        "update dispatcher.job set state = %s, finished_at = '2024-05-01Z', errors = %s where id = %s",
        (ended, '[{"message": "m"}]', id),
    )
    reason = only(client.explain(id))
    assert (reason.kind, reason.details["state"], reason.details["error"]) == ("ended", ended, "m")
    assert at(reason.details["at"]) == datetime(2024, 5, 1, tzinfo=UTC)


# The front doors.


def test_async_client_says_the_same(dsn: str, conn: Connection, client: Client) -> None:
    id = enqueue(conn)

    async def explain() -> Explanation:
        async with AsyncClient(dsn) as own:
            return await own.explain(id)

    assert asyncio.run(explain()) == client.explain(id)


def test_command_prints_a_line_a_reason(dsn: str, conn: Connection, client: Client) -> None:
    id = enqueue(conn)
    run = CliRunner(env={"DISPATCHER_DSN": dsn, "DISPATCHER_CONFIG": None})
    text = run.invoke(main, ["job", "explain", str(id)])
    found = client.explain(id)
    assert text.exit_code == 0
    assert text.stdout.splitlines() == [found.summary, f"also: {found.reasons[1].text}"]
    data = json.loads(run.invoke(main, ["job", "explain", str(id), "--json"]).stdout)
    assert (data["id"], data["state"], data["ahead"]) == (id, "pending", 0)
    assert [reason["kind"] for reason in data["reasons"]] == ["no_replica", "no_leader"]
    unknown = run.invoke(main, ["job", "explain", "4711"])
    assert (unknown.exit_code, unknown.stderr) == (1, "Error: there is no job 4711\n")


def test_error_of_a_job_does_not_command_the_terminal(dsn: str, conn: Connection) -> None:
    id = enqueue(conn)
    errors = json.dumps([{"message": "\x1b[2J gone"}])
    conn.execute(
        "update dispatcher.job set state = 'failed', finished_at = now(), errors = %s where id = %s", (errors, id)
    )
    shown = CliRunner(env={"DISPATCHER_DSN": dsn}).invoke(main, ["job", "explain", str(id)]).stdout
    assert "\x1b" not in shown
    assert "gone" in shown


def test_it_writes_nothing_and_works_in_a_read_only_transaction(dsn: str, conn: Connection) -> None:
    id = enqueue(conn)
    with psycopg.connect(dsn) as own:
        own.read_only = True
        assert value(own, "select dispatcher.explain(%s) ->> 'state'", id) == "pending"
    assert state(conn, id) == "pending"


# When the leader was last seen.


def gauges(dsn: str, term: list[int | None], replica: int, clock: Clock) -> Gauges:
    stop = threading.Event()
    stop.set()  # steps do not pause
    return Gauges(
        open_session=lambda: session(dsn),
        term=lambda: term[0],
        replica=replica,
        lease_number=1,
        metrics=Metrics(),
        stop=stop,
        clock=clock,
    )


SEEN = "select seen_at from dispatcher.lease where number = 1"


def test_leader_notes_now_and_then_that_it_is_there(dsn: str, conn: Connection, leader: Lease, replica: int) -> None:
    clock, term = Clock(), [leader.term]
    noting = gauges(dsn, term, replica, clock)
    # A session before: with `stop` set none would be opened.
    noting._conn = session(dsn)
    noting.step()
    first = value(conn, SEEN)
    assert datetime.now(UTC) - first < timedelta(minutes=1)
    noting.step()
    assert value(conn, SEEN) == first
    clock.now += NOTE_EVERY_S
    noting.step()
    assert value(conn, SEEN) > first
    noting.close()


def test_former_leader_notes_nothing(dsn: str, conn: Connection, leader: Lease, replica: int) -> None:
    """It has not noticed yet that it lost the lease."""
    assert leader.term is not None
    for term, owner in ((leader.term - 1, replica), (leader.term, replica + 1)):
        noting = gauges(dsn, [term], owner, Clock())
        noting._conn = session(dsn)
        noting.step()
        noting.close()
    assert value(conn, SEEN) is None
