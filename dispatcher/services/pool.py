"""The thread pool: plain threads on a queue. A thread that does not come back is not waited for when the process ends.

ThreadPoolExecutor costs twenty times as much a job, and joins its threads at exit, so that one stuck job would block it for ever.
"""

from __future__ import annotations

import json
import queue
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable

from pydantic import ValidationError

from dispatcher.context import Context, Runtime
from dispatcher.inflight import Execution, InFlight
from dispatcher.job import Job
from dispatcher.outcome import JobError, Outcome, Raised, Returned, settle

STALL_S = 1.0  # waiting longer than this without any start: the queue was filled for a faster pool
SAMPLE_S = 0.02


class ThreadPool:
    """Runs executions on `threads` threads and hands each to `ended` with its outcome."""

    def __init__(
        self,
        *,
        threads: int,
        inflight: InFlight,
        runtime: Runtime,
        job_timeout_s: float,
        ended: Callable[[Execution], None],
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.threads = threads
        self._inflight = inflight
        self._runtime = runtime
        self._job_timeout_s = job_timeout_s
        self._ended = ended
        self._clock = clock
        self._chance = chance
        self._queue: queue.SimpleQueue[Execution] = queue.SimpleQueue()
        self._started: list[threading.Thread] = []
        self._last_start = 0.0
        self._done = 0  # a hint for rate(): two threads may count one job
        self._sample: tuple[float, int, float] = (clock(), 0, 0.0)

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return self._queue.qsize()

    def submit(self, executions: list[Execution]) -> None:
        """Queues jobs; threads are started as they are first needed."""
        self._last_start = self._clock()
        for execution in executions:
            self._queue.put(execution)
        while len(self._started) < self.threads and self.waiting:
            thread = threading.Thread(target=self._work, name=f"worker-{len(self._started)}", daemon=True)
            self._started.append(thread)
            thread.start()

    def put_back(self, executions: list[Execution]) -> None:
        """Queues again what could not be given back."""
        for execution in executions:
            self._queue.put(execution)

    def take_waiting(self) -> list[Execution]:
        """Takes back all jobs that no thread has taken yet."""
        taken = []
        while True:
            try:
                taken.append(self._queue.get_nowait())
            except queue.Empty:
                return taken

    def stalled(self) -> bool:
        """True if jobs wait and none has been started for a while."""
        return self.waiting > 0 and self._clock() - self._last_start > STALL_S

    def rate(self) -> float:
        """Jobs ended a second: over the last instants while busy, at once low after a pause."""
        then, done, rate = self._sample
        now, elapsed = self._clock(), self._clock() - then
        if elapsed >= SAMPLE_S:
            fresh = (self._done - done) / elapsed
            rate = fresh if elapsed > 10 * SAMPLE_S else (rate + fresh) / 2
            self._sample = (now, self._done, rate)
        return rate

    def _work(self) -> None:
        me = threading.get_ident()
        while True:
            execution = self._queue.get()
            execution.thread = me
            self._run(execution)
            self._done += 1

    def _run(self, execution: Execution) -> None:
        claimed, spec = execution.claimed, execution.executor
        execution.started_at = self._last_start = self._clock()
        job = Job(
            claimed.id, claimed.type, claimed.tenant or None, None, claimed.priority, claimed.attempt, claimed.failures,
            claimed.created_at, None if claimed.checkpoint is None else json.loads(claimed.checkpoint),
        )  # fmt: skip
        try:
            payload = json.loads(claimed.payload)
            if spec.payload is not None:
                payload = spec.payload.model_validate(payload)
            object.__setattr__(job, "payload", payload)  # still ours alone
        except ValidationError as exc:
            execution.outcome = Outcome.failed(job, JobError("payload", explain_misfit(exc)))
            self._end(execution)
            return
        timeout_s = claimed.timeout_s or spec.timeout_s or self._job_timeout_s
        ctx = Context(job, timeout_s=timeout_s, runtime=self._runtime, clock=self._clock)
        execution.ctx = ctx
        self._inflight.executing[claimed.id] = execution
        ending: Returned | Raised
        try:
            ending = Returned(spec.run(job, ctx))
        except BaseException as exc:  # noqa: BLE001 - the boundary: whatever an executor does ends its own job only
            ending = Raised(exc)
        del self._inflight.executing[claimed.id]
        if ctx.completed:
            # The row knows. If it still says running, the transaction that was to complete it did not commit.
            ending = Raised(UncommittedCompletion("ctx.complete was called, but its transaction did not commit"))
        execution.outcome = settle(
            job, ending, ctx.canceled, policy=spec.retry, max_attempts=claimed.max_attempts, chance=self._chance(),
            stack=execution.stack,
        )  # fmt: skip
        self._end(execution)

    def _end(self, execution: Execution) -> None:
        execution.ended_at = self._clock()
        self._ended(execution)


class UncommittedCompletion(Exception):
    """The executor called ctx.complete and returned without a commit."""


def explain_misfit(exc: ValidationError) -> str:
    """Which fields of a payload do not fit its model, and why."""
    parts = []
    for error in exc.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in error["loc"])
        parts.append(f"{where}: {error['msg']}" if where else error["msg"])
    return "the payload does not fit: " + "; ".join(parts)


def stack_of(thread: int) -> str | None:
    """What a thread is doing right now, for people."""
    frame = sys._current_frames().get(thread)
    return None if frame is None else "".join(traceback.format_stack(frame, limit=30))
