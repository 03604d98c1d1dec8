"""PostgreSQL itself fails over: its primary is killed, and the standby promoted."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from psycopg import conninfo

from dispatcher import Client, migrate
from dispatcher.db import connect
from dispatcher.errors import DatabaseUnavailable, UnsupportedServer
from dispatcher.runtime import JobRuntime
from tests.proxy import TcpProxy
from tests.standby import Pair, port_of
from tests.system.api_process import ApiProcess, caller
from tests.system.failing_over import fail_over
from tests.system.replicas import ROOT, TIMINGS, Fleet, overlaps, until

pytestmark = pytest.mark.system

ORPHAN_AFTER_S = 2.5
assert TIMINGS["orphan_after"] == "2500ms"


@pytest.fixture
def fleet(pair: Pair, postgres_dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet that knows both servers; the test itself is connected to the primary, until `fail_over`."""
    with Fleet(pair.dsn(postgres_dsn), tmp_path, admin_dsn=postgres_dsn) as fleet:
        yield fleet


def starts(fleet: Fleet, id: int) -> list[tuple[int, int]]:
    """(process, attempt) of each start of a job."""
    return [(event.pid, event.attempt) for event in fleet.events("start", job=id)]


def enqueue_and_lose_the_claim(fleet: Fleet, pair: Pair, type: str) -> int:
    """A job that the standby knows, and whose claim it will not get to know."""
    payload = json.dumps({"until": str(fleet.gate())})
    id = fleet.value("select dispatcher.enqueue(%s, %s::jsonb, '{\"delay\": 1}')", type, payload)
    pair.until_streaming()
    pair.link.pause()
    return int(id)


# Nothing is lost


def test_replicas_go_on_on_the_promoted_standby_and_jobs_that_run_are_not_disturbed(
    fleet: Fleet, pair: Pair, postgres_dsn: str
) -> None:
    leader, standby = fleet.start_pair()
    held = fleet.enqueue("hold", 2, until=str(fleet.gate()))
    fleet.until_started(held, pid=leader.pid)
    waiting = [fleet.value("select dispatcher.enqueue('quick', '{}', '{\"delay\": 2}')")]
    pair.until_streaming()
    killed = fail_over(fleet, pair, postgres_dsn)
    promoted = time.monotonic()
    after = fleet.enqueue("quick", 5)
    fleet.until_started(after)
    first = min(event.t for event in fleet.events("start") if event.job in after)
    print(f"\nfirst claim {first - killed:.2f} s after kill -9, {first - promoted:.2f} s after the promotion")
    assert first - promoted >= ORPHAN_AFTER_S - 0.2, "what was claimed and lost may still run somewhere"
    fleet.gate().touch()
    fleet.until_all(held + after + waiting)
    assert {fleet.job(id)["attempt"] for id in held} == {1}, "they were replicated, and so go on"
    assert not overlaps(fleet.events())
    assert leader.alive
    assert standby.alive


def test_with_a_synchronous_standby_no_job_that_was_accepted_is_lost(
    fleet: Fleet, pair: Pair, postgres_dsn: str
) -> None:
    pair.be_synchronous()
    fleet.start_pair()
    accepted: list[int] = []
    enough = threading.Event()

    def enqueue() -> None:
        with Client(pair.dsn(postgres_dsn)) as client:
            while not enough.wait(0.01):
                try:
                    accepted.append(client.enqueue("quick", {"seconds": 0.05}))
                except DatabaseUnavailable:
                    continue

    with_jobs = threading.Thread(target=enqueue)
    with_jobs.start()
    until(lambda: len(fleet.events("end")) > 20, "jobs flow")
    fail_over(fleet, pair, postgres_dsn)
    promoted_at = len(accepted)
    until(lambda: len(accepted) > promoted_at + 20, "the client goes on")
    enough.set()
    with_jobs.join()
    fleet.until_all(accepted)
    print(f"\n{promoted_at} jobs were accepted before, {len(accepted) - promoted_at} after")
    assert not overlaps(fleet.events())
    finished = {event.job for event in fleet.events("end")}
    assert finished >= set(accepted)


# An asynchronous standby lags behind: commits are lost


def test_a_job_whose_claim_was_lost_is_stopped_before_it_is_given_out_again(
    fleet: Fleet, pair: Pair, postgres_dsn: str
) -> None:
    leader, standby = fleet.start_pair()
    id = enqueue_and_lose_the_claim(fleet, pair, "hold")
    fleet.until_started([id], pid=leader.pid)
    fail_over(fleet, pair, postgres_dsn)
    assert fleet.states([id])[id] in ("scheduled", "pending"), "the claim was lost"
    until(lambda: len(starts(fleet, id)) == 2, "it is given out again")
    fleet.gate().touch()
    fleet.until_all([id])
    assert [attempt for _, attempt in starts(fleet, id)] == [1, 1], "the number is given out twice, as is documented"
    assert not overlaps(fleet.events())
    assert [event.why for event in fleet.events("end")] == ["lost", ""]
    assert leader.alive
    assert standby.alive


@pytest.mark.parametrize("leads", [True, False], ids=["of the leader", "of who only drains"])
def test_a_job_that_does_not_heed_is_ended_with_its_process_before_its_lost_attempt_is_given_out_again(
    fleet: Fleet, pair: Pair, postgres_dsn: str, leads: bool
) -> None:
    leader, other = fleet.start_pair()
    id = enqueue_and_lose_the_claim(fleet, pair, "stubborn")
    fleet.until_started([id], pid=leader.pid)
    if not leads:
        fleet.conn.execute("select pg_notify('dispatcher_replica_' || %s, 'resign ' || %s)", [leader.id, fleet.term()])
        fleet.until_leads(other)
    fail_over(fleet, pair, postgres_dsn)
    assert leader.wait() == -signal.SIGKILL
    died = time.monotonic()
    [asked] = fleet.events("asked")
    assert asked.why == "lost"
    fleet.until_started([id], pid=other.pid)
    fleet.gate().touch()
    fleet.until_all([id])
    assert not overlaps(fleet.events(), {leader.pid: died - 0.05})


def test_a_job_whose_outcome_was_lost_runs_again_under_a_new_number(
    fleet: Fleet, pair: Pair, postgres_dsn: str
) -> None:
    fleet.start_pair()
    [id] = fleet.enqueue("hold", until=str(fleet.gate()))
    fleet.until_started([id])
    pair.until_streaming()
    pair.link.pause()
    fleet.gate().touch()
    fleet.until_all([id])
    fail_over(fleet, pair, postgres_dsn)
    assert fleet.states([id])[id] in ("running", "pending"), "the outcome was lost"
    until(lambda: [attempt for _, attempt in starts(fleet, id)] == [1, 2], "it runs again")
    fleet.until_all([id])
    assert not overlaps(fleet.events())


# A server in recovery


@pytest.mark.parametrize("attributes", ["", "any"])
def test_a_server_in_recovery_is_not_led_on_until_it_is_promoted(
    fleet: Fleet, pair: Pair, postgres_dsn: str, attributes: str
) -> None:
    """The replica has only this one server, by an address that moves from one to the other."""
    with TcpProxy("127.0.0.1", port_of(pair.primary)) as address:
        dsn = conninfo.make_conninfo(postgres_dsn, port=address.port, target_session_attrs=attributes or None)
        replica = fleet.start_leader(dsn=dsn)
        pair.until_streaming()
        pair.primary.kill()
        address.aim(port_of(pair.standby))
        until(lambda: replica.said("standby") or replica.said("read-only") or replica.said("hot standby"), "it says so")
        assert replica.alive
        pair.promote()
        fleet.reconnect(pair.standby_dsn(postgres_dsn))
        fleet.until_leads(replica)
        fleet.until_all(fleet.enqueue("quick", 3))


def test_what_asks_for_the_primary_of_several_servers_passes_a_standby_by(pair: Pair, postgres_dsn: str) -> None:
    """Without target_session_attrs libpq takes the first server, which may be the standby."""
    dsn = pair.dsn(postgres_dsn, standby_first=True).replace("target_session_attrs=read-write", "")
    pair.until_streaming()
    assert not migrate.migrate(dsn)
    runtime = JobRuntime(dsn=dsn, installation=UUID(int=0), owner=1)
    for conn in (runtime.connect(), connect(dsn)):
        with conn:
            assert conn.execute("select pg_is_in_recovery()").fetchone() == (False,)


def test_on_a_standby_clients_and_a_replica_that_starts_say_so_in_one_line(pair: Pair, postgres_dsn: str) -> None:
    dsn = pair.standby_dsn(postgres_dsn)
    with psycopg.connect(postgres_dsn) as conn:
        conn.execute("insert into dispatcher.type values ('quick', null, 60, 1, 1000)")
    pair.until_streaming()
    with Client(dsn) as client, pytest.raises(UnsupportedServer, match="give the primary's address") as refused:
        client.enqueue("quick", {})
    assert "\n" not in str(refused.value)
    for command in (["migrate"], ["run"], ["enqueue", "quick"]):
        done = subprocess.run(
            [sys.executable, "-m", "dispatcher", *command, "--dsn", dsn],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        print(command, done.stdout, done.stderr)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "standby" in done.stderr


def test_the_api_goes_on_on_the_promoted_standby_and_hears_of_jobs_there(
    fleet: Fleet, pair: Pair, postgres_dsn: str, tmp_path: Path
) -> None:
    with ApiProcess(pair.dsn(postgres_dsn), tmp_path) as api:
        api.until_serves()
        fleet.start_pair()
        with caller(api.url, api.token()) as web:
            job = web.post("/jobs", json={"type": "hold", "payload": {"until": str(fleet.gate())}})
            assert job.status_code == 202, job.text
            id = job.json()["id"]
            fleet.until_started([id])
            pair.until_streaming()
            killed = fail_over(fleet, pair, postgres_dsn)
            until(lambda: web.post("/jobs", json={"type": "quick"}).status_code == 202, "it takes jobs again")
            print(f"\nthe API took a job {time.monotonic() - killed:.2f} s after kill -9 of the primary")
            with web.stream("GET", f"/jobs/{id}/events") as events:
                told = events.iter_lines()
                assert next(line for line in told if line.startswith("data:"))
                fleet.gate().touch()
                assert any('"succeeded"' in line for line in told)
