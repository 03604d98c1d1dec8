"""Executors that other processes import: for the tests of the pools process and dask, and of async def."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dispatcher import Backoff, Cancel, Context, Fail, Job, Partial, Retry, Snooze, executor

QUICKLY = Backoff(initial_s=0.01)
HUNG_S = 300.0


class Text(BaseModel):
    text: str


@executor("far.echo", pool="process", payload=Text)
def echo(job: Job, ctx: Context) -> Any:
    """Its text, and where it ran."""
    return {"text": job.payload.text, "pid": os.getpid(), "attempt": ctx.attempt, "id": job.id}


@executor("far.end", pool="process", backoff=QUICKLY)
def end(job: Job, ctx: Context) -> Any:
    """Ends as the payload says."""
    match job.payload["how"]:
        case "partial":
            return Partial({"done": 1}, [{"message": "one is missing", "item": 2}])
        case "fail":
            raise Fail("no more tries")
        case "retry":
            raise Retry(7.0, "later")
        case "snooze":
            raise Snooze(9.0)
        case "cancel":
            raise Cancel
        case "error":
            raise ValueError("in another process")
        case "odd":
            return object()
        case how:
            raise AssertionError(how)


@executor("far.die", pool="process", max_attempts=2, backoff=QUICKLY)
def die(job: Job, ctx: Context) -> Any:
    """Takes its process along."""
    ctx.logger.info("about to %s", job.payload["how"])
    match job.payload["how"]:
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "abort":
            os.abort()


@executor("far.hang", pool="process", timeout=0.3, max_attempts=1)
def hang(job: Job, ctx: Context) -> Any:
    """Holds the GIL in C and hears nothing, after it has started a program that hears nothing either."""
    program = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({HUNG_S})"], start_new_session=True)
    Path(job.payload["file"]).write_text(f"{os.getpid()} {program.pid}", encoding="ascii")
    ctypes.PyDLL(None).sleep(int(HUNG_S))


@executor("far.wait", pool="process")
def wait(job: Job, ctx: Context) -> Any:
    """Waits until it is asked to stop, and heeds."""
    ctx.progress(10, "waits")
    ctx.sleep(HUNG_S)


@executor("far.grow", pool="process", memory_limit="64MiB", max_attempts=1)
def grow(job: Job, ctx: Context) -> Any:
    """Takes so many MiB."""
    taken = bytearray(job.payload["mib"] * 2**20)
    return len(taken)


@executor("far.talk", pool="process")
def talk(job: Job, ctx: Context) -> Any:
    """Reports much, and logs."""
    for number in range(job.payload["times"]):
        ctx.progress(100 * number / job.payload["times"], f"step {number}")
    ctx.logger.warning("halfway through %s", job.payload["times"], extra={"odd": object()})
    logging.getLogger("far.library").error("with a trace", exc_info=ValueError("why"))
    ctx.progress(99, "nearly")
    return "told"


@executor("far.async", pool="process")
async def coroutine(job: Job, ctx: Context) -> Any:
    """A coroutine in a process of its own."""
    await asyncio.sleep(job.payload.get("seconds", 0))
    return "awaited"


@executor("far.connect", pool="process")
def connect(job: Job, ctx: Context) -> Any:
    """Asks the dispatcher's database."""
    with ctx.connect() as conn:
        return conn.execute("select 1").fetchone()


@executor("far.spin", pool="process")
def spin(job: Job, ctx: Context) -> Any:
    """Computes for so many seconds of CPU time."""
    until = time.process_time() + job.payload["cpu_s"]
    while time.process_time() < until:
        pass


@executor(
    "far.hooked",
    pool="process",
    max_attempts=1,
    on_success=lambda job, ctx, result: Path(job.payload["file"]).write_text(
        f"{result} {os.getpid()}", encoding="ascii"
    ),
    on_final_failure=lambda job, ctx, error: Path(job.payload["file"]).write_text(
        f"{error.kind} {os.getpid()}", encoding="ascii"
    ),
)
def hooked(job: Job, ctx: Context) -> Any:
    """With hooks that write a file."""
    if job.payload["die"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


KEPT: list[Any] = []


@executor("far.leak", pool="process")
def leak(job: Job, ctx: Context) -> Any:
    """Forgets nothing."""
    KEPT.append(bytearray(b"x") * (job.payload["mib"] * 2**20))
    return os.getpid()


@executor("far.say", pool="process")
def say(job: Job, ctx: Context) -> None:
    """Prints, and logs very much at once."""
    print("said by a job")
    ctx.logger.warning("%s", "x" * 50_000_000)


def runs(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


@executor("far.leave", pool="process")
def leave(job: Job, ctx: Context) -> Any:
    """Ends, and leaves something running."""
    match job.payload["what"]:
        case "child":
            return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({HUNG_S})"]).pid
        case "daemon":
            read, written = os.pipe()
            if not (middle := os.fork()):
                os.setsid()
                if pid := os.fork():
                    os.write(written, str(pid).encode())
                    os._exit(0)
                time.sleep(HUNG_S)
            os.waitpid(middle, 0)
            return int(os.read(read, 20))
        case "fork that goes on":
            return os.fork() or os.getpid()
        case "thread":
            threading.Thread(target=time.sleep, args=(HUNG_S,), daemon=True).start()
            return os.getpid()
        case what:
            raise AssertionError(what)


class Odd(str):
    """A text that cannot be pickled."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> Any:
        raise RuntimeError("not me")


@executor("far.break", pool="process", max_attempts=2, backoff=QUICKLY, memory_limit="64MiB")
def break_off(job: Job, ctx: Context) -> Any:
    """Spoils the way to the daemon."""
    fd = int(sys.argv[1])
    match job.payload["how"]:
        case "odd record":
            ctx.logger.warning("odd", extra={"odd": Odd("odd")})
        case "garbage":
            os.write(fd, b"\0\0\0\2ab")
        case "huge garbage":
            os.write(fd, b"\xff\xff\xff\xff" + b"\x7f" * 8)
        case "closed":
            os.closerange(3, 256)
        case "shut":
            socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RDWR)
            time.sleep(HUNG_S)
        case "limits":
            resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
        case "no memory":
            taken: list[Any] = []
            size = 2**20
            while size > 16:
                try:
                    taken.append(bytes(size))
                except MemoryError:
                    size //= 2
            ctx.progress(50)
            time.sleep(0.3)
    return "done"


@executor("far.flood", pool="process")
def flood(job: Job, ctx: Context) -> Any:
    """Logs much, and returns by how many MiB that made its process grow."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5000):
        logging.getLogger("far.flood").warning("%s", "x" * 50_000)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@executor("far.echoes", pool="process")
def length(job: Job, ctx: Context) -> Any:
    """How long a text is."""
    return len(job.payload["text"])
