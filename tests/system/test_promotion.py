"""PostgreSQL itself fails over: its primary is killed, and the standby promoted."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher import Client
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.errors import DatabaseUnavailable
from tests.standby import Pair, standby_of
from tests.system.replicas import TIMINGS, Fleet, overlaps, until

pytestmark = pytest.mark.system

ORPHAN_AFTER_S = 2.5
assert TIMINGS["orphan_after"] == "2500ms"


@pytest.fixture
def pair(postgres: EmbeddedPostgres, postgres_dsn: str) -> Iterator[Pair]:
    with standby_of(postgres) as pair:
        yield pair


@pytest.fixture
def fleet(pair: Pair, postgres_dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet that knows both servers; the test itself is connected to the primary, until `fail_over`."""
    with Fleet(pair.dsn(postgres_dsn), tmp_path, admin_dsn=postgres_dsn) as fleet:
        yield fleet


def fail_over(fleet: Fleet, pair: Pair, postgres_dsn: str) -> float:
    """Kills the primary and promotes the standby; when the primary was killed."""
    killed = time.monotonic()
    pair.primary.kill()
    pair.promote()
    fleet.reconnect(pair.standby_dsn(postgres_dsn))
    return killed


def starts(fleet: Fleet, id: int) -> list[tuple[int, int]]:
    """(process, attempt) of each start of a job."""
    return [(event.pid, event.attempt) for event in fleet.events("start", job=id)]


def enqueue_and_lose_the_claim(fleet: Fleet, pair: Pair, type: str) -> int:
    """A job that the standby knows, and whose claim it will not get to know."""
    payload = json.dumps({"until": str(fleet.gate())})
    id = fleet.value("select dispatcher.enqueue(%s, %s::jsonb, '{\"delay\": 1}')", type, payload)
    pair.until_streaming()
    pair.link.pause()
    return int(id)


# Nothing is lost


def test_replicas_go_on_on_the_promoted_standby_and_jobs_that_run_are_not_disturbed(
    fleet: Fleet, pair: Pair, postgres_dsn: str
) -> None:
    leader, standby = fleet.start_pair()
    held = fleet.enqueue("hold", 2, until=str(fleet.gate()))
    fleet.until_started(held, pid=leader.pid)
    waiting = [fleet.value("select dispatcher.enqueue('quick', '{}', '{\"delay\": 2}')")]
    pair.until_streaming()
    killed = fail_over(fleet, pair, postgres_dsn)
    promoted = time.monotonic()
    after = fleet.enqueue("quick", 5)
    fleet.until_started(after)
    first = min(event.t for event in fleet.events("start") if event.job in after)
    print(f"\nfirst claim {first - killed:.2f} s after kill -9, {first - promoted:.2f} s after the promotion")
    assert first - promoted >= ORPHAN_AFTER_S - 0.2, "what was claimed and lost may still run somewhere"
    fleet.gate().touch()
    fleet.until_all(held + after + waiting)
    assert {fleet.job(id)["attempt"] for id in held} == {1}, "they were replicated, and so go on"
    assert not overlaps(fleet.events())
    assert leader.alive
    assert standby.alive


def test_with_a_synchronous_standby_no_job_that_was_accepted_is_lost(
    fleet: Fleet, pair: Pair, postgres_dsn: str
) -> None:
    pair.be_synchronous()
    fleet.start_pair()
    accepted: list[int] = []
    enough = threading.Event()

    def enqueue() -> None:
        with Client(pair.dsn(postgres_dsn)) as client:
            while not enough.wait(0.01):
                try:
                    accepted.append(client.enqueue("quick", {"seconds": 0.05}))
                except DatabaseUnavailable:
                    continue

    with_jobs = threading.Thread(target=enqueue)
    with_jobs.start()
    until(lambda: len(fleet.events("end")) > 20, "jobs flow")
    fail_over(fleet, pair, postgres_dsn)
    promoted_at = len(accepted)
    until(lambda: len(accepted) > promoted_at + 20, "the client goes on")
    enough.set()
    with_jobs.join()
    fleet.until_all(accepted)
    print(f"\n{promoted_at} jobs were accepted before, {len(accepted) - promoted_at} after")
    assert not overlaps(fleet.events())
    finished = {event.job for event in fleet.events("end")}
    assert finished >= set(accepted)


# An asynchronous standby lags behind: commits are lost


def test_a_job_whose_claim_was_lost_is_stopped_before_it_is_given_out_again(
    fleet: Fleet, pair: Pair, postgres_dsn: str
) -> None:
    leader, standby = fleet.start_pair()
    id = enqueue_and_lose_the_claim(fleet, pair, "hold")
    fleet.until_started([id], pid=leader.pid)
    fail_over(fleet, pair, postgres_dsn)
    assert fleet.states([id])[id] in ("scheduled", "pending"), "the claim was lost"
    until(lambda: len(starts(fleet, id)) == 2, "it is given out again")
    fleet.gate().touch()
    fleet.until_all([id])
    assert [attempt for _, attempt in starts(fleet, id)] == [1, 1], "the number is given out twice, as is documented"
    assert not overlaps(fleet.events())
    assert [event.why for event in fleet.events("end")] == ["lost", ""]
    assert leader.alive
    assert standby.alive
