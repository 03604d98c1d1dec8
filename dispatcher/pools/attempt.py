"""One attempt of a job, wherever it runs: what the executor is given, and what becomes of the job when it is back."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from dispatcher import forks
from dispatcher.context import Context, Runtime
from dispatcher.ending import Conclusion
from dispatcher.executor import Executor
from dispatcher.inflight import Execution
from dispatcher.job import CancelReason, Job
from dispatcher.options import misfits
from dispatcher.outcome import JobError, Outcome, Raised, Returned, crashed
from dispatcher.queries.claims import Claimed

_decode = json.JSONDecoder().raw_decode  # of text that PostgreSQL wrote: there is no space around it to look for


class Attempts:
    """Begins and concludes attempts; what an executor does in between is its pool's affair."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        job_timeout_s: float,
        hook_failed: Callable[[str], None] = lambda _type: None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.conclusion = Conclusion(runtime, hook_failed)
        self.chance = chance
        self.max_result_bytes = runtime.max_result_bytes
        self._runtime = runtime
        self._job_timeout_s = job_timeout_s
        self._clock = clock

    def begin(self, execution: Execution) -> Context | None:
        """What the executor is given; None where the payload does not fit, which is the outcome then."""
        claimed, spec = execution.claimed, execution.executor
        try:
            job = _job(claimed, spec)
        except BaseException as exc:  # noqa: BLE001 - a model's own validators may raise anything
            execution.outcome = self._misfit(claimed, spec, exc)
            return None
        return self.watch(execution, job)

    def watch(self, execution: Execution, job: Job, *, start_s: float = 0.0) -> Context:
        """The context of an attempt, by which it is told to stop. It may take `start_s` until it has started."""
        timeout_s = self.timeout_s(execution) + start_s
        ctx = Context(job, timeout_s=timeout_s, runtime=self._runtime, clock=self._clock)
        execution.ctx = ctx
        if execution.cancel_requested:
            ctx.cancel(CancelReason.REQUESTED)
        if execution.lost:
            ctx.cancel(CancelReason.LOST)
        return ctx

    def timeout_s(self, execution: Execution) -> float:
        """How long it may take."""
        return execution.claimed.timeout_s or execution.executor.timeout_s or self._job_timeout_s

    def started(self, execution: Execution) -> None:
        """It has started only now, elsewhere: its time counts from here."""
        assert execution.ctx is not None
        execution.started_at = self._clock()
        execution.ctx.deadline = execution.started_at + self.timeout_s(execution)

    def conclude(self, execution: Execution, ctx: Context, ending: Returned | Raised) -> None:
        """Sets the outcome, after the hooks."""
        execution.outcome = self.conclusion.conclude(
            ctx.job,
            ctx,
            ending,
            execution.executor,
            max_attempts=execution.claimed.max_attempts,
            chance=self.chance(),
            stack=execution.stack,
        )

    def crash(self, execution: Execution, message: str) -> None:
        """Sets the outcome of one whose pool broke off under it; no hook is called."""
        execution.outcome = crashed(
            bare_job(execution.claimed),
            policy=execution.executor.retry,
            max_attempts=execution.claimed.max_attempts,
            chance=self.chance(),
            message=message,
        )

    def _misfit(self, claimed: Claimed, spec: Executor, exc: BaseException) -> Outcome:
        job = bare_job(claimed)
        outcome = Outcome.failed(job, JobError("payload", explain_misfit(exc)))
        if spec.hooks is None:
            return outcome
        ctx = Context(job, timeout_s=None, runtime=self._runtime, clock=self._clock)
        return self.conclusion.call_hooks(spec.hooks, job, ctx, outcome, None)


def execute(spec: Executor, ctx: Context) -> Returned | Raised:
    """Runs the executor in this thread, one that is `async def` on an event loop of its own."""
    depth = forks.depth
    ending: Returned | Raised
    try:
        ctx.raise_if_canceled()  # canceled while it waited for its turn
        value = spec.run(ctx.job, ctx)
        ending = Returned(asyncio.run(_awaited(value, ctx)) if spec.asynchronous else value)
    except BaseException as exc:  # noqa: BLE001 - the boundary: whatever an executor does ends its own job only
        ending = Raised(exc)
    if forks.depth != depth:
        end_child(ending)
    return ending


def end_child(ending: Returned | Raised) -> None:
    """A child that the executor has forked came back as if it were the job: it would go on as a second daemon."""
    code = 0 if isinstance(ending, Returned) else getattr(ending.error, "code", 1) or 0
    os._exit(code if isinstance(code, int) else 1)


async def _awaited(executor: Any, ctx: Context) -> Any:
    """Awaits a coroutine, which is cancelled, as asyncio has it, when the job is asked to stop."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(executor)

    def cancel() -> None:
        with suppress(RuntimeError):  # the loop is closed: it has just ended
            loop.call_soon_threadsafe(task.cancel)

    ctx.on_cancel(cancel)
    return await task


def job_of(claimed: Claimed, spec: Executor) -> Job:
    """The job with its payload as its model has it; as it was stored where it does not fit."""
    try:
        return _job(claimed, spec)
    except BaseException:  # noqa: BLE001 - as in begin
        return bare_job(claimed)


def without_payload(claimed: Claimed) -> Job:
    """The job where its payload is of no concern, and would only cost time."""
    return _with_payload(claimed, None, None)


def bare_job(claimed: Claimed) -> Job:
    """The job with its payload as it was stored, None where Python cannot even read that."""
    try:
        payload = json.loads(claimed.payload)
    except (ValueError, RecursionError):
        payload = None
    return _with_payload(claimed, payload, None)


def _job(claimed: Claimed, spec: Executor) -> Job:
    payload, _ = _decode(claimed.payload)
    if spec.payload is not None:
        payload = spec.payload.model_validate(payload)
    return _with_payload(claimed, payload, None if claimed.checkpoint is None else json.loads(claimed.checkpoint))


def _with_payload(claimed: Claimed, payload: Any, checkpoint: Any) -> Job:
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


def explain_misfit(exc: BaseException) -> str:
    """Which fields of a payload do not fit its model, and why."""
    if not isinstance(exc, ValidationError):
        return f"the payload cannot be read: {type(exc).__name__}"
    return f"the payload does not fit: {misfits(exc)}"
