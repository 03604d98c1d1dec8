"""The executors that are measured. Each replica of a bench gets them by the setting `executors`, as any user's."""

from __future__ import annotations

import atexit
import functools
import os
import time

from dispatcher import Context, Job, executor

NOOP = "bench.noop"
MARK = "bench.mark"
RUNS = "BENCH_RUNS"  # the file where this process notes what it ran
LAST = "BENCH_JOBS"  # after so many no-ops the drain is over

_ran: list[int] = []


@executor(NOOP)
def noop(job: Job, ctx: Context) -> None:
    """Does nothing; notes its number in memory, and the time of the first and the last."""
    _ran.append(job.payload["n"])
    if len(_ran) in _milestones():
        note(f"{'first' if len(_ran) == 1 else 'last'} {time.monotonic()}")


@executor(MARK)
def mark(job: Job, ctx: Context) -> None:
    """Notes when its first line runs."""
    at = time.monotonic()
    note(f"{job.payload['n']} {at}")


def note(line: str) -> None:
    """One write, so that nothing of it is lost when this process is killed right afterwards."""
    os.write(_runs_fd(), f"{line}\n".encode())


@functools.cache
def _runs_fd() -> int:
    return os.open(os.environ[RUNS], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


@functools.cache
def _milestones() -> tuple[int, int]:
    return 1, int(os.environ.get(LAST, "0"))


@atexit.register
def _tell() -> None:
    """What ran, for the check that each ran once: at the end, as it is not what is measured."""
    if _ran:
        note("ran " + ",".join(map(str, _ran)))
