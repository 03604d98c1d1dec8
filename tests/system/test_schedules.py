"""Schedules on real replicas: within a second of the due time, and once, also where the leader dies at that second."""

import signal
import threading
from datetime import timedelta

import pytest

from tests.system.replicas import Fleet, until

pytestmark = pytest.mark.system


def due_in(fleet: Fleet, seconds: float) -> None:
    """All schedules are due then; as if somebody had changed them."""
    fleet.query(
        "update dispatcher.schedule set next_at = clock_timestamp() + make_interval(secs => %s) returning name", seconds
    )
    fleet.query("select pg_notify('dispatcher_fleet', 'schedules')")


def add(fleet: Fleet, name: str, cron: str = "0 0 1 1 *") -> None:
    fleet.query("select dispatcher.add_schedule(%s, %s, 'quick')", name, cron)
    planned = "select count(*) from dispatcher.schedule where next_at is null"
    until(lambda: fleet.value(planned) == 0, "the leader has worked it out")


def test_idle_leader_fires_within_a_second_of_the_due_time(fleet: Fleet) -> None:
    fleet.start_leader(poll_interval="20s")
    add(fleet, "s")
    due_in(fleet, 0.7)
    until(lambda: fleet.events("end"), "it has run")
    [(late,)] = fleet.query("select started_at - run_at from dispatcher.job")
    assert timedelta(0) <= late < timedelta(seconds=1)


@pytest.mark.parametrize("early_s", [0.3, 0.05, 0.0, -0.01])
def test_leader_killed_at_that_very_second(fleet: Fleet, early_s: float) -> None:
    leader, standby = fleet.start_pair()
    for number in range(5):
        add(fleet, f"s{number}")
    due_in(fleet, 0.5)
    threading.Event().wait(0.5 - early_s)  # the fault comes at a time, not after an event
    leader.send(signal.SIGKILL)
    fleet.until_leads(standby)
    until(lambda: fleet.value("select count(*) from dispatcher.schedule where last_at is null") == 0, "all are fired")
    rows = fleet.query("select count(*) from dispatcher.job group by run_at")
    assert fleet.value("select count(*) from dispatcher.job") == 5, rows
    ids = [id for (id,) in fleet.query("select id from dispatcher.job")]
    fleet.until_all(ids)
