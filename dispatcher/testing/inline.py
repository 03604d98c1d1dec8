"""run_inline: one try of an executor, here and now, with everything that it would do noted instead of done."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection

from dispatcher.context import Context
from dispatcher.errors import ExecutorError
from dispatcher.executor import Executor, Registry
from dispatcher.inflight import Execution, InFlight
from dispatcher.job import CancelReason, Job, State
from dispatcher.options import encode_payload
from dispatcher.outcome import Outcome, encode
from dispatcher.pools.attempt import Attempts
from dispatcher.pools.thread import ThreadPool
from dispatcher.queries.claims import Claimed
from dispatcher.testing.fake import Enqueued, FakeRuntime


@dataclass(frozen=True, slots=True)
class Ended:
    """How a try ended, by the very decision that a replica makes, and what the executor and its hooks did."""

    state: State
    """What the job becomes: a final state; `scheduled`, to run again in `delay_s`; `pending` after a shutdown."""
    result: Any
    result_url: str | None
    errors: list[dict[str, Any]]
    """Dicts with `kind`, `message` and most often `trace`."""
    delay_s: float | None
    failures: int
    """Counted for this job so far, this try included."""
    completed: bool
    """Whether it ended by ctx.complete, which counts as committed here."""
    progress: list[tuple[float, str | None]]
    enqueued: list[Enqueued]
    stored: dict[str, bytes]
    """What ctx.store was given, by name; a result over `max_result_bytes` as `result.json`."""
    checkpoint: Any
    """What ctx.checkpoint left for the next try; what it was before, if it left nothing."""
    exception: BaseException | None
    """What the executor raised, if it did."""


def run_inline(  # noqa: PLR0913 - each stands for a part of the world that a test may set
    executor: Any,
    payload: Any = None,
    *,
    attempt: int = 1,
    failures: int | None = None,
    tenant: str | None = None,
    checkpoint: Any = None,
    max_attempts: int | None = None,
    timeout: float | None = None,
    job_id: int = 1,
    canceled: CancelReason | None = None,
    connect: Callable[[], Connection[Any]] | None = None,
    max_result_bytes: int = 1024 * 1024,
    registry: Registry | None = None,
    results: Mapping[int, Any] | None = None,
) -> Ended:
    """Runs an executor once, in this thread and without a database.

    `executor` is what `@executor` decorated, an Executor, or a type's name (of `registry`, else of the installed
    executors). `payload` is a dict or a model, checked by the type's model as before a real try. `failures` are those
    of earlier tries, by default one for each. `canceled` is a reason for which the job is asked to stop from the start.
    `connect` makes what ctx.connect() returns, `results` are those of the jobs before it.
    Nothing ends a try that takes too long. KeyboardInterrupt passes.
    """
    spec = _spec(executor, registry)
    raised: list[BaseException] = []

    def run(job: Job, ctx: Context) -> Any:
        if canceled is not None:
            ctx.cancel(canceled)
        try:
            return spec.run(job, ctx)
        except BaseException as exc:
            raised.append(exc)
            raise

    runtime = FakeRuntime(connect=connect, max_result_bytes=max_result_bytes, results=results)
    earlier = attempt - 1 if failures is None else failures
    claimed = Claimed(
        id=job_id,
        type=spec.type,
        tenant=tenant or "",
        priority=0,
        attempt=attempt,
        failures=earlier,
        max_attempts=max_attempts,
        timeout_s=timeout,
        created_at=datetime.now(UTC),
        payload=encode_payload(payload),
        checkpoint=None if checkpoint is None else encode(checkpoint),
        waited_s=0.0,
        claim=0,
    )
    execution = Execution(claimed, dataclasses.replace(spec, run=run), 0.0)
    run_here(execution, runtime)
    if raised and isinstance(raised[0], KeyboardInterrupt):
        raise raised[0]
    assert execution.outcome is not None
    left = checkpoint if runtime.checkpoint_left is None else runtime.checkpoint_left
    return _ended(execution, execution.outcome, runtime, left, raised)


def run_here(execution: Execution, runtime: FakeRuntime) -> None:
    """As a worker thread does it, in this one."""
    pool = ThreadPool(
        threads=1,
        inflight=InFlight(),
        attempts=Attempts(runtime=runtime, job_timeout_s=threading.TIMEOUT_MAX, chance=lambda: 0.5),
        ended=lambda _execution: None,
    )
    pool.run(execution)


def _spec(executor: Any, registry: Registry | None) -> Executor:
    if isinstance(executor, Executor):
        return executor
    if isinstance(executor, str):
        known = Registry.load() if registry is None else registry
        found = known.get(executor)
        if found is None:
            raise ExecutorError(f"there is no executor for type {executor!r}; known types: {', '.join(known.types)}")
        return found
    return declared(executor)


def declared(target: Any) -> Executor:
    """What `@executor` made of a function or class."""
    spec = getattr(target, "__dispatcher_executor__", None)
    if not isinstance(spec, Executor):
        raise ExecutorError(f"{target!r} is no executor: decorate it with @executor(type)")
    return spec


def _ended(
    execution: Execution, outcome: Outcome, runtime: FakeRuntime, checkpoint: Any, raised: list[BaseException]
) -> Ended:
    ctx = execution.ctx
    completed = ctx is not None and ctx.completed
    state, result = outcome.state, None if outcome.result is None else json.loads(outcome.result)
    errors, failures, delay_s = json.loads(outcome.errors or "[]"), outcome.failures, outcome.delay_s
    if completed and ctx is not None:
        state, result, errors, failures, delay_s = State.SUCCEEDED, ctx.completed_with, [], 0, None
    return Ended(
        state=state,
        result=result,
        result_url=ctx.result_url if completed and ctx is not None else outcome.result_url,
        errors=errors,
        delay_s=delay_s,
        failures=execution.claimed.failures + failures,
        completed=completed,
        progress=runtime.progress,
        enqueued=runtime.enqueued,
        stored=runtime.stored,
        checkpoint=checkpoint,
        exception=raised[0] if raised else None,
    )
