"""What a replica takes of memory: idle, with very much to do, and over a load that lasts."""

from __future__ import annotations

import time

from tests.bench import jobs
from tests.bench.check import check_records
from tests.bench.scenarios.draining import SLOWEST, Backlog, filled
from tests.bench.scenarios.measures import THREADS, Measures, Size
from tests.bench.scenarios.process import highest_mb, resident_mb
from tests.bench.stage import PATIENCE_S, Stage, stage

MANY_THREADS = {"DISPATCHER_THREADS": str(THREADS)}
EVERY_S = 0.1  # of the load
LOOK_S = 0.5  # seldom, since each look passes over all finished rows


def memory(dsn: str, size: Size) -> Measures:
    """Resident memory in the three cases; of the load, after a tenth of it and at its end."""
    return _idle(dsn, size) | _pending(dsn, size) | _load(dsn, size)


def _idle(dsn: str, size: Size) -> Measures:
    with stage(dsn) as own:
        replica = own.start_replica()
        own.lead()
        time.sleep(size.idle_s / 2)
        return {"idle": (resident_mb(replica.pid), "MB")}


def _pending(dsn: str, size: Size) -> Measures:
    with filled(dsn, Backlog(size.pending, type=jobs.QUIET)) as own:
        replica = own.start_replica(**MANY_THREADS)
        _finish(own, size.pending)
        highest = highest_mb(replica.pid)
        own.stop_replica(replica)
        check_records(own, size.pending)
    return {f"pending_{size.pending}_highest": (highest, "MB")}


def _load(dsn: str, size: Size) -> Measures:
    each = max(1, round(size.load_per_s * EVERY_S))
    ticks = max(1, round(size.load_s / EVERY_S))
    early = 0.0
    with stage(dsn) as own:
        replica = own.start_replica(**MANY_THREADS)
        own.lead()
        began = time.monotonic()
        for tick in range(ticks):
            time.sleep(max(0.0, began + tick * EVERY_S - time.monotonic()))
            own.client.enqueue_many(jobs.QUIET, ({"n": n} for n in range(each)))
            if tick == ticks // 10:
                early = resident_mb(replica.pid)
        took = time.monotonic() - began
        late = resident_mb(replica.pid)
        _finish(own, each * ticks)
        own.stop_replica(replica)
        check_records(own, each * ticks)
    return {
        "load_early": (early, "MB"),
        "load_late": (late, "MB"),
        "load": (took, "s"),
        "load_jobs_per_second": (each * ticks / took, "1/s"),
    }


def _finish(own: Stage, count: int) -> None:
    left = "select not exists (select from dispatcher.job where state in ('pending', 'running'))"
    pause_s = min(LOOK_S, count / 1e5)

    def done() -> bool:
        time.sleep(pause_s)
        return bool(own.ask(left))

    own.until("the end of all jobs", done, PATIENCE_S + count / SLOWEST)
