"""Scenarios of latency: an idle system, a leader that is killed, stopped, or asked to go."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

from dispatcher.settings import Settings
from tests.bench import jobs
from tests.bench.scenarios.measures import Measures, Size, percentiles
from tests.bench.stage import Stage, stage

LOAD_GAP_S = 0.002
AROUND_S = 0.5  # of a hand-over


def pickup(dsn: str, size: Size) -> Measures:
    """An idle system, a job now and then: from the call of enqueue to the executor's first line."""
    with stage(dsn) as own:
        own.start_replica()
        own.lead()
        _mark_and_wait(own, -1)  # connections are open and statements prepared, as in any system that runs
        asked: dict[int, float] = {}
        began = time.monotonic()
        for n in range(size.pickups):
            time.sleep(max(0.0, began + n * size.gap_s - time.monotonic()))  # the pace is what is wanted
            asked[n] = time.monotonic()
            own.client.enqueue(jobs.MARK, {"n": n})
        own.until("all jobs", lambda: len(own.notes()) == size.pickups + 1)
        started = {int(note[0]): float(note[1]) for note in own.notes()}
    return percentiles([(started[n] - at) * 1000 for n, at in asked.items()], "ms", (50, 95, 99))


def failover(dsn: str, size: Size) -> Measures:
    """kill -9 of the leader while a job waits: until the next leader claims it, and until its first line."""
    claimed_ms, started_ms = [], []
    with stage(dsn) as own:
        own.start_replica()
        own.start_replica()
        for n in range(size.kills):
            leader = own.find(own.lead())
            _mark_and_wait(own, 2 * n)
            leader.send_signal(signal.SIGSTOP)  # for an instant, so that it is not the one who claims what comes now
            id = own.client.enqueue(jobs.MARK, {"n": 2 * n + 1})
            leader.kill()
            killed_at, killed_time = time.monotonic(), time.time()
            started_ms.append((_wait_for(own, 2 * n + 1) - killed_at) * 1000)
            claimed = own.ask("select extract(epoch from started_at)::float8 from dispatcher.job where id = %s", id)
            claimed_ms.append((float(str(claimed)) - killed_time) * 1000)
            leader.wait()
            own.start_replica()
    return percentiles(claimed_ms, "ms", (50, 99), "claim_") | percentiles(started_ms, "ms", (50, 99), "start_")


def stop(dsn: str, size: Size) -> Measures:
    """SIGSTOP of the leader while a job waits: how much longer than the lease its first line on the next one takes."""
    lease_s = Settings.model_fields["lease_duration"].default.total_seconds()
    over_ms = []
    with stage(dsn) as own:
        own.start_replica()
        own.start_replica()
        for n in range(size.stops):
            leader = own.find(own.lead())
            _mark_and_wait(own, 2 * n)
            leader.send_signal(signal.SIGSTOP)
            stopped_at = time.monotonic()
            own.client.enqueue(jobs.MARK, {"n": 2 * n + 1})
            over_ms.append((_wait_for(own, 2 * n + 1) - stopped_at - lease_s) * 1000)
            leader.kill()
            leader.wait()
            own.start_replica()
    return percentiles(over_ms, "ms", (50, 99), "after_lease_")


def handover(dsn: str, size: Size) -> Measures:
    """SIGTERM of the leader under a steady trickle of jobs: the longest time without a start around it."""
    gaps_ms = []
    with stage(dsn) as own:
        own.start_replica()
        own.start_replica()
        over = threading.Event()

        def load() -> None:
            n = 0
            while not over.wait(LOAD_GAP_S):
                own.client.enqueue(jobs.MARK, {"n": n})
                n += 1

        thread = threading.Thread(target=load)
        leader = own.find(own.lead())
        thread.start()
        try:
            for _ in range(size.handovers):
                time.sleep(AROUND_S)
                asked_at = time.monotonic()
                leader.send_signal(signal.SIGTERM)
                time.sleep(AROUND_S)
                gaps_ms.append(_longest_gap(own, asked_at) * 1000)
                leader.wait()
                own.start_replica()
                leader = own.find(own.lead())
        finally:
            over.set()
            thread.join()
    return percentiles(gaps_ms, "ms", (50, 99), "gap_")


def _longest_gap(own: Stage, asked_at: float) -> float:
    around = (asked_at - AROUND_S / 2, asked_at + AROUND_S)
    times = sorted(at for at in (float(note[1]) for note in own.notes()) if around[0] <= at <= around[1])
    return max(after - before for before, after in zip([around[0], *times], [*times, around[1]], strict=True))


def _mark_and_wait(own: Stage, n: int) -> None:
    own.client.enqueue(jobs.MARK, {"n": n})
    _wait_for(own, n)


def _wait_for(own: Stage, n: int) -> float:
    return float(own.until(f"job {n}", lambda: own.noted(str(n)))[0])


LATENCIES: dict[str, Callable[[str, Size], Measures]] = {
    "pickup": pickup,
    "failover": failover,
    "stop": stop,
    "handover": handover,
}
