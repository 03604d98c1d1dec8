"""The pool for `async def` executors: one event loop for all of them, which none of them may block for long."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dispatcher.context import Context
from dispatcher.inflight import Execution, InFlight
from dispatcher.outcome import Raised, Returned
from dispatcher.pools.attempt import Attempts
from dispatcher.pools.loop import LoopPool


class AsyncPool(LoopPool):
    """Runs up to `size` coroutines at once. One that is asked to stop is cancelled, as asyncio has it."""

    def __init__(
        self, *, size: int, inflight: InFlight, attempts: Attempts, ended: Callable[[Execution], None]
    ) -> None:
        super().__init__(name="async", size=size, inflight=inflight, ended=ended)
        self._attempts = attempts
        self._running: dict[tuple[int, int], asyncio.Task[Returned | Raised]] = {}

    def stack(self, execution: Execution) -> str | None:
        """Where its coroutine waits, or computes."""
        task = self._running.get(execution.key)
        return None if task is None else _stack_of(task.get_coro())

    async def _run(self, execution: Execution) -> None:
        ctx = self._attempts.begin(execution)
        if ctx is None:
            return
        task = self._running[execution.key] = self._loop.create_task(_execute(execution, ctx))
        ctx.on_cancel(lambda: self._cancel(task))
        try:
            ending = await task
        except asyncio.CancelledError as exc:  # before its first line
            ending = Raised(exc)
        del self._running[execution.key]
        if isinstance(ending, Returned) and ending.value is None and execution.executor.hooks is None:
            self._attempts.conclude(execution, ctx, ending)
        else:  # hooks run, and a large result is stored: neither on the loop
            await asyncio.to_thread(self._attempts.conclude, execution, ctx, ending)

    def _cancel(self, task: asyncio.Task[Returned | Raised]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(task.cancel)


async def _execute(execution: Execution, ctx: Context) -> Returned | Raised:
    try:
        ctx.raise_if_canceled()  # canceled while it waited for its turn
        return Returned(await execution.executor.run(ctx.job, ctx))
    except BaseException as exc:  # noqa: BLE001 - the boundary; and what is no Exception would end the loop
        return Raised(exc)


def _stack_of(coroutine: Any) -> str:
    lines: list[str] = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        lines += traceback.format_stack(frame, limit=1)
        coroutine = coroutine.cr_await
    return "".join(lines[1:])  # without the line of this module
