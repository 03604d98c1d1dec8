"""The thread pool: whatever an executor does ends its own job only, and no thread idles while a job waits."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, field_validator

from dispatcher.context import Context, Interrupted
from dispatcher.executor import Executor
from dispatcher.inflight import Execution, InFlight
from dispatcher.job import CancelReason, Job, State
from dispatcher.pools.attempt import Attempts
from dispatcher.pools.thread import ThreadPool, stack_of
from dispatcher.queries.claims import Claimed
from dispatcher.retry import RetryPolicy
from dispatcher.runtime import JobRuntime

Run = Callable[[Job, Context], Any]


class Pool:
    """A pool whose ended executions come here."""

    def __init__(
        self, threads: int = 4, job_timeout_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.inflight = InFlight()
        self.ended: dict[int, Execution] = {}
        self._news = threading.Condition()
        self._ids = iter(range(1, 10**9))
        self.pool = ThreadPool(
            threads=threads,
            inflight=self.inflight,
            attempts=Attempts(
                runtime=JobRuntime(dsn="", installation=None, owner=1),  # type: ignore[arg-type]
                job_timeout_s=job_timeout_s,
                clock=clock,
            ),
            ended=self._end,
            clock=clock,
        )

    def _end(self, execution: Execution) -> None:
        with self._news:
            assert execution.claimed.id not in self.ended
            self.ended[execution.claimed.id] = execution
            self._news.notify_all()

    def make(self, run: Run, payload: str = "{}", *, model: type[BaseModel] | None = None, **columns: Any) -> Execution:
        row = {
            "id": next(self._ids),
            "type": "t",
            "tenant": "",
            "priority": 0,
            "attempt": 1,
            "failures": 0,
            "max_attempts": None,
            "timeout_s": None,
            "created_at": datetime(2030, 1, 1, tzinfo=UTC),
            "payload": payload,
            "checkpoint": None,
            "waited_s": 0.0,
            "claim": 1,
        }
        spec = Executor("t", run, "tests.t", retry=RetryPolicy(max_attempts=2), payload=model)
        return Execution(Claimed(**{**row, **columns}), spec, 0.0)

    def submit(self, *executions: Execution) -> None:
        self.inflight.add(list(executions))
        self.pool.submit(list(executions))

    def wait(self, count: int, within_s: float = 10.0) -> None:
        """Until so many have ended; meanwhile the pool is nudged, as the leader does that waits for room."""
        with self._news:
            for _ in range(int(within_s * 500)):
                if self._news.wait_for(lambda: len(self.ended) >= count, 0.002):
                    return
                self.pool.nudge()
        raise AssertionError(f"{len(self.ended)} of {count} ended")

    def end(self, run: Run, payload: str = "{}", **options: Any) -> Execution:
        """How one job ends; the pool must take another one afterwards on each of its threads."""
        execution = self.make(run, payload, **options)
        self.submit(execution)
        self.wait(1, 3.0)
        others = [self.make(lambda job, ctx: "fine") for _ in range(self.pool.size)]
        self.submit(*others)
        self.wait(1 + len(others))
        assert {outcome(other).state for other in others} == {State.SUCCEEDED}
        assert not self.inflight.any_executing
        return self.ended[execution.claimed.id]


def outcome(execution: Execution) -> Any:
    assert execution.outcome is not None
    return execution.outcome


@pytest.fixture
def pool() -> Pool:
    return Pool(threads=1)


def raising(exc: BaseException) -> Run:
    def run(_job: Job, _ctx: Context) -> None:
        raise exc

    return run


def recursion(job: Job, ctx: Context) -> Any:
    return recursion(job, ctx)


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "run",
    [
        raising(ValueError("no")),
        raising(BaseException("odd")),
        raising(SystemExit(3)),
        raising(KeyboardInterrupt()),
        raising(GeneratorExit()),
        raising(StopIteration()),
        raising(MemoryError()),
        raising(ValueError("NUL \x00 and half a pair \ud800")),
        raising(ExceptionGroup("many", [ValueError(str(n)) for n in range(1000)])),
        raising(Speechless()),
        recursion,
        lambda job, ctx: sys.exit("bye"),
    ],
)
def test_exception_of_any_kind_fails_its_own_job(pool: Pool, run: Run) -> None:
    execution = pool.end(run)
    assert outcome(execution).state is State.SCHEDULED  # to be tried again
    assert outcome(execution).errors.encode()
    assert execution.ended_at >= execution.started_at > 0


@pytest.mark.parametrize(
    "value",
    [object(), b"bytes", {1, 2}, float("nan"), float("inf"), "NUL \x00", "\ud800", {"a": [object()]}, lambda: 1],
)
def test_result_that_is_not_json_fails_its_own_job(pool: Pool, value: Any) -> None:
    execution = pool.end(lambda job, ctx: value)
    assert outcome(execution).state is State.FAILED
    assert "not JSON" in outcome(execution).errors


@pytest.mark.parametrize(
    ("payload", "checkpoint"),
    [
        ('{"n": ' + "9" * 5000 + "}", None),  # more digits than Python converts
        ('{"n": ' + "[" * 200_000 + "]" * 200_000 + "}", None),  # deeper than Python recurses
        ("{}", "9" * 5000),
    ],
    ids=["digits", "depth", "checkpoint"],
)
def test_payload_that_python_cannot_read_fails_its_own_job(pool: Pool, payload: str, checkpoint: str | None) -> None:
    """PostgreSQL stores such numbers and such depths, so that any client can enqueue them."""
    execution = pool.end(lambda job, ctx: "never", payload, checkpoint=checkpoint)
    assert outcome(execution).state in {State.FAILED, State.SCHEDULED}


def test_misfit_names_the_field_and_is_not_tried_again(pool: Pool) -> None:
    class Model(BaseModel):
        n: int

    execution = pool.end(lambda job, ctx: "never", '{"n": "x"}', model=Model)
    assert outcome(execution).state is State.FAILED
    assert "the payload does not fit: n: " in outcome(execution).errors
    assert pool.inflight.executing == []


def test_long_list_of_misfits_is_cut_and_in_plain_words(pool: Pool) -> None:
    def refuse(n: int) -> int:
        raise ValueError("choose another")

    class Model(BaseModel):
        n: list[Annotated[int, AfterValidator(refuse)]]

    execution = pool.end(lambda job, ctx: "never", json.dumps({"n": [1] * 1000}), model=Model)
    said = "the payload does not fit: n.0: choose another; n.1: choose another; n.2: choose another; and 997 more"
    assert json.loads(outcome(execution).errors)[0]["message"] == said


@pytest.mark.parametrize("exc", [RuntimeError("broken validator"), KeyError(1), SystemExit(1)])
def test_model_that_breaks_fails_its_own_job(pool: Pool, exc: BaseException) -> None:
    class Model(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def check(cls, n: int) -> int:
            raise exc

    execution = pool.end(lambda job, ctx: "never", '{"n": 1}', model=Model)
    assert outcome(execution).state in {State.FAILED, State.SCHEDULED}


def test_megabyte_logs_and_errors_harm_nobody(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    def run(job: Job, ctx: Context) -> str:
        ctx.logger.info("x" * 2**20)
        ctx.logger.info("bad arguments %d %d", "one")  # noqa: PLE1206 - as executors do
        raise ValueError("y" * 2**20)

    logging.raiseExceptions, before = False, logging.raiseExceptions
    try:
        with caplog.at_level(logging.WARNING):
            execution = pool.end(run)
    finally:
        logging.raiseExceptions = before
    assert len(outcome(execution).errors) < 100_000


def test_payload_and_context_reach_the_executor(pool: Pool) -> None:
    seen: list[tuple[Job, Context]] = []
    execution = pool.end(
        lambda job, ctx: seen.append((job, ctx)),
        '{"a": "ä🎉"}',
        tenant="acme",
        attempt=4,
        failures=2,
        timeout_s=5.0,
        checkpoint='{"line": 7}',
    )
    ((job, ctx),) = seen
    assert (job.payload, job.tenant, job.attempt, job.failures, job.checkpoint) == (
        {"a": "ä🎉"},
        "acme",
        4,
        2,
        {"line": 7},
    )
    assert ctx.attempt == 4
    assert ctx.deadline == pytest.approx(execution.started_at + 5.0, abs=0.5)  # from the start, not the claim


def test_time_that_a_job_waits_for_a_thread_does_not_count_against_its_timeout(pool: Pool) -> None:
    """It was claimed ahead, behind a job that turned out to be slow: it would time out before its first line."""
    leave, deadlines = threading.Event(), list[float]()

    def first(_job: Job, _ctx: Context) -> None:
        assert leave.wait(10)

    def second(_job: Job, ctx: Context) -> None:
        assert ctx.deadline is not None
        deadlines.append(ctx.deadline)

    pool.submit(pool.make(first), pool.make(second, timeout_s=0.5))
    time.sleep(0.6)  # its timeout goes by while it waits
    left = time.monotonic()
    leave.set()
    pool.wait(2)
    assert left + 0.5 <= deadlines[0] <= time.monotonic() + 0.5


def test_executing_is_what_a_thread_has_not_come_back_from(pool: Pool) -> None:
    entered, leave = threading.Event(), threading.Event()

    def run(job: Job, ctx: Context) -> None:
        entered.set()
        assert leave.wait(10)
        ctx.raise_if_canceled()

    execution = pool.make(run)
    pool.submit(execution)
    assert entered.wait(10)
    assert pool.inflight.executing == [execution]
    assert "leave.wait" in (stack_of(execution.thread) or "")
    assert execution.ctx is not None
    execution.ctx.cancel(CancelReason.SHUTDOWN)
    leave.set()
    pool.wait(1)
    assert not pool.inflight.any_executing
    assert outcome(execution).state is State.PENDING


def test_two_attempts_of_a_job_in_one_process_do_not_disturb_each_other() -> None:
    """The first one was taken away and its thread is not back: the fence must know of it, its thread survive."""
    pool, entered, leave = Pool(2), threading.Event(), threading.Event()

    def wait(_job: Job, _ctx: Context) -> None:
        entered.set()
        assert leave.wait(10)

    first = pool.make(wait, id=7, attempt=1)
    second = pool.make(quick, id=7, attempt=2)
    pool.submit(first)
    assert entered.wait(10)
    pool.pool.run(second)
    assert pool.inflight.executing == [first]
    assert pool.ended.pop(7) is second
    leave.set()
    pool.wait(1)
    assert pool.ended[7] is first
    assert not pool.inflight.any_executing


def test_error_after_a_rolled_back_completion_is_the_error_that_counts(pool: Pool) -> None:
    """The executor's transaction failed after ctx.complete: people need to see why."""

    def run(job: Job, ctx: Context) -> None:
        ctx.completed = True  # as ctx.complete leaves it
        raise ValueError("the reason")

    assert "the reason" in outcome(pool.end(run)).errors


def test_interruption_after_a_rolled_back_completion_uses_up_no_try(pool: Pool) -> None:
    def run(job: Job, ctx: Context) -> None:
        ctx.completed = True
        ctx.cancel(CancelReason.SHUTDOWN)
        raise Interrupted(CancelReason.SHUTDOWN)

    assert outcome(pool.end(run)).failures == 0


def test_completion_without_a_commit_is_a_failure(pool: Pool) -> None:
    def run(job: Job, ctx: Context) -> None:
        ctx.completed = True

    assert "did not commit" in outcome(pool.end(run)).errors


# No thread idles while a job waits.


class Crowd:
    """Jobs that all have to be inside at the same time before any may leave."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size)

    def __call__(self, _job: Job, _ctx: Context) -> str:
        self._barrier.wait(10)
        return "met"


def quick(_job: Job, _ctx: Context) -> None:
    """As quick as a job can be."""


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("burst", [0, 1, 3000])
def test_slow_jobs_after_a_burst_of_quick_ones_get_every_thread(threads: int, burst: int) -> None:
    """The slow ones meet, so each needs a thread of its own: one that idles beside them would end the test."""
    pool = Pool(threads)
    for turn in range(1, 4):
        jobs = [pool.make(quick) for _ in range(burst)]
        jobs += [pool.make(crowd) for crowd in [Crowd(threads)] for _ in range(threads)]
        pool.submit(*jobs)
        pool.wait(turn * len(jobs))
    assert all(outcome(execution).state is State.SUCCEEDED for execution in pool.ended.values())


def test_slow_jobs_among_quick_ones_get_every_thread() -> None:
    pool, crowd = Pool(8), Crowd(8)
    jobs = [pool.make(crowd if n % 250 == 249 else quick) for n in range(2000)]
    for job in jobs:
        pool.submit(job)
    pool.wait(2000)
    assert all(outcome(execution).state is State.SUCCEEDED for execution in pool.ended.values())


def test_many_submitters_lose_no_job() -> None:
    pool = Pool(6)
    jobs = [[pool.make(quick) for _ in range(500)] for _ in range(8)]
    go = threading.Barrier(8)

    def submit(mine: list[Execution]) -> None:
        go.wait()
        for n in range(0, 500, 5):
            pool.submit(*mine[n : n + 5])

    submitters = [threading.Thread(target=submit, args=(mine,)) for mine in jobs]
    for submitter in submitters:
        submitter.start()
    for submitter in submitters:
        submitter.join()
    pool.wait(4000)
    assert pool.pool.waiting == 0
    crowd = Crowd(6)  # and all threads are still there
    pool.submit(*(pool.make(crowd) for _ in range(6)))
    pool.wait(4006)


def test_single_jobs_one_after_another_never_wait_for_a_nudge() -> None:
    pool = Pool(4)
    for n in range(1, 300):
        pool.submit(pool.make(quick))
        with pool._news:
            assert pool._news.wait_for(lambda n=n: len(pool.ended) >= n, 10)  # type: ignore[misc]


def test_waiting_jobs_can_be_taken_back_and_queued_again() -> None:
    pool = Pool(1)
    entered, leave = threading.Event(), threading.Event()

    def block(_job: Job, _ctx: Context) -> None:
        entered.set()
        assert leave.wait(10)

    pool.submit(pool.make(block))
    assert entered.wait(10)
    jobs = [pool.make(quick) for _ in range(10)]
    pool.submit(*jobs)
    taken = pool.pool.take_waiting()
    assert taken == jobs
    assert pool.pool.waiting == 0
    pool.pool.submit(taken[:3])
    leave.set()
    pool.wait(4)
    assert set(pool.ended) >= {job.claimed.id for job in jobs[:3]}


@pytest.mark.parametrize(("takes_s", "count", "known"), [(0.00002, 100, True), (0.0005, 10, False)])
def test_rate_is_known_at_once_where_jobs_are_quick_and_only_there(takes_s: float, count: int, known: bool) -> None:
    """Of slow ones a few that end together say nothing of how many more could: too much would be claimed ahead."""
    now = [0.0]
    pool = Pool(threads=1, clock=lambda: now[0])

    def run(job: Job, ctx: Context) -> None:
        now[0] += takes_s

    pool.submit(*(pool.make(run) for _ in range(count)))
    pool.wait(count)
    assert pool.pool.rate() == pytest.approx(1 / takes_s if known else 0.0, rel=0.02)  # the last may not be counted yet
