"""The hooks of failures that were not decided in the job's thread: its process died, or its result was refused.

At most once: they run in a thread of their own after the failure is recorded, and if this process dies as well they are
lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from dispatcher.context import Context
from dispatcher.ending import Conclusion
from dispatcher.errors import DispatcherError
from dispatcher.executor import Executor, Registry
from dispatcher.job import Job
from dispatcher.outcome import Outcome
from dispatcher.runtime import JobRuntime

log = logging.getLogger("dispatcher.hooks")
Ended = tuple[Job, Outcome]


class Aftermath:
    """Calls hooks for jobs that no thread of this process ran."""

    def __init__(self, *, runtime: JobRuntime, registry: Registry, hook_failed: Callable[[str], None]) -> None:
        self._runtime = runtime
        self._registry = registry
        self._conclusion = Conclusion(runtime, hook_failed)

    def failed(self, ended: Sequence[Ended]) -> None:
        """These failures are recorded; returns at once."""
        concerned = [(job, outcome) for job, outcome in ended if self._hooked(job.type) is not None]
        if concerned:
            threading.Thread(target=self.call, args=(concerned,), name="aftermath", daemon=True).start()

    def call(self, ended: Sequence[Ended]) -> None:
        """Calls the hooks, one job after the other."""
        for job, outcome in ended:
            spec = self._hooked(job.type)
            if spec is None or spec.hooks is None:
                continue
            try:
                full = job._replace(payload=self._payload(job, spec))
            except DispatcherError as exc:
                log.warning("hooks are left out: the job could not be read: %s", exc, extra={"job_id": job.id})
                continue
            ctx = Context(full, timeout_s=None, runtime=self._runtime)
            self._conclusion.call_hooks(spec.hooks, full, ctx, outcome, None)

    def _hooked(self, type: str) -> Executor | None:
        spec = self._registry.get(type)
        return spec if spec is not None and spec.hooks is not None else None

    def _payload(self, job: Job, spec: Executor) -> object:
        payload = self._runtime.get(job.id).payload
        if spec.payload is None:
            return payload
        try:
            return spec.payload.model_validate(payload)
        except Exception:  # noqa: BLE001 - a model's own validators may raise anything
            return payload
