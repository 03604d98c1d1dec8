"""Pools of a real replica: what runs in another process ends with its replica, and before it runs again; and leases of
their own for types of their own."""

from __future__ import annotations

import signal
import time

import pytest

from tests.system.replicas import CALM, Fleet, Replica, until

pytestmark = pytest.mark.system

JOBS = {"executors": "tests.system.pool_jobs", "processes": "2"}


def last_tick(fleet: Fleet, id: int, attempt: int) -> float:
    """When that attempt was last seen to run, in monotonic seconds."""
    at = (fleet.folder / f"tick-{id}-{attempt}").stat().st_mtime
    return at - time.time() + time.monotonic()


def hold_two(fleet: Fleet, **payload: object) -> list[int]:
    ids = fleet.enqueue("far.hold", 2, until=str(fleet.gate()), **payload)
    fleet.until_started(ids)
    until(lambda: all((fleet.folder / f"tick-{id}-1").exists() for id in ids), "both tick")
    return ids


def second_starts(fleet: Fleet, ids: list[int]) -> dict[int, float]:
    def look() -> dict[int, float]:
        found = {event.job: event.t for event in fleet.events("start") if event.attempt == 2}
        return found if set(found) == set(ids) else {}

    return until(look, "both run again")


@pytest.mark.parametrize("stubborn", [False, True])
def test_jobs_of_a_killed_replica_die_with_it_and_run_again_at_once(fleet: Fleet, stubborn: bool) -> None:
    leader, standby = fleet.start_pair(**JOBS, orphan_after="20s", shutdown_grace="2s")
    ids = hold_two(fleet, stubborn=stubborn)
    leader.send(signal.SIGKILL)
    again = second_starts(fleet, ids)
    for id in ids:
        assert again[id] > last_tick(fleet, id, 1) - 0.002, "the clocks of file times are coarser"
    fleet.gate().touch()
    fleet.until_all(ids)
    assert standby.alive


def test_jobs_of_a_frozen_replica_die_with_it(fleet: Fleet) -> None:
    leader, _ = fleet.start_pair(**JOBS)
    ids = hold_two(fleet, stubborn=True)
    leader.send(signal.SIGSTOP)
    again = second_starts(fleet, ids)
    for id in ids:
        assert again[id] > last_tick(fleet, id, 1) - 0.002
    fleet.gate().touch()
    fleet.until_all(ids)


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_stop_ends_or_gives_back_what_runs_in_processes(fleet: Fleet, stubborn: bool) -> None:
    leader, _ = fleet.start_pair(**JOBS)
    ids = hold_two(fleet, stubborn=stubborn)
    leader.send(signal.SIGTERM)
    assert leader.wait() == 0
    again = second_starts(fleet, ids)
    for id in ids:
        assert again[id] > last_tick(fleet, id, 1) - 0.002
    fleet.gate().touch()
    fleet.until_all(ids)
    assert {fleet.job(id)["failures"] for id in ids} == {0}


def test_a_canceled_job_in_a_process_stops(fleet: Fleet) -> None:
    fleet.start_leader(**CALM, **JOBS)
    ids = hold_two(fleet)
    fleet.query("select dispatcher.cancel(%s)", ids[0])
    fleet.until_all(ids[:1], "canceled")
    [end] = fleet.events("end")
    assert (end.job, end.why) == (ids[0], "requested")
    fleet.gate().touch()
    fleet.until_all(ids[1:])


def test_a_job_in_a_process_completes_itself_with_its_own_writes(fleet: Fleet) -> None:
    fleet.conn.execute("create table done (job bigint, seen integer)")
    fleet.start_leader(**CALM, **JOBS)
    [id] = fleet.enqueue("far.complete")
    fleet.until_all([id])
    assert fleet.query("select job, seen from done") == [(id, 1)]
    assert fleet.job(id)["result"] == {"in": "a process"}
    assert fleet.value("select count(*) from dispatcher.job where type = 'coroutine'") == 1


def test_coroutines_are_more_than_threads_and_end_with_a_stop(fleet: Fleet) -> None:
    leader = fleet.start_leader(**JOBS, threads="1", async_jobs="50")
    ids = fleet.enqueue("coroutine", 50, until=str(fleet.gate()))
    fleet.until_started(ids)
    leader.send(signal.SIGTERM)
    assert leader.wait() == 0
    assert set(fleet.states(ids).values()) == {"pending"}


def start_other(fleet: Fleet, name: str, types: str, executors: str) -> Replica:
    return fleet.start(lease_name=name, types=types, executors=executors)


def test_two_leases_lead_at_once_each_for_its_types(fleet: Fleet) -> None:
    jobs = "tests.system.fault_jobs,tests.system.pool_jobs"
    one = start_other(fleet, "quick", "quick,stubborn", jobs)
    other = start_other(fleet, "slow", "hold,coroutine", jobs)
    until(lambda: fleet.value("select count(*) from dispatcher.lease where holder is not null") == 2, "both lead")
    held = fleet.enqueue("hold", 3, until=str(fleet.gate())) + fleet.enqueue("coroutine", 2)
    quick = fleet.enqueue("quick", 20)
    fleet.until_all(quick)
    fleet.until_started(held)
    pids = {event.job: event.pid for event in fleet.events("start")}
    assert {pids[id] for id in quick} == {one.pid}
    assert {pids[id] for id in held} == {other.pid}
    other.send(signal.SIGKILL)
    more = fleet.enqueue("quick", 20)
    fleet.until_all(more)
    assert one.alive
    heir = start_other(fleet, "slow", "hold,coroutine", jobs)
    fleet.gate().touch()
    fleet.until_all(held)
    assert {event.pid for event in fleet.events("start", job=held[0])} == {other.pid, heir.pid}


def test_a_type_served_by_two_leases_is_refused_also_where_both_start_at_once(fleet: Fleet) -> None:
    both = [fleet.launch(lease_name=name, types="quick,hold") for name in ("one", "other")]
    until(lambda: any(not replica.alive for replica in both), "one of them ends")
    gone = next(replica for replica in both if not replica.alive)
    left = next(replica for replica in both if replica is not gone)
    assert gone.wait() == 1
    assert "two leaders cannot share its limit" in gone.log_file.read_text()
    ids = fleet.enqueue("quick", 5)
    fleet.until_all(ids)
    assert left.alive
    late = fleet.launch(lease_name="third", types="hold")
    assert late.wait() == 1


def test_a_leader_whose_types_another_lease_has_come_to_serve_ends_and_lets_the_lease_go(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair(types="quick,hold")
    ids = fleet.enqueue("hold", 1, until=str(fleet.gate()))
    fleet.until_started(ids)
    fleet.conn.execute("insert into dispatcher.lease (name) values ('other')")
    [(fake,)] = fleet.conn.execute(
        "insert into dispatcher.replica (lease, host, pid, version, types, incarnation, backend_pid)"
        " select number, 'h', 1, '1', '{quick}', 1, pg_backend_pid() from dispatcher.lease where name = 'other'"
        " returning id"
    ).fetchall()
    fleet.query("select pg_advisory_lock(dispatcher.liveness_lock(), %s)", fake)
    leader.send(signal.SIGKILL)
    assert standby.wait() == 1
    assert "two leaders cannot share its limit" in standby.log_file.read_text()
    fleet.conn.execute("delete from dispatcher.replica where id = %s", [fake])
    fleet.gate().touch()
    fleet.start_leader(types="quick,hold")
    fleet.until_all(ids)
