"""A leader that is asked to go, under a steady trickle of jobs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

from tests.bench.check import check_records
from tests.bench.scenarios.marking import mark, starts
from tests.bench.scenarios.measures import Measures, Size, percentiles
from tests.bench.stage import BenchFailed, Stage, stage

LOAD_GAP_S = 0.002
AROUND_S = 0.5


def handover(dsn: str, size: Size) -> Measures:
    """SIGTERM of the leader: the longest time without a start around it. No job is lost, none runs twice."""
    gaps_ms = []
    with stage(dsn) as own:
        own.start_replica()
        own.start_replica()
        leader = own.find(own.lead())
        with _load(own):
            for _ in range(size.handovers):
                time.sleep(AROUND_S)
                asked_at = time.monotonic()
                leader.send_signal(signal.SIGTERM)
                time.sleep(AROUND_S)
                gaps_ms.append(_longest_gap(own, asked_at) * 1000)
                leader.wait()
                own.start_replica()
                leader = own.find(own.lead())
    return percentiles(gaps_ms, "ms", (50, 99), "gap_")


@contextmanager
def _load(own: Stage) -> Iterator[None]:
    """Jobs one after another; at the end all of them must have run once."""
    over = threading.Event()

    def enqueue() -> int:
        n = 0
        while not over.wait(LOAD_GAP_S):
            mark(own, n)
            n += 1
        return n

    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(enqueue)
        try:
            yield
        finally:
            over.set()
        count = load.result()
    own.until("all jobs", lambda: len(own.notes()) >= count)
    left = "select not exists (select from dispatcher.job where state in ('pending', 'running'))"
    own.until("all outcomes", lambda: own.ask(left))
    if sorted(n for n, _ in starts(own)) != list(range(count)):
        raise BenchFailed("some job ran twice or never")
    check_records(own, count)


def _longest_gap(own: Stage, asked_at: float) -> float:
    """Between two starts, from shortly before until a start that is surely the next leader's."""
    own.until("a start afterwards", lambda: any(at > asked_at + AROUND_S for _, at in starts(own)))
    times = sorted(at for _, at in starts(own) if at > asked_at - AROUND_S / 2)
    return max(after - before for before, after in pairwise(times))
