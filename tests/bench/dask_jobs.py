"""Executors that run on Dask workers; a module of its own, since each type in the pool dask needs a cluster."""

from __future__ import annotations

import time
from pathlib import Path

from dispatcher import Context, Job, executor

HOLD, SHORT = "bench.dask-hold", "bench.dask-short"


@executor(HOLD, pool="dask")
def hold(job: Job, ctx: Context) -> None:
    """Says that it runs, and waits until all may go."""
    gate = Path(job.payload["gate"])
    gate.with_name(f"gate-{job.id}").touch()
    while not gate.exists():
        ctx.sleep(0.2)


@executor(SHORT, pool="dask")
def short(job: Job, ctx: Context) -> None:
    """Takes a hundredth of a second."""
    time.sleep(0.01)
