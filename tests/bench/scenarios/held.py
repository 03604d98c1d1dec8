"""Drains while somebody's transaction stays open: no row version that it may see can be cleared away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg

from tests.bench.scenarios.draining import Backlog, drain, drain_fresh, filled
from tests.bench.scenarios.measures import Measures, Size
from tests.bench.stage import PATIENCE_S

SCANNERS = 4
SCAN_EVERY_S = 1.0
SCAN = "select count(*) from dispatcher.job"


def held(dsn: str, size: Size) -> Measures:
    """One that does nothing, and four that count the jobs every second; each beside the same drain without."""
    backlog = Backlog(size.jobs)
    measures: Measures = {}
    for name, held_open in (("open_transaction", _open_transaction), ("scanners", _scanners)):
        free = drain_fresh(dsn, backlog).per_second
        with filled(dsn, backlog) as own, held_open(own.dsn):
            rate = drain(own, backlog).per_second
        measures |= {f"{name}_jobs_per_second": (rate, "1/s"), f"{name}_ratio": (rate / free, "1")}
    return measures


@contextmanager
def _open_transaction(dsn: str) -> Iterator[None]:
    with psycopg.connect(dsn) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("create temporary table kept (id integer)")  # so that it has a number, as one that writes has
        conn.execute(SCAN)
        yield
        conn.execute(SCAN)  # fails if it did not stay open


@contextmanager
def _scanners(dsn: str) -> Iterator[None]:
    over, begun = threading.Event(), threading.Barrier(SCANNERS + 1)

    def scan() -> None:
        with psycopg.connect(dsn) as conn:
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            conn.execute(SCAN)
            begun.wait(PATIENCE_S)
            while not over.wait(SCAN_EVERY_S):
                conn.execute(SCAN)

    with ThreadPoolExecutor(SCANNERS) as pool:
        scanners = [pool.submit(scan) for _ in range(SCANNERS)]
        try:
            begun.wait(PATIENCE_S)
            yield
        finally:
            over.set()
        for scanner in scanners:
            scanner.result()
