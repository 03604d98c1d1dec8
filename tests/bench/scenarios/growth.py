"""Drains in databases that hold much: finished rows, pending rows, types, tenants."""

from __future__ import annotations

from dataclasses import replace

from tests.bench import jobs
from tests.bench.scenarios.draining import Backlog, drain_fresh, drain_part
from tests.bench.scenarios.measures import Measures, Size


def growth(dsn: str, size: Size) -> Measures:
    """Each beside the same drain without, right before it."""
    plain = Backlog(size.jobs)
    variants = {f"finished_{count}": replace(plain, finished=count) for count in size.finished} | {
        f"types_{size.types}": many_types(plain, size.types),
        f"tenants_{size.tenants}": replace(plain, tenants=size.tenants),
    }
    measures: Measures = {}
    for name, backlog in variants.items():
        base = drain_fresh(dsn, plain).per_second
        measures |= _beside(name, drain_fresh(dsn, backlog).per_second, base)
    # Only the first of them are timed, so the same is timed without: starts, not outcomes.
    base = drain_part(dsn, plain, size.jobs)
    rate = drain_part(dsn, replace(plain, count=size.pending), size.jobs)
    return measures | _beside(f"pending_{size.pending}", rate, base)


def many_types(backlog: Backlog, types: int) -> Backlog:
    """The same jobs, in turn of so many types."""
    return replace(backlog, type=jobs.MANY, types=types, env={jobs.TYPES: str(types)})


def _beside(name: str, rate: float, base: float) -> Measures:
    return {f"{name}_jobs_per_second": (rate, "1/s"), f"{name}_ratio": (rate / base, "1")}
