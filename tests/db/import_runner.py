"""Runs a bulk_import job as a worker would, on a real row; as a script too, to be killed: see main()."""

import json
import sys
from collections.abc import Callable
from typing import Any

import psycopg
from dispatcher_executors.bulk_import import BulkImportPayload, bulk_import

from dispatcher.context import Context
from dispatcher.errors import BY_SQLSTATE
from dispatcher.job import Job, JobInfo


class DirectRuntime:
    """What the daemon lends to a job, without the daemon."""

    max_result_bytes = 2**20

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.progress: list[float] = []
        self.after_progress: Callable[[], None] = lambda: None
        self.after_checkpoint: Callable[[], None] = lambda: None

    def report_progress(self, job_id: int, attempt: int, percent: float, message: str | None) -> None:
        self.progress.append(percent)
        self.after_progress()

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn)

    def checkpoint(self, conn: psycopg.Connection[Any], job: Job, value: Any) -> None:
        try:
            conn.execute("select dispatcher.checkpoint(%s, %s, %s::jsonb)", [job.id, job.attempt, json.dumps(value)])
        except psycopg.Error as exc:
            raise BY_SQLSTATE.get(exc.sqlstate or "", type(exc))(str(exc)) from exc
        self.after_checkpoint()

    def complete(self, conn: psycopg.Connection[Any], job: Job, result: Any, result_url: str | None) -> None:
        raise NotImplementedError

    def completed(self, job: Job) -> bool | None:
        raise NotImplementedError

    def store(self, job: Job, name: str, source: Any, check: Callable[[], None]) -> str:
        raise NotImplementedError

    def store_result(self, job: Job, text: str) -> str:
        raise NotImplementedError

    def predecessors(self, job_id: int) -> list[JobInfo]:
        raise NotImplementedError

    def results(self, job_id: int) -> dict[int, Any]:
        raise NotImplementedError

    def enqueue_batch(self, conn: Any, job: Job, type: str, payloads: Any, callback: Any, options: Any) -> int:
        raise NotImplementedError

    def enqueue(self, conn: Any, type: str, payload: Any, options: dict[str, Any]) -> int:
        raise NotImplementedError


def add_job(conn: psycopg.Connection[Any], payload: dict[str, Any]) -> int:
    """A row that runs in its first attempt."""
    row = conn.execute(
        "insert into dispatcher.job (type, state, attempt, payload)"
        " values ('bulk_import', 'running', 1, %s::jsonb) returning id",
        [json.dumps(payload)],
    ).fetchone()
    assert row
    return int(row[0])


def load_job(dsn: str, job_id: int) -> Job:
    """The job as a worker is given it."""
    with psycopg.connect(dsn) as conn:
        row = conn.execute(
            "select attempt, failures, created_at, payload, checkpoint from dispatcher.job where id = %s",
            [job_id],
        ).fetchone()
    assert row
    attempt, failures, created_at, payload, checkpoint = row
    model = BulkImportPayload.model_validate(payload)
    return Job(job_id, "bulk_import", None, model, 0, attempt, failures, created_at, checkpoint)


def context(runtime: DirectRuntime, job_id: int) -> Context:
    """The context of the job's current attempt."""
    return Context(load_job(runtime.dsn, job_id), timeout_s=None, runtime=runtime)


def run(runtime: DirectRuntime, job_id: int, ctx: Context | None = None) -> Any:
    """One attempt to its end."""
    ctx = ctx or context(runtime, job_id)
    return bulk_import(ctx.job, ctx)


def main() -> None:
    """DSN, job and where to stop: tells on standard output when it is there, and waits there to be killed."""
    dsn, job_id, place, visit = sys.argv[1:]
    runtime = DirectRuntime(dsn)
    visits = iter(range(1, 1_000_000))

    def stop() -> None:
        if next(visits) == int(visit):
            print("here", flush=True)
            sys.stdin.read()

    if place == "batch":
        runtime.after_progress = stop
    elif place == "checkpoint":
        runtime.after_checkpoint = stop
    run(runtime, int(job_id))
    print("done", flush=True)


if __name__ == "__main__":
    main()
