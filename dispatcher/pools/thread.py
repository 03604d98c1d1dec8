"""The thread pool: plain threads on a queue. A thread that does not come back is not waited for when the process ends.

ThreadPoolExecutor costs twenty times as much a job, and joins its threads at exit, so that one stuck job would block
it for ever.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable

from dispatcher.abort import end_without_memory
from dispatcher.inflight import Execution, InFlight
from dispatcher.pool import SAMPLE_S, Backlog
from dispatcher.pools.attempt import Attempts, execute

log = logging.getLogger("dispatcher.pool")

GROWTH_S = 0.001  # while jobs are so quick that few of them take less than this together, a rise is seen so soon
QUICK_S = 0.0001  # of jobs quicker than this one thread runs as many as sixteen, which would only fight for the GIL
NUDGE_S = 0.001


class ThreadPool(Backlog):
    """Runs executions on `threads` threads and hands each to `ended` with its outcome."""

    _quick_s = QUICK_S

    def __init__(
        self,
        *,
        threads: int,
        inflight: InFlight,
        attempts: Attempts,
        ended: Callable[[Execution], None],
        clock: Callable[[], float] = time.monotonic,
        name: str = "thread",
    ) -> None:
        # Busy threads pop from the deque without a lock; idle ones wait for a token. A queue.Queue would hand each
        # job over from thread to thread: measured, that costs several times as much as a no-op job itself.
        super().__init__(name=name, size=threads, inflight=inflight, ended=ended, clock=clock)
        self._attempts = attempts
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._idle = 0
        self._idle_lock = threading.Lock()
        self._typical_s = 2 * QUICK_S  # what a job takes, of late
        self._started: list[threading.Thread] = []

    def submit(self, executions: list[Execution]) -> None:
        """Queues jobs; threads are started as they are first needed."""
        self._last_start = self._clock()
        self._waiting.extend(executions)
        self._wake_one()

    def rate(self) -> float:
        """Jobs ended a second, at once high when jobs turn out to be quick."""
        then, done, rate = self._sample
        elapsed = self._clock() - then
        if GROWTH_S <= elapsed < SAMPLE_S and self._typical_s < self._quick_s:
            return max(rate, (self._done - done) / elapsed)
        return super().rate()

    def nudge(self) -> None:
        """Wakes one more thread if jobs wait and none has been started for a moment: the jobs have become slow."""
        if self._waiting and self._clock() - self._last_start > NUDGE_S:
            self._typical_s = 2 * QUICK_S
            self._wake_one()

    def stack(self, execution: Execution) -> str | None:
        """What the execution's thread is doing right now."""
        return stack_of(execution.thread)

    def run(self, execution: Execution) -> None:
        """Runs one here and now, in the caller's thread."""
        execution.thread = threading.get_ident()
        self._begin(execution)
        self._run(execution)
        self._end(execution)

    def _wake_one(self) -> None:
        """Wakes an idle thread, or starts one; it wakes the next one in turn if it finds more than its own job."""
        with self._idle_lock:
            if self._idle:
                self._idle -= 1
                self._tokens.put(None)
                return
            if len(self._started) == self.size:
                return
            number = len(self._started)
            thread = threading.Thread(target=self._work, name=f"{self._thread_name}-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads for this process: those that there are do the work
                if not self._started:
                    raise
                log.warning("cannot start another worker thread")
                return
            self._started.append(thread)

    @property
    def _thread_name(self) -> str:
        return "worker" if self.name == "thread" else self.name

    def _work(self) -> None:
        me = threading.get_ident()
        while True:
            try:
                self._serve(me)
            except BaseException as exc:  # a job has raised it in this thread, as a debugger may
                end_without_memory(exc)
                log.exception("a worker thread was interrupted from outside")
                self._conclude_broken(me, exc)

    def _conclude_broken(self, me: int, exc: BaseException) -> None:
        for execution in [each for each in self._executing.copy().values() if each.thread == me]:
            if execution.outcome is None:
                self._attempts.crash(execution, f"{type(exc).__name__} was raised in its thread from outside")
            self._end(execution)

    def _serve(self, me: int) -> None:
        while True:
            try:
                execution = self._waiting.popleft()
            except IndexError:
                self._rest()
                continue
            self._begin(execution)
            quick = self._typical_s < self._quick_s
            if not quick and self._waiting and (self._idle or len(self._started) < self.size):
                self._wake_one()
            execution.thread = me
            self._run(execution)
            self._end(execution)
            took = execution.ended_at - execution.started_at
            self._typical_s += (min(took, 10 * QUICK_S) - self._typical_s) / 10
            if quick and len(self._started) - self._idle > 1:
                self._rest()

    def _rest(self) -> None:
        """Waits for a token; the last thread awake does not rest while jobs wait."""
        with self._idle_lock:
            self._idle += 1
            last = self._idle == len(self._started)
        if last and self._waiting:
            self._wake_one()
        self._tokens.get()

    def _run(self, execution: Execution) -> None:
        """Runs it to its end; its outcome is set then."""
        attempts = self._attempts
        ctx = attempts.begin(execution)
        if ctx is not None:
            attempts.conclude(execution, ctx, execute(execution.executor, ctx))


def stack_of(thread: int) -> str | None:
    """What a thread is doing right now, for people."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - documented, in spite of its name
    return None if frame is None else "".join(traceback.format_stack(frame, limit=30))
