"""A replica that may have lost its jobs stops them in time, or is stopped: before anyone else may run them."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from dispatcher.embedded import EmbeddedPostgres
from tests.proxy import TcpProxy
from tests.system.replicas import Fleet, Replica, end_sessions, overlaps, until

pytestmark = pytest.mark.system

ORPHAN_AFTER_S = 2.0
FENCED = {"orphan_after": f"{ORPHAN_AFTER_S}s", "shutdown_grace": "1s"}


@pytest.fixture
def remote(postgres: EmbeddedPostgres, postgres_dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet on a server of its own; the test itself is connected directly, whatever becomes of the network."""
    with Fleet(postgres_dsn, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def far(remote: Fleet, postgres_dsn: str, proxy: TcpProxy) -> Replica:
    """A leader behind the proxy."""
    return remote.start_leader(dsn=conninfo.make_conninfo(postgres_dsn, port=proxy.port), **FENCED)


def disturb(proxy: TcpProxy, how: str) -> None:
    """Cut: every connection breaks. Silent: nothing flows and nothing is closed."""
    if how == "cut":
        proxy.cut()
    else:
        proxy.pause()


# The kernel timer


def test_a_replica_that_hangs_in_c_is_killed_before_its_job_runs_elsewhere(fleet: Fleet) -> None:
    """It holds the GIL: no heartbeat, no signal handler, not a line of its own code runs any more."""
    leader, standby = fleet.start_pair(**FENCED)
    [id] = fleet.enqueue("hang")
    fleet.until_started([id], pid=leader.pid)
    fleet.until_leads(standby)
    assert leader.wait() == -signal.SIGKILL
    died = time.monotonic()
    fleet.until_all([id])
    [first, second] = fleet.events("start", job=id)
    assert (first.pid, second.pid) == (leader.pid, standby.pid)
    assert second.t >= died - 0.05  # our own notice of the death may come a moment later than the standby's
    assert died - first.t <= ORPHAN_AFTER_S + 0.5
    assert fleet.job(id)["failures"] == 1


def test_a_replica_stopped_past_orphan_after_is_killed_while_stopped(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair(**FENCED)
    [id] = fleet.enqueue("hold", until=str(fleet.gate()))
    fleet.until_started([id], pid=leader.pid)
    leader.send(signal.SIGSTOP)
    stopped = time.monotonic()
    fleet.until_leads(standby)
    assert fleet.states([id]) == {id: "running"}
    assert leader.wait() == -signal.SIGKILL
    died = time.monotonic()
    assert died - stopped < ORPHAN_AFTER_S + 0.5
    fleet.until_started([id], pid=standby.pid)
    fleet.gate().touch()
    fleet.until_all([id])
    assert not overlaps(fleet.events(), {leader.pid: died - 0.05})


def test_a_frozen_replica_is_seen_to_by_the_leader_of_the_same_host(fleet: Fleet) -> None:
    """It runs no job, so its own fence is disarmed; its row goes once it is certainly gone."""
    leader, standby = fleet.start_pair(**FENCED)
    standby.send(signal.SIGSTOP)
    assert standby.wait() == -signal.SIGKILL
    until(lambda: fleet.query("select id from dispatcher.replica") == [(leader.id,)], "its row is removed")


# The database out of reach


@pytest.mark.parametrize("how", ["cut", "silent"])
def test_jobs_that_heed_are_stopped_first_and_the_replica_lives_on(
    remote: Fleet, far: Replica, proxy: TcpProxy, how: str
) -> None:
    ids = remote.enqueue("hold", 2, until=str(remote.gate()))
    remote.until_started(ids)
    disturb(proxy, how)
    cut = time.monotonic()
    until(lambda: len(remote.events("end")) == 2, "both have stopped")
    assert {event.why for event in remote.events("end")} == {"lost"}
    assert max(event.t for event in remote.events("end")) - cut < ORPHAN_AFTER_S * 0.95
    time.sleep(ORPHAN_AFTER_S)  # what is looked for is that nothing happens
    assert far.alive, "it runs no job any more: the fence has no reason to strike"
    remote.gate().touch()
    proxy.restore()
    remote.until_all(ids)
    assert far.alive
    assert not overlaps(remote.events())
    assert {remote.job(id)["failures"] for id in ids} == {0}


@pytest.mark.parametrize("how", ["cut", "silent"])
def test_a_job_that_does_not_heed_is_ended_with_its_process_before_orphan_after(
    remote: Fleet, far: Replica, proxy: TcpProxy, how: str
) -> None:
    [id] = remote.enqueue("stubborn", until=str(remote.gate()))
    remote.until_started([id])
    near = remote.start(**FENCED)
    disturb(proxy, how)
    cut = time.monotonic()
    assert far.wait() == -signal.SIGKILL
    died = time.monotonic()
    assert died - cut < ORPHAN_AFTER_S
    [asked] = remote.events("asked")
    assert asked.why == "lost"
    remote.until_started([id], pid=near.pid)
    remote.gate().touch()
    remote.until_all([id])
    assert not overlaps(remote.events(), {far.pid: died - 0.05})


def test_a_replica_without_jobs_survives_and_reconnects(remote: Fleet, far: Replica, proxy: TcpProxy) -> None:
    remote.until_all(remote.enqueue("quick", 5))
    proxy.cut()
    time.sleep(ORPHAN_AFTER_S + 0.5)  # what is looked for is that nothing happens
    assert far.alive
    proxy.restore()
    remote.until_all(remote.enqueue("quick", 5))
    assert far.alive


def test_an_outcome_kept_through_an_outage_is_recorded_once(remote: Fleet, far: Replica, proxy: TcpProxy) -> None:
    ids = remote.enqueue("hold", 2, until=str(remote.gate()))
    remote.until_started(ids)
    proxy.cut()
    remote.gate().touch()
    until(lambda: len(remote.events("end")) == 2, "both have ended")
    proxy.restore()
    remote.until_all(ids)
    assert {remote.job(id)["attempt"] for id in ids} == {1}
    assert far.metric("dispatcher_stale_outcomes_total") == 0


# Only the liveness session counts


def test_answers_on_other_sessions_are_no_sign_of_life(fleet: Fleet) -> None:
    """The completer works, but the liveness lock cannot be retaken: others may count this replica out."""
    leader = fleet.start_leader(**FENCED)
    [id] = fleet.enqueue("stubborn", until=str(fleet.gate()))
    fleet.until_started([id])
    with psycopg.connect(fleet.dsn, autocommit=True) as thief:
        end_sessions(fleet.conn, "dispatcher lease %")
        thief.execute("select pg_advisory_lock(dispatcher.liveness_lock(), %s)", [leader.id])
        lost = time.monotonic()
        if fleet.query("select 1 from pg_stat_activity where application_name = %s", f"dispatcher lease {leader.id}"):
            end_sessions(fleet.conn, "dispatcher lease %")
        assert leader.wait() == -signal.SIGKILL
        assert time.monotonic() - lost < ORPHAN_AFTER_S + 0.5
    assert fleet.events("asked")[0].why == "lost"


# A claim whose answer was lost


def lose_a_claim(fleet: Fleet, replica: Replica) -> int:
    """A job that the database believes this replica to run: claimed, and the answer never arrived."""
    id = fleet.value(
        "insert into dispatcher.job (type, state, attempt, owner, started_at, payload)"
        " values ('quick', 'running', 1, %s, now(), '{}') returning id",
        replica.id,
    )
    fleet.query(
        "insert into dispatcher.claim (owner, term, job_ids) values (%s, 1, array[%s::bigint]) returning id",
        replica.id,
        id,
    )
    return int(id)


def test_a_claim_whose_answer_was_lost_is_given_back_by_its_living_owner(fleet: Fleet) -> None:
    leader = fleet.start_leader()
    id = lose_a_claim(fleet, leader)
    end_sessions(fleet.conn, "dispatcher lease %")
    fleet.until_all([id])
    assert (fleet.job(id)["attempt"], fleet.job(id)["failures"]) == (2, 0)
    assert len(fleet.events("start", job=id)) == 1


def test_asked_to_check_an_owner_gives_back_what_it_does_not_run(fleet: Fleet) -> None:
    leader = fleet.start_leader()
    held = fleet.enqueue("hold", until=str(fleet.gate()))
    fleet.until_started(held)
    id = lose_a_claim(fleet, leader)
    fleet.conn.execute("select pg_notify('dispatcher_replica_' || %s, 'check')", [leader.id])
    fleet.until_all([id])
    assert fleet.states(held) == {held[0]: "running"}
    fleet.gate().touch()
    fleet.until_all(held)
    assert fleet.job(held[0])["attempt"] == 1


def test_a_connection_broken_in_the_middle_of_claims_loses_and_doubles_nothing(
    remote: Fleet, far: Replica, proxy: TcpProxy
) -> None:
    ids = []
    for _ in range(10):
        ids += remote.enqueue("quick", 30)
        proxy.drop()
        until(lambda: far.metric("dispatcher_listener_connected") and remote.leader_pid(), "it is back")
    remote.until_all(ids)
    assert not overlaps(remote.events())
    assert not remote.query("select id from dispatcher.job where failures > 0")


# A replica that was removed


def test_a_replica_whose_row_was_removed_exits_with_one_line(fleet: Fleet) -> None:
    leader = fleet.start_leader()
    fleet.query("delete from dispatcher.replica where id = %s returning id", leader.id)
    assert leader.wait() == 1
    errors = [entry for entry in leader.log() if entry["level"] in ("error", "raw")]
    assert [entry["event"] for entry in errors] == [f"replica {leader.id} was removed from the database; start it anew"]
    assert "exception" not in errors[0]


def test_a_removed_replica_that_still_runs_jobs_ends_at_once(fleet: Fleet) -> None:
    leader = fleet.start_leader(threads="1", shutdown_grace="20s", orphan_after="30s")
    ids = fleet.enqueue("stubborn", 3, until=str(fleet.gate()))
    fleet.until_started(ids[:1])
    fleet.query("delete from dispatcher.replica where id = %s returning id", leader.id)
    removed = time.monotonic()
    assert leader.wait() == 1
    assert time.monotonic() - removed < 15  # before the grace is over
    assert len(fleet.events("start")) == 1, "it starts nothing more"


# Timed out, and its thread not back


@pytest.mark.parametrize(("type", "ends"), [("late", "failed"), ("late_again", "succeeded")])
def test_a_timed_out_job_stays_running_and_holds_its_slot_until_its_thread_is_back(
    fleet: Fleet, type: str, ends: str
) -> None:
    leader = fleet.start_leader(limits=f"{type}=1")
    [id, behind] = fleet.enqueue(type, 2, until=str(fleet.gate()))
    fleet.until_started([id])
    until(lambda: fleet.job(id)["timed_out"], "it is shown as timed out")
    assert fleet.events("asked")[0].why == "timeout"
    assert fleet.states([id, behind]) == {id: "running", behind: "pending"}, "its slot is not free"
    until(lambda: leader.metric("dispatcher_stuck_threads") == 1, "it is counted")
    with pytest.raises(psycopg.Error, match=f"job {id} is running"):
        fleet.conn.execute("select dispatcher.retry(%s)", [id])
    assert len(fleet.events("start", job=id)) == 1
    fleet.gate().touch()
    fleet.until_all([id], ends)
    job = fleet.job(id)
    assert [error["kind"] for error in job["errors"]] == ["timeout"]
    assert "fault_jobs.py" in job["errors"][0]["trace"], "where its thread was"
    assert not job["timed_out"]
    assert (job["attempt"], job["failures"]) == ((1, 1) if ends == "failed" else (2, 1))
    fleet.until_all([behind])
    assert not overlaps(fleet.events())
    until(lambda: leader.metric("dispatcher_stuck_threads") == 0, "no thread is stuck any more")


def test_a_replica_that_is_slow_to_end_after_its_jobs_is_left_to_end(fleet: Fleet) -> None:
    """No job is in doubt any more: the fence does not stand until the process is gone."""
    leader = fleet.start_leader(**FENCED)
    fleet.until_all(fleet.enqueue("slow_end", 1, seconds=ORPHAN_AFTER_S + 1))
    [held] = fleet.enqueue("hold", 1, until=str(fleet.gate()))
    fleet.until_started([held], pid=leader.pid)
    leader.send(signal.SIGTERM)
    until(lambda: leader.said("told to stop"), "it drains")
    fleet.gate().touch()
    assert leader.wait() == 0


def test_a_replica_whose_service_is_slow_to_end_is_there_until_it_leaves(fleet: Fleet) -> None:
    """It counts as present all the while: who is absent for orphan_after is ended by the others."""
    leader, standby = fleet.start_pair(**FENCED)
    fleet.until_all(fleet.enqueue("slow_service", 1, seconds=ORPHAN_AFTER_S + 2))
    leader.send(signal.SIGTERM)
    assert leader.wait() == 0
    assert fleet.query("select id from dispatcher.replica") == [(standby.id,)], "it left nothing behind"
