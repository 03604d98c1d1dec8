"""How an execution ends: the end is decided, a large result stored, its type's hooks called. In the job's thread."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Callable
from typing import Any

from dispatcher.context import Context, Interrupted, Runtime
from dispatcher.errors import DatabaseUnavailable, DispatcherError
from dispatcher.executor import Executor, Hooks, Partial
from dispatcher.job import Job, State
from dispatcher.outcome import JobError, Outcome, Raised, Returned, describe, encode, settle, store_failed

log = logging.getLogger("dispatcher.hooks")

WELL = (State.SUCCEEDED, State.PARTIAL)
ASK_AGAIN_S = 0.5


class UncommittedCompletion(Exception):
    """The executor called ctx.complete and returned without a commit."""


class Conclusion:
    """Concludes executions; `hook_failed` is told the type of each whose hook raised."""

    def __init__(self, runtime: Runtime, hook_failed: Callable[[str], None]) -> None:
        self._runtime = runtime
        self.hook_failed = hook_failed

    def conclude(
        self,
        job: Job,
        ctx: Context,
        ending: Returned | Raised,
        spec: Executor,
        *,
        max_attempts: int | None,
        chance: float,
        stack: str | None,
    ) -> Outcome:
        """What is to be recorded, after the hooks."""
        reason = ctx.canceled
        if (
            isinstance(ending, Returned)
            and ending.value is None
            and reason is None
            and spec.hooks is None
            and not ctx.completed
            and ctx.result_url is None
        ):
            return Outcome.succeeded(job, None)  # by far the most frequent end
        if ctx.completed and isinstance(ending, Returned):
            # The row knows. If it still says running, the transaction that was to complete it did not commit.
            ending = Raised(UncommittedCompletion("ctx.complete was called, but its transaction did not commit"))
        try:
            outcome = settle(
                job, ending, reason, policy=spec.retry, max_attempts=max_attempts, chance=chance, stack=stack
            )
        except BaseException as exc:  # noqa: BLE001 - an exception that cannot be read, a result that fights its encoding
            outcome = Outcome.failed(job, JobError("result", f"the outcome cannot be recorded: {type(exc).__name__}"))
        if outcome.state in WELL and (ctx.result_url is not None or outcome.result is not None):
            outcome = self._place(job, ctx, outcome, spec, max_attempts, chance)
        if spec.hooks is None:
            return outcome
        return self._after(spec.hooks, job, ctx, ending, outcome)

    def call_hooks(self, hooks: Hooks, job: Job, ctx: Context, outcome: Outcome, result: Any) -> Outcome:
        """Calls those that this outcome is for; it comes back with what they raised among its errors."""
        calls = []
        if outcome.state in WELL:
            calls = [("on_success", hooks.on_success, result)]
        elif outcome.failures:
            calls = [("on_failure", hooks.on_failure, outcome.error)]
            if outcome.state is State.FAILED:
                calls.append(("on_final_failure", hooks.on_final_failure, outcome.error))
        errors = []
        for name, hook, argument in calls:
            if hook is None:
                continue
            try:
                if inspect.iscoroutine(waits := hook(job, ctx, argument)):
                    asyncio.run(waits)
            except BaseException as exc:  # whatever a hook does, the outcome stands
                self.hook_failed(job.type)
                described = _described(exc)
                log.exception(
                    "a hook failed",
                    extra={"job_id": job.id, "job_type": job.type, "hook": name, "why": described.message},
                )
                errors.append(JobError("hook", f"{name}: {described.message}", described.trace).as_dict())
        if not errors:
            return outcome
        return outcome._replace(errors=encode([*json.loads(outcome.errors or "[]"), *errors]))

    def _place(
        self, job: Job, ctx: Context, outcome: Outcome, spec: Executor, max_attempts: int | None, chance: float
    ) -> Outcome:
        """With the URL of what the job stored; a large result goes to the store and has its URL there."""
        text, limit = outcome.result, self._runtime.max_result_bytes
        if text is None or 4 * len(text) <= limit or (len(text) <= limit and len(text.encode()) <= limit):
            return outcome if ctx.result_url is None else outcome._replace(result_url=ctx.result_url)
        try:
            return outcome._replace(result=None, result_url=self._runtime.store_result(job, text))
        except BaseException as exc:  # noqa: BLE001 - each kind of store has errors of its own
            return store_failed(job, exc, policy=spec.retry, max_attempts=max_attempts, chance=chance)

    def _after(self, hooks: Hooks, job: Job, ctx: Context, ending: Returned | Raised, outcome: Outcome) -> Outcome:
        if ctx.completed:
            completed = self._completed(job, ctx)
            if completed is None:
                return outcome  # another attempt's hooks will tell
            if completed:  # this outcome finds no row any more
                self.call_hooks(hooks, job, ctx, Outcome.succeeded(job, None), ctx.completed_with)
                return outcome
        value = ending.value if isinstance(ending, Returned) else None
        return self.call_hooks(hooks, job, ctx, outcome, value.result if isinstance(value, Partial) else value)

    def _completed(self, job: Job, ctx: Context) -> bool | None:
        while True:
            try:
                return self._runtime.completed(job)
            except DatabaseUnavailable:
                try:
                    ctx.sleep(ASK_AGAIN_S)
                except Interrupted:
                    break
            except DispatcherError:
                break
        log.warning("hooks are left out: how the job ended could not be read", extra={"job_id": job.id})
        return None


def _described(exc: BaseException) -> JobError:
    try:
        return describe(exc)
    except BaseException:  # noqa: BLE001 - its own methods may run, and raise what they like
        return JobError("exception", type(exc).__name__)
