"""Several pools behind one leader: each is filled by itself, and none waits for another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dispatcher.db import Connection
from dispatcher.executor import Executor, Registry
from dispatcher.inflight import InFlight
from dispatcher.metrics import Metrics
from dispatcher.pool import Pools
from dispatcher.queries import claims
from dispatcher.services.dispatch import Dispatch
from tests.db.leading import Collector
from tests.db.running import OWNER, TERM, enqueue, nothing, publish, session

HERE = Executor("here", nothing, "tests.here")
FAR = Executor("far", nothing, "tests.far", pool="process")
SLOW = Executor("slow", nothing, "tests.slow", pool="process", rate=0.001, burst=1)
SPECS = (HERE, FAR, SLOW)


class Two:
    """A leader with threads and worker processes that only collect."""

    def __init__(self, conn: Connection) -> None:
        inflight = InFlight()
        self.here = Collector(inflight, 4, "thread")
        self.far = Collector(inflight, 2, "process")
        self.conn = conn
        registry = Registry(SPECS)
        self.dispatch = Dispatch(
            replica=OWNER,
            lease_number=1,
            registry=registry,
            inflight=inflight,
            pools=Pools([self.here, self.far], registry),
            before_run=lambda: None,
            metrics=Metrics(),
        )
        self.dispatch.begin(conn, TERM)

    def run(self) -> tuple[list[int], list[int]]:
        """What each pool was given until nothing more is claimed; all of it executes."""
        for _ in range(20):
            claimed = self.dispatch.step(self.conn)
            for pool in (self.here, self.far):
                pool.execute()
            if not claimed and self.dispatch.looked_everywhere:
                return (
                    [taken.claimed.id for taken in self.here.taken],
                    [taken.claimed.id for taken in self.far.taken],
                )
            if not claimed:
                if self.dispatch.room() <= 0:
                    break
                self.dispatch.read_again()
        return [taken.claimed.id for taken in self.here.taken], [taken.claimed.id for taken in self.far.taken]


@pytest.fixture
def two(dsn: str, conn: Connection) -> Iterator[Two]:
    publish(conn, *SPECS)
    with session(dsn) as lease:
        yield Two(lease)


def test_each_job_goes_to_its_pool_up_to_its_places(conn: Connection, two: Two) -> None:
    far = [enqueue(conn, "far") for _ in range(5)]
    here = [enqueue(conn, "here") for _ in range(9)]
    assert two.run() == (here[:4], far[:2])
    assert two.dispatch.room() == 0


def test_a_full_pool_does_not_hold_up_another(conn: Connection, two: Two) -> None:
    urgent = [enqueue(conn, "far", priority=-100) for _ in range(100)]
    assert two.run() == ([], urgent[:2])
    late = enqueue(conn, "here", priority=100)
    two.dispatch.heard("here")
    assert two.run() == ([late], urgent[:2])


def test_what_waits_for_a_full_pool_does_not_slow_down_who_is_told_of_for_another(
    conn: Connection, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        enqueue(conn, "far")
    two.run()
    told = enqueue(conn, "here")
    monkeypatch.setattr(claims, "list_lanes", None)
    two.dispatch.heard("here")
    assert two.dispatch.step(two.conn) == 1, "claimed without a look at what waits"
    assert two.here.taken[-1].claimed.id == told
    two.dispatch.heard("far")
    two.far.size = 3
    with pytest.raises(TypeError):  # it waits its turn, which takes a look
        two.dispatch.step(two.conn)


def test_a_pool_without_a_place_is_given_nothing(conn: Connection, two: Two) -> None:
    """As that of a cluster which has not been found yet."""
    two.far.size = 0
    far, here = enqueue(conn, "far"), enqueue(conn, "here")
    assert two.run() == ([here], [])
    two.far.size = 1
    two.dispatch.heard("far")
    assert two.run() == ([here], [far])


def test_what_one_pool_s_rate_holds_back_is_not_forgotten_for_another(conn: Connection, two: Two) -> None:
    held = [enqueue(conn, "slow") for _ in range(2)]
    here = enqueue(conn, "here")
    two.run()
    assert two.dispatch.patience(10_000.0) < 10_000.0
    assert [taken.claimed.id for taken in two.here.taken] == [here]
    assert len(held) == 2


def test_only_a_stalled_pool_s_jobs_are_given_back(conn: Connection, two: Two) -> None:
    far, here = enqueue(conn, "far"), enqueue(conn, "here")
    assert two.dispatch.step(conn=two.conn) == 2
    two.far.stuck = True
    two.dispatch.return_stalled(two.conn)
    states: dict[int, str] = dict(conn.execute("select id, state from dispatcher.job").fetchall())
    assert states == {far: "pending", here: "running"}
