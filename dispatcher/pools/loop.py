"""An event loop in a thread of its own, on which jobs are coroutines: for pools that wait rather than work."""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dispatcher.abort import end_without_memory
from dispatcher.context import Context
from dispatcher.inflight import Execution, InFlight
from dispatcher.outcome import Raised, Returned
from dispatcher.pool import Backlog
from dispatcher.pools.attempt import Attempts

log = logging.getLogger("dispatcher.pool")

STOP_S = 1.0
THREADS = 32  # for hooks and the storing of results


class LoopPool(Backlog, ABC):
    """Runs up to `size` executions at once, each as one coroutine of `_run`, which sets its outcome."""

    def __init__(
        self, *, name: str, size: int, inflight: InFlight, attempts: Attempts, ended: Callable[[Execution], None]
    ) -> None:
        super().__init__(name=name, size=size, inflight=inflight, ended=ended)
        self._attempts = attempts
        self._nudged = False
        # Not the loop's own threads, which jobs may hold for long.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"{name}-conclusion")
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds them only weakly
        self._thread = threading.Thread(target=self._serve, name=f"{name}-loop", daemon=True)
        self._thread.start()

    def submit(self, executions: list[Execution]) -> None:
        """See Pool."""
        self._last_start = self._clock()
        self._waiting.extend(executions)
        self.nudge()

    def nudge(self) -> None:
        """See Pool."""
        if not self._nudged:  # else a loop that is blocked would hoard them
            self._nudged = True
            self._loop.call_soon_threadsafe(self._fill)

    def stop(self) -> None:
        """See Pool."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_S)

    @abstractmethod
    async def _run(self, execution: Execution) -> None:
        """Runs one to its end and sets its outcome."""

    async def _conclude(self, execution: Execution, ctx: Context, ending: Returned | Raised) -> None:
        """Sets the outcome, beside the loop: hooks run, and a large result is stored."""
        await self._loop.run_in_executor(self._threads, self._attempts.conclude, execution, ctx, ending)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        except BaseException as exc:  # a job has raised it in this thread, or closed the loop's files
            end_without_memory(exc)
            self.dead = True
            log.exception("the event loop of the pool %s failed", self.name)
            return
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:  # one that does not heed is left behind
            self._loop.run_until_complete(asyncio.wait(tasks, timeout=STOP_S / 2))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _fill(self) -> None:
        self._nudged = False
        while self.executing < self.size:
            try:
                execution = self._waiting.popleft()
            except IndexError:
                return
            execution.thread = self._thread.ident or 0
            self._begin(execution)
            self._spawn(self._see_through(execution))

    async def _see_through(self, execution: Execution) -> None:
        try:
            await self._run(execution)
        except Exception as exc:  # no thread to be had, say: a slot must not be lost with it
            log.exception("a job could not be seen to its end", extra={"job_id": execution.claimed.id})
            self._attempts.crash(execution, f"its pool failed: {type(exc).__name__}: {exc}")
        self._end(execution)
        self._fill()
