"""How soon a job starts in a system that has nothing to do."""

from __future__ import annotations

import time

from tests.bench.scenarios.marking import mark, starts, wait_for
from tests.bench.scenarios.measures import Measures, Size, percentiles
from tests.bench.stage import stage


def pickup(dsn: str, size: Size) -> Measures:
    """An idle system, a job now and then: from the call of enqueue to the executor's first line."""
    with stage(dsn) as own:
        own.start_replica()
        own.lead()
        mark(own, -1)  # connections are open and statements prepared, as in any system that runs
        wait_for(own, -1)
        asked: dict[int, float] = {}
        began = time.monotonic()
        for n in range(size.pickups):
            time.sleep(max(0.0, began + n * size.gap_s - time.monotonic()))  # the pace is what is wanted
            asked[n] = time.monotonic()
            mark(own, n)
        own.until("all jobs", lambda: len(own.notes()) == size.pickups + 1)
        started = dict(starts(own))
    return percentiles([(started[n] - at) * 1000 for n, at in asked.items()], "ms", (50, 95, 99))
