"""The work of a storm. Each executor writes down its start, that it still runs, and how it ended."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any

from dispatcher import Cancel, Context, Fail, Job, Partial, Retry, Snooze, executor
from dispatcher.context import Interrupted
from dispatcher.retry import Backoff
from tests.events import note
from tests.storm.history import Limits

BEAT_S = 0.05
SOON = Backoff(initial_s=0.05, factor=1.5, maximum_s=0.5)
OFTEN = 1000  # crashes count as failures, and a storm has many
LIMITS = Limits(overall=14, types={"limited": 3, "compute": 1}, tenants={"shared": 2}, rates={"rated": (8.0, 4)})
THREADS = 10
LATE_S = 0.4

Work = Callable[[Job, Context], Any]


def nap(job: Job, ctx: Context) -> None:
    """Takes payload.seconds, and heeds when it is asked to stop."""
    until = time.monotonic() + float(job.payload.get("seconds", 0.0))
    while (left := until - time.monotonic()) > 0:
        ctx.sleep(min(left, BEAT_S))
        note(job, "beat")


def told(work: Work) -> Work:
    """Has it write down its start and its end."""

    @functools.wraps(work)
    def run(job: Job, ctx: Context) -> Any:
        note(job, "start")
        how = "return"
        try:
            result = work(job, ctx)
            how = "partial" if isinstance(result, Partial) else "complete" if result == "complete" else "return"
            return result if how != "return" else {"attempt": job.attempt}
        except BaseException as exc:
            how = ENDS.get(type(exc), "raise")
            raise
        finally:
            note(job, "end", how)

    return run


ENDS = {Retry: "retry", Snooze: "snooze", Fail: "fail", Cancel: "cancel", Interrupted: "interrupted"}


@executor("quick", max_attempts=OFTEN, backoff=SOON)
@told
def quick(job: Job, ctx: Context) -> None:
    """No work at all."""


@executor("sleeper", max_attempts=OFTEN, backoff=SOON)
@told
def sleeper(job: Job, ctx: Context) -> None:
    """Some time."""
    nap(job, ctx)


@executor("long", max_attempts=OFTEN, backoff=SOON)
@told
def long(job: Job, ctx: Context) -> None:
    """A long time, so that it runs while its replica is cut off."""
    nap(job, ctx)


@executor("stubborn", max_attempts=OFTEN, backoff=SOON)
@told
def stubborn(job: Job, ctx: Context) -> None:
    """The same, whatever it is asked."""
    until = time.monotonic() + float(job.payload["seconds"])
    while time.monotonic() < until:
        time.sleep(BEAT_S)
        note(job, "beat")


@executor("limited", max_attempts=OFTEN, backoff=SOON, limit=LIMITS.types["limited"])
@told
def limited(job: Job, ctx: Context) -> None:
    """Some time, few at once."""
    nap(job, ctx)


@executor("shared", max_attempts=OFTEN, backoff=SOON, tenant_limit=LIMITS.tenants["shared"])
@told
def shared(job: Job, ctx: Context) -> None:
    """Some time, few of a tenant at once."""
    nap(job, ctx)


@executor("rated", max_attempts=OFTEN, backoff=SOON, rate=LIMITS.rates["rated"][0], burst=LIMITS.rates["rated"][1])
@told
def rated(job: Job, ctx: Context) -> None:
    """So many a second."""


@executor("flaky", max_attempts=OFTEN, backoff=SOON)
@told
def flaky(job: Job, ctx: Context) -> None:
    """Fails payload.times times, in one way or another."""
    nap(job, ctx)
    match job.attempt if job.attempt <= job.payload["times"] else None:
        case None:
            return
        case number if number % 3 == 0:
            raise Retry(0.1)
        case number if number % 3 == 1:
            raise ValueError("not yet")
        case _:
            raise Snooze(0.1)


@executor("doomed", max_attempts=3, backoff=SOON)
@told
def doomed(job: Job, ctx: Context) -> Partial:
    """Ends otherwise than well: as payload.way says."""
    nap(job, ctx)
    match job.payload["way"]:
        case "fail":
            raise Fail("for good")
        case "raise":
            raise ValueError("each time")
        case "cancel":
            raise Cancel
    return Partial({"attempt": job.attempt}, [{"message": "one item"}])


@executor("late", max_attempts=3, backoff=SOON, timeout=LATE_S, retry_timeouts=True)
@told
def late(job: Job, ctx: Context) -> None:
    """May take longer than it has."""
    nap(job, ctx)


@executor("effect", max_attempts=OFTEN, backoff=SOON)
@told
def effect(job: Job, ctx: Context) -> str:
    """Writes a row in the transaction of its outcome."""
    with ctx.connect() as conn:
        conn.execute("insert into storm.effect (job, attempt) values (%s, %s)", [job.id, job.attempt])
        nap(job, ctx)
        ctx.complete(conn, {"attempt": job.attempt})
    return "complete"


@executor("steps", max_attempts=OFTEN, backoff=SOON)
@told
def steps(job: Job, ctx: Context) -> str:
    """Writes payload.steps rows, each in the transaction of its checkpoint, and goes on where another left off."""
    with ctx.connect() as conn:
        for part in range(job.checkpoint or 0, job.payload["steps"]):
            conn.execute("insert into storm.part (job, part) values (%s, %s)", [job.id, part])
            nap(job, ctx)
            ctx.checkpoint(conn, part + 1)
            conn.commit()
        conn.execute("insert into storm.effect (job, attempt) values (%s, %s)", [job.id, job.attempt])
        ctx.complete(conn, {"attempt": job.attempt})
    return "complete"


@executor("compute", max_attempts=OFTEN, backoff=SOON, pool="process", limit=LIMITS.types["compute"])
@told
def compute(job: Job, ctx: Context) -> None:
    """Some time in a process of its own."""
    nap(job, ctx)


@executor("coroutine", max_attempts=OFTEN, backoff=SOON)
async def coroutine(job: Job, ctx: Context) -> dict[str, int]:
    """Some time on the event loop."""
    note(job, "start")
    how = "interrupted"
    try:
        until = time.monotonic() + float(job.payload.get("seconds", 0.0))
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, BEAT_S))
            ctx.raise_if_canceled()
            note(job, "beat")
        how = "return"
        return {"attempt": job.attempt}
    finally:
        note(job, "end", how)


@executor("tick", max_attempts=OFTEN, backoff=SOON)
@told
def tick(job: Job, ctx: Context) -> None:
    """What schedules enqueue."""


@executor("callback", max_attempts=OFTEN, backoff=SOON)
@told
def callback(job: Job, ctx: Context) -> None:
    """What batches enqueue at their end."""
