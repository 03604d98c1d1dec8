"""Executors for tests of faults. Each notes when it begins and ends."""

import atexit
import ctypes
import time
from pathlib import Path

from dispatcher import Context, Job, announcer, executor, run_program
from dispatcher.context import Interrupted
from dispatcher.retry import Backoff
from dispatcher.services.pruner import Pruner
from tests.events import note

LOOK_S = 0.01
AT_ONCE = Backoff(initial_s=0.05, maximum_s=0.05)


@executor("quick", max_attempts=20, backoff=AT_ONCE)
def quick(job: Job, ctx: Context) -> None:
    """Takes payload.seconds, none if it has none."""
    note(job, "start")
    if seconds := job.payload.get("seconds"):
        time.sleep(seconds)
    note(job, "end")


@executor("hold", max_attempts=20, backoff=AT_ONCE)
def hold(job: Job, ctx: Context) -> str:
    """Goes on until the file payload.until is there, or until it is asked to stop, which it heeds."""
    note(job, "start")
    try:
        while not Path(job.payload["until"]).exists():
            ctx.sleep(LOOK_S)
    except Interrupted as exc:
        note(job, "end", why=str(exc.reason))
        raise
    note(job, "end")
    return "held"


@executor("halfway", max_attempts=20, backoff=AT_ONCE)
def halfway(job: Job, ctx: Context) -> None:
    """Reports progress once the file payload.report is there, and goes on until the file payload.until is."""
    note(job, "start")
    for name in ("report", "until"):
        while not Path(job.payload[name]).exists():
            ctx.sleep(LOOK_S)
        if name == "report":
            ctx.progress(50)
    note(job, "end")


def _ignore(job: Job, ctx: Context) -> str:
    note(job, "start")
    asked = False
    while not Path(job.payload["until"]).exists():
        if ctx.canceled and not asked:
            asked = True
            note(job, "asked", why=str(ctx.canceled))
        time.sleep(LOOK_S)
    note(job, "end")
    return "done"


@executor("stubborn", max_attempts=20, backoff=AT_ONCE)
def stubborn(job: Job, ctx: Context) -> str:
    """Goes on until the file is there, whatever it is asked."""
    return _ignore(job, ctx)


@executor("late", timeout=0.3, max_attempts=20, backoff=AT_ONCE)
def late(job: Job, ctx: Context) -> str:
    """The same with a timeout that it ignores; a timeout ends it for good."""
    return _ignore(job, ctx)


@executor("late_again", timeout=0.3, max_attempts=20, backoff=AT_ONCE, retry_timeouts=True)
def late_again(job: Job, ctx: Context) -> str:
    """The same, tried again after a timeout."""
    return _ignore(job, ctx)


@executor("hang", max_attempts=20, backoff=AT_ONCE)
def hang(job: Job, ctx: Context) -> None:
    """Hangs in C with the GIL held: not a line of Python runs in its process any more. Only in the first attempt."""
    note(job, "start")
    if job.attempt == 1:
        ctypes.PyDLL(None).sleep(60)
    note(job, "end")


@executor("program", max_attempts=20, backoff=AT_ONCE)
def program(job: Job, ctx: Context) -> None:
    """In the first attempt a program that heeds nothing: it writes its number and its parent's, then ticks."""
    note(job, "start")
    if job.attempt == 1:
        script = 'trap "" TERM; echo $$ $PPID > "$1.new"; mv "$1.new" "$1"; while :; do : > "$2"; sleep 0.01; done'
        run_program(["/bin/sh", "-c", script, "sh", job.payload["pids"], job.payload["ticks"]], ctx=ctx)
    note(job, "end")


@executor("garble")
def garble(job: Job, ctx: Context) -> None:
    """Has this replica tell whoever watches what PostgreSQL refuses."""
    note(job, "start")
    setattr(announcer, "payloads", lambda _ids: ["x" * 8000])  # noqa: B010 - mypy allows no assignment


@executor("slow_service")
def slow_service(job: Job, ctx: Context) -> None:
    """Has a service of this replica take payload.seconds to end, as one that waits for the database may."""
    note(job, "start")
    setattr(Pruner, "close", lambda _pruner: time.sleep(job.payload["seconds"]))  # noqa: B010 - mypy allows no assignment


@executor("slow_end")
def slow_end(job: Job, ctx: Context) -> None:
    """Has the process take payload.seconds to end, as a library that tidies up may."""
    note(job, "start")
    atexit.register(time.sleep, job.payload["seconds"])
