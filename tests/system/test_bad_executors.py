"""Executors on threads that spoil their process: whatever it costs their replica, no job is lost or run beside itself,
and nothing is written where it does not belong."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.system.replicas import CALM, Fleet, Replica, overlaps, until

pytestmark = pytest.mark.system

JOBS = {"executors": "tests.system.fault_jobs,tests.system.hang_jobs,tests.system.bad_jobs", "shutdown_grace": "1s"}
ORPHAN_AFTER_S = 2.5
CLOSED = "a job has closed a file that is not its own"


def failures(fleet: Fleet, ids: list[int]) -> list[int]:
    return [fleet.job(id)["failures"] for id in ids]


# Python's lock


def test_a_job_that_holds_the_gil_for_less_than_the_lease_only_delays(fleet: Fleet) -> None:
    leader, _ = fleet.start_pair(**JOBS, lease_duration="2s")
    term = fleet.term()
    held = fleet.enqueue("hold_gil", seconds=1.0)
    fleet.until_started(held)
    ids = fleet.enqueue("quick", 20)
    fleet.until_all(ids + held)
    assert (fleet.leader_pid(), fleet.term()) == (leader.pid, term)
    assert not any(failures(fleet, ids + held))


def test_a_job_that_holds_the_gil_longer_than_the_lease_costs_the_lease_and_no_job(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair(**JOBS, orphan_after="20s")
    beside = fleet.enqueue("hold", until=str(fleet.gate()))
    fleet.until_started(beside)
    held = fleet.enqueue("hold_gil", seconds=3.0)
    fleet.until_started(held)
    fleet.until_leads(standby)
    fleet.until_all(fleet.enqueue("quick", 5))
    fleet.until_all(held)
    fleet.gate().touch()
    fleet.until_all(beside)
    assert {fleet.job(id)["attempt"] for id in held + beside} == {1}, "their outcomes count"
    assert leader.alive


# Forks


def test_a_fork_that_outlives_its_job_delays_no_fail_over_and_has_no_way_to_the_daemon(fleet: Fleet) -> None:
    """It would keep a dead leader's sessions open, its locks held, its port taken, and its death unproven."""
    settings = JOBS | {"orphan_after": "60s", "lease_duration": "30s", "heartbeat_interval": "100ms"}
    leader, standby = fleet.start_pair(**settings)
    gate, files = fleet.gate(), fleet.folder / "files"
    [id] = fleet.enqueue("bad.fork", until=str(gate), files=str(files))
    fleet.until_all([id])
    until(files.exists, "the child tells")
    held = fleet.enqueue("hold", until=str(fleet.gate("held")))
    fleet.until_started(held, pid=leader.pid)
    leader.send(signal.SIGKILL)
    killed = time.monotonic()
    fleet.until_leads(standby)
    fleet.until_started(held, pid=standby.pid)
    assert time.monotonic() - killed < 25  # before the lease is over, and orphan_after
    found = files.read_text()
    assert found.count("socket:") <= 2, "none but the pair by which the event loop wakes itself"
    assert ".lock" not in found
    heir = fleet.start(**settings, metrics_port=str(leader.metrics_port))
    assert heir.alive
    fleet.gate("held").touch()
    fleet.until_all(held)
    child = int(fleet.job(id)["result"])
    os.kill(child, 0)
    gate.touch()


@pytest.mark.parametrize("exits", [False, True])
def test_a_fork_that_returns_as_if_it_were_the_job_ends_there(fleet: Fleet, exits: bool) -> None:
    """It would go on as a second daemon: with the same jobs in its queue."""
    leader = fleet.start_leader(**JOBS, threads="1")
    ids = fleet.enqueue("bad.fork_returns", 3, exit=exits)
    quick = fleet.enqueue("quick", 20)
    fleet.until_all(ids + quick)
    assert {event.pid for event in fleet.events("start")} == {leader.pid}
    assert len(fleet.events("start")) == 20
    for id in ids:
        child = fleet.job(id)["result"]
        assert child > 0, "the outcome is the parent's"
        until(lambda child=child: _gone(child), "the child is gone")  # type: ignore[misc] # bound here


def _gone(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def test_a_fork_dies_of_the_signal_that_its_job_sends(fleet: Fleet) -> None:
    fleet.start_leader(**CALM, **JOBS)
    [id] = fleet.enqueue("bad.terminate")
    fleet.until_all([id])
    assert fleet.job(id)["result"] == -signal.SIGTERM


# Files


def crash_and_recover(fleet: Fleet, leader: Replica, standby: Replica, ids: list[int]) -> None:
    """The replica ends at once, and what it ran runs elsewhere."""
    assert leader.wait(5) == 1
    assert leader.said(CLOSED)
    fleet.until_leads(standby)
    fleet.until_all(ids)
    fleet.until_all(fleet.enqueue("quick", 5))


@pytest.mark.parametrize("nth", range(8))
def test_a_job_that_closes_any_one_socket_of_its_replica_ends_it_or_harms_nothing(fleet: Fleet, nth: int) -> None:
    """As one does that closes a number of its own twice; the number is then given to a file of the job's."""
    leader, standby = fleet.start_pair(**JOBS)
    mine = fleet.folder / "mine"
    mine.mkdir()
    [id] = fleet.enqueue("bad.close", kind="socket:", nth=nth, folder=str(mine))
    fleet.until_started([id])
    others = fleet.enqueue("quick", 5)
    fleet.until_all([id, *others])
    assert not leader.alive or not leader.said("session is lost")
    if not leader.alive:
        crash_and_recover(fleet, leader, standby, [id])
    assert {path.read_bytes() for path in mine.iterdir()} <= {b"", b"mine"}, "nobody writes into the job's files"


def test_a_job_that_closes_all_files_of_its_replica_ends_it_and_nothing_is_written_elsewhere(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair(**JOBS)
    beside = fleet.enqueue("quick", seconds=1)
    fleet.until_started(beside)
    mine = fleet.folder / "mine"
    mine.mkdir()
    [id] = fleet.enqueue("bad.close", kind="", all=True, folder=str(mine))
    crash_and_recover(fleet, leader, standby, [id, *beside])
    assert {path.read_bytes() for path in mine.iterdir()} <= {b"", b"mine"}


@pytest.mark.parametrize("kind", ["pipe:", "anon_inode:[eventpoll]", "/"])
def test_a_job_that_closes_a_pipe_or_the_lock_of_its_replica_harms_no_job(fleet: Fleet, kind: str) -> None:
    leader, _ = fleet.start_pair(**JOBS)
    waiting = fleet.enqueue("loop.waits")
    fleet.until_started(waiting)
    [id] = fleet.enqueue("bad.close", kind=kind, nth=0)
    until(lambda: fleet.events("closed") or not leader.alive, "it has closed one")
    fleet.enqueue("loop.waits")  # a loop that rests notices nothing
    assert leader.wait(15) == 1
    fleet.until_all([id])
    fleet.until_all(fleet.enqueue("quick", 5))
    until(lambda: len(fleet.events("start", job=waiting[0])) == 2, "the coroutine runs elsewhere")


# Threads


@pytest.mark.parametrize(
    "name", ["heart", "completer", "timekeeper", "rescuer", "listener", "MainThread", "async-loop"]
)
def test_an_exception_raised_in_a_thread_of_the_daemon_ends_the_replica_and_loses_nothing(
    fleet: Fleet, name: str
) -> None:
    leader, standby = fleet.start_pair(**JOBS)
    held = fleet.enqueue("hold", 2, until=str(fleet.gate())) + fleet.enqueue("loop.waits")
    fleet.until_started(held)
    fleet.until_all(fleet.enqueue("bad.raise", name=name))
    fleet.enqueue("loop.waits")  # a loop that rests notices nothing
    assert leader.wait() == 1
    fleet.until_leads(standby)
    fleet.gate().touch()
    fleet.until_all(held[:2])
    fleet.until_all(fleet.enqueue("quick", 5))
    assert not any(failures(fleet, held[:2])), "they were stopped, or given back"
    assert not overlaps([event for event in fleet.events() if event.job in held[:2]], {leader.pid: time.monotonic()})


def test_an_exception_raised_in_other_workers_fails_their_jobs_and_costs_no_thread(fleet: Fleet) -> None:
    leader = fleet.start_leader(**JOBS, threads="4")
    fleet.until_all(fleet.enqueue("quick", 20, seconds=0.02))  # all threads have started
    busy = fleet.enqueue("quick", 2, seconds=1)
    fleet.until_started(busy)
    [id] = fleet.enqueue("bad.raise", name="worker")
    fleet.until_all([id, *busy])
    assert len(fleet.job(id)["result"]) == 3
    held = fleet.enqueue("hold", 4, until=str(fleet.gate()))
    fleet.until_started(held)
    fleet.gate().touch()
    fleet.until_all(held)
    assert leader.alive


@pytest.mark.parametrize("what", ["exit", "handler", "interrupt"])
def test_what_a_job_may_try_against_its_process_fails_that_job_alone(fleet: Fleet, what: str) -> None:
    leader = fleet.start_leader(**CALM, **JOBS)
    [id] = fleet.enqueue("bad.harmless", what=what)
    fleet.until_all([id], "failed")
    fleet.until_all(fleet.enqueue("quick", 5))
    leader.send(signal.SIGTERM)
    assert leader.wait() == 0


def test_a_job_that_makes_threading_forget_its_threads_disturbs_nobody(fleet: Fleet) -> None:
    leader = fleet.start_leader(**CALM, **JOBS)
    fleet.until_all(fleet.enqueue("bad.threading"))
    fleet.until_all(fleet.enqueue("quick", 20, seconds=0.02))
    leader.send(signal.SIGTERM)
    assert leader.wait() == 0


def test_a_job_that_sends_sigterm_to_its_own_process_stops_it_gracefully(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair(**JOBS)
    [id] = fleet.enqueue("bad.signal", name="SIGTERM")
    assert leader.wait() == 0
    fleet.until_all([id])
    assert fleet.job(id)["attempt"] == 1
    fleet.until_leads(standby)


def test_a_thread_that_a_job_leaves_behind_does_not_keep_a_stopped_replica(fleet: Fleet) -> None:
    leader = fleet.start_leader(**CALM, **JOBS)
    fleet.until_all(fleet.enqueue("bad.thread_left"))
    leader.send(signal.SIGTERM)
    assert leader.wait(10) == 0


# Memory


def test_a_job_that_takes_all_memory_of_its_process_leaves_no_replica_half_dead(fleet: Fleet) -> None:
    """Any line of the daemon may fail then: it goes on whole, or ends."""
    leader, standby = fleet.start_pair(**JOBS)
    [id] = fleet.enqueue("bad.leak", pid=leader.pid)
    fleet.until_started([id])
    ids = fleet.enqueue("quick", 20)
    fleet.until_all(ids)
    assert max(failures(fleet, ids)) <= 2, "it does not go on to fail job after job"
    until(lambda: fleet.job(id)["state"] in ("succeeded", "failed"), "the job itself has ended")
    assert standby.alive
