"""What the server writes to its log for a job."""

from __future__ import annotations

from tests.bench.scenarios.draining import Backlog, drain, enqueue_many
from tests.bench.scenarios.measures import Measures, Size
from tests.bench.stage import stage


def wal(dsn: str, size: Size) -> Measures:
    """For a no-op, from enqueue to outcome; whole pages included, each the first time after a checkpoint."""
    with stage(dsn) as own:
        own.do("checkpoint")
        before = own.wal_bytes()
        enqueue_many(own, size.jobs)
        enqueued = own.wal_bytes() - before
        drained = drain(own, Backlog(size.jobs))
    return {
        "wal_per_job": (enqueued / size.jobs + drained.wal_per_job, "B"),
        "wal_per_enqueue": (enqueued / size.jobs, "B"),
    }
