"""A pool whose ended executions come to the test, with attempts made by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dispatcher.executor import Executor
from dispatcher.inflight import Execution, InFlight
from dispatcher.outcome import Outcome
from dispatcher.pool import Pool
from dispatcher.pools.attempt import Attempts
from dispatcher.queries.claims import Claimed
from dispatcher.testing.inline import declared

PATIENCE_S = 30.0


class Noted:
    """A runtime that notes progress, and has no database."""

    max_result_bytes = 2**20

    def __init__(self) -> None:
        self.progress: list[tuple[float, str | None]] = []
        self.news = threading.Condition()

    def report_progress(self, job_id: int, attempt: int, percent: float, message: str | None) -> None:
        with self.news:
            self.progress.append((percent, message))
            self.news.notify_all()

    def await_progress(self) -> None:
        """Until a job has reported."""
        with self.news:
            assert self.news.wait_for(lambda: self.progress, PATIENCE_S)

    def completed(self, job: Any) -> bool:
        """No job here completes itself."""
        return False


class Pooling:
    """One pool under test."""

    def __init__(self, make: Callable[..., Pool], *, job_timeout_s: float = 60.0) -> None:
        self.inflight = InFlight()
        self.runtime = Noted()
        self.hook_failures: list[str] = []
        self.ended: dict[tuple[int, int], Execution] = {}
        self._news = threading.Condition()
        self._ids = iter(range(1, 10**9))
        attempts = Attempts(
            runtime=self.runtime,  # type: ignore[arg-type]
            job_timeout_s=job_timeout_s,
            hook_failed=self.hook_failures.append,
        )
        self.pool = make(inflight=self.inflight, attempts=attempts, ended=self._end)

    def _end(self, execution: Execution) -> None:
        with self._news:
            assert execution.key not in self.ended, "an execution ended twice"
            self.ended[execution.key] = execution
            self._news.notify_all()

    def make(self, executor: Any, /, *, id: int | None = None, **payload: Any) -> Execution:
        """An attempt of a job, as it was claimed."""
        spec: Executor = declared(executor)
        claimed = Claimed(
            id=id or next(self._ids),
            type=spec.type,
            tenant="",
            priority=0,
            attempt=1,
            failures=0,
            max_attempts=None,
            timeout_s=None,
            created_at=datetime(2030, 1, 1, tzinfo=UTC),
            payload=json.dumps(payload),
            checkpoint=None,
            waited_s=0.0,
            claim=1,
        )
        return Execution(claimed, spec, 0.0)

    def submit(self, *executions: Execution) -> None:
        """Hands them to the pool."""
        self.inflight.add(list(executions))
        self.pool.submit(list(executions))

    def outcome(self, execution: Execution, within_s: float = PATIENCE_S) -> Outcome:
        """Waits for its end; meanwhile the pool is nudged, as the leader does."""
        with self._news:
            for _ in range(int(within_s * 100)):
                if self._news.wait_for(lambda: execution.key in self.ended, 0.01):
                    break
                self.pool.nudge()
        assert execution.key in self.ended, "it has not ended"
        assert execution.outcome is not None
        return execution.outcome

    def run(self, executor: Any, /, **payload: Any) -> Outcome:
        """One attempt from start to end."""
        execution = self.make(executor, **payload)
        self.submit(execution)
        return self.outcome(execution)
