"""Batches and chains while leaders die: each ends once, with exact counts, and nobody waits for ever."""

import itertools
import json
import signal
from collections import Counter
from functools import partial

import pytest

from tests.events import count_lines
from tests.system.replicas import CALM, ONLY_NOTIFICATIONS, SOON_S, Fleet, until

pytestmark = pytest.mark.system


def batch(fleet: Fleet, count: int, **options: object) -> int:
    return int(
        fleet.value(
            "select dispatcher.enqueue_batch('quick', array_fill('{}'::jsonb, array[%s]), %s::jsonb)",
            count,
            json.dumps(options),
        )
    )


def after(fleet: Fleet, *ids: int) -> int:
    return int(fleet.value("select dispatcher.enqueue('quick', '{}', %s::jsonb)", json.dumps({"after": ids})))


def has_run(fleet: Fleet, count: int, last: int) -> bool:
    """Two lines a job; a look must cost little, or all have run before it."""
    return count_lines(fleet.folder / "events") >= 2 * count or fleet.states([last])[last] == "succeeded"


@pytest.mark.parametrize("deaths", range(3))
def test_batches_and_chains_survive_their_leaders(fleet: Fleet, deaths: int) -> None:
    """The leader is killed again and again, at other points each time, among settles and links of thousands of jobs."""
    replicas = [
        fleet.launch(**CALM, threads="16") for _ in range(5)
    ]  # before there is work: it takes less time than a start
    for replica in replicas:
        fleet.until_up(replica)
    parents = [batch(fleet, 300, callback={"type": "quick"}) for _ in range(5)]
    chain = [fleet.enqueue("quick")[0]]
    for _ in range(40):
        chain.append(after(fleet, chain[-1]))
    last = after(fleet, *parents, chain[-1])
    for turn in range(3):
        wanted = 150 + 50 * deaths + 350 * turn
        until(partial(has_run, fleet, wanted, last), "some jobs have run")
        leader = until(fleet.leader_pid, "somebody leads")
        next(replica for replica in replicas if replica.pid == leader).send(signal.SIGKILL)
    fleet.until_all([last])
    assert set(fleet.states([*parents, *chain]).values()) == {"succeeded"}
    rows = fleet.query("select id, total, succeeded, callback_id from dispatcher.batches order by id")
    assert [row[:3] for row in rows] == [(parent, 300, 300) for parent in parents]
    fleet.until_all([callback for *_, callback in rows])
    assert fleet.value("select count(*) from dispatcher.job where type = 'quick'") == 1500 + 41 + 1 + 5
    ends, starts = fleet.events("end"), fleet.events("start")
    ended = {event.job: event.t for event in ends}
    begun = {event.job: event.t for event in reversed(starts)}
    for before, behind in itertools.pairwise(chain):
        assert ended[before] <= begun[behind]
    assert ended[last] >= max(ended[id] for (id,) in fleet.query("select id from dispatcher.job where parent_id > 0"))
    print("\nended in each process:", *Counter(event.pid for event in ends).values())
    until(lambda: not fleet.query("select id from dispatcher.follow_up"), "every mark is worked off")


def test_batch_canceled_while_it_runs_stops_its_jobs(fleet: Fleet) -> None:
    fleet.start_leader(**CALM)
    payload = json.dumps({"until": str(fleet.gate())})
    parent = fleet.value("select dispatcher.enqueue_batch('hold', array_fill(%s::jsonb, array[50]))", payload)
    until(lambda: len(fleet.events("start")) >= 4, "as many run as there are threads")
    running = fleet.query("select running, pending from dispatcher.batches where id = %s", parent)
    assert running == [(4, 46)]
    assert fleet.value("select dispatcher.cancel(%s)", parent) == "running"
    fleet.until_all([parent], "canceled")
    [row] = fleet.query("select total, canceled, running from dispatcher.batches where id = %s", parent)
    assert row == (50, 50, 0)
    assert {event.why for event in fleet.events("end")} == {"requested"}


def test_dependent_starts_promptly_on_an_idle_leader(fleet: Fleet) -> None:
    """No look lies between the end of a job and the start of the one that waits for it."""
    fleet.start_leader(**ONLY_NOTIFICATIONS)
    first = fleet.enqueue("quick")[0]
    chain = [first]
    for _ in range(20):
        chain.append(after(fleet, chain[-1]))
    fleet.until_all(chain, timeout_s=SOON_S)
