"""The executors that are measured. Each replica of a bench gets them by the setting `executors`, as any user's."""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable

from dispatcher import Context, Job, executor

NOOP = "bench.noop"
QUIET = "bench.quiet"
SLEEP = "bench.sleep"
RESULT = "bench.result"
LIMITED = "bench.limited"
MARK = "bench.mark"
MANY = "bench.many-"
RUNS = "BENCH_RUNS"  # the file where this process notes what it ran
LAST = "BENCH_JOBS"  # after so many jobs the drain is over
TYPES = "BENCH_TYPES"  # so many more types, named bench.many-0 and so on

_ran: list[int] = []
_running: Counter[str] = Counter()
_most: Counter[str] = Counter()
_lock = threading.Lock()


@executor(NOOP)
def noop(job: Job, ctx: Context) -> None:
    """Does nothing; notes its number in memory, and the time of the first and the last."""
    _ran.append(job.payload["n"])
    if len(_ran) in _milestones():
        note(f"{'first' if len(_ran) == 1 else 'last'} {time.monotonic()}")


@executor(QUIET)
def quiet(job: Job, ctx: Context) -> None:
    """Does nothing and notes nothing: for a load of hours."""


@executor(SLEEP)
def sleep(job: Job, ctx: Context) -> None:
    """Waits for a millisecond, as for a network."""
    time.sleep(0.001)
    noop(job, ctx)


@executor(RESULT)
def result(job: Job, ctx: Context) -> dict[str, str]:
    """Leaves a result of 1 kB."""
    noop(job, ctx)
    return {"text": f"{job.id:01000}"}


@executor(LIMITED, limit=3)
def limited(job: Job, ctx: Context) -> None:
    """Notes how many of its kind run at once."""
    with _lock:
        _running[LIMITED] += 1
        _most[LIMITED] = max(_most[LIMITED], _running[LIMITED])
    noop(job, ctx)
    with _lock:
        _running[LIMITED] -= 1


@executor(MARK)
def mark(job: Job, ctx: Context) -> None:
    """Notes when its first line runs."""
    at = time.monotonic()
    note(f"{job.payload['n']} {at}")


def one_of_many() -> Callable[[Job, Context], None]:
    """As noop, for one of very many types: an executor is declared on a function of its own."""

    def run(job: Job, ctx: Context) -> None:
        noop(job, ctx)

    return run


for _number in range(int(os.environ.get(TYPES, "0"))):
    globals()[f"many_{_number}"] = executor(f"{MANY}{_number}")(one_of_many())


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
    """What ran, for the checks: at the end, as it is not what is measured."""
    if _ran:
        note("ran " + ",".join(map(str, _ran)))
    for kind, most in _most.items():
        note(f"most {kind}={most}")
