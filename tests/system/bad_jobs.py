"""Executors on threads that do to their process what they must not."""

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dispatcher import Context, Job, executor
from tests.events import note
from tests.system.fault_jobs import AT_ONCE, LOOK_S

KEPT: list[Any] = []


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(LOOK_S)


@executor("bad.fork", max_attempts=3, backoff=AT_ONCE)
def fork(job: Job, ctx: Context) -> str:
    """Leaves a child behind that lives until the file payload.until is there, and tells which files it has."""
    note(job, "start")
    child = os.fork()
    if child == 0:
        names = [Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]  # noqa: PTH208
        targets = [str(name.readlink()) for name in names if name.is_symlink()]
        Path(job.payload["files"]).write_text("\n".join(targets))
        wait_for(job.payload["until"])
        os._exit(0)
    return str(child)


@executor("bad.fork_returns")
def fork_returns(job: Job, ctx: Context) -> int:
    """Forgets that its child goes on where it was forked: two processes return from here."""
    child = os.fork()
    note(job, "forked", why=str(child))
    if child == 0 and job.payload.get("exit"):
        sys.exit(3)
    return child


@executor("bad.terminate")
def terminate(job: Job, ctx: Context) -> int | None:
    """Ends a child that it has forked, by SIGTERM."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(10)
    return child.exitcode


@executor("bad.close", max_attempts=2, backoff=AT_ONCE)
def close(job: Job, ctx: Context) -> int:
    """Closes files of its process, and opens some of its own, which get the same numbers; in its first attempt."""
    note(job, "start")
    if job.attempt > 1:
        return 0
    fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))  # noqa: PTH208
    sockets = [fd for fd in fds if fd > 2 and _target(fd).startswith(job.payload["kind"])]
    if job.payload.get("all"):
        os.closerange(3, 100)
    else:
        os.close(sockets[job.payload["nth"] % len(sockets)])
    if folder := job.payload.get("folder"):
        for number in range(100):
            KEPT.append(os.open(f"{folder}/{number}", os.O_CREAT | os.O_RDWR))
            os.write(KEPT[-1], b"mine")
    note(job, "closed")
    time.sleep(5)
    return len(sockets)


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
    except OSError:
        return ""


@executor("bad.raise")
def raise_in_peers(job: Job, ctx: Context) -> list[str]:
    """Raises SystemExit in the threads of its process whose names begin with payload.name."""
    hit = []
    for thread in threading.enumerate():
        if thread.name.startswith(job.payload["name"]) and thread is not threading.current_thread():
            assert thread.ident is not None
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
            hit.append(thread.name)
    return hit


@executor("bad.signal")
def signal_itself(job: Job, ctx: Context) -> str:
    """Sends a signal to its process."""
    note(job, "start")
    os.kill(os.getpid(), getattr(signal, job.payload["name"]))
    time.sleep(0.2)
    return "done"


@executor("bad.harmless", max_attempts=1)
def harmless(job: Job, ctx: Context) -> None:
    """What a job may try, and what fails that job alone."""
    match job.payload["what"]:
        case "exit":
            sys.exit(3)
        case "handler":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "interrupt":
            raise KeyboardInterrupt


@executor("bad.threading")
def spoil_threading(job: Job, ctx: Context) -> None:
    """Makes the module threading forget its threads."""
    getattr(threading, "_active").clear()  # noqa: B009 - mypy knows no such thing


@executor("bad.leak", max_attempts=20, backoff=AT_ONCE)
def leak(job: Job, ctx: Context) -> int:
    """Takes all the memory that its process may have, and keeps it, in the first process that runs it."""
    note(job, "start")
    if os.getpid() != job.payload["pid"]:
        return 0
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 200 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for size in (2**20, 2**12, 2**9):
        try:
            while True:
                KEPT.append(bytearray(size))
        except MemoryError:
            continue
    raise MemoryError


@executor("bad.thread_left")
def leave_thread(job: Job, ctx: Context) -> None:
    """Leaves a thread behind for which Python waits at the end of a process."""
    threading.Thread(target=time.sleep, args=(60,), daemon=False).start()
