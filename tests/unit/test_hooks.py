"""Hooks tell what was decided and change nothing; what a job stored is named only where it ended well."""

from __future__ import annotations

import json
from asyncio import CancelledError
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from dispatcher import Cancel, CancelReason, Fail, JobError, Partial, Retry, Snooze, State, executor
from dispatcher.context import Context
from dispatcher.errors import ExecutorError, StoreError
from dispatcher.job import Job
from dispatcher.testing import Ended, run_inline
from dispatcher.testing.fake import FakeRuntime
from dispatcher.testing.inline import declared

Run = Callable[[Job, Context], Any]
Calls = list[tuple[str, Any]]


def raising(exc: BaseException) -> Run:
    def run(_job: Job, _ctx: Context) -> None:
        raise exc

    return run


def hooked(run: Run, calls: Calls, **options: Any) -> Run:
    """An executor with all hooks, each of which notes its argument."""

    def noting(name: str) -> Callable[[Job, Context, Any], None]:
        return lambda _job, _ctx, argument: calls.append((name, argument))

    names = ("on_success", "on_failure", "on_final_failure")

    def fresh(job: Job, ctx: Context) -> Any:  # an executor of its own each time
        return run(job, ctx)

    return executor("t", **{"max_attempts": 3, **{name: noting(name) for name in names}, **options})(fresh)


@pytest.mark.parametrize(
    ("run", "attempt", "expected"),
    [
        (lambda job, ctx: {"n": 1}, 1, [("on_success", {"n": 1})]),
        (lambda job, ctx: None, 1, [("on_success", None)]),
        (lambda job, ctx: Partial([1], [{"message": "x"}]), 1, [("on_success", [1])]),
        (lambda job, ctx: ctx.complete(None, "own"), 1, [("on_success", "own")]),
        (raising(ValueError("no")), 1, [("on_failure", "exception")]),
        (raising(ValueError("no")), 3, [("on_failure", "exception"), ("on_final_failure", "exception")]),
        (raising(Retry(5)), 1, [("on_failure", "retry")]),
        (raising(Retry(5)), 3, [("on_failure", "retry"), ("on_final_failure", "retry")]),
        (raising(Fail("no")), 1, [("on_failure", "fail"), ("on_final_failure", "fail")]),
        (lambda job, ctx: object(), 1, [("on_failure", "result"), ("on_final_failure", "result")]),
        (raising(Snooze(5)), 3, []),
        (raising(Cancel()), 3, []),
    ],
)
def test_each_way_to_end_calls_its_hooks(run: Run, attempt: int, expected: Calls) -> None:
    calls: Calls = []
    run_inline(hooked(run, calls), attempt=attempt)
    assert [(name, arg.kind if isinstance(arg, JobError) else arg) for name, arg in calls] == expected


@pytest.mark.parametrize("reason", [CancelReason.REQUESTED, CancelReason.SHUTDOWN, CancelReason.LOST])
def test_job_that_was_asked_to_stop_calls_no_hook(reason: CancelReason) -> None:
    calls: Calls = []
    run_inline(hooked(lambda job, ctx: ctx.raise_if_canceled(), calls), attempt=3, canceled=reason)
    assert calls == []


def test_timeout_is_a_failure_to_hooks() -> None:
    calls: Calls = []
    run_inline(hooked(lambda job, ctx: ctx.raise_if_canceled(), calls), canceled=CancelReason.TIMEOUT)
    assert [(name, error.kind) for name, error in calls] == [("on_failure", "timeout"), ("on_final_failure", "timeout")]


def test_payload_that_does_not_fit_is_a_final_failure_to_hooks() -> None:
    class Model(BaseModel):
        n: int

    calls: Calls = []
    seen: list[Any] = []
    run = hooked(
        lambda job, ctx: "never", calls, payload=Model, on_failure=lambda job, ctx, e: seen.append(job.payload)
    )
    ended = run_inline(run, {"n": "x"})
    assert ended.state is State.FAILED
    assert [(name, error.kind) for name, error in calls] == [("on_final_failure", "payload")]
    assert seen == [{"n": "x"}]  # as it was stored


@pytest.mark.parametrize("exc", [ValueError("broken"), SystemExit(1), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("run", "state"), [(lambda job, ctx: 7, State.SUCCEEDED), (raising(ValueError("first")), State.SCHEDULED)]
)
def test_hook_that_raises_is_noted_and_changes_no_outcome(run: Run, state: State, exc: BaseException) -> None:
    def broken(_job: Job, _ctx: Context, _argument: Any) -> None:
        raise exc

    ended = run_inline(hooked(run, [], on_success=broken, on_failure=broken))
    assert ended.state is state
    assert ended.result == (7 if state is State.SUCCEEDED else None)
    assert [error["kind"] for error in ended.errors] == (["hook"] if ended.result else ["exception", "hook"])
    assert type(exc).__name__ in ended.errors[-1]["message"]


def test_hook_that_raises_keeps_no_other_hook_from_being_called() -> None:
    calls: Calls = []
    run_inline(hooked(raising(Fail("x")), calls, on_failure=raising_hook))
    assert [name for name, _ in calls] == ["on_final_failure"]


def raising_hook(_job: Job, _ctx: Context, _argument: Any) -> None:
    raise ValueError("no")


def test_hooks_may_enqueue() -> None:
    ended = run_inline(hooked(lambda job, ctx: 5, [], on_success=lambda job, ctx, n: ctx.enqueue("next", {"n": n})))
    assert [(job.type, job.payload) for job in ended.enqueued] == [("next", {"n": 5})]


def test_methods_of_a_class_are_its_hooks() -> None:
    @executor("t")
    class Worker:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def execute(self, job: Job, ctx: Context) -> str:
            if job.payload:
                raise Fail("no")
            return "done"

        def on_success(self, job: Job, ctx: Context, result: Any) -> None:
            ctx.enqueue("told", {"success": result})

        def on_final_failure(self, job: Job, ctx: Context, error: JobError) -> None:
            ctx.enqueue("told", {"final": error.message})

    assert [job.payload for job in run_inline(Worker).enqueued] == [{"success": "done"}]
    assert [job.payload for job in run_inline(Worker, {"fail": 1}).enqueued] == [{"final": "no"}]


def test_hook_that_is_no_function_is_refused() -> None:
    with pytest.raises(ExecutorError, match="on_success must be a function"):
        executor("t", on_success="mail")(lambda job, ctx: None)  # type: ignore[arg-type]


def test_executor_without_hooks_has_none() -> None:
    assert declared(executor("t")(lambda job, ctx: None)).hooks is None


def stored(run: Run, **options: Any) -> Ended:
    return run_inline(executor("t", max_attempts=2)(run), **options)


def test_large_result_goes_to_the_store_and_a_small_one_does_not() -> None:
    large = "ä" * 60  # 120 bytes and two quotes, in 62 characters
    assert stored(lambda job, ctx: large, max_result_bytes=122).result == large
    ended = stored(lambda job, ctx: large, max_result_bytes=121)
    assert (ended.state, ended.result) == (State.SUCCEEDED, None)
    assert json.loads(ended.stored["result.json"]) == large
    partial = stored(lambda job, ctx: Partial(large, [{"message": "x"}]), max_result_bytes=121)
    assert (partial.state, list(partial.stored)) == (State.PARTIAL, ["result.json"])


def test_result_s_own_name_is_not_given_away() -> None:
    ended = stored(lambda job, ctx: ctx.store("result.json", b"x"))
    assert isinstance(ended.exception, StoreError)
    assert ended.stored == {}


class Exiting(dict[str, Any]):
    def items(self) -> Any:
        raise SystemExit(3)


def test_result_that_exits_while_it_is_read_ends_its_own_job_only() -> None:
    """What escaped here would kill the worker thread, and leave the job running for ever."""
    calls: Calls = []
    ended = run_inline(hooked(lambda job, ctx: Exiting(a=1), calls))
    assert (ended.state, ended.errors[0]["kind"]) == (State.FAILED, "result")
    assert [name for name, _ in calls] == ["on_failure", "on_final_failure"]


def test_store_that_exits_is_a_failure_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def store_result(*_: Any) -> str:
        raise CancelledError  # as asyncio's loop in a store of fsspec may

    monkeypatch.setattr(FakeRuntime, "store_result", store_result)
    ended = run_inline(hooked(lambda job, ctx: "x" * 100, []), max_result_bytes=10)
    assert (ended.state, ended.errors[0]["kind"]) == (State.SCHEDULED, "result")
