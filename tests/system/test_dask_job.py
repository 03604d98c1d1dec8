"""What a single job on a Dask worker can do, and what becomes of it: as in a worker process of the replica's own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from dispatcher.fence import boottime
from dispatcher.job import CancelReason, State
from dispatcher.pools.dask import DaskPool
from tests import far_jobs
from tests.cluster import Cluster
from tests.pooling import Pooling
from tests.system.replicas import until

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), workers=1, threads=2) as cluster:
        yield cluster


@pytest.fixture
def pooling(cluster: Cluster) -> Iterator[Pooling]:
    def make(**parts: Any) -> DaskPool:
        return DaskPool(
            address=cluster.address,
            size=0,
            orphan_after_s=4.0,
            trusted_from=boottime,
            installation=UUID(int=0),
            owner=1,
            kill_after_s=0.2,
            **parts,
        )

    pooling = Pooling(make)
    pooling.pool.start()
    until(lambda: pooling.pool.size == 2, "the worker is found")
    yield pooling
    pooling.pool.stop()


def result(outcome: Any) -> Any:
    assert outcome.state is State.SUCCEEDED, outcome
    return json.loads(outcome.result)


def error(outcome: Any) -> dict[str, Any]:
    (one,) = json.loads(outcome.errors)
    return dict(one)


def test_a_job_runs_below_a_worker_in_a_process_that_stays_warm(pooling: Pooling, cluster: Cluster) -> None:
    first, second = (result(pooling.run(far_jobs.echo, text="é"))["pid"] for _ in range(2))
    assert first == second
    assert psutil.Process(cluster.workers[0].pid) in psutil.Process(first).parents()


def test_progress_and_logs_come_across(pooling: Pooling, caplog: pytest.LogCaptureFixture) -> None:
    assert result(pooling.run(far_jobs.talk, times=1000)) == "told"
    assert pooling.runtime.progress[-1] == (99.0, "nearly")
    told = {record.name: record for record in caplog.records}
    assert told["dispatcher.job"].getMessage() == "halfway through 1000"
    assert "ValueError: why" in told["far.library"].getMessage()


def test_progress_comes_while_the_job_runs_and_a_cancel_reaches_it(pooling: Pooling) -> None:
    execution = pooling.make(far_jobs.wait)
    pooling.submit(execution)
    pooling.runtime.await_progress()
    assert pooling.runtime.progress == [(10.0, "waits")]
    assert execution.ctx is not None
    execution.ctx.cancel(CancelReason.REQUESTED)
    assert pooling.outcome(execution).state is State.CANCELED


def test_a_job_that_hears_nothing_is_killed_with_what_it_started(pooling: Pooling, tmp_path: Path) -> None:
    execution = pooling.make(far_jobs.hang, file=str(tmp_path / "pids"))
    pooling.submit(execution)
    until(lambda: (tmp_path / "pids").exists() and execution.ctx is not None, "it has started")
    assert execution.ctx is not None
    execution.ctx.cancel(CancelReason.TIMEOUT)
    outcome = pooling.outcome(execution)
    assert (outcome.state, error(outcome)["kind"]) == (State.FAILED, "timeout")
    for pid in (tmp_path / "pids").read_text(encoding="ascii").split():
        assert not psutil.pid_exists(int(pid))


@pytest.mark.parametrize(("how", "told"), [("segfault", "SIGSEGV"), ("exit", "status 3")])
def test_a_death_fails_that_job_only(pooling: Pooling, how: str, told: str) -> None:
    outcome = pooling.run(far_jobs.die, how=how)
    assert (outcome.state, error(outcome)["kind"]) == (State.SCHEDULED, "crash")
    assert told in error(outcome)["message"]
    assert result(pooling.run(far_jobs.echo, text="next"))["text"] == "next"


def test_a_worker_without_a_database_says_what_to_set(pooling: Pooling) -> None:
    outcome = pooling.run(far_jobs.connect)
    assert "set DISPATCHER_DSN in the environment of the Dask worker" in error(outcome)["message"]


def test_a_job_canceled_while_it_waits_for_a_place_never_runs(pooling: Pooling) -> None:
    held = [pooling.make(far_jobs.wait) for _ in range(2)]
    late = pooling.make(far_jobs.wait)
    pooling.submit(*held)
    until(lambda: len(pooling.runtime.progress) == 2, "both run")
    pooling.submit(late)
    assert pooling.pool.waiting == 1
    late.cancel_requested = True
    for execution in held:
        assert execution.ctx is not None
        execution.ctx.cancel(CancelReason.REQUESTED)
        pooling.outcome(execution)
    assert pooling.outcome(late).state is State.CANCELED
    assert len(pooling.runtime.progress) == 2


def test_what_no_worker_can_import_fails_and_says_so(pooling: Pooling) -> None:
    execution = pooling.make(far_jobs.echo, text="")
    execution.executor = dataclasses.replace(execution.executor, source="nowhere.run")
    pooling.submit(execution)
    outcome = pooling.outcome(execution)
    assert outcome.state is State.FAILED
    assert "cannot import executors from 'nowhere'" in error(outcome)["message"]
