"""A Dask cluster of four workers on this machine: what the leader has to do while a hundred jobs run there."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.bench import dask_jobs
from tests.bench.scenarios.measures import Measures, Size
from tests.bench.scenarios.process import cpu_s
from tests.bench.stage import BenchFailed, stage
from tests.cluster import Cluster

JOBS_A_PLACE = 20


def dask(dsn: str, size: Size) -> Measures:
    """The leader's share of a CPU while all places are taken; jobs a second of a hundredth of a second each."""
    places, jobs = size.places, size.places * JOBS_A_PLACE
    with tempfile.TemporaryDirectory(prefix="dispatcher-bench-") as folder, stage(dsn) as own:
        gate = Path(folder, "gate")
        with Cluster(Path(folder), workers=size.workers, threads=places // size.workers) as cluster:
            leader = own.start_replica(
                DISPATCHER_EXECUTORS=dask_jobs.__name__, DISPATCHER_DASK_SCHEDULER=cluster.address
            )
            own.lead()
            held = own.client.enqueue_many(dask_jobs.HOLD, ({"gate": str(gate)} for _ in range(places)))
            own.until("a job in each place", lambda: len(list(Path(folder).glob("gate-*"))) == places)
            time.sleep(2.0)  # what starting them has cost is over
            before, began = cpu_s(leader.pid), time.monotonic()
            time.sleep(size.idle_s)  # running jobs is what is measured
            share = (cpu_s(leader.pid) - before) / (time.monotonic() - began)  # to a hundredth of a second
            gate.touch()
            own.client.wait(held, 60.0)
            began = time.monotonic()
            ids = own.client.enqueue_many(dask_jobs.SHORT, ({} for _ in range(jobs)))
            done = own.client.wait(ids, 120.0)
            took = time.monotonic() - began
            if any(job.attempt != 1 for job in done):
                raise BenchFailed("a job ran twice")
    return {"leader_cpu": (100 * share, "%"), "short_jobs": (jobs / took, "1/s")}
