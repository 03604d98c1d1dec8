"""The demo's own jobs: small ones, which note when they start and end, and what these notes prove; and a month's sum.

The notes go to a file outside the database, each by one os.write to a file opened for appending, with the monotonic
clock, which is one clock for all processes of a machine: so they are a witness that does not depend on what they are
to prove.
"""

from __future__ import annotations

import functools
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispatcher import Backoff, Context, Job, demo_flights, executor

TYPE = "demo.small"
MONTH = "demo.month"
LIMIT = 5
EVENTS = "DISPATCHER_DEMO_EVENTS"
LASTS_S = 0.05


@executor(TYPE, limit=LIMIT, backoff=Backoff(initial_s=0.5))
def small(job: Job, ctx: Context) -> int:
    """Takes a twentieth of a second; at most five at once over all replicas."""
    note("start", job)
    try:
        ctx.sleep(LASTS_S)
    finally:
        note("end", job)
    return job.attempt


@executor(MONTH, pool="process", backoff=Backoff(initial_s=0.5))
def month(job: Job, ctx: Context) -> dict[str, Any]:
    """Sums up one month of the flights, in a worker process."""
    with ctx.connect() as conn:
        return demo_flights.summarize_month(conn, job.payload["month"])


def note(kind: str, job: Job) -> None:
    """One line in the file of events; nothing of it is lost when this process is killed right afterwards."""
    # Of a fixed length, a part of a page's: the kernel cuts the write of a killed process off only where a page ends.
    line = f"{kind} {job.id} {job.attempt} {os.getpid()} {time.monotonic()}".ljust(127) + "\n"
    os.write(_events_fd(os.environ[EVENTS]), line.encode())


@functools.cache
def _events_fd(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of one job as the witness saw it; monotonic seconds. No end: its process died under it."""

    job: int
    attempt: int
    pid: int
    start: float
    end: float | None


def read_runs(path: Path) -> list[Run]:
    """All attempts noted so far, by start."""
    starts: dict[tuple[int, int], tuple[int, float]] = {}
    ends: dict[tuple[int, int], float] = {}
    # A line that is being written may be half there.
    for line in path.read_text(encoding="ascii").splitlines(keepends=True) if path.exists() else ():
        if not line.endswith("\n"):
            continue
        kind, job, attempt, pid, at = line.split()
        if kind == "start":
            starts[int(job), int(attempt)] = int(pid), float(at)
        else:
            ends[int(job), int(attempt)] = float(at)
    runs = [Run(job, attempt, pid, at, ends.get((job, attempt))) for (job, attempt), (pid, at) in starts.items()]
    return sorted(runs, key=lambda run: run.start)


def close_cut_off(runs: Iterable[Run], *, pid: int, died: float) -> list[Run]:
    """The same runs, where those that `pid` had not ended last until it died."""
    return [
        Run(run.job, run.attempt, run.pid, run.start, died) if run.end is None and run.pid == pid else run
        for run in runs
    ]


def most_at_once(runs: Iterable[Run]) -> int:
    """The largest number of runs that overlapped at any instant; a run without an end lasts for ever."""
    steps: list[tuple[float, int]] = []
    for run in runs:
        steps.append((run.start, 1))
        steps.append((run.end if run.end is not None else float("inf"), -1))
    now = most = 0
    for _, step in sorted(steps):  # at the same instant the end comes first
        now += step
        most = max(most, now)
    return most


def overlapping_attempts(runs: Iterable[Run]) -> list[int]:
    """Jobs of which an attempt started before the one before it had ended."""
    by_job: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        by_job[run.job].append(run)
    return [job for job, own in sorted(by_job.items()) if most_at_once(own) > 1]
