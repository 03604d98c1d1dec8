"""The thread pool: plain threads on a queue. A thread that does not come back is not waited for when the process ends.

ThreadPoolExecutor costs twenty times as much a job, and joins its threads at exit, so that one stuck job would block
it for ever.
"""

from __future__ import annotations

import json
import logging
import queue
import random
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from pydantic import ValidationError

from dispatcher.context import Context, Runtime
from dispatcher.ending import Conclusion
from dispatcher.executor import Executor
from dispatcher.inflight import Execution, InFlight
from dispatcher.job import CancelReason, Job
from dispatcher.outcome import JobError, Outcome, Raised, Returned
from dispatcher.queries.claims import Claimed

log = logging.getLogger("dispatcher.pool")

STALL_S = 1.0  # waiting longer than this without any start: the queue was filled for a faster pool
SAMPLE_S = 0.02
GROWTH_S = 0.001  # and while jobs are so quick that few of them take less than this together, a rise is seen so soon
QUICK_S = 0.0001  # of jobs quicker than this one thread runs as many as sixteen, which would only fight for the GIL
NUDGE_S = 0.001
_decode = json.JSONDecoder().raw_decode  # of text that PostgreSQL wrote: there is no space around it to look for


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
        hook_failed: Callable[[str], None] = lambda _type: None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.threads = threads
        self._inflight = inflight
        self._runtime = runtime
        self._conclusion = Conclusion(runtime, hook_failed)
        self._job_timeout_s = job_timeout_s
        self._ended = ended
        self._clock = clock
        self._chance = chance
        # Busy threads pop from the deque without a lock; idle ones wait for a token. A queue.Queue would hand each
        # job over from thread to thread: measured, that costs several times as much as a no-op job itself.
        self._waiting: deque[Execution] = deque()
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._idle = 0
        self._idle_lock = threading.Lock()
        self._typical_s = 2 * QUICK_S  # what a job takes, of late
        self._started: list[threading.Thread] = []
        self._last_start = 0.0
        self._done = 0  # a hint for rate(): two threads may count one job
        self._sample: tuple[float, int, float] = (clock(), 0, 0.0)

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return len(self._waiting)

    def submit(self, executions: list[Execution]) -> None:
        """Queues jobs; threads are started as they are first needed."""
        self._last_start = self._clock()
        self._waiting.extend(executions)
        self._wake_one()

    def take_waiting(self) -> list[Execution]:
        """Takes back all jobs that no thread has taken yet."""
        taken = []
        while True:
            try:
                taken.append(self._waiting.popleft())
            except IndexError:
                return taken

    def stalled(self) -> bool:
        """True if jobs wait and none has been started for a while."""
        return self.waiting > 0 and self._clock() - self._last_start > STALL_S

    def rate(self) -> float:
        """Jobs ended a second: over the last instants while busy, at once low after a pause, at once high when jobs
        turn out to be quick."""
        then, done, rate = self._sample
        now, elapsed = self._clock(), self._clock() - then
        fresh = (self._done - done) / elapsed if elapsed > 0 else 0.0
        if elapsed >= SAMPLE_S:
            rate = fresh if elapsed > 10 * SAMPLE_S else (rate + fresh) / 2
            self._sample = (now, self._done, rate)
        elif elapsed >= GROWTH_S and self._typical_s < QUICK_S:
            return max(rate, fresh)
        return rate

    def nudge(self) -> None:
        """Wakes one more thread if jobs wait and none has been started for a moment: the jobs have become slow."""
        if self._waiting and self._clock() - self._last_start > NUDGE_S:
            self._typical_s = 2 * QUICK_S
            self._wake_one()

    def run(self, execution: Execution) -> None:
        """Runs one here and now, in the caller's thread."""
        self._inflight.executing[execution.key] = execution
        execution.thread = threading.get_ident()
        self._run(execution)

    def _wake_one(self) -> None:
        """Wakes an idle thread, or starts one; it wakes the next one in turn if it finds more than its own job."""
        with self._idle_lock:
            if self._idle:
                self._idle -= 1
                self._tokens.put(None)
                return
            if len(self._started) == self.threads:
                return
            thread = threading.Thread(target=self._work, name=f"worker-{len(self._started)}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads for this process: those that there are do the work
                if not self._started:
                    raise
                log.warning("cannot start another worker thread")
                return
            self._started.append(thread)

    def _work(self) -> None:
        me = threading.get_ident()
        while True:
            try:
                execution = self._waiting.popleft()
            except IndexError:
                self._rest()
                continue
            self._inflight.executing[execution.key] = execution  # at once: the fence stands while anything executes
            quick = self._typical_s < QUICK_S
            if not quick and self._waiting and (self._idle or len(self._started) < self.threads):
                self._wake_one()
            execution.thread = me
            self._run(execution)
            self._done += 1
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
        claimed, spec = execution.claimed, execution.executor
        execution.started_at = self._last_start = self._clock()
        try:
            job = _job(claimed, spec)
        except BaseException as exc:  # noqa: BLE001 - a model's own validators may raise anything
            execution.outcome = self._misfit(claimed, spec, exc)
            self._end(execution)
            return
        timeout_s = claimed.timeout_s or spec.timeout_s or self._job_timeout_s
        ctx = Context(job, timeout_s=timeout_s, runtime=self._runtime, clock=self._clock)
        execution.ctx = ctx
        if execution.cancel_requested:
            ctx.cancel(CancelReason.REQUESTED)
        ending: Returned | Raised
        try:
            ctx.raise_if_canceled()  # canceled while it waited for a thread
            ending = Returned(spec.run(job, ctx))
        except BaseException as exc:  # noqa: BLE001 - the boundary: whatever an executor does ends its own job only
            ending = Raised(exc)
        execution.outcome = self._conclusion.conclude(
            job,
            ctx,
            ending,
            spec,
            max_attempts=claimed.max_attempts,
            chance=self._chance(),
            stack=execution.stack,
        )
        self._end(execution)

    def _misfit(self, claimed: Claimed, spec: Executor, exc: BaseException) -> Outcome:
        job = _bare(claimed)
        outcome = Outcome.failed(job, JobError("payload", explain_misfit(exc)))
        if spec.hooks is None:
            return outcome
        ctx = Context(job, timeout_s=None, runtime=self._runtime, clock=self._clock)
        return self._conclusion.call_hooks(spec.hooks, job, ctx, outcome, None)

    def _end(self, execution: Execution) -> None:
        execution.ended_at = self._clock()
        del self._inflight.executing[execution.key]
        self._ended(execution)


def _job(claimed: Claimed, spec: Executor) -> Job:
    payload, _ = _decode(claimed.payload)
    if spec.payload is not None:
        payload = spec.payload.model_validate(payload)
    checkpoint = None if claimed.checkpoint is None else json.loads(claimed.checkpoint)
    return Job(
        claimed.id,
        claimed.type,
        claimed.tenant or None,
        payload,
        claimed.priority,
        claimed.attempt,
        claimed.failures,
        claimed.created_at,
        checkpoint,
        claimed.parent_id,
    )


def _bare(claimed: Claimed) -> Job:
    """The job with its payload as it was stored, None where Python cannot even read that."""
    try:
        payload = json.loads(claimed.payload)
    except (ValueError, RecursionError):
        payload = None
    tenant = claimed.tenant or None
    return Job(
        claimed.id,
        claimed.type,
        tenant,
        payload,
        claimed.priority,
        claimed.attempt,
        claimed.failures,
        claimed.created_at,
    )


def explain_misfit(exc: BaseException) -> str:
    """Which fields of a payload do not fit its model, and why."""
    if not isinstance(exc, ValidationError):
        return f"the payload cannot be read: {type(exc).__name__}"
    parts = []
    for error in exc.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in error["loc"])
        parts.append(f"{where}: {error['msg']}" if where else error["msg"])
    return "the payload does not fit: " + "; ".join(parts)


def stack_of(thread: int) -> str | None:
    """What a thread is doing right now, for people."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - documented, in spite of its name
    return None if frame is None else "".join(traceback.format_stack(frame, limit=30))
