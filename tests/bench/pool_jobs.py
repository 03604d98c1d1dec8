"""Executors that compute, in each of the pools; a module of its own, for a pool has its price where it is not used."""

from __future__ import annotations

from dispatcher import Context, Job, executor

THREAD, PROCESS, ASYNC = "bench.spin-thread", "bench.spin-process", "bench.async"
NOOP = "bench.noop-process"


def spin(steps: int) -> int:
    """Computes in Python, with the GIL held as Python has it."""
    total = 0
    for step in range(steps):
        total += step & 7
    return total


@executor(THREAD)
def on_a_thread(job: Job, ctx: Context) -> int:
    """Beside all others of its process."""
    return spin(job.payload["steps"])


@executor(PROCESS, pool="process")
def in_a_process(job: Job, ctx: Context) -> int:
    """In a process of its own."""
    return spin(job.payload["steps"])


@executor(NOOP, pool="process")
def nothing(job: Job, ctx: Context) -> None:
    """What a job in a process costs at least."""


@executor(ASYNC)
async def coroutine(job: Job, ctx: Context) -> None:
    """What a coroutine costs at least."""
