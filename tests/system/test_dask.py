"""Jobs on a Dask cluster: a task outlives its owner, a worker and a scheduler are lost, and still no attempt overlaps
another, each job is recorded once, and the limits hold."""

from __future__ import annotations

import itertools
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster import Cluster, kill
from tests.events import Event
from tests.system.replicas import Fleet, Replica, until

pytestmark = pytest.mark.system

ORPHAN_AFTER_S = 2.5
DASK = {"executors": "tests.system.dask_jobs", "orphan_after": f"{ORPHAN_AFTER_S}s", "shutdown_grace": "1s"}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, workers=2, threads=4) as cluster:
        yield cluster
        for log in tmp_path.glob("*er*.log"):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")


def settings(cluster: Cluster) -> dict[str, str]:
    return {**DASK, "dask_scheduler": cluster.address}


def start_leader(fleet: Fleet, cluster: Cluster, places: int = 8, **more: str) -> Replica:
    leader = fleet.start_leader(**settings(cluster) | more)
    until_found(fleet, places)
    return leader


def until_found(fleet: Fleet, places: int = 8) -> None:
    """The leader knows the workers."""
    until(
        lambda: fleet.value("select (pools->>'dask')::integer from dispatcher.lease") == places,
        "the leader has found them",
    )


def enqueue(fleet: Fleet, count: int = 1, **payload: object) -> list[int]:
    return fleet.enqueue("dask.run", count, folder=str(fleet.folder), **payload)


def last_seen(fleet: Fleet, event: Event) -> float:
    """When this attempt was last seen to run: its end, or its latest tick."""
    ends = [e.t for e in fleet.events("end", job=event.job) if e.attempt == event.attempt]
    tick = fleet.folder / f"tick-{event.job}-{event.attempt}"
    ticks = [float(tick.read_text(encoding="ascii").split()[1])] if tick.exists() else []
    return max([event.t, *ends, *ticks])


def overlaps(fleet: Fleet) -> list[tuple[Event, Event]]:
    """Attempts that began before the one before was last seen to run."""
    found = []
    by_job: dict[int, list[Event]] = {}
    for event in fleet.events("start"):
        by_job.setdefault(event.job, []).append(event)
    for starts in by_job.values():
        starts.sort(key=lambda event: event.attempt)
        found += [(one, other) for one, other in itertools.pairwise(starts) if other.t < last_seen(fleet, one)]
    return found


def started_by(fleet: Fleet, ids: list[int], process: psutil.Process) -> list[int]:
    """Those of the jobs whose latest attempt runs below that process."""
    below = {child.pid for child in process.children(recursive=True)}
    latest = {event.job: event.pid for event in fleet.events("start")}
    return [id for id in ids if latest[id] in below]


def test_jobs_on_a_worker_that_is_killed_run_again_and_the_others_go_on(fleet: Fleet, cluster: Cluster) -> None:
    start_leader(fleet, cluster)
    ids = enqueue(fleet, 8)
    fleet.until_started(ids)
    lost = started_by(fleet, ids, psutil.Process(cluster.workers[0].pid))
    assert len(lost) == 4, "spread over both workers"
    kill(cluster.workers[0])
    cluster.start_worker()
    until(lambda: {e.job for e in fleet.events("start") if e.attempt == 2} == set(lost), "they run again")
    fleet.gate().touch()
    fleet.until_all(ids)
    assert not overlaps(fleet)
    assert Counter(event.job for event in fleet.events("start")) == {id: 2 if id in lost else 1 for id in ids}
    for id in lost:
        [error] = fleet.job(id)["errors"]
        assert error["kind"] == "crash"
        assert re.fullmatch(r"the Dask worker tcp://127\.0\.0\.1:\d+ was lost while it ran the job", error["message"])


def test_jobs_of_a_frozen_worker_are_dead_before_they_run_again(fleet: Fleet, cluster: Cluster) -> None:
    """It can kill nothing, and Dask believes in it for long: the kernel timers of its supervisors do it."""
    start_leader(fleet, cluster)
    ids = enqueue(fleet, 8, stubborn=True)
    fleet.until_started(ids)
    worker = cluster.workers[0]
    frozen = started_by(fleet, ids, psutil.Process(worker.pid))
    worker.send_signal(signal.SIGSTOP)
    kill_one = [id for id in ids if id not in frozen]
    until(lambda: set(fleet.states(frozen).values()) <= {"pending", "scheduled"}, "they were taken from it")
    assert set(fleet.states(kill_one).values()) == {"running"}
    fleet.gate().touch()
    worker.send_signal(signal.SIGCONT)
    fleet.until_all(ids)
    assert not overlaps(fleet)


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize("stubborn", [False, True])
def test_jobs_of_a_leader_that_is_gone_end_before_they_run_again(
    fleet: Fleet, cluster: Cluster, how: str, stubborn: bool
) -> None:
    leader, standby = fleet.start_pair(**settings(cluster))
    until_found(fleet)
    ids = enqueue(fleet, 8, stubborn=stubborn)
    fleet.until_started(ids)
    leader.send(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    fleet.until_leads(standby)
    until(lambda: {e.job for e in fleet.events("start") if e.attempt == 2} == set(ids), "they run again")
    fleet.gate().touch()
    fleet.until_all(ids)
    assert not overlaps(fleet)
    again = min(event.t for event in fleet.events("start") if event.attempt == 2)
    first = min(event.t for event in fleet.events("start"))
    assert again - first > 0.9 * ORPHAN_AFTER_S, "the death of the leader's process proves nothing about the workers"


def test_the_scheduler_restarted(fleet: Fleet, cluster: Cluster) -> None:
    leader = start_leader(fleet, cluster)
    ids = enqueue(fleet, 8)
    fleet.until_started(ids)
    assert cluster.scheduler is not None
    kill(cluster.scheduler)
    until(
        lambda: all(worker.poll() is not None for worker in cluster.workers), "Dask's workers end without a scheduler"
    )
    cluster.start_scheduler()
    cluster.start_worker()
    cluster.start_worker()
    until(lambda: {e.job for e in fleet.events("start") if e.attempt > 1} == set(ids), "they run again")
    fleet.gate().touch()
    fleet.until_all(ids)
    assert not overlaps(fleet)
    assert leader.alive
    assert {fleet.job(id)["failures"] for id in ids} == {0}, "no fault of theirs"


def test_a_cancel_reaches_a_job_on_a_worker(fleet: Fleet, cluster: Cluster) -> None:
    start_leader(fleet, cluster)
    [id] = enqueue(fleet)
    fleet.until_started([id])
    fleet.query("select dispatcher.cancel(%s)", id)
    fleet.until_all([id], "canceled")
    [end] = fleet.events("end", job=id)
    assert end.why == "requested"


def test_a_stop_gives_back_what_heeds_and_leaves_the_rest_until_it_is_over(fleet: Fleet, cluster: Cluster) -> None:
    leader, standby = fleet.start_pair(**settings(cluster))
    until_found(fleet)
    heeding, stubborn = enqueue(fleet, 2), enqueue(fleet, 2, stubborn=True)
    fleet.until_started(heeding + stubborn)
    leader.send(signal.SIGTERM)
    assert leader.wait() == 0
    assert leader.said("ends at once: running jobs are left to who sees this process dead")
    until(lambda: {e.job for e in fleet.events("start") if e.attempt == 2} == {*heeding, *stubborn}, "they run again")
    fleet.gate().touch()
    fleet.until_all(heeding + stubborn)
    assert not overlaps(fleet)
    assert {fleet.job(id)["failures"] for id in heeding} == {0}
    assert standby.alive


def most_at_once(events: list[Event], jobs: set[int]) -> int:
    """How many of these jobs ran at the same instant."""
    now = most = 0
    for _, step in sorted((event.t, 1 if event.what == "start" else -1) for event in events if event.job in jobs):
        now += step
        most = max(most, now)
    return most


def test_two_thousand_jobs_a_hundred_at_once_while_the_leader_idles(fleet: Fleet, tmp_path: Path) -> None:
    with Cluster(tmp_path, workers=4, threads=25) as cluster:
        # No fault is waited for here, and a hundred processes that start at once keep two cores busy for long.
        calm = {"heartbeat_interval": "1s", "lease_duration": "5s", "orphan_after": "30s"}
        leader = start_leader(fleet, cluster, places=100, **calm)
        threads = psutil.Process(leader.pid).num_threads()
        hold = fleet.enqueue("dask.hold", 100, folder=str(fleet.folder), until="first")
        # A hundred processes are started, which takes a while on two cores.
        until(lambda: len(fleet.events("start")) == 100, "a hundred run at once", timeout_s=100)
        assert set(fleet.states(hold).values()) == {"running"}
        assert psutil.Process(leader.pid).num_threads() <= threads + 3, "the leader has a future for each, no thread"
        (tmp_path / "first").touch()
        ids = fleet.enqueue("dask.quick", 1900, folder=str(fleet.folder), seconds=0.1)
        fleet.until_all(hold + ids, timeout_s=100)
        assert most_at_once(fleet.events(), set(hold + ids)) <= 100, "as many as there are places"
        assert most_at_once(fleet.events(), set(ids)) <= 60, "the limit of the type holds over the workers"
        assert Counter(event.job for event in fleet.events("start")) == dict.fromkeys(hold + ids, 1)
