"""A worker process: runs one job after another, each in its main thread, and tells how it goes.

reader thread ──orders──▶ main thread ──Outbox──▶ socket
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler

from pydantic import ByteSize

from dispatcher.errors import DispatcherError
from dispatcher.executor import locate
from dispatcher.inflight import Execution
from dispatcher.job import CancelReason
from dispatcher.outcome import JobError, Outcome, Raised
from dispatcher.pools.attempt import Attempts, bare_job, execute
from dispatcher.pools.memory import has_grown, limited, prefer_oom_kill, resident_bytes
from dispatcher.pools.messages import (
    Attempt,
    CancelOrder,
    Done,
    FromWorker,
    HookFailed,
    Logged,
    Order,
    Progress,
    Setup,
    Stack,
    Started,
)
from dispatcher.pools.nice import be_nice
from dispatcher.pools.thread import stack_of
from dispatcher.runtime import JobRuntime
from dispatcher.store import open_store
from dispatcher.supervisor import PR_SET_CHILD_SUBREAPER, prctl

PROGRESS_EVERY_S = 0.05  # a job may report a million times a second
MAX_LOG_CHARS = 100_000  # of a text in a record
LOG_S = 5.0
LINGER_S = 0.1  # for threads of a job that are about to end
BROKEN = 70  # the exit status where the daemon cannot be told anything any more (EX_SOFTWARE)


class Outbox:
    """What is told to the daemon; of progress only the latest, and not too often.

    Who puts a message sends it, so that a line that was logged is out when the next one crashes; and what cannot be
    pickled, or finds no memory, is theirs.
    """

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._sending = threading.Lock()
        self._progress: Progress | None = None
        self._news = threading.Event()
        start_thread(self._send_progress, "progress")

    def put(self, message: FromWorker) -> None:
        """Sends a message. Any thread."""
        pickled = ForkingPickler.dumps(message)
        with self._sending:
            if isinstance(message, Done):
                self._send_latest()
            self._conn.send_bytes(pickled)

    def log(self, message: Logged) -> None:
        """The same for a log record, which is dropped rather than waited for without end."""
        pickled = ForkingPickler.dumps(message)
        if self._sending.acquire(timeout=LOG_S):  # in a signal handler it may be this very thread that sends
            try:
                self._conn.send_bytes(pickled)
            finally:
                self._sending.release()

    def report(self, _job_id: int, _attempt: int, percent: float, message: str | None) -> None:
        """The progress of the job that runs. Any thread."""
        self._progress = Progress(percent, message)
        self._news.set()

    def close(self) -> None:
        """In a child that a job has forked: what it has to tell is not the job's, and it ends where it tries."""
        self._conn.close()

    def _send_progress(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            with self._sending:
                self._send_latest()
            time.sleep(PROGRESS_EVERY_S)

    def _send_latest(self) -> None:
        latest, self._progress = self._progress, None
        if latest is not None:
            self._conn.send(latest)


class Worker:
    """Serves the daemon at the other end of `conn` until that closes it."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._outbox = Outbox(conn)
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._canceled: dict[Attempt, CancelReason] = {}
        self._current: Execution | None = None
        self._main = threading.get_ident()

    def run(self) -> None:
        """Never returns."""
        or_exit(self._serve)

    def _serve(self) -> None:
        prefer_oom_kill()
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a job leaves behind is found among our children
        setup = self._conn.recv()
        assert isinstance(setup, Setup)
        self._set_up(setup)
        be_nice()  # from here on: a start should not take long
        start_thread(self._read, "reader")
        size = resident_bytes()
        while True:
            order = self._orders.get()
            before = set(threading.enumerate())
            done = self._do(order)
            with suppress(Exception):  # it may be anything by now
                sys.stdout.flush()
            worn = done.worn or _left_something(before) or has_grown(size)
            self._outbox.put(Done(done.outcome, worn=worn))

    def _set_up(self, setup: Setup) -> None:
        root = logging.getLogger()
        root.setLevel(setup.log_level)
        root.handlers[:] = [_Forward(self._outbox)]
        os.register_at_fork(after_in_child=self._outbox.close)
        os.register_at_fork(after_in_child=_log_as_usual)
        store = open_store(setup.result_store, setup.installation) if setup.result_store else None
        self._runtime = JobRuntime(
            dsn=setup.dsn,
            installation=setup.installation,
            owner=setup.owner,
            store=store,
            max_result_bytes=setup.max_result_bytes,
        )
        self._runtime.progress = self._outbox.report
        for source in setup.sources:
            try:
                locate(source)
            except DispatcherError as exc:  # its jobs will say so as well
                logging.getLogger("dispatcher.pool").error("%s", exc)

    def _read(self) -> None:
        while True:
            try:
                message = self._conn.recv()
            except (EOFError, OSError):
                os._exit(0)  # the daemon is gone
            if isinstance(message, Order):
                self._outbox.put(Started())
                self._orders.put(message)
            elif isinstance(message, CancelOrder):
                self._cancel(message)

    def _cancel(self, order: CancelOrder) -> None:
        with self._lock:
            self._canceled[order.key] = order.reason
            execution = self._current
        if execution is None or execution.key != order.key or execution.ctx is None:
            return  # the main thread looks at `_canceled` once it comes so far
        if order.reason is CancelReason.TIMEOUT and (text := stack_of(self._main)):
            execution.stack = text
            self._outbox.put(Stack(text))
        execution.ctx.cancel(order.reason)

    def _do(self, order: Order) -> Done:
        claimed = order.claimed._replace(timeout_s=order.timeout_s)
        try:
            spec = locate(order.source)
        except DispatcherError as exc:
            return Done(Outcome.failed(bare_job(claimed), JobError("executor", str(exc))), worn=False)
        execution = Execution(claimed, spec, time.monotonic())
        attempts = Attempts(
            runtime=self._runtime,
            job_timeout_s=order.timeout_s,
            hook_failed=lambda type: self._outbox.put(HookFailed(type)),
        )
        ctx, worn = attempts.begin(execution), False
        if ctx is not None:
            with self._lock:
                self._current = execution
                reason = self._canceled.pop(execution.key, None)
            if reason is not None:
                ctx.cancel(reason)
            with limited(spec.memory_limit):
                ending = execute(spec, ctx)
            if isinstance(ending, Raised) and isinstance(ending.error, MemoryError):
                worn = True  # who knows what it was that found no memory
                if spec.memory_limit is not None:
                    ending = Raised(MemoryLimitExceeded(spec.memory_limit, ending.error))
            attempts.conclude(execution, ctx, ending)
        with self._lock:
            self._current = None
            self._canceled.clear()
        assert execution.outcome is not None
        return Done(execution.outcome, worn)


def start_thread(target: Callable[[], None], name: str) -> None:
    """A thread without which nothing would ever be told: the process ends with it."""
    threading.Thread(target=or_exit, args=(target,), name=name, daemon=True).start()


def or_exit(target: Callable[[], None]) -> None:
    """Runs what should never return; the process ends with it, and waits for no thread of a job."""
    try:
        target()
    except BaseException:  # noqa: BLE001 - the memory is at its end, the job has closed the socket, ...
        traceback.print_exc()
    finally:
        os._exit(BROKEN)


def _left_something(before: set[threading.Thread]) -> bool:
    """Whether the job's threads or processes go on: they end with this process, and the job not before."""
    for thread in set(threading.enumerate()) - before:
        thread.join(LINGER_S)
        if thread.is_alive():
            return True
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _log_as_usual() -> None:
    """In a child that a job has forked, which has no way to the daemon."""
    logging.getLogger().handlers[:] = [logging.StreamHandler()]


class MemoryLimitExceeded(MemoryError):
    """The job wanted more than its memory_limit."""

    def __init__(self, limit: int, cause: MemoryError) -> None:
        super().__init__(f"it wanted more than the {ByteSize(limit).human_readable()} that memory_limit allows")
        self.__cause__ = cause


class _Forward(QueueHandler):
    """Sends what is logged to the daemon."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(queue=None)  # type: ignore[arg-type] # enqueue() is all that uses it
        self._outbox = outbox

    def enqueue(self, record: logging.LogRecord) -> None:
        """See QueueHandler, whose prepare() has made the message a text; what else came along may be anything."""
        plain = {
            name: value if type(value) in (int, float, bool, type(None)) else str(value)[:MAX_LOG_CHARS]
            for name, value in vars(record).items()
        }
        self._outbox.log(Logged(plain))
