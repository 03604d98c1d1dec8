"""Executors for tests of a server that has run out of something."""

import os
from pathlib import Path

from dispatcher import Context, Job, executor
from tests.events import note
from tests.system.fault_jobs import AT_ONCE, LOOK_S


@executor("bulky", max_attempts=20, backoff=AT_ONCE)
def bulky(job: Job, ctx: Context) -> str:
    """Goes on until the file payload.until is there; its result finds no room in a page that is there already."""
    note(job, "start")
    while not Path(job.payload["until"]).exists():
        ctx.sleep(LOOK_S)
    note(job, "end")
    return os.urandom(50_000).hex()
