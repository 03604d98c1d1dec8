"""The pool on a Dask cluster by itself: no PostgreSQL, and an owner that is trusted for as long as the test says."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from dispatcher.fence import boottime
from dispatcher.inflight import Execution
from dispatcher.job import CancelReason, State
from dispatcher.pools.dask import DaskPool
from tests import far_jobs
from tests.cluster import Cluster
from tests.pooling import Pooling

pytestmark = pytest.mark.system


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, workers=1, threads=2) as cluster:
        yield cluster


@pytest.fixture
def pooling(cluster: Cluster) -> Iterator[Pooling]:
    pooling = Pooling(
        lambda **parts: DaskPool(
            address=cluster.address,
            size=0,
            orphan_after_s=20.0,
            trusted_from=boottime,
            installation=UUID(int=0),
            owner=1,
            kill_after_s=0.5,
            **parts,
        )
    )
    pooling.pool.start()
    for _ in range(3000):
        if pooling.pool.size == 2:
            break
        threading.Event().wait(0.01)
    yield pooling
    pooling.pool.stop()


def test_an_address_that_cannot_be_used_is_told_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Without certificates Dask raises a TypeError of its own."""
    pooling = Pooling(
        lambda **parts: DaskPool(
            address="tls://127.0.0.1:1",
            size=0,
            orphan_after_s=20.0,
            trusted_from=boottime,
            installation=UUID(int=0),
            owner=1,
            **parts,
        )
    )
    pooling.pool.start()
    for _ in range(1000):
        if "no Dask scheduler at tls://127.0.0.1:1" in caplog.text:
            break
        threading.Event().wait(0.01)
    pooling.pool.stop()
    assert "no Dask scheduler at tls://127.0.0.1:1: TLS expects" in caplog.text


def begin(pooling: Pooling, execution: Execution) -> None:
    pooling.submit(execution)
    for _ in range(1000):
        if execution.ctx is not None:
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not begin")


def test_a_cancel_at_any_instant_is_heard(pooling: Pooling) -> None:
    """Also while the task is on its way, or a process for it is being started."""
    for number in range(12):
        execution = pooling.make(far_jobs.wait)
        begin(pooling, execution)
        threading.Event().wait(number * 0.02)
        assert execution.ctx is not None
        execution.ctx.cancel(CancelReason.REQUESTED)
        assert pooling.outcome(execution, within_s=15).state is State.CANCELED


def test_a_job_for_which_no_place_comes_free_is_given_back(pooling: Pooling, cluster: Cluster) -> None:
    begin(pooling, pooling.make(far_jobs.wait))
    pooling.runtime.await_progress()
    cluster.workers[0].send_signal(signal.SIGSTOP)
    pool = pooling.pool
    assert isinstance(pool, DaskPool)
    for _ in range(1000):
        if all(member.suspect for member in pool._cluster.members.values()):
            break
        threading.Event().wait(0.01)
    waits = pooling.make(far_jobs.echo, text="")
    begin(pooling, waits)
    assert pooling.outcome(waits, within_s=12).state is State.PENDING


def test_a_task_that_cannot_be_sent_costs_no_slot(pooling: Pooling) -> None:
    execution = pooling.make(far_jobs.echo, text="")
    execution.claimed = execution.claimed._replace(checkpoint=threading.Lock())  # type: ignore[arg-type]
    begin(pooling, execution)
    pooling.outcome(execution, within_s=30)
    assert pooling.pool.executing == 0
    assert pooling.run(far_jobs.echo, text="next").state is State.SUCCEEDED
