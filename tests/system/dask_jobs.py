"""Executors that run on Dask workers; each notes when it begins and ends, and while it runs that it still does."""

import os
import time
from pathlib import Path

from dispatcher import Backoff, Context, Job, executor
from dispatcher.context import Interrupted
from tests.events import append_event

LOOK_S = 0.01
AT_ONCE = Backoff(initial_s=0.05, maximum_s=0.05)


def note(job: Job, what: str, why: str = "") -> None:
    """One event in the file that the test reads."""
    append_event(Path(job.payload["folder"], "events"), job, what, why)


def tick(job: Job) -> None:
    """The latest instant at which this attempt was seen to run, in a file of its own."""
    name = f"tick-{job.id}-{job.attempt}"
    new = Path(job.payload["folder"], f".{name}")
    new.write_text(f"{os.getpid()} {time.monotonic()}", encoding="ascii")
    new.rename(Path(job.payload["folder"], name))


@executor("dask.run", pool="dask", max_attempts=20, backoff=AT_ONCE)
def run(job: Job, ctx: Context) -> str:
    """Goes on until the file `until` is there, or for `seconds`; heeds a cancel unless it is `stubborn`."""
    note(job, "start")
    until = time.monotonic() + job.payload.get("seconds", 600)
    try:
        while time.monotonic() < until and not Path(job.payload["folder"], job.payload.get("until", "gate")).exists():
            tick(job)
            if job.payload.get("stubborn"):
                time.sleep(LOOK_S)
            else:
                ctx.sleep(LOOK_S)
    except Interrupted as exc:
        note(job, "end", why=str(exc.reason))
        raise
    note(job, "end")
    return f"attempt {job.attempt}"


@executor("dask.quick", pool="dask", max_attempts=20, backoff=AT_ONCE, limit=60)
def quick(job: Job, ctx: Context) -> None:
    """Takes a moment."""
    note(job, "start")
    time.sleep(job.payload["seconds"])
    note(job, "end")


@executor("dask.hold", pool="dask", max_attempts=20, backoff=AT_ONCE)
def hold(job: Job, ctx: Context) -> None:
    """Goes on until the file `until` is there, and uses hardly any time."""
    note(job, "start")
    while not Path(job.payload["folder"], job.payload["until"]).exists():
        ctx.sleep(0.2)
    note(job, "end")
