"""The pool of coroutines: many wait at once on one thread, and whatever one does ends its own job only."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

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


class Held:
    """A call that blocks its thread until the test lets it go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.let_go = threading.Event()

    def block(self) -> None:
        self.entered.release()
        self.let_go.wait(60)


held = Held()


@executor("async.blocking")
async def blocking(job: Job, ctx: Context) -> None:
    """Holds a thread."""
    await asyncio.to_thread(held.block)


@executor("async.quick")
async def quick(job: Job, ctx: Context) -> str:
    """Ends at once."""
    return "done"


def test_jobs_that_hold_threads_keep_no_other_job_from_ending(pooling: Pooling) -> None:
    held.__init__()  # type: ignore[misc]
    blocked = [pooling.make(blocking) for _ in range(90)]
    pooling.submit(*blocked)
    for _ in range(64):
        assert held.entered.acquire(timeout=10)
    execution = pooling.make(quick)
    pooling.submit(execution)
    assert pooling.outcome(execution, within_s=5).result == '"done"'
    held.let_go.set()
    for execution in blocked:
        assert pooling.outcome(execution).state is State.SUCCEEDED


def test_a_job_has_not_ended_while_a_thread_still_works_for_it(pooling: Pooling) -> None:
    held.__init__()  # type: ignore[misc]
    execution = pooling.make(blocking)
    pooling.submit(execution)
    assert held.entered.acquire(timeout=10)
    assert execution.ctx is not None
    execution.ctx.cancel(CancelReason.REQUESTED)
    other = pooling.make(quick)
    pooling.submit(other)
    pooling.outcome(other)
    threading.Event().wait(0.2)
    assert execution.key not in pooling.ended, "another attempt might begin while this one's thread works"
    held.let_go.set()
    assert pooling.outcome(execution).state is State.CANCELED


FAILURES: list[tuple[str, str]] = []


async def failed(job: Job, ctx: Context, error: Any) -> None:
    """A hook that waits."""
    await asyncio.sleep(0)
    FAILURES.append((error.kind, threading.current_thread().name))


class Number(BaseModel):
    number: int


@executor("async.number", payload=Number, on_final_failure=failed)
async def numbered(job: Job, ctx: Context) -> int:
    """Its number."""
    return int(job.payload.number)


def test_hooks_of_a_payload_that_does_not_fit_do_not_hold_the_loop(pooling: Pooling) -> None:
    FAILURES.clear()
    assert pooling.run(numbered, number="x").state is State.FAILED
    assert not pooling.hook_failures
    ((kind, thread),) = FAILURES
    assert kind == "payload"
    assert thread != "async-loop"
    assert pooling.run(numbered, number=3).result == "3"


def test_a_loop_that_is_blocked_hoards_no_nudges(pooling: Pooling) -> None:
    pool = pooling.pool
    assert isinstance(pool, AsyncPool)
    entered, go = threading.Event(), threading.Event()
    pool._loop.call_soon_threadsafe(entered.set)
    pool._loop.call_soon_threadsafe(go.wait, 60)
    assert entered.wait(10)
    for _ in range(1000):
        pool.nudge()
    assert len(pool._loop._ready) < 10  # type: ignore[attr-defined]
    go.set()
    assert pooling.run(quick).state is State.SUCCEEDED


def test_what_fails_in_the_pool_itself_costs_no_slot(pooling: Pooling) -> None:
    pool = pooling.pool
    assert isinstance(pool, AsyncPool)
    threads = pool._threads
    pool._threads = type(threads)(1)
    pool._threads.shutdown()
    outcome = pooling.run(quick)
    assert (outcome.state, outcome.error.kind) == (State.SCHEDULED, "crash")
    assert pool.executing == 0
    pool._threads = threads
    assert pooling.run(quick).state is State.SUCCEEDED
