"""Schedules on real replicas: within a second of the due time, and once, also where the leader dies at that second."""

import signal
import threading

import pytest

from tests.system.replicas import CALM, Fleet, until
from tests.timing import quickest

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
    fleet.start_leader(**CALM, poll_interval="120s")
    add(fleet, "s")
    fired = list[int]()

    def late_s() -> float:
        due_in(fleet, 0.7)
        until(lambda: len(fleet.events("end")) > len(fired), "it has run")
        query = "select id, extract(epoch from created_at - run_at)::float8 from dispatcher.job where id <> all(%s)"
        [(id, late_s)] = fleet.query(query, fired)
        fired.append(id)
        assert late_s >= 0
        return float(late_s)

    assert quickest(late_s, within_s=1.0) < 1.0


@pytest.mark.parametrize("early_s", [0.3, 0.05, 0.0, -0.01])
def test_leader_killed_at_that_very_second(fleet: Fleet, early_s: float) -> None:
    leader, standby = fleet.start_pair(**CALM)
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
