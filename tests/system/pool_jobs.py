"""Executors of other pools than threads; each notes when it begins and ends, and while it runs that it still does."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from dispatcher import Backoff, Context, Job, executor
from dispatcher.context import Interrupted
from tests.events import note

AT_ONCE = Backoff(initial_s=0.05, maximum_s=0.05)


@executor("far.hold", pool="process", max_attempts=20, backoff=AT_ONCE)
def hold(job: Job, ctx: Context) -> int:
    """Goes on until the file payload.until is there; heeds a cancel unless it is `stubborn`. Ticks into a file."""
    note(job, "start")
    ticks = Path(os.environ["TEST_EVENTS"]).with_name(f"tick-{job.id}-{job.attempt}")
    try:
        while not Path(job.payload["until"]).exists():
            ticks.touch()
            if job.payload.get("stubborn"):
                time.sleep(0.005)
            else:
                ctx.sleep(0.005)
    except Interrupted as exc:
        note(job, "end", why=str(exc.reason))
        raise
    note(job, "end")
    return os.getpid()


@executor("far.complete", pool="process")
def complete(job: Job, ctx: Context) -> Any:
    """Completes itself with its own writes, enqueues another, and leaves a checkpoint."""
    if job.checkpoint is None:
        with ctx.connect() as conn:
            ctx.checkpoint(conn, {"seen": job.attempt})
        raise RuntimeError("once more")
    with ctx.connect() as conn:
        conn.execute("insert into done values (%s, %s)", [job.id, job.checkpoint["seen"]])
        ctx.enqueue("coroutine", {}, conn=conn)
        ctx.complete(conn, {"in": "a process"})
    return None


@executor("coroutine", max_attempts=20, backoff=AT_ONCE)
async def coroutine(job: Job, ctx: Context) -> str:
    """Waits for the file payload.until, or ends at once without one."""
    note(job, "start")
    while (until := job.payload.get("until")) and not await asyncio.to_thread(Path(until).exists):
        await asyncio.sleep(0.01)
    note(job, "end")
    return "awaited"
