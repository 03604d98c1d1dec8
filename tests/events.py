"""What executors under test did and when, in a file outside the database that outlives their processes.

A reader may look while a line is being written, and a kernel that kills a writer cuts a write off at the end of a page.
So each line has the same length, a part of a page's: it is there whole or not at all.
"""

import dataclasses
import json
import os
import time
from pathlib import Path

from dispatcher import Job

LINE_BYTES = 256


@dataclasses.dataclass(frozen=True)
class Event:
    """A line that an executor wrote. `t` is CLOCK_MONOTONIC, the same for all processes of a host."""

    t: float
    pid: int
    job: int
    attempt: int
    what: str
    why: str = ""


def append_event(path: Path, job: Job, what: str, why: str = "") -> None:
    """One event, in one write."""
    event = Event(time.monotonic(), os.getpid(), job.id, job.attempt, what, why[:100])
    line = json.dumps(dataclasses.asdict(event)).encode().ljust(LINE_BYTES - 1) + b"\n"
    assert len(line) == LINE_BYTES, line
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


def note(job: Job, what: str, why: str = "") -> None:
    """One event in the file that the test has named to the replica."""
    append_event(Path(os.environ["TEST_EVENTS"]), job, what, why)


def count_lines(path: Path) -> int:
    """How many events there are."""
    return path.stat().st_size // LINE_BYTES


def read_events(path: Path, *, skip: int = 0) -> list[Event]:
    """All events so far but for the first ones, in the order of writing."""
    with path.open("rb") as file:
        file.seek(skip * LINE_BYTES)
        return [Event(**json.loads(line)) for line in file.read().splitlines()]
