"""The pool of coroutines: many wait at once on one thread, and whatever one does ends its own job only."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dispatcher.context import Context
from dispatcher.errors import ExecutorError
from dispatcher.executor import executor
from dispatcher.job import CancelReason, Job, State
from dispatcher.pools.coroutine import AsyncPool
from dispatcher.testing import run_inline
from tests.pooling import Pooling


@pytest.fixture
def pooling() -> Iterator[Pooling]:
    pooling = Pooling(lambda **parts: AsyncPool(size=100, **parts))
    yield pooling
    pooling.pool.stop()


AT_ONCE = 100


class Meeting:
    """Lets all go once so many have come."""

    def __init__(self, count: int) -> None:
        self.missing = count
        self.met: asyncio.Event | None = None

    async def come(self) -> None:
        self.met = self.met or asyncio.Event()
        self.missing -= 1
        if not self.missing:
            self.met.set()
        await self.met.wait()


meeting = Meeting(AT_ONCE)


@executor("async.meet")
async def meet(job: Job, ctx: Context) -> Any:
    """Ends when all others are there."""
    await meeting.come()
    return threading.current_thread().name


@executor("async.wait")
async def wait(job: Job, ctx: Context) -> Any:
    """Waits for ever, and says so."""
    ctx.progress(1, "waits")
    await asyncio.Event().wait()


@executor("async.raise", max_attempts=1)
async def fail(job: Job, ctx: Context) -> Any:
    """Raises what ends an event loop."""
    await asyncio.sleep(0)
    raise {"exit": SystemExit, "interrupt": KeyboardInterrupt, "value": ValueError}[job.payload["what"]]("no")


CALLED: list[tuple[str, str]] = []


async def heard(job: Job, ctx: Context, result: Any) -> None:
    """A hook that waits."""
    await asyncio.sleep(0)
    CALLED.append((result, threading.current_thread().name))


@executor("async.hooked", on_success=heard)
async def hooked(job: Job, ctx: Context) -> str:
    """With a hook."""
    return "well"


def outcome_of(pooling: Pooling, reason: CancelReason) -> Any:
    execution = pooling.make(wait)
    pooling.runtime.progress.clear()
    pooling.submit(execution)
    pooling.runtime.await_progress()
    assert execution.ctx is not None
    execution.ctx.cancel(reason)
    return pooling.outcome(execution)


def test_as_many_as_its_size_wait_at_once_on_one_thread(pooling: Pooling) -> None:
    executions = [pooling.make(meet) for _ in range(AT_ONCE)]
    pooling.submit(*executions)
    assert {pooling.outcome(execution).result for execution in executions} == {'"async-loop"'}


def test_beyond_its_size_jobs_wait_and_can_be_taken_back() -> None:
    pooling = Pooling(lambda **parts: AsyncPool(size=2, **parts))
    executions = [pooling.make(wait) for _ in range(3)]
    pooling.submit(*executions)
    pooling.runtime.await_progress()
    while pooling.pool.executing < 2:
        threading.Event().wait(0.001)
    assert pooling.pool.take_waiting() == executions[2:]
    pooling.pool.stop()


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (CancelReason.REQUESTED, State.CANCELED),
        (CancelReason.SHUTDOWN, State.PENDING),
        (CancelReason.TIMEOUT, State.FAILED),
    ],
)
def test_a_coroutine_that_is_asked_to_stop_is_cancelled(pooling: Pooling, reason: CancelReason, state: State) -> None:
    assert outcome_of(pooling, reason).state is state


def test_canceled_before_its_first_line(pooling: Pooling) -> None:
    execution = pooling.make(wait)
    execution.cancel_requested = True
    pooling.submit(execution)
    assert pooling.outcome(execution).state is State.CANCELED
    assert not pooling.runtime.progress


@pytest.mark.parametrize("what", ["exit", "interrupt", "value"])
def test_what_ends_a_loop_ends_one_job(pooling: Pooling, what: str) -> None:
    beside = pooling.make(wait)
    pooling.submit(beside)
    assert pooling.run(fail, what=what).state is State.FAILED
    assert beside.key not in pooling.ended
    assert outcome_of(pooling, CancelReason.REQUESTED).state is State.CANCELED, "the loop goes on"


def test_the_stack_of_a_coroutine_that_waits_is_known(pooling: Pooling) -> None:
    execution = pooling.make(wait)
    pooling.submit(execution)
    pooling.runtime.await_progress()
    stack = pooling.pool.stack(execution)
    assert stack is not None
    assert "await asyncio.Event().wait()" in stack


def test_hooks_may_be_coroutines_and_do_not_hold_the_loop(pooling: Pooling) -> None:
    CALLED.clear()
    assert json.loads(pooling.run(hooked).result or "") == "well"
    ((result, thread),) = CALLED
    assert result == "well"
    assert thread != "async-loop"


def test_inline_a_coroutine_runs_as_well() -> None:
    ended = run_inline(hooked)
    assert (ended.state, ended.result) == (State.SUCCEEDED, "well")


def test_a_plain_function_is_not_for_the_loop_nor_a_coroutine_for_a_thread() -> None:
    with pytest.raises(ExecutorError, match="pool async is for async def"):
        executor("t", pool="async")(lambda job, ctx: None)

    async def run(job: Job, ctx: Context) -> None: ...

    with pytest.raises(ExecutorError, match="async def runs in pool async"):
        executor("t", pool="thread")(run)


def test_a_class_with_an_async_execute_runs_on_the_loop(pooling: Pooling) -> None:
    @executor("async.class")
    class Greeter:
        async def execute(self, job: Job, ctx: Context) -> str:
            return "hello"

    assert pooling.run(Greeter).result == '"hello"'
