"""Runs jobs of workspace_init and the session types without a database; as a script too, to be killed: see main()."""

import json
import sys
import threading
from datetime import UTC, datetime
from typing import Any

from dispatcher_executors import session_init, workspace_init

from dispatcher.context import Context
from dispatcher.job import Job


class Listening:
    """A runtime that only listens."""

    def __init__(self) -> None:
        self.progress: list[tuple[float, str | None]] = []
        self.waiting = threading.Event()
        """Set when a job has said that it waits for another."""

    def report_progress(self, job_id: int, attempt: int, percent: float, message: str | None) -> None:
        self.progress.append((percent, message))
        if message and message.startswith("waits"):
            self.waiting.set()


def context(
    type: str, payload: dict[str, Any], *, attempt: int = 1, job_id: int = 7, tenant: str | None = None
) -> Context:
    """The context of one attempt."""
    module = workspace_init if type == "workspace_init" else session_init
    model = getattr(module, type).__dispatcher_executor__.payload.model_validate(payload)
    job = Job(job_id, type, tenant, model, 0, attempt, 0, datetime.now(UTC))
    return Context(job, timeout_s=None, runtime=Listening())  # type: ignore[arg-type]


def run(ctx: Context) -> Any:
    """One attempt to its end."""
    module = workspace_init if ctx.job.type == "workspace_init" else session_init
    return getattr(module, ctx.job.type)(ctx.job, ctx)


def main() -> None:
    """Type, payload, attempt: prints the result."""
    type, payload, attempt = sys.argv[1:]
    print(json.dumps(run(context(type, json.loads(payload), attempt=int(attempt)))))


if __name__ == "__main__":
    main()
