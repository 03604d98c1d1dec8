"""The pool for `async def` executors: one event loop for all of them, which none of them may block for long."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from dispatcher import forks
from dispatcher.context import Context
from dispatcher.inflight import Execution, InFlight
from dispatcher.outcome import Raised, Returned
from dispatcher.pools.attempt import Attempts, end_child
from dispatcher.pools.loop import LoopPool
from dispatcher.pools.thread import stack_of

BLOCKED_S = 1.0  # a loop that does not go round for so long is held by a job that computes, or waits otherwise
MAX_THREADS = 64  # for what jobs call by asyncio.to_thread

_calls: ContextVar[set[Future[Any]] | None] = ContextVar("calls", default=None)


class AsyncPool(LoopPool):
    """Runs up to `size` coroutines at once. One that is asked to stop is cancelled, as asyncio has it.

    That ends the coroutine, but not a thread in which something runs for it (asyncio.to_thread): the job ends when that
    is back as well.
    """

    def __init__(
        self, *, size: int, inflight: InFlight, attempts: Attempts, ended: Callable[[Execution], None]
    ) -> None:
        super().__init__(name="async", size=size, inflight=inflight, attempts=attempts, ended=ended)
        self._loop.set_default_executor(_Threads(min(size, MAX_THREADS), thread_name_prefix="async"))
        self._asked_at: float | None = None  # whether the loop goes round
        self._running: dict[tuple[int, int], asyncio.Task[Returned | Raised]] = {}

    def stack(self, execution: Execution) -> str | None:
        """Where its coroutine waits, or computes."""
        task = self._running.get(execution.key)
        if task is None:
            return None
        coroutine: Any = task.get_coro()
        # Of one that runs right now, and holds the loop, only the thread knows where it is.
        return stack_of(self._thread.ident or 0) if coroutine.cr_running else _stack_of(coroutine)

    def lost(self, stuck: int) -> int:
        """All places where a job holds the loop: nothing else goes on there."""
        return self.size if stuck and self._blocked() else stuck

    def _blocked(self) -> bool:
        asked_at = self._asked_at  # once: the loop may answer between any two lines
        if asked_at is None:
            asked_at = self._asked_at = self._clock()
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._answer)
        return self._clock() - asked_at > BLOCKED_S

    def _answer(self) -> None:
        self._asked_at = None

    async def _run(self, execution: Execution) -> None:
        ctx = await self._begin_attempt(execution)
        if ctx is None:
            return
        calls: set[Future[Any]] = set()
        task = self._running[execution.key] = self._loop.create_task(_execute(execution, ctx, calls))
        ctx.on_cancel(lambda: self._cancel(task))
        try:
            ending = await task
        except asyncio.CancelledError as exc:  # before its first line
            ending = Raised(exc)
        while left := [asyncio.wrap_future(call) for call in list(calls)]:
            await asyncio.wait(left)
        del self._running[execution.key]
        if isinstance(ending, Returned) and ending.value is None and execution.executor.hooks is None:
            self._attempts.conclude(execution, ctx, ending)
        else:
            await self._conclude(execution, ctx, ending)

    async def _begin_attempt(self, execution: Execution) -> Context | None:
        if execution.executor.hooks is None or execution.executor.payload is None:
            return self._attempts.begin(execution)
        # A payload that does not fit calls hooks, which must not run on the loop.
        return await self._loop.run_in_executor(self._threads, self._attempts.begin, execution)

    def _cancel(self, task: asyncio.Task[Returned | Raised]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(task.cancel)


class _Threads(ThreadPoolExecutor):
    """Knows of each call for which job it is."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See Executor."""
        future = super().submit(fn, *args, **kwargs)
        if (calls := _calls.get()) is not None:
            calls.add(future)
            future.add_done_callback(calls.discard)
        return future


async def _execute(execution: Execution, ctx: Context, calls: set[Future[Any]]) -> Returned | Raised:
    _calls.set(calls)
    depth = forks.depth
    ending: Returned | Raised
    try:
        ctx.raise_if_canceled()  # canceled while it waited for its turn
        ending = Returned(await execution.executor.run(ctx.job, ctx))
    except BaseException as exc:  # noqa: BLE001 - the boundary; and what is no Exception would end the loop
        ending = Raised(exc)
    if forks.depth != depth:
        end_child(ending)
    return ending


def _stack_of(coroutine: Any) -> str:
    lines: list[str] = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        lines += traceback.format_stack(frame, limit=1)
        coroutine = coroutine.cr_await
    return "".join(lines[1:])  # without the line of this module
