"""A type that only a standby can run: the lease goes there by itself, and nothing is lost on the way."""

from __future__ import annotations

import time

import pytest

from tests.system.replicas import CALM, Fleet, until

pytestmark = pytest.mark.system

OLD, NEW = "tests.system.fault_jobs", "tests.system.fault_jobs,tests.system.ending_jobs"


def test_job_of_a_type_that_only_a_standby_knows_runs(fleet: Fleet) -> None:
    """As in a rolling update: whoever knows more asks for the lease, and whoever knows less never takes it back."""
    old = fleet.start_leader(**CALM, executors=OLD)
    [held] = fleet.enqueue("hold", 1, until=str(fleet.gate()))
    fleet.until_started([held], pid=old.pid)
    new = fleet.start(**CALM, executors=NEW)
    fleet.conn.execute("create table effect (job bigint, attempt integer)")
    [id] = fleet.enqueue("ending", 1, way="partial")
    fleet.until_all([id], "partial")
    assert {event.pid for event in fleet.events("start", job=id)} == {new.pid}
    assert (fleet.leader_pid(), fleet.term()) == (new.pid, 2)
    fleet.gate().touch()
    fleet.until_all([held])
    assert fleet.job(held)["attempt"] == 1, "it went on through the change"
    time.sleep(1.0)  # what is looked for is that nothing happens: ten heartbeats
    assert fleet.term() == 2
    until(lambda: old.metric("dispatcher_leader") == 0, "it stands by")
