"""dispatcher.testing: what it shows is what a replica would do, and its documentation is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dispatcher import (
    Cancel,
    CancelReason,
    Fail,
    InvalidOption,
    InvalidPayload,
    Partial,
    Retry,
    Snooze,
    State,
    executor,
)
from dispatcher.context import Context
from dispatcher.db import Connection
from dispatcher.errors import DispatcherError, ExecutorError
from dispatcher.executor import Registry
from dispatcher.job import Job
from dispatcher.testing import Queue, run_inline
from dispatcher.testing.inline import declared
from tests.db.running import value

ROOT = Path(__file__).parents[2]


@executor("ways", max_attempts=3)
def ways(job: Job, ctx: Context) -> Any:
    """Ends as its payload says, in the first attempt."""
    ctx.progress(10, "begun")
    if job.attempt > 1:
        return {"attempt": job.attempt, "checkpoint": job.checkpoint}
    match job.payload["end"]:
        case "partial":
            return Partial([1], [{"message": "one", "item": 2}])
        case "retry":
            raise Retry(7.5, "later")
        case "snooze":
            raise Snooze(60)
        case "fail":
            raise Fail("for good")
        case "cancel":
            raise Cancel
        case "raise":
            raise ValueError("no")
        case "bad":
            return object()
        case "stop":
            ctx.cancel(CancelReason.SHUTDOWN)
            ctx.raise_if_canceled()
    return {"tenant": job.tenant}


@executor("chain")
def chain(job: Job, ctx: Context) -> None:
    """Enqueues another one like itself."""
    if (left := job.payload["left"]) != 0:
        ctx.enqueue("chain", {"left": left - 1}, priority=-1)


@pytest.fixture
def queue(dsn: str) -> Iterator[Queue]:
    with Queue(dsn, [ways, chain]) as queue:
        yield queue


@pytest.mark.parametrize("end", ["return", "partial", "retry", "snooze", "fail", "cancel", "raise", "bad", "stop"])
def test_a_try_in_line_ends_as_in_the_real_queue(queue: Queue, conn: Connection, end: str) -> None:
    inline = run_inline(ways, {"end": end}, tenant="acme")
    id = queue.enqueue("ways", {"end": end}, tenant="acme")
    # One try only: what is due at once, as after a shutdown, would be tried again.
    execution = queue._claim()
    assert execution is not None
    queue._pool.run(execution)
    while execution.key in queue._inflight:
        queue._completer.step()
    real = queue.client.get(id)
    assert (inline.state, inline.result, inline.failures) == (real.state, real.result, real.failures)
    told = [{key: error[key] for key in ("kind", "message")} for error in inline.errors]
    assert told == [{key: error[key] for key in ("kind", "message")} for error in real.errors]
    assert inline.progress == [(10.0, "begun")]
    if inline.state is State.SCHEDULED:
        wait = value(conn, "select extract(epoch from run_at - now()) from dispatcher.job")
        assert inline.delay_s is not None
        assert 0 <= inline.delay_s - float(wait) < 5


def test_later_try_has_its_number_failures_and_checkpoint() -> None:
    ended = run_inline(ways, {"end": "raise"}, attempt=3, checkpoint={"line": 9})
    assert ended.result == {"attempt": 3, "checkpoint": {"line": 9}}
    assert (ended.failures, ended.checkpoint) == (2, {"line": 9})
    last = run_inline(ways, {"end": "raise"}, attempt=1, failures=2)
    assert (last.state, last.failures) == (State.FAILED, 3)


def test_checkpoint_that_a_try_leaves_is_seen() -> None:
    run = executor("t")(lambda job, ctx: ctx.checkpoint(None, {"line": 3}))
    assert run_inline(run).checkpoint == {"line": 3}


def test_executor_by_the_name_of_its_type() -> None:
    assert run_inline("ways", {"end": "return"}, registry=Registry([declared(ways)])).state is State.SUCCEEDED
    with pytest.raises(ExecutorError, match="known types: ways"):
        run_inline("other", registry=Registry([declared(ways)]))
    with pytest.raises(ExecutorError, match=r"known types: .*bulk_import, command"):
        run_inline("other")
    with pytest.raises(ExecutorError, match="decorate it"):
        run_inline(print)


def test_what_an_executor_enqueues_is_checked_as_a_client_checks_it() -> None:
    bad_payload = run_inline(executor("t")(lambda job, ctx: ctx.enqueue("x", [1])))
    assert isinstance(bad_payload.exception, InvalidPayload)
    bad_option = run_inline(executor("t")(lambda job, ctx: ctx.enqueue("x", {}, prio=1)))
    assert isinstance(bad_option.exception, InvalidOption)


def test_run_without_a_database_says_so() -> None:
    ended = run_inline(executor("t")(lambda job, ctx: ctx.connect()))
    assert isinstance(ended.exception, DispatcherError)
    assert "connect" in str(ended.exception)


def test_interrupt_of_the_person_at_the_keyboard_passes() -> None:
    def interrupted(_job: Job, _ctx: Context) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_inline(executor("t")(interrupted))


# The queue


def test_drain_runs_by_priority_and_age_and_what_jobs_enqueue(queue: Queue) -> None:
    second = queue.enqueue("chain", {"left": 2})
    last = queue.enqueue("chain", {"left": 0}, priority=5, tenant="a")
    first = queue.enqueue("chain", {"left": 0}, priority=-5, tenant="b")
    ended = [job.id for job in queue.drain()]
    assert ended == [first, second, last + 2, last + 3, last]
    assert queue.drain() == []


def test_drain_leaves_what_is_due_later_unless_it_is_told_otherwise(queue: Queue) -> None:
    later, failing = queue.enqueue("ways", {"end": "return"}, delay=3600), queue.enqueue("ways", {"end": "raise"})
    assert queue.drain() == []
    assert queue.client.get(failing).state == "scheduled"
    ended = {job.id: job for job in queue.drain(scheduled=True)}
    assert set(ended) == {later, failing}
    assert (ended[failing].attempt, ended[failing].failures, ended[failing].state) == (2, 1, "succeeded")


def test_drain_of_what_never_ends_gives_up(queue: Queue) -> None:
    queue.enqueue("chain", {"left": -1})
    with pytest.raises(RuntimeError, match="after 20 runs"):
        queue.drain(limit=20)


def test_progress_and_the_last_word_of_it_are_in_the_row(queue: Queue) -> None:
    queue.enqueue("ways", {"end": "partial"})
    [ended] = queue.drain()
    assert (ended.progress, ended.progress_message) == (10, "begun")


def test_queue_takes_a_module_and_a_registry(dsn: str) -> None:
    module = ModuleType("shop")
    setattr(module, "run", executor("in_module")(lambda job, ctx: 1))  # noqa: B010 - a module for this test alone
    module.run.__module__ = "shop"
    with Queue(dsn, [module]) as queue:
        assert queue.registry.types == ["in_module"]
    with Queue(dsn, Registry([declared(ways)])) as queue:
        assert queue.registry.types == ["ways"]


def test_nothing_but_the_plugin_needs_pytest() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; import dispatcher.testing; print(sorted(dispatcher.testing.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "run_inline" in done.stdout


def test_examples_of_the_documentation_pass(tmp_path: Path) -> None:
    """The very text of docs/testing.md, with the embedded PostgreSQL that it promises."""
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    files = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, flags=re.DOTALL)
    assert sorted(name for name, _ in files) == ["conftest.py", "shop.py", "test_one_try.py", "test_queue.py"]
    for name, source in files:
        (tmp_path / name).write_text(source, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


@executor("sum")
def sum_up(_job: Job, ctx: Context) -> Any:
    """Adds up what the jobs before it returned."""
    return sum(result["n"] for result in ctx.results().values())


@executor("number")
def number(job: Job, _ctx: Context) -> Any:
    """Returns its payload."""
    return job.payload


def test_drain_runs_batches_and_what_comes_after_others(dsn: str) -> None:
    with Queue(dsn, [number, sum_up]) as queue:
        first, second = queue.enqueue("number", {"n": 3}), queue.enqueue("number", {"n": 4})
        total = queue.enqueue("sum", after=[first, second])
        batch = queue.client.batch("number", [{}, {}], callback="number")
        queue.drain()
        assert queue.client.result(total) == 7
        assert queue.client.get(batch).state is State.SUCCEEDED
        callback = queue.client.get_batch(batch).callback_id
        assert callback is not None
        assert queue.client.get(callback).state is State.SUCCEEDED
    assert run_inline(sum_up, results={1: {"n": 1}, 2: {"n": 5}}).result == 6
