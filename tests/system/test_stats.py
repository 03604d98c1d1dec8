"""Statistics of real replicas: all that they settled is in the tallies once they have ended."""

import signal

import pytest

from dispatcher import Client
from tests.system.replicas import CALM, Fleet, count_sessions, until

pytestmark = pytest.mark.system


def test_every_job_of_a_leader_told_to_stop_is_counted_and_the_idle_one_asked_nothing(fleet: Fleet, dsn: str) -> None:
    leader, standby = fleet.start_pair(**CALM)
    ids = fleet.enqueue("quick", 300)
    fleet.until_all(ids)
    assert count_sessions(fleet.conn, "dispatcher teller") <= 1  # the stand-by opens none
    leader.send(signal.SIGTERM)
    leader.process.wait(10)
    fleet.until_leads(standby)
    more = fleet.enqueue("quick", 50)
    fleet.until_all(more)
    standby.send(signal.SIGTERM)
    standby.process.wait(10)
    with Client(dsn) as client:
        [found] = until(client.stats, "something is told")
    assert (found.type, found.day.succeeded, found.day.failed) == ("quick", 350, 0)
    assert found.day.duration is not None
    assert found.day.wait is not None
    assert found.day.wait.p50 < 10
