"""Hooks where the row decides: after ctx.complete, and after the death of a process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from dispatcher import JobError, executor
from dispatcher.aftermath import Aftermath
from dispatcher.context import Context
from dispatcher.db import Connection
from dispatcher.executor import Registry
from dispatcher.job import Job
from dispatcher.metrics import Metrics
from dispatcher.outcome import Outcome
from dispatcher.retry import Backoff
from dispatcher.runtime import JobRuntime
from dispatcher.services.rescuer import Rescuer
from dispatcher.testing import Queue
from dispatcher.testing.inline import declared
from tests.db.contenders import Clock, register
from tests.db.running import OWNER, session, value

Calls = list[tuple[str, Any]]


def hooked(run: Callable[[Job, Context], Any], calls: Calls, type: str = "t", **options: Any) -> Any:
    """An executor whose hooks note that they were called, and with what."""

    def noting(name: str) -> Callable[[Job, Context, Any], None]:
        def note(_job: Job, _ctx: Context, argument: Any) -> None:
            calls.append((name, argument.kind if isinstance(argument, JobError) else argument))

        return note

    names = ("on_success", "on_failure", "on_final_failure")
    return executor(type, **{**{name: noting(name) for name in names}, **options})(run)


def drain_one(dsn: str, run: Callable[[Job, Context], Any], **options: Any) -> Calls:
    """The calls of the hooks of one try of a job."""
    calls: Calls = []
    with Queue(dsn, [hooked(run, calls, **options)]) as queue:
        queue.enqueue("t")
        queue.drain()
    return calls


def test_committed_completion_calls_the_success_hook(dsn: str, conn: Connection) -> None:
    def run(_job: Job, ctx: Context) -> str:
        with ctx.connect() as own:
            ctx.complete(own, {"n": 1})
        return "not the result"

    assert drain_one(dsn, run) == [("on_success", {"n": 1})]


def test_error_after_a_committed_completion_changes_nothing_of_it(dsn: str, conn: Connection) -> None:
    def run(_job: Job, ctx: Context) -> None:
        with ctx.connect() as own:
            ctx.complete(own, 5)
        raise ValueError("too late")

    assert drain_one(dsn, run) == [("on_success", 5)]
    assert value(conn, "select state from dispatcher.job") == "succeeded"


def test_completion_without_a_commit_calls_the_failure_hook(dsn: str, conn: Connection) -> None:
    def run(_job: Job, ctx: Context) -> None:
        with ctx.connect() as own:
            ctx.complete(own, 5)
            own.rollback()

    assert drain_one(dsn, run) == [("on_failure", "exception")]
    assert value(conn, "select state from dispatcher.job") == "scheduled"


def test_attempt_lost_after_its_completion_was_rolled_back_calls_no_hook(dsn: str, conn: Connection) -> None:
    """Another attempt runs, or will: its hooks tell."""

    def run(job: Job, ctx: Context) -> None:
        with ctx.connect() as own:
            ctx.complete(own, 5)
            own.rollback()
        conn.execute("update dispatcher.job set attempt = 7 where id = %s", [job.id])

    assert drain_one(dsn, run) == []


def test_completed_job_that_is_gone_already_had_succeeded(dsn: str, conn: Connection) -> None:
    """With a retention of zero the pruner may be quicker than the hook."""

    def run(job: Job, ctx: Context) -> None:
        with ctx.connect() as own:
            ctx.complete(own, 5)
        conn.execute("delete from dispatcher.job where id = %s", [job.id])

    calls: Calls = []
    with Queue(dsn, [hooked(run, calls)]) as queue:
        queue.enqueue("t")
        with pytest.raises(Exception, match="there is no job"):
            queue.drain()
    assert calls == [("on_success", 5)]


def test_broken_hook_is_noted_in_the_row_beside_the_result(dsn: str, conn: Connection) -> None:
    def broken(_job: Job, _ctx: Context, _result: Any) -> None:
        raise ValueError("mail is down")

    with Queue(dsn, [hooked(lambda job, ctx: 1, [], on_success=broken)]) as queue:
        queue.enqueue("t")
        [ended] = queue.drain()
    assert (ended.state, ended.result) == ("succeeded", 1)
    assert [(error["kind"], error["attempt"]) for error in ended.errors] == [("hook", 1)]
    assert "mail is down" in ended.errors[0]["message"]


def test_hook_enqueues_on_the_database(dsn: str, conn: Connection) -> None:
    def after(_job: Job, ctx: Context, result: Any) -> None:
        ctx.enqueue("next", {"n": result})

    calls: Calls = []
    first = hooked(lambda job, ctx: 3, [], on_success=after)
    second = hooked(lambda job, ctx: job.payload, calls, type="next")
    with Queue(dsn, [first, second]) as queue:
        queue.enqueue("t")
        assert [job.type for job in queue.drain()] == ["t", "next"]
    assert calls == [("on_success", {"n": 3})]


# After the death of a process


class Payload(BaseModel):
    n: int


class Crashing:
    """A rescuer, with the hooks of what it rescues."""

    def __init__(self, dsn: str, conn: Connection, max_attempts: int) -> None:
        self.calls: Calls = []
        self.payloads: list[Any] = []
        self.handed: list[tuple[Job, Outcome]] = []
        self.hook_errors: list[str] = []
        target = hooked(lambda job, ctx: None, self.calls, max_attempts=max_attempts, payload=Payload)
        registry = Registry([declared(target)])
        self.runtime = JobRuntime(
            dsn=dsn, installation=value(conn, "select id from dispatcher.installation"), owner=OWNER
        )
        self.aftermath = Aftermath(runtime=self.runtime, registry=registry, hook_failed=self.hook_errors.append)
        self.clock = Clock()
        self.rescuer = Rescuer(
            open_session=lambda: session(dsn),
            replica=register(conn),
            lease_number=1,
            orphan_after_s=30.0,
            overdue_grace_s=30.0,
            registry=registry,
            leading=lambda: True,
            rescued=lambda: None,
            failed=self.handed.extend,
            metrics=Metrics(),
            stop=threading.Event(),
            clock=self.clock,
        )

    def rescue(self) -> None:
        self.rescuer.look()
        self.clock.now += 31
        self.rescuer.look()
        self.rescuer.close()


def orphan(conn: psycopg.Connection[Any], *, type: str = "t", payload: str = '{"n": 4}') -> int:
    owner = register(conn)
    id = int(
        value(
            conn,
            "insert into dispatcher.job (type, state, attempt, owner, started_at, payload)"
            " values (%s, 'running', 1, %s, now(), %s::jsonb) returning id",
            type,
            owner,
            payload,
        )
    )
    conn.execute("insert into dispatcher.claim (owner, term, job_ids) values (%s, 1, array[%s::bigint])", [owner, id])
    return id


def test_job_that_a_crash_fails_for_good_has_its_hooks_called(dsn: str, conn: Connection) -> None:
    crashing = Crashing(dsn, conn, max_attempts=1)
    id = orphan(conn)
    crashing.rescue()
    assert [(job.id, outcome.state) for job, outcome in crashing.handed] == [(id, "failed")]
    assert value(conn, "select state from dispatcher.job") == "failed"  # recorded first
    crashing.aftermath.call(crashing.handed)
    assert crashing.calls == [("on_failure", "crash"), ("on_final_failure", "crash")]
    crashing.runtime.close()


def test_crash_that_is_tried_again_is_a_failure_but_not_the_final_one(dsn: str, conn: Connection) -> None:
    crashing = Crashing(dsn, conn, max_attempts=2)
    orphan(conn)
    crashing.rescue()
    crashing.aftermath.call(crashing.handed)
    assert crashing.calls == [("on_failure", "crash")]
    crashing.runtime.close()


def test_hooks_after_a_crash_run_in_a_thread_of_their_own(dsn: str, conn: Connection) -> None:
    called, seen = threading.Event(), []

    def told(job: Job, ctx: Context, _error: Any) -> None:
        seen.append((threading.current_thread().name, job.payload, ctx.attempt))
        called.set()

    spec = declared(hooked(lambda job, ctx: None, [], on_failure=told, payload=Payload))
    crashing = Crashing(dsn, conn, max_attempts=1)
    id = orphan(conn)
    crashing.rescue()
    aftermath = Aftermath(runtime=crashing.runtime, registry=Registry([spec]), hook_failed=lambda _type: None)
    assert crashing.handed[0][0].id == id
    aftermath.failed(crashing.handed)
    assert called.wait(10)
    assert seen == [("aftermath", Payload(n=4), 1)]
    crashing.runtime.close()


def test_job_that_is_gone_or_has_no_hooks_keeps_no_other_from_its_hooks(dsn: str, conn: Connection) -> None:
    crashing = Crashing(dsn, conn, max_attempts=1)
    gone, odd, _other = orphan(conn), orphan(conn, payload='{"n": "x"}'), orphan(conn, type="unknown")
    crashing.rescue()
    assert len(crashing.handed) == 3
    conn.execute("delete from dispatcher.job where id = %s", [gone])
    crashing.aftermath.call(crashing.handed)
    assert crashing.calls == [("on_failure", "crash"), ("on_final_failure", "crash")]
    assert value(conn, "select state from dispatcher.job where id = %s", odd) == "failed"
    crashing.runtime.close()


def test_hook_that_raises_after_a_crash_is_counted(dsn: str, conn: Connection) -> None:
    def broken(_job: Job, _ctx: Context, _error: Any) -> None:
        raise SystemExit(3)

    spec = declared(hooked(lambda job, ctx: None, [], on_failure=broken, backoff=Backoff(0.1)))
    crashing = Crashing(dsn, conn, max_attempts=1)
    orphan(conn)
    crashing.rescue()
    failed: list[str] = []
    Aftermath(runtime=crashing.runtime, registry=Registry([spec]), hook_failed=failed.append).call(crashing.handed)
    assert failed == ["t"]
    crashing.runtime.close()


def test_result_that_postgresql_refuses_is_a_final_failure_to_hooks(
    dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The success hook was called before anybody could know."""
    handed: list[tuple[Job, Outcome]] = []
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(200_000)
    try:
        with Queue(dsn, [hooked(lambda job, ctx: 10**140_000, [])]) as queue:
            monkeypatch.setattr(queue._completer, "_failed", handed.extend)
            queue.enqueue("t")
            [ended] = queue.drain()
    finally:
        sys.set_int_max_str_digits(before)
    assert (ended.state, ended.errors[0]["kind"]) == ("failed", "result")
    assert [(job.id, outcome.error.kind) for job, outcome in handed] == [(ended.id, "result")]
