"""The timekeeper asks running jobs to stop: those past their timeout, and all of them when this replica is losing its
jobs.

A thread cannot be killed. Past its timeout a job is asked (`ctx.canceled`); it stays running and holds its slot until
its thread is back, and only then is it failed or tried again: anything else could overlap.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from dispatcher.inflight import Execution, InFlight
from dispatcher.job import CancelReason
from dispatcher.metrics import Metrics

log = logging.getLogger("dispatcher.timekeeper")

LOOK_EVERY_S = 0.1
COOPERATION_S = 1.0  # how long a job may take to heed before its thread counts as stuck


class Timekeeper:
    """Looks at what executes, ten times a second while anything does."""

    def __init__(
        self,
        *,
        inflight: InFlight,
        metrics: Metrics,
        stack_of: Callable[[Execution], str | None],
        note_timed_out: Callable[[Execution], None],
        lost: Callable[[list[Execution]], int] = len,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inflight = inflight
        self._metrics = metrics
        self._stack_of = stack_of
        self._note_timed_out = note_timed_out
        self._count_lost = lost
        self._stop = stop
        self._clock = clock
        self._late: dict[tuple[int, int], bool] = {}  # past its timeout; whether shown as such
        self.stuck: list[Execution] = []
        """The jobs that are past their timeout and have not heeded."""
        self.lost = 0
        """How many places of this replica are lost to those that nothing but the end of the process can end."""

    def step(self) -> None:
        """One look, and the pause after it."""
        self.look()
        self._stop.wait(LOOK_EVERY_S if self._inflight.any_executing else 2 * LOOK_EVERY_S)

    def close(self) -> None:
        """Nothing to close: it has no session."""

    def look(self) -> None:
        """Asks jobs whose time is over to stop, and shows those that do not heed."""
        now, stuck, late = self._clock(), list[Execution](), {}
        for execution in self._inflight.executing:
            ctx = execution.ctx
            if ctx is None or ctx.deadline is None or now < ctx.deadline:
                continue
            late[execution.key] = self._late.get(execution.key, False)
            if execution.key not in self._late:
                self._time_out(execution)
            if now >= ctx.deadline + COOPERATION_S:
                stuck.append(execution)
                if not late[execution.key]:
                    late[execution.key] = True
                    execution.stack = self._stack_of(execution) or execution.stack  # where it is stuck for certain
                    self._note_timed_out(execution)
        self._late, self.stuck, self.lost = late, stuck, self._count_lost(stuck)
        self._metrics.stuck.set(self.lost)

    def cancel_all(self, reason: CancelReason) -> None:
        """Asks everything that executes to stop."""
        for execution in self._inflight.executing:
            if execution.ctx is not None:
                execution.ctx.cancel(reason)

    def cancel(self, job_ids: list[int]) -> None:
        """Asks these jobs to stop, as somebody requested."""
        for execution in self._inflight.find(job_ids):
            execution.cancel_requested = True  # a thread that is about to start it looks at this after ctx is set
            if execution.ctx is not None:
                execution.ctx.cancel(CancelReason.REQUESTED)

    def _time_out(self, execution: Execution) -> None:
        execution.stack = self._stack_of(execution)
        assert execution.ctx is not None
        log.info(
            "a job outlived its timeout", extra={"job_id": execution.claimed.id, "job_type": execution.claimed.type}
        )
        self._metrics.timed_out.labels(execution.claimed.type).inc()
        execution.ctx.cancel(CancelReason.TIMEOUT)
