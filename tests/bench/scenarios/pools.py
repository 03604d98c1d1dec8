"""What worker processes are for: jobs that compute use all cores, and leave other jobs in peace."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from contextlib import suppress

from dispatcher import WrongState
from tests.bench import jobs, pool_jobs
from tests.bench.scenarios.marking import mark, starts, wait_for
from tests.bench.scenarios.measures import Measures, Size, percentile
from tests.bench.stage import Stage, stage

FLUSHES = 100
EXECUTORS = f"{jobs.__name__},{pool_jobs.__name__}"


def pools(dsn: str, size: Size) -> Measures:
    """Computing on threads and in processes; a job now and then beside them; the cost of a job that does nothing."""
    with stage(dsn) as own:
        # Two that compute at once, on threads too: what waits for a thread is not what is measured beside them.
        own.start_replica(DISPATCHER_EXECUTORS=EXECUTORS, DISPATCHER_LIMITS=f"{pool_jobs.THREAD}=2")
        own.lead()
        mark(own, -1)
        wait_for(own, -1)
        _drain(own, pool_jobs.NOOP, 100)  # the workers are warm
        threads_s = _drain(own, pool_jobs.THREAD, size.spins, steps=size.steps)
        processes_s = _drain(own, pool_jobs.PROCESS, size.spins, steps=size.steps)
        idle, flush_ms = _pickups(own, size, first=0), _flush_ms()
        beside, flush_beside_ms = _beside(own, pool_jobs.PROCESS, size, first=size.pickups)
        beside_threads, _ = _beside(own, pool_jobs.THREAD, size, first=2 * size.pickups)
        measures: Measures = {
            "threads": (threads_s, "s"),
            "processes": (processes_s, "s"),
            "speedup": (threads_s / processes_s, ""),
            "noop_process": (size.quick / _drain(own, pool_jobs.NOOP, size.quick), "jobs/s"),
            "noop_async": (size.quick / _drain(own, pool_jobs.ASYNC, size.quick), "jobs/s"),
        }
        for name, times in (("idle", idle), ("beside_processes", beside), ("beside_threads", beside_threads)):
            measures[f"pickup_{name}_p50"] = (statistics.median(times), "ms")
            measures[f"pickup_{name}_p99"] = (percentile(times, 99), "ms")
        measures |= {"flush_idle": (flush_ms, "ms"), "flush_beside_processes": (flush_beside_ms, "ms")}
        measures["pickup_ratio_p50"] = (statistics.median(beside) / statistics.median(idle), "")
        measures["pickup_ratio_p99"] = (percentile(beside, 99) / percentile(idle, 99), "")
        return measures


def _flush_ms() -> float:
    """What the disk takes for a commit's eight kilobytes, here and now: a job's pickup waits for two commits."""
    times = []
    with tempfile.TemporaryFile(buffering=0) as file:
        for _ in range(FLUSHES):
            file.seek(0)
            file.write(bytes(8192))
            began = time.monotonic()
            os.fdatasync(file.fileno())
            times.append((time.monotonic() - began) * 1000)
            time.sleep(0.005)  # as between commits of a system that has little to do
    return statistics.median(times)


def _drain(own: Stage, type: str, count: int, **payload: int) -> float:
    """Seconds from the first start to the last end, as the rows have them."""
    ids = own.client.enqueue_many(type, (payload for _ in range(count)))
    jobs = own.client.wait(ids, 120.0)
    ends = [job.finished_at for job in jobs if job.finished_at is not None]
    starts = [job.started_at for job in jobs if job.started_at is not None]
    return (max(ends) - min(starts)).total_seconds()


def _beside(own: Stage, type: str, size: Size, *, first: int) -> tuple[list[float], float]:
    """Pickups while jobs of a type compute without a break, and what the disk takes then."""
    ids = own.client.enqueue_many(type, ({"steps": size.steps} for _ in range(200)))
    own.until("the computing", lambda: own.client.get(ids[0]).started_at)
    times, flush_ms = _pickups(own, size, first=first), _flush_ms()
    for id in ids:
        with suppress(WrongState):  # it has ended
            own.client.cancel(id)
    own.client.wait(ids, 120.0)
    return times, flush_ms


def _pickups(own: Stage, size: Size, *, first: int) -> list[float]:
    asked: dict[int, float] = {}
    began = time.monotonic()
    for n in range(first, first + size.pickups):
        time.sleep(max(0.0, began + (n - first) * size.gap_s - time.monotonic()))  # the pace is what is wanted
        asked[n] = time.monotonic()
        mark(own, n)
    own.until("all jobs", lambda: len(own.notes()) == first + size.pickups + 1)
    started = dict(starts(own))
    return [(started[n] - at) * 1000 for n, at in asked.items()]
