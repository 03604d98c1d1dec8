"""Rules changed at run time, on real replicas: in effect within a notification, kept by the next leader."""

import itertools
import signal

import pytest

from tests.system.replicas import CALM, ONLY_NOTIFICATIONS, SOON_S, Fleet, until

pytestmark = pytest.mark.system
LATE_S = 0.2  # between a claim's look at the clock and its start in the server, on a busy machine


def test_pause_holds_through_a_change_of_leader_until_it_is_resumed(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair(**ONLY_NOTIFICATIONS)
    [runs] = fleet.enqueue("hold", until=str(fleet.gate()))
    fleet.until_started([runs])
    fleet.query("select dispatcher.pause('hold')")
    until(lambda: leader.metric("dispatcher_paused") == 1, "the leader has heard of it", SOON_S)
    waits = fleet.enqueue("hold", 3, until=str(fleet.gate()))
    others = fleet.enqueue("quick", 3)
    fleet.until_all(others)
    fleet.gate().touch()
    fleet.until_all([runs])  # what runs goes on
    leader.send(signal.SIGKILL)
    fleet.until_leads(standby)
    fleet.until_all(fleet.enqueue("quick", 3))
    assert set(fleet.states(waits).values()) == {"pending"}
    fleet.query("select dispatcher.resume('hold')")
    fleet.until_all(waits, timeout_s=SOON_S)


def test_rate_holds_through_a_change_of_leader(fleet: Fleet) -> None:
    """The new leader begins with an empty bucket: over any time at most a burst more than the rate has it.

    It goes by its own clock, before it asks; here it is seen by the server's, some moments later.
    """
    rate, burst = 50.0, 5
    leader, standby = fleet.start_pair(**CALM)
    fleet.query("select dispatcher.set_limit('quick', '{\"rate\": 50, \"burst\": 5}')")
    until(lambda: leader.metric("dispatcher_rate") == rate, "the leader has heard of it")
    ids = fleet.enqueue("quick", 100)
    until(lambda: len(fleet.events("start")) >= 40, "some have started")
    leader.send(signal.SIGKILL)
    fleet.until_leads(standby)
    fleet.until_all(ids)
    claimed = sorted(
        at
        for (at,) in fleet.query("select extract(epoch from started_at)::float8 from dispatcher.job where attempt = 1")
    )
    for first, last in itertools.combinations(range(len(claimed)), 2):
        assert last - first + 1 <= 2 * burst + rate * (claimed[last] - claimed[first] + LATE_S) + 1


def test_limit_lowered_and_raised_while_jobs_run(fleet: Fleet) -> None:
    leader = fleet.start_leader(**ONLY_NOTIFICATIONS)
    ids = fleet.enqueue("hold", 4, until=str(fleet.gate()))
    fleet.until_started(ids)
    fleet.query("select dispatcher.set_limit('hold', '{\"limit\": 1}')")
    until(lambda: leader.metric('dispatcher_limit{type="hold"}') == 1, "the leader has heard of it", SOON_S)
    more = fleet.enqueue("hold", 3, until=str(fleet.gate("second")))
    fleet.gate().touch()
    fleet.until_all(ids)
    until(lambda: len(fleet.events("start")) == 5, "one more has started")
    assert fleet.value("select count(*) from dispatcher.job where state = 'running'") == 1
    fleet.query("select dispatcher.set_limit('hold', '{\"limit\": null}')")
    fleet.until_started(more, timeout_s=SOON_S)
    fleet.gate("second").touch()
    fleet.until_all(more)


@pytest.mark.parametrize("aging", ["0s", "10min"])
def test_old_job_of_low_priority_starts_first_only_with_the_setting(fleet: Fleet, aging: str) -> None:
    """Also where it has waited under a leader before."""
    leader, standby = fleet.start_pair(**CALM, threads="1", priority_aging=aging)
    blocking = fleet.enqueue("hold", until=str(fleet.gate()))
    fleet.until_started(blocking)
    [old, new] = fleet.enqueue("quick", 2)
    fleet.conn.execute(
        "update dispatcher.job set priority = 5, created_at = now() - interval '1 hour' where id = %s", (old,)
    )
    leader.send(signal.SIGKILL)
    fleet.until_leads(standby)
    fleet.until_started(blocking, pid=standby.pid)
    fleet.gate().touch()
    fleet.until_all([*blocking, old, new])
    quick = [event.job for event in fleet.events("start") if event.job in (old, new)]
    assert quick == ([new, old] if aging == "0s" else [old, new])
