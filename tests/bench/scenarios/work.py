"""Drains of jobs that do something: they wait, they bring much along, they leave much behind."""

from __future__ import annotations

from tests.bench import jobs
from tests.bench.floor import drain_floor
from tests.bench.scenarios.draining import Backlog, drain, drain_fresh, filled
from tests.bench.scenarios.measures import THREADS, Measures, Size
from tests.bench.sleepers import sleeps_per_second


def work(dsn: str, size: Size) -> Measures:
    """1 ms of sleep on 64 threads, beside 64 bare threads; payloads and results, beside the database's own loop."""
    return (
        _sleep(dsn, max(THREADS, size.jobs // 2))
        | _rows(dsn, "payload_4kb", Backlog(max(1, size.jobs // 5), padding=4096))
        | _rows(dsn, "payload_64kb", Backlog(max(1, size.jobs // 50), padding=65536))
        | _rows(dsn, "result_1kb", Backlog(max(1, size.jobs // 2), type=jobs.RESULT), result=1000)
    )


def _sleep(dsn: str, count: int) -> Measures:
    slept = drain_fresh(dsn, Backlog(count, type=jobs.SLEEP), DISPATCHER_THREADS=str(THREADS)).per_second
    bound = sleeps_per_second(THREADS, count)
    return {
        "sleep_jobs_per_second": (slept, "1/s"),
        "sleep_bare_threads_per_second": (bound, "1/s"),
        "sleep_share": (slept / bound, "1"),
    }


def _rows(dsn: str, name: str, backlog: Backlog, *, result: int = 0) -> Measures:
    with filled(dsn, backlog) as own:
        drained = drain(own, backlog)
        floor = drain_floor(own.dsn, backlog.count, padding=backlog.padding, result=result)
    return {
        f"{name}_jobs_per_second": (drained.per_second, "1/s"),
        f"{name}_wal_per_job": (drained.wal_per_job, "B"),
        f"{name}_wal_per_second": (drained.wal_mb_per_second, "MB/s"),
        f"{name}_share_of_floor": (drained.per_second / floor, "1"),
    }
