"""The process pool: what happens to a worker process happens to one job, and nothing of a job outlives its end."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from dispatcher.job import CancelReason, State
from dispatcher.metrics import Metrics
from dispatcher.pools.messages import Setup
from dispatcher.pools.process import ProcessPool
from dispatcher.services.timekeeper import Timekeeper
from tests import far_jobs
from tests.pooling import PATIENCE_S, Pooling

SETUP = Setup(
    sources=["tests.far_jobs.echo"],
    dsn="",
    installation=UUID(int=0),
    owner=1,
    result_store="",
    max_result_bytes=2**20,
    log_level=logging.INFO,
)


@pytest.fixture
def pooling() -> Iterator[Pooling]:
    pooling = Pooling(lambda **parts: ProcessPool(size=2, setup=SETUP, kill_after_s=0.2, **parts))
    yield pooling
    pooling.pool.stop()


def workers() -> set[int]:
    """The worker processes of this process, which have their supervisors between."""
    return {child.pid for child in psutil.Process().children(recursive=True) if "dispatcher worker" in child.cmdline()}


def await_end(pid: int) -> None:
    """Until a process is gone."""
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(PATIENCE_S)


def freeze(pid: int) -> None:
    """Stops a process, and waits until each of its threads stands: on a busy machine that takes a while."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE_S
    while any(file.read_text().rpartition(") ")[2][0] != "T" for file in Path(f"/proc/{pid}/task").glob("*/stat")):
        assert time.monotonic() < deadline, "it does not stop"


def result(outcome: Any) -> Any:
    assert outcome.state is State.SUCCEEDED, outcome
    return json.loads(outcome.result)


def errors(outcome: Any) -> list[dict[str, Any]]:
    return list(json.loads(outcome.errors))


def test_job_runs_elsewhere_and_the_worker_stays_warm(pooling: Pooling) -> None:
    first = result(pooling.run(far_jobs.echo, text="é\n"))
    second = result(pooling.run(far_jobs.echo, text="2"))
    assert first["pid"] == second["pid"] != os.getpid()
    assert (first["text"], first["attempt"], first["id"]) == ("é\n", 1, 1)


@pytest.mark.parametrize(
    ("how", "state", "detail"),
    [
        ("partial", State.PARTIAL, {"kind": "item", "message": "one is missing", "item": 2}),
        ("fail", State.FAILED, {"kind": "fail", "message": "no more tries"}),
        ("retry", State.SCHEDULED, {"kind": "retry", "message": "later"}),
        ("snooze", State.SCHEDULED, None),
        ("cancel", State.CANCELED, None),
        ("error", State.SCHEDULED, {"kind": "exception", "message": "ValueError: in another process"}),
        ("odd", State.FAILED, {"kind": "result"}),
    ],
)
def test_each_way_to_end_comes_across(pooling: Pooling, how: str, state: State, detail: dict[str, Any] | None) -> None:
    outcome = pooling.run(far_jobs.end, how=how)
    assert outcome.state is state
    if detail is None:
        assert outcome.errors is None
    else:
        assert detail.items() <= errors(outcome)[0].items()
    assert outcome.delay_s == {"retry": 7.0, "snooze": 9.0}.get(how, outcome.delay_s)


def test_a_payload_that_does_not_fit_fails_at_once(pooling: Pooling) -> None:
    outcome = pooling.run(far_jobs.echo, text=1)
    assert (outcome.state, errors(outcome)[0]["kind"]) == (State.FAILED, "payload")


@pytest.mark.parametrize(
    ("how", "told"),
    [("segfault", "SIGSEGV"), ("kill", "SIGKILL"), ("exit", "status 3"), ("abort", "SIGABRT")],
)
def test_a_death_fails_that_job_only(pooling: Pooling, how: str, told: str) -> None:
    beside = pooling.make(far_jobs.wait)
    pooling.submit(beside)
    pooling.runtime.await_progress()
    outcome = pooling.run(far_jobs.die, how=how)
    assert (outcome.state, outcome.failures) == (State.SCHEDULED, 1), "it is tried again"
    assert errors(outcome)[0]["kind"] == "crash"
    assert told in errors(outcome)[0]["message"]
    assert result(pooling.run(far_jobs.echo, text="next"))["text"] == "next"
    assert beside.key not in pooling.ended
    assert beside.ctx is not None
    beside.ctx.cancel(CancelReason.SHUTDOWN)
    assert pooling.outcome(beside).state is State.PENDING


def test_what_was_logged_before_a_crash_is_told(pooling: Pooling, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for how in ("segfault", "exit"):
        pooling.run(far_jobs.die, how=how)
    assert [record.getMessage() for record in caplog.records if record.name == "dispatcher.job"] == [
        "about to segfault",
        "about to exit",
    ]


def test_a_job_that_hears_nothing_is_killed_with_what_it_started(pooling: Pooling, tmp_path: Path) -> None:
    execution = pooling.make(far_jobs.hang, file=str(tmp_path / "pids"))
    pooling.submit(execution)
    keeper = Timekeeper(
        inflight=pooling.inflight,
        metrics=Metrics(),
        stack_of=pooling.pool.stack,
        note_timed_out=lambda _execution: None,
        stop=threading.Event(),
    )
    while execution.key not in pooling.ended:
        keeper.step()
    assert execution.outcome is not None
    assert (execution.outcome.state, errors(execution.outcome)[0]["kind"]) == (State.FAILED, "timeout")
    for pid in (tmp_path / "pids").read_text(encoding="ascii").split():
        assert not psutil.pid_exists(int(pid)), "the end was told although something still runs"


def test_the_time_to_start_a_process_is_not_the_job_s(pooling: Pooling) -> None:
    execution = pooling.make(far_jobs.hang, file="/nowhere/file")  # a worker that is not warm yet, a timeout of 0.3 s
    pooling.submit(execution)
    while execution.ctx is None:
        pooling.pool.nudge()
    assert execution.ctx.deadline is not None
    assert execution.ctx.deadline - time.monotonic() > 10
    outcome = pooling.outcome(execution)
    assert "FileNotFoundError" in errors(outcome)[0]["message"]
    assert execution.ctx.deadline - execution.started_at == pytest.approx(0.3)


def test_a_job_that_heeds_is_canceled_and_its_worker_goes_on(pooling: Pooling) -> None:
    execution = pooling.make(far_jobs.wait)
    pooling.submit(execution)
    pooling.runtime.await_progress()
    (worker,) = workers()
    assert execution.ctx is not None
    execution.ctx.cancel(CancelReason.REQUESTED)
    assert pooling.outcome(execution).state is State.CANCELED
    assert result(pooling.run(far_jobs.echo, text=""))["pid"] == worker


def test_a_cancel_before_the_start_starts_nothing(pooling: Pooling) -> None:
    execution = pooling.make(far_jobs.wait)
    execution.cancel_requested = True
    pooling.submit(execution)
    assert pooling.outcome(execution).state is State.CANCELED
    assert not workers()


def test_a_cancel_at_any_instant_is_heard(pooling: Pooling) -> None:
    """Also between the order and the job's first line, where nobody listens yet."""
    pooling.run(far_jobs.echo, text="warm")
    for number in range(40):
        execution = pooling.make(far_jobs.wait)
        pooling.submit(execution)
        while execution.ctx is None:
            pooling.pool.nudge()
        threading.Event().wait(number * 0.0002)
        execution.ctx.cancel(CancelReason.REQUESTED)
        assert pooling.outcome(execution).state is State.CANCELED
    assert len(workers()) == 1, "none of them had to be killed"


def test_the_stack_of_a_job_that_was_timed_out_is_told(pooling: Pooling) -> None:
    execution = pooling.make(far_jobs.wait)
    pooling.submit(execution)
    pooling.runtime.await_progress()
    assert execution.ctx is not None
    execution.ctx.cancel(CancelReason.TIMEOUT)
    (error,) = errors(pooling.outcome(execution))
    assert error["kind"] == "timeout"
    assert "ctx.sleep(HUNG_S)" in error["trace"]


def test_memory_beyond_the_limit_is_refused_and_the_worker_replaced(pooling: Pooling) -> None:
    assert result(pooling.run(far_jobs.grow, mib=32)) == 32 * 2**20
    (before,) = workers()
    outcome = pooling.run(far_jobs.grow, mib=100)
    assert outcome.state is State.FAILED
    assert "64.0MiB" in errors(outcome)[0]["message"]
    assert result(pooling.run(far_jobs.grow, mib=32)) == 32 * 2**20
    assert before not in workers()


def test_progress_and_logs_come_across(pooling: Pooling, caplog: pytest.LogCaptureFixture) -> None:
    assert result(pooling.run(far_jobs.talk, times=100_000)) == "told"
    assert pooling.runtime.progress[-1] == (99.0, "nearly")
    assert len(pooling.runtime.progress) < 1000, "the latest now and then, not each"
    told = {record.name: record for record in caplog.records}
    assert told["dispatcher.job"].getMessage() == "halfway through 100000"
    assert vars(told["dispatcher.job"])["job_id"] == 1
    assert "ValueError: why" in told["far.library"].getMessage()


def test_a_coroutine_runs_in_a_process_as_well(pooling: Pooling) -> None:
    assert result(pooling.run(far_jobs.coroutine)) == "awaited"
    execution = pooling.make(far_jobs.coroutine, seconds=far_jobs.HUNG_S)
    pooling.submit(execution)
    while execution.ctx is None:
        pooling.pool.nudge()
    execution.ctx.cancel(CancelReason.REQUESTED)
    assert pooling.outcome(execution).state is State.CANCELED


def test_an_idle_worker_that_is_killed_costs_no_job(pooling: Pooling) -> None:
    first = result(pooling.run(far_jobs.echo, text=""))["pid"]
    os.kill(first, signal.SIGKILL)
    await_end(first)
    assert result(pooling.run(far_jobs.echo, text="again"))["text"] == "again"


def test_hooks_run_in_the_worker_or_here_where_it_died(pooling: Pooling, tmp_path: Path) -> None:
    file = tmp_path / "hook"
    ran_in = result(pooling.run(far_jobs.hooked, file=str(file), die=False))
    assert file.read_text(encoding="ascii") == f"{ran_in} {ran_in}"
    assert pooling.run(far_jobs.hooked, file=str(file), die=True).state is State.FAILED
    assert file.read_text(encoding="ascii") == f"crash {os.getpid()}"


def test_workers_are_warm_before_the_first_job(pooling: Pooling) -> None:
    pooling.pool.start()
    while len(workers()) < 2:
        threading.Event().wait(0.01)
    ready = workers()
    assert result(pooling.run(far_jobs.echo, text=""))["pid"] in ready


def test_no_more_jobs_at_once_than_workers(pooling: Pooling) -> None:
    waiting = [pooling.make(far_jobs.wait) for _ in range(3)]
    pooling.submit(*waiting)
    deadline = threading.Event()
    for _ in range(300):
        pooling.pool.nudge()
        if pooling.pool.executing == 2 and len(pooling.runtime.progress) == 2:
            break
        deadline.wait(0.01)
    assert (pooling.pool.executing, pooling.pool.waiting) == (2, 1)
    assert [execution.key for execution in pooling.pool.take_waiting()] == [waiting[2].key]
    for execution in waiting[:2]:
        assert execution.ctx is not None
        execution.ctx.cancel(CancelReason.REQUESTED)
        assert pooling.outcome(execution).state is State.CANCELED


def test_very_quick_jobs_do_not_leave_workers_idle(pooling: Pooling) -> None:
    executions = [pooling.make(far_jobs.length, text="") for _ in range(300)]
    pooling.submit(*executions)
    for execution in executions:
        pooling.outcome(execution)
    waiting = [pooling.make(far_jobs.wait) for _ in range(2)]
    pooling.submit(*waiting)  # and nobody nudges: the leader does so only while it has nothing to do
    for _ in range(1000):
        if pooling.pool.executing == 2:
            break
        threading.Event().wait(0.01)
    assert pooling.pool.executing == 2
    for execution in waiting:
        while execution.ctx is None:
            threading.Event().wait(0.01)
        execution.ctx.cancel(CancelReason.REQUESTED)
        pooling.outcome(execution)


def test_stopped_pool_leaves_no_process(pooling: Pooling) -> None:
    pid = result(pooling.run(far_jobs.echo, text=""))["pid"]
    pooling.pool.stop()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("what", ["child", "daemon", "fork that goes on", "thread"])
def test_a_job_that_leaves_something_running_ends_when_that_is_gone(pooling: Pooling, what: str) -> None:
    pid = result(pooling.run(far_jobs.leave, what=what))
    assert not psutil.pid_exists(pid), "the end was told although something still runs"
    assert result(pooling.run(far_jobs.echo, text="next"))["text"] == "next"


@pytest.mark.parametrize("how", ["garbage", "huge garbage", "closed", "shut"])
def test_a_job_that_spoils_the_way_back_fails_alone_and_at_once(pooling: Pooling, how: str) -> None:
    execution = pooling.make(far_jobs.break_off, how=how)
    pooling.submit(execution)
    outcome = pooling.outcome(execution, within_s=10)
    assert (outcome.state, errors(outcome)[0]["kind"]) == (State.SCHEDULED, "crash")
    for text in ("one", "two", "three"):
        assert result(pooling.run(far_jobs.echo, text=text))["text"] == text, "no answer of another job's"


@pytest.mark.parametrize("how", ["odd record", "limits"])
def test_what_is_odd_in_a_job_does_not_keep_its_end_from_being_told(pooling: Pooling, how: str) -> None:
    execution = pooling.make(far_jobs.break_off, how=how)
    pooling.submit(execution)
    assert result(pooling.outcome(execution, within_s=10)) == "done"
    assert result(pooling.run(far_jobs.grow, mib=32)) == 32 * 2**20


def test_a_job_that_leaves_no_memory_for_the_way_back_ends(pooling: Pooling) -> None:
    execution = pooling.make(far_jobs.break_off, how="no memory")
    pooling.submit(execution)
    pooling.outcome(execution, within_s=10)
    assert result(pooling.run(far_jobs.echo, text="next"))["text"] == "next"


def test_a_worker_that_has_grown_by_much_is_replaced(pooling: Pooling) -> None:
    first, second = (result(pooling.run(far_jobs.leak, mib=100)) for _ in range(2))
    third, fourth = (result(pooling.run(far_jobs.leak, mib=100)) for _ in range(2))
    assert first == second == third != fourth


def test_what_a_job_prints_is_out_when_it_has_ended_and_no_log_record_is_endless(
    pooling: Pooling,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert pooling.run(far_jobs.say).state is State.SUCCEEDED
    assert "said by a job" in capfd.readouterr().out
    assert max(len(record.getMessage()) for record in caplog.records) == 100_000


def test_a_flood_of_logs_does_not_fill_the_memory(pooling: Pooling) -> None:
    logger = logging.getLogger("far.flood")
    logger.setLevel(logging.CRITICAL)
    try:
        assert result(pooling.run(far_jobs.flood)) < 100, "5,000 records of 50 kB"
    finally:
        logger.setLevel(logging.NOTSET)


def test_a_log_handler_that_raises_costs_no_job(pooling: Pooling) -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("broken")

    logger, broken = logging.getLogger("far.library"), Broken()
    logger.addHandler(broken)
    try:
        assert result(pooling.run(far_jobs.talk, times=10)) == "told"
    finally:
        logger.removeHandler(broken)
    assert result(pooling.run(far_jobs.echo, text="next"))["text"] == "next"


def test_a_worker_that_does_not_read_its_order_is_killed_when_the_job_is_to_stop(pooling: Pooling) -> None:
    frozen = result(pooling.run(far_jobs.echo, text=""))["pid"]
    freeze(frozen)
    execution = pooling.make(far_jobs.length, text="x" * 2**20)  # more than a socket takes
    pooling.submit(execution)
    while execution.ctx is None:
        pooling.pool.nudge()
    execution.ctx.cancel(CancelReason.REQUESTED)
    assert pooling.outcome(execution, within_s=10).state is State.CANCELED
    await_end(frozen)
    assert result(pooling.run(far_jobs.length, text="x" * 2**20)) == 2**20


def test_a_job_that_never_started_is_not_failed_for_its_timeout(pooling: Pooling) -> None:
    frozen = result(pooling.run(far_jobs.echo, text=""))["pid"]
    freeze(frozen)
    execution = pooling.make(far_jobs.echo, text="")
    pooling.submit(execution)
    while execution.ctx is None:
        pooling.pool.nudge()
    execution.ctx.cancel(CancelReason.TIMEOUT)
    outcome = pooling.outcome(execution)
    assert (outcome.state, errors(outcome)[0]["kind"]) == (State.SCHEDULED, "crash")


def test_no_more_workers_than_places_also_where_jobs_come_at_once(pooling: Pooling) -> None:
    pooling.pool.start()
    executions = [pooling.make(far_jobs.echo, text="") for _ in range(8)]
    pooling.submit(*executions)
    for execution in executions:
        pooling.outcome(execution)
    for thread in threading.enumerate():
        if thread.name == "process-warm-up":
            thread.join()
    assert len(workers()) <= 2


def test_stopped_while_it_starts_leaves_no_process(pooling: Pooling) -> None:
    pooling.pool.start()
    pooling.pool.stop()
    for thread in threading.enumerate():
        if thread.name == "process-warm-up":
            thread.join()
    assert not workers()


def test_two_threads_that_want_the_last_warm_worker_both_get_one(pooling: Pooling) -> None:
    pool = pooling.pool
    assert isinstance(pool, ProcessPool)

    class Contended(deque[Any]):
        def __bool__(self) -> bool:
            return True  # as another thread saw it, before this one took the last

    pool._warm = Contended()
    assert result(pooling.run(far_jobs.echo, text="one"))["text"] == "one"
    pool._warm = deque(pool._warm)
