"""A worker process: runs one job after another, each in its main thread, and tells how it goes.

reader thread ──orders──▶ main thread ──Outbox──▶ sender thread ─▶ socket
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection

from pydantic import ByteSize

from dispatcher.errors import DispatcherError
from dispatcher.executor import locate
from dispatcher.inflight import Execution
from dispatcher.job import CancelReason
from dispatcher.outcome import JobError, Outcome, Raised
from dispatcher.pools.attempt import Attempts, bare_job, execute
from dispatcher.pools.memory import limited, prefer_oom_kill
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
from dispatcher.pools.thread import stack_of
from dispatcher.runtime import JobRuntime
from dispatcher.store import open_store

PROGRESS_EVERY_S = 0.05  # a job may report a million times a second


class Outbox:
    """What is to be sent, in order; of progress only the latest, and not too often."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._queue: queue.SimpleQueue[FromWorker | None] = queue.SimpleQueue()
        self._progress: Progress | None = None
        threading.Thread(target=self._send_all, name="sender", daemon=True).start()

    def put(self, message: FromWorker) -> None:
        """Queues a message. Any thread."""
        self._queue.put(message)

    def report(self, _job_id: int, _attempt: int, percent: float, message: str | None) -> None:
        """The progress of the job that runs. Any thread."""
        news, self._progress = self._progress is None, Progress(percent, message)
        if news:
            self._queue.put(None)  # there is progress to be sent

    def _send_all(self) -> None:
        next_s = 0.0  # progress is not sent before this
        while True:
            wait_s = None if self._progress is None else max(0.0, next_s - time.monotonic())
            try:
                message = self._queue.get(timeout=wait_s)
            except queue.Empty:
                message = None
            if self._progress is not None and (isinstance(message, Done) or time.monotonic() >= next_s):
                latest, self._progress = self._progress, None
                self._conn.send(latest)
                next_s = time.monotonic() + PROGRESS_EVERY_S
            if message is not None:
                self._conn.send(message)


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
        prefer_oom_kill()
        setup = self._conn.recv()
        assert isinstance(setup, Setup)
        self._set_up(setup)
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        while True:
            order = self._orders.get()
            self._outbox.put(self._do(order))

    def _set_up(self, setup: Setup) -> None:
        root = logging.getLogger()
        root.setLevel(setup.log_level)
        root.handlers[:] = [_Forward(self._outbox)]
        store = open_store(setup.result_store, setup.installation) if setup.result_store else None
        self._runtime = JobRuntime(
            dsn=setup.dsn,
            installation=setup.installation,
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
                    ending = Raised(_OverLimit(spec.memory_limit, ending.error))
            attempts.conclude(execution, ctx, ending)
        with self._lock:
            self._current = None
            self._canceled.clear()
        assert execution.outcome is not None
        return Done(execution.outcome, worn)


class _OverLimit(MemoryError):
    """The job wanted more than its memory_limit."""

    def __init__(self, limit: int, cause: MemoryError) -> None:
        super().__init__(f"the job wanted more memory than its limit of {ByteSize(limit).human_readable()}")
        self.__cause__ = cause


class _Forward(QueueHandler):
    """Sends what is logged to the daemon."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(queue=None)  # type: ignore[arg-type] # enqueue() is all that uses it
        self._outbox = outbox

    def enqueue(self, record: logging.LogRecord) -> None:
        """See QueueHandler, whose prepare() has made the message a text; what else came along may be anything."""
        for name, value in vars(record).items():
            if not isinstance(value, str | int | float | None):
                setattr(record, name, repr(value))
        self._outbox.put(Logged(record))
