"""Executors for replicas of this version and of the previous one alike: only what both know is used here."""

import time
from pathlib import Path

from dispatcher import Context, Fail, Job, Retry, executor
from dispatcher.context import Interrupted
from dispatcher.retry import Backoff
from tests.events import note

LOOK_S = 0.01
AT_ONCE = Backoff(initial_s=0.05, maximum_s=0.05)


@executor("quick", max_attempts=20, backoff=AT_ONCE)
def quick(job: Job, ctx: Context) -> dict[str, int]:
    """Takes payload.seconds, none if it has none."""
    note(job, "start")
    time.sleep(job.payload.get("seconds", 0))
    note(job, "end")
    return {"attempt": job.attempt}


@executor("narrow", limit=2, max_attempts=20, backoff=AT_ONCE)
def narrow(job: Job, ctx: Context) -> None:
    """Two at a time, whoever leads."""
    note(job, "start")
    time.sleep(job.payload.get("seconds", 0.02))
    note(job, "end")


@executor("hold", max_attempts=20, backoff=AT_ONCE)
def hold(job: Job, ctx: Context) -> str:
    """Goes on until the file payload.until is there, or until it is asked to stop, which it heeds."""
    note(job, "start")
    try:
        while not Path(job.payload["until"]).exists():
            ctx.sleep(LOOK_S)
    except Interrupted:
        note(job, "end")
        raise
    note(job, "end")
    return "held"


@executor("flaky", max_attempts=5, backoff=AT_ONCE)
def flaky(job: Job, ctx: Context) -> None:
    """Fails until the file payload.until is there; each try comes after a pause."""
    note(job, "start")
    note(job, "end")
    if not Path(job.payload["until"]).exists():
        raise Retry(0.1)


@executor("doomed")
def doomed(job: Job, ctx: Context) -> None:
    """Fails for good."""
    raise Fail("as it was told")
