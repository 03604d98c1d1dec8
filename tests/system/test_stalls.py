"""A replica of which a part hangs: it leads no longer than the lease lasts, and it ends by itself, with a watchdog or
without one."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.heart import HANG_S
from tests.system.replicas import Fleet, Replica, until

pytestmark = pytest.mark.system

JOBS = {"executors": "tests.system.fault_jobs,tests.system.hang_jobs", "shutdown_grace": "1s"}
STALL_S = 5.0  # above the longest pause of a service here, which is 3 s


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_STALL_S", str(STALL_S))  # hang_jobs heeds it


def hang(fleet: Fleet, service: str) -> float:
    """Makes a part of the leader hang; when."""
    fleet.until_started(fleet.enqueue("hang_service", service=service))
    return time.monotonic()


def report(replica: Replica) -> list[str]:
    return [entry["event"] for entry in replica.log() if entry["level"] in ("error", "raw")]


def rest(systemd: socket.socket) -> Iterator[bytes]:
    """What was sent to it and not read yet."""
    with contextlib.suppress(BlockingIOError):
        while True:
            yield systemd.recv(4096)


@pytest.mark.parametrize("held", [False, True])
def test_a_heart_that_hangs_loses_the_lease_at_once_and_its_process_soon(fleet: Fleet, held: bool) -> None:
    """Nothing of it is silent but the session: PostgreSQL ends that, and the process must not stay for ever."""
    leader, standby = fleet.start_pair(**JOBS, orphan_after="60s")
    ids = fleet.enqueue("hold", until=str(fleet.gate())) if held else []
    fleet.until_started(ids)
    hung = hang(fleet, "heart")
    fleet.until_leads(standby)
    assert time.monotonic() - hung < HANG_S / 2
    assert leader.alive, "PostgreSQL has ended its session, its own end comes later"
    fleet.until_all(fleet.enqueue("quick", 3))
    assert leader.wait(HANG_S + 15) == 1
    assert "the heart makes no progress" in report(leader)[0]
    if held:
        fleet.until_started(ids, pid=standby.pid)
        fleet.gate().touch()
        fleet.until_all(ids)


def test_a_heart_that_goes_round_in_a_circle_with_its_session_alive_is_ended(fleet: Fleet) -> None:
    """The server sees a session that works: only the replica itself can know that it leads nowhere."""
    leader, standby = fleet.start_pair(**JOBS)
    hang(fleet, "heart that keeps its session")
    assert leader.wait(HANG_S + 15) == 1
    fleet.until_leads(standby)
    fleet.until_all(fleet.enqueue("quick", 3))


def test_a_standby_whose_beat_hangs_ends_as_well(fleet: Fleet) -> None:
    leader = fleet.start_leader(**JOBS)
    hang(fleet, "lease")
    assert leader.wait(HANG_S + 15) == 1


@pytest.mark.parametrize("service", ["completer", "timekeeper", "rescuer", "stager"])
def test_a_service_that_hangs_hands_the_lease_over_and_ends_its_replica(fleet: Fleet, service: str) -> None:
    leader, standby = fleet.start_pair(**JOBS)
    [late] = fleet.enqueue("halfway", report=str(fleet.gate("report")), until=str(fleet.gate()))
    fleet.until_started([late])
    hang(fleet, service)
    fleet.enqueue("quick", 3)  # what the completer hangs at
    fleet.gate("report").touch()
    fleet.gate().touch()
    fleet.until_leads(standby)
    assert leader.wait() == 1
    assert f"the {service} makes no progress" in report(leader)[0]
    until(lambda: not fleet.query("select from dispatcher.job where state not in ('succeeded')"), "all ends well")
    assert fleet.job(late)["attempt"] == 1, "what it did is recorded all the same"
    assert not fleet.query("select id from dispatcher.job where failures > 0")


def test_a_service_for_which_no_job_waits_disturbs_none(fleet: Fleet) -> None:
    leader = fleet.start_leader(**JOBS)
    hang(fleet, "pruner")
    time.sleep(2 * STALL_S)  # what is looked for is that nothing happens
    fleet.until_all(fleet.enqueue("quick", 3))
    assert leader.alive


def test_a_process_that_was_stopped_takes_none_of_its_parts_for_stuck(fleet: Fleet) -> None:
    """Continued, its main thread may well run before the others have moved."""
    leader = fleet.start_leader(**JOBS, orphan_after="60s")
    fleet.until_all(fleet.enqueue("hang_service", service="pruner"))
    leader.send(signal.SIGSTOP)
    time.sleep(2 * STALL_S)
    leader.send(signal.SIGCONT)
    fleet.until_all(fleet.enqueue("quick", 3))
    assert leader.alive
    assert not report(leader)


def test_the_watchdog_is_fed_by_a_replica_that_goes_on_and_not_by_one_that_hangs(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        leader = fleet.start_leader(**JOBS)
        monkeypatch.delenv("NOTIFY_SOCKET")
        standby = fleet.start(**JOBS)
        while b"WATCHDOG=1" not in systemd.recv(4096):
            pass
        hung = hang(fleet, "completer")
        fleet.enqueue("quick")
        while b"STOPPING=1" not in systemd.recv(4096):
            pass
        assert time.monotonic() - hung < 60.0, "it is impatient: others wait for 90 s"
        assert leader.wait() == 1
        systemd.setblocking(False)
        assert not any(b"WATCHDOG=1" in word for word in rest(systemd)), "it drains, and still hangs"
        fleet.until_leads(standby)
        assert "NOTIFY_SOCKET" not in os.environ
