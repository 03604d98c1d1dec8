"""Executors that end in each way, and stop at a step on the way there in their first attempt, to be killed there."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from dispatcher import Cancel, Context, Fail, Job, JobError, Partial, Retry, Snooze, executor
from tests.events import note
from tests.system.fault_jobs import AT_ONCE, LOOK_S

AGAIN_S = 0.05


def reach(job: Job, step: str) -> None:
    """Notes that it is there; if it is to die there, it does, or waits for the test to kill the process."""
    if job.attempt != 1 or job.payload.get("step") != step:
        return
    note(job, step)
    if job.payload.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    while not Path(job.payload["until"]).exists():
        time.sleep(LOOK_S)


def _hook(job: Job, _ctx: Context, argument: Any) -> None:
    why = argument.kind if isinstance(argument, JobError) else "success"
    note(job, "hook called", why=why)
    if why != "crash":  # which the leader tells that found the job, about the attempt that died
        reach(job, "hook")


def _final(job: Job, _ctx: Context, error: JobError) -> None:
    note(job, "final hook called", why=error.kind)


@executor("ending", max_attempts=5, backoff=AT_ONCE, on_success=_hook, on_failure=_hook, on_final_failure=_final)
def ending(job: Job, ctx: Context) -> Any:
    """Ends as payload.way says; the ways that run again do so once."""
    note(job, "start")
    reach(job, "before")
    way, first_time = job.payload["way"], job.checkpoint is None
    with ctx.connect() as conn:
        conn.execute("insert into effect values (%s, %s)", [job.id, job.attempt])
        if way == "complete":
            reach(job, "written")
            ctx.complete(conn, "ended")
            reach(job, "completed")
        elif way in ("retry", "snooze", "raise"):
            ctx.checkpoint(conn, "been here")
    reach(job, "committed")
    reach(job, "returning")
    note(job, "end")
    if way == "partial":
        return Partial("ended", [{"message": "one"}])
    if way == "fail":
        raise Fail("for good")
    if way == "cancel":
        raise Cancel
    if first_time:
        match way:
            case "retry":
                raise Retry(AGAIN_S)
            case "snooze":
                raise Snooze(AGAIN_S)
            case "raise":
                raise ValueError("once")
    return "ended"


@executor("deadly", max_attempts=2, backoff=AT_ONCE, on_failure=_hook, on_final_failure=_final)
def deadly(job: Job, ctx: Context) -> None:
    """Takes its process along in each attempt."""
    note(job, "start")
    os.kill(os.getpid(), signal.SIGKILL)


@executor("stores", max_attempts=2, backoff=AT_ONCE)
def stores(job: Job, ctx: Context) -> str:
    """Stores a file, dies once, and returns more than a row may hold."""
    ctx.store("file", b"x")
    reach(job, "stored")
    return "y" * 1000
