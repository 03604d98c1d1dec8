"""Drains of no-ops, freely and under a limit."""

from __future__ import annotations

from tests.bench import jobs
from tests.bench.floor import drain_floor
from tests.bench.scenarios.draining import Backlog, drain_fresh, filled
from tests.bench.scenarios.draining import drain as drain_stage
from tests.bench.scenarios.measures import Measures, Size


def drain(dsn: str, size: Size) -> Measures:
    """No-op jobs, beside the database's own loop."""
    backlog = Backlog(size.jobs)
    with filled(dsn, backlog) as own:
        drained = drain_stage(own, backlog)
        floor = drain_floor(own.dsn, size.jobs)
    return {
        "jobs_per_second": (drained.per_second, "1/s"),
        "floor_jobs_per_second": (floor, "1/s"),
        "share_of_floor": (drained.per_second / floor, "1"),
    }


def limited(dsn: str, size: Size) -> Measures:
    """No-op jobs of which three may run at once: checked for that."""
    backlog = Backlog(max(10, size.jobs // 10), type=jobs.LIMITED)
    return {"jobs_per_second": (drain_fresh(dsn, backlog).per_second, "1/s")}
