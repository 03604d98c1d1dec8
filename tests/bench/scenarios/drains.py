"""Scenarios of drains: no-ops, real work, open transactions, growth. A ratio is of two drains of the same round."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import psycopg

from tests.bench import jobs
from tests.bench.floor import drain_floor
from tests.bench.scenarios.draining import Backlog, add_finished, drain, drain_part, enqueue_many, filled
from tests.bench.scenarios.measures import Measures, Size
from tests.bench.sleepers import sleeps_per_second
from tests.bench.stage import stage

THREADS = 64
SCANNERS = 4
SCAN_EVERY_S = 1.0


def noop(dsn: str, size: Size) -> Measures:
    """No-op jobs."""
    backlog = Backlog(size.jobs)
    with filled(dsn, backlog) as own:
        drained = drain(own, backlog)
        floor = drain_floor(own.dsn, size.jobs)
    return {
        "jobs_per_second": (drained.per_second, "1/s"),
        "floor_jobs_per_second": (floor, "1/s"),
        "share_of_floor": (drained.per_second / floor, "1"),
    }


def limited(dsn: str, size: Size) -> Measures:
    """No-op jobs of which three may run at once: checked for that."""
    backlog = Backlog(max(10, size.jobs // 10), type=jobs.LIMITED)
    with filled(dsn, backlog) as own:
        return {"jobs_per_second": (drain(own, backlog).per_second, "1/s")}


def work(dsn: str, size: Size) -> Measures:
    """1 ms of sleep on 64 threads, beside 64 bare threads; payloads and results, beside the database's own loop."""
    threads = {"DISPATCHER_THREADS": str(THREADS)}
    backlog = Backlog(max(THREADS, size.jobs // 2), type=jobs.SLEEP)
    with filled(dsn, backlog) as own:
        slept = drain(own, backlog, **threads).per_second
    bound = sleeps_per_second(THREADS, backlog.count)
    measures = {
        "sleep_jobs_per_second": (slept, "1/s"),
        "sleep_bare_threads_per_second": (bound, "1/s"),
        "sleep_share": (slept / bound, "1"),
    }
    for name, type, padding, result, count in (
        ("payload_4kb", jobs.NOOP, 4096, 0, size.jobs // 5),
        ("payload_64kb", jobs.NOOP, 65536, 0, size.jobs // 50),
        ("result_1kb", jobs.RESULT, 0, 1000, size.jobs // 2),
    ):
        backlog = Backlog(max(1, count), type=type, padding=padding)
        with filled(dsn, backlog) as own:
            drained = drain(own, backlog)
            floor = drain_floor(own.dsn, backlog.count, padding=padding, result=result)
        measures |= {
            f"{name}_jobs_per_second": (drained.per_second, "1/s"),
            f"{name}_wal_per_job": (drained.wal_bytes_per_job, "B"),
            f"{name}_share_of_floor": (drained.per_second / floor, "1"),
        }
    return measures


def held(dsn: str, size: Size) -> Measures:
    """While a transaction of somebody's stays open for the whole run; and while four read the table again and again."""
    backlog = Backlog(size.jobs)
    rates = {}
    for name, held_open in (("free", nullcontext), ("open_transaction", _open_transaction), ("scanners", _scanners)):
        with filled(dsn, backlog) as own, held_open(own.dsn):
            rates[name] = drain(own, backlog).per_second
    return {
        "free_jobs_per_second": (rates["free"], "1/s"),
        "open_transaction_ratio": (rates["open_transaction"] / rates["free"], "1"),
        "scanners_ratio": (rates["scanners"] / rates["free"], "1"),
    }


def growth(dsn: str, size: Size) -> Measures:
    """With finished rows, pending rows, types and tenants, beside the same drain without them."""
    plain = Backlog(size.jobs)
    with filled(dsn, plain) as own:
        base = drain(own, plain).per_second
    measures: Measures = {"empty_jobs_per_second": (base, "1/s")}
    for count in size.finished:
        with filled(dsn, plain) as own:
            add_finished(own, count)
            measures[f"finished_{count}_ratio"] = (drain(own, plain).per_second / base, "1")
    backlog = replace(plain, count=size.pending)
    with filled(dsn, backlog) as own:
        measures[f"pending_{size.pending}_ratio"] = (drain_part(own, backlog, size.jobs) / base, "1")
    backlog = replace(plain, type=jobs.MANY, types=size.types, env={jobs.TYPES: str(size.types)})
    with filled(dsn, backlog) as own:
        measures[f"types_{size.types}_ratio"] = (drain(own, backlog).per_second / base, "1")
    backlog = replace(plain, tenants=size.tenants)
    with filled(dsn, backlog) as own:
        measures[f"tenants_{size.tenants}_ratio"] = (drain(own, backlog).per_second / base, "1")
    return measures


def wal(dsn: str, size: Size) -> Measures:
    """What the server writes to its log for a no-op job, from enqueue to outcome."""
    with stage(dsn) as own:
        own.do("checkpoint")
        before = own.wal_bytes()
        enqueue_many(own, size.jobs)
        enqueued = own.wal_bytes() - before
        drained = drain(own, Backlog(size.jobs))
    return {
        "wal_per_job": (enqueued / size.jobs + drained.wal_bytes_per_job, "B"),
        "wal_per_enqueue": (enqueued / size.jobs, "B"),
    }


@contextmanager
def _open_transaction(dsn: str) -> Iterator[None]:
    with psycopg.connect(dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("create temporary table kept (id integer)")  # so that it has a number, as one that writes has
        conn.execute("select count(*) from dispatcher.type")
        yield
        conn.rollback()


@contextmanager
def _scanners(dsn: str) -> Iterator[None]:
    over = threading.Event()

    def scan() -> None:
        with psycopg.connect(dsn) as conn:
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            while not over.is_set():
                conn.execute("select count(*) from dispatcher.type")
                over.wait(SCAN_EVERY_S)

    threads = [threading.Thread(target=scan) for _ in range(SCANNERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


DRAINS: dict[str, Callable[[str, Size], Measures]] = {
    "drain": noop,
    "limited": limited,
    "work": work,
    "held": held,
    "growth": growth,
    "wal": wal,
}
