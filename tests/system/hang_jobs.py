"""Executors that hang, or make a part of their replica hang, beside those of fault_jobs."""

import asyncio
import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from dispatcher import Context, Job, executor, fitness, pool
from dispatcher.services.completer import Completer
from dispatcher.services.dispatch import Dispatch
from dispatcher.services.lease import Lease
from dispatcher.services.pruner import Pruner
from dispatcher.services.rescuer import Rescuer
from dispatcher.services.stager import Stager
from dispatcher.services.timekeeper import Timekeeper
from tests.events import note
from tests.system.fault_jobs import AT_ONCE

FOREVER = threading.Event()


def replace(owner: Any, name: str, value: object) -> None:
    """As a fault would change this process; mypy allows no assignment."""
    setattr(owner, name, value)


@executor("hangs_again", timeout=0.3, max_attempts=2, backoff=AT_ONCE, retry_timeouts=True)
def hangs_again(job: Job, ctx: Context) -> None:
    """Never returns, in either of its tries."""
    note(job, "start")
    FOREVER.wait()


@executor("loop.waits", timeout=60)
async def loop_waits(job: Job, ctx: Context) -> None:
    """A coroutine that does nothing wrong; it ends when it is asked to stop."""
    note(job, "start")
    await asyncio.sleep(60)


@executor("loop.holds", timeout=0.3)
async def loop_holds(job: Job, ctx: Context) -> None:
    """Never lets the event loop go on."""
    note(job, "start")
    FOREVER.wait()


@executor("loop.ignores", timeout=0.3)
async def loop_ignores(job: Job, ctx: Context) -> None:
    """Never returns, and lets the others go on."""
    note(job, "start")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note(job, "asked")


# How long a part of a replica may make no progress, where a test is not as patient as people are.
if "TEST_STALL_S" in os.environ:
    replace(fitness, "STALL_S", float(os.environ["TEST_STALL_S"]))

# How long claimed jobs may wait for a thread until they are given back, where that would hide what a test looks for.
if "TEST_POOL_STALL_S" in os.environ:
    replace(pool, "STALL_S", float(os.environ["TEST_POOL_STALL_S"]))


def _never(*_args: object, **_named: object) -> None:
    FOREVER.wait()


def _spin(dispatch: Dispatch, conn: Any) -> None:
    while True:
        conn.execute("select 1")


HANGS: dict[str, Callable[[], None]] = {
    "heart": lambda: replace(Dispatch, "return_stalled", _never),
    # Its session does not fall silent, so the server sees nothing wrong with it.
    "heart that keeps its session": lambda: replace(Dispatch, "return_stalled", _spin),
    "completer": lambda: replace(Completer, "_settle", _never),
    "timekeeper": lambda: replace(Timekeeper, "look", _never),
    "rescuer": lambda: replace(Rescuer, "look", _never),
    "stager": lambda: replace(Stager, "work", _never),
    "pruner": lambda: replace(Pruner, "step", _never),
    "lease": lambda: replace(Lease, "beat", _never),
}


@executor("hang_service")
def hang_service(job: Job, ctx: Context) -> None:
    """Makes the service payload.service hang at its next step."""
    note(job, "start")
    HANGS[job.payload["service"]]()


@executor("hold_gil")
def hold_gil(job: Job, ctx: Context) -> None:
    """Holds Python's lock in C for payload.seconds: not a line of Python runs in its process meanwhile."""
    note(job, "start")
    ctypes.PyDLL(None).usleep(int(job.payload["seconds"] * 1e6))
    note(job, "end")
    time.sleep(0)
