"""Threads that do not come back: their jobs show where they are, and too many of them end their replica, but not for
ever."""

import signal
import time

import pytest

from tests.system.replicas import CALM, Fleet, Replica, until

pytestmark = pytest.mark.system

JOBS = {"executors": "tests.system.fault_jobs,tests.system.hang_jobs", "shutdown_grace": "2s"}


def stick(fleet: Fleet, type: str = "late", count: int = 1) -> list[int]:
    """Jobs that are past their timeout and shown as such; they never come back."""
    ids = fleet.enqueue(type, count, until=str(fleet.gate("never")))
    fleet.until_started(ids)
    until(lambda: all(fleet.job(id)["timed_out"] for id in ids), "they are shown as timed out")
    return ids


def kinds(fleet: Fleet, id: int) -> list[tuple[str, int]]:
    return [(error["kind"], error["attempt"]) for error in fleet.job(id)["errors"]]


def starts(fleet: Fleet, id: int) -> int:
    return len(fleet.events("start", job=id))


def said(replica: Replica, event: str) -> str:
    """The line of its log with these words."""
    [line] = [entry["event"] for entry in replica.log() if event in entry["event"]]
    return str(line)


def test_a_stuck_thread_shows_its_stack_while_it_is_stuck_and_once_at_the_end(fleet: Fleet) -> None:
    fleet.start_leader(**CALM, **JOBS)
    gate = fleet.gate()
    [id] = fleet.enqueue("late", until=str(gate))
    until(lambda: fleet.job(id)["errors"], "it shows")
    job = fleet.job(id)
    assert job["state"] == "running"
    [error] = job["errors"]
    assert (error["kind"], error["attempt"]) == ("timeout", 1)
    assert "in _ignore" in error["trace"]
    gate.touch()
    fleet.until_all([id], "failed")
    assert kinds(fleet, id) == [("timeout", 1)]


def test_a_stuck_job_whose_row_is_locked_shows_its_stack_once_the_lock_is_gone(fleet: Fleet) -> None:
    leader = fleet.start_leader(**CALM, **JOBS)
    [id] = fleet.enqueue("late", until=str(fleet.gate("never")))
    fleet.until_started([id])
    with fleet.conn.transaction():
        fleet.query("select from dispatcher.job where id = %s for update", id)
        until(lambda: leader.metric("dispatcher_stuck_threads") == 1, "it is stuck")
        time.sleep(0.5)  # for the note to find the row locked
    until(lambda: fleet.job(id)["errors"], "it shows")


def test_past_max_stuck_threads_the_lease_goes_first_and_the_stuck_jobs_have_failed_for_good(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair(**CALM, **JOBS | {"shutdown_grace": "20s"}, max_stuck_threads="1")
    held = fleet.enqueue("hold", until=str(fleet.gate()))
    fleet.until_started(held)
    ids = fleet.enqueue("late", 2, until=str(fleet.gate("never")))
    fleet.until_started(ids)
    fleet.until_leads(standby)
    assert leader.alive, "it drains"
    fleet.gate().touch()
    fleet.until_all(held)
    assert fleet.job(held[0])["attempt"] == 1, "what could end has ended where it ran"
    assert leader.wait() == 1, "a status for which systemd restarts it"
    fleet.until_all(ids, "failed")
    for id in ids:
        job = fleet.job(id)
        assert (job["attempt"], job["failures"], kinds(fleet, id)) == (1, 1, [("timeout", 1)])
        assert "in _ignore" in job["errors"][0]["trace"]
        assert starts(fleet, id) == 1
    line = said(leader, "max_stuck_threads")
    assert "2 threads" in line
    assert "late" in line
    assert "restarted" in line
    assert standby.alive


def test_what_does_not_end_in_the_grace_is_given_back_without_a_failure(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair(**JOBS, max_stuck_threads="0")
    [held] = fleet.enqueue("stubborn", until=str(fleet.gate()))
    fleet.until_started([held])
    [stuck] = fleet.enqueue("late", until=str(fleet.gate("never")))
    assert leader.wait() == 1
    fleet.until_started([held], pid=standby.pid)
    fleet.gate().touch()
    fleet.until_all([held])
    assert (fleet.job(held)["attempt"], fleet.job(held)["failures"]) == (2, 0)
    fleet.until_all([stuck], "failed")


@pytest.mark.parametrize("most", ["2", "never"])
def test_no_more_stuck_threads_than_allowed_disturb_nobody(fleet: Fleet, most: str) -> None:
    leader = fleet.start_leader(**CALM, **JOBS, threads="3", max_stuck_threads=most)
    stick(fleet, count=2)
    until(lambda: leader.metric("dispatcher_stuck_threads") == 2, "they are counted")
    fleet.until_all(fleet.enqueue("quick", 5))
    time.sleep(1.5)  # what is looked for is that nothing happens
    assert leader.alive
    assert fleet.leader_pid() == leader.pid


def test_a_job_that_hangs_in_each_try_does_not_restart_replicas_for_ever(fleet: Fleet) -> None:
    """It is tried again after a timeout, so each try takes a replica along: as often as it may, and no more."""
    settings = JOBS | {"max_stuck_threads": "0"}
    first = fleet.start_leader(**settings)
    [id] = fleet.enqueue("hangs_again")
    assert first.wait() == 1
    second = fleet.launch(**settings)
    assert second.wait() == 1
    third = fleet.start_leader(**settings)
    fleet.until_all([id], "failed")
    assert kinds(fleet, id) == [("timeout", 1), ("timeout", 2)]
    assert (fleet.job(id)["failures"], starts(fleet, id)) == (2, 2)
    fleet.until_all(fleet.enqueue("quick"))
    assert third.alive


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stuck_job_is_failed_by_its_timeout_however_its_replica_ends(fleet: Fleet, number: signal.Signals) -> None:
    """Given back or counted as a crash it would hang again, and again."""
    leader, _ = fleet.start_pair(**JOBS)
    [id] = stick(fleet)
    leader.send(number)
    fleet.until_all([id], "failed")
    assert not leader.alive, "what follows from it may begin: it runs no more"
    assert kinds(fleet, id) == [("timeout", 1)]
    assert (fleet.job(id)["failures"], starts(fleet, id)) == (1, 1)


def test_a_coroutine_that_holds_the_event_loop_ends_its_replica(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair(**JOBS)
    waiting = fleet.enqueue("loop.waits")
    fleet.until_started(waiting)
    [id] = fleet.enqueue("loop.holds")
    assert leader.wait() == 1
    fleet.until_all([id], "failed")
    assert kinds(fleet, id) == [("timeout", 1)]
    assert "loop_holds" in fleet.job(id)["errors"][0]["trace"]
    fleet.until_started(waiting, pid=standby.pid)
    assert fleet.job(waiting[0])["failures"] == 0


def test_a_coroutine_that_does_not_end_costs_its_own_place_only(fleet: Fleet) -> None:
    leader = fleet.start_leader(**CALM, **JOBS)
    [id] = fleet.enqueue("loop.ignores")
    until(lambda: fleet.job(id)["timed_out"], "it is shown as timed out")
    assert "loop_ignores" in fleet.job(id)["errors"][0]["trace"]
    fleet.until_started(fleet.enqueue("loop.waits"))
    assert leader.alive
